//! Where things of the broker and of its backends lie.
//!
//! Endpoints lie in a folder beside the broker's socket (`/run/broker/broker.sock.d/`), what outlives a start in the
//! state folder. The same key always has the same places.

use std::collections::HashSet;
use std::fmt::Display;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::cgroups::Cgroups;
use crate::core::registry::BackendKey;
use crate::net::endpoint::remove_dead_unix;
use crate::process::leftovers::end_writers;
use crate::process::start_record;
use crate::services::values::SOCKET_PATH_MAX;

/// Room for what follows an endpoint's stem: `.` and a generation of twenty digits and `.notify`.
const SUFFIX_MAX: usize = 28;

/// How the names end of listening sockets, and of notify sockets.
pub(super) const LISTENER: &str = ".sock";
pub(super) const NOTIFY: &str = ".notify";

/// The folder of a backend's log files, in its own.
const LOGS: &str = "logs";

/// What belongs to backends that live, or may.
#[derive(Debug, Default)]
pub(super) struct Spared {
    /// Their folders, as they are named below that of all backends.
    pub(super) backends: Vec<PathBuf>,
    pub(super) sockets: HashSet<PathBuf>,
    /// Those all of whose cgroups are theirs, as [`starts_of`] has it.
    pub(super) starts_of: Vec<String>,
    /// Single starts whose cgroups somebody ends already.
    pub(super) starts: HashSet<String>,
}

impl Spared {
    /// Whether the cgroup of a start is left alone.
    fn has_start(&self, name: &str) -> bool {
        let is_of = |starts: &String| is_start_of(name, starts);
        self.starts.contains(name) || self.starts_of.iter().any(is_of)
    }
}

/// The folder of a backend below that of all backends.
pub(super) fn folder_of(key: &BackendKey) -> PathBuf {
    [key.instance.as_str(), key.service.as_str(), &key.version.to_string()].iter().collect()
}

/// One start, as its record is called, and its cgroup.
pub(super) fn start_name(key: &BackendKey, generation: u64) -> String {
    format!("{}{generation}", starts_of(&key.service, &key.version, &key.instance))
}

/// How the names of a backend's starts begin; a generation follows, and nothing else.
pub(super) fn starts_of(service: &impl Display, version: &impl Display, instance: &impl Display) -> String {
    format!("{service}@{version}~{instance}.")
}

/// Whether a name is that of such a start. The names of instances may hold dots, too.
fn is_start_of(name: &str, starts: &str) -> bool {
    let generation = name.strip_prefix(starts);
    generation.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Whether a name is that of a start.
pub(super) fn is_start_name(name: &str) -> bool {
    name.split_once('@').is_some_and(|(_, rest)| rest.contains('~'))
}

/// The folders of one broker.
#[derive(Debug, Clone)]
pub(super) struct Places {
    endpoints: PathBuf,
    state: PathBuf,
}

impl Places {
    pub(super) fn new(socket: &Path, state: &Path) -> Self {
        let mut endpoints = socket.as_os_str().to_owned();
        endpoints.push(".d");
        Self { endpoints: endpoints.into(), state: state.to_owned() }
    }

    /// The folder of endpoints.
    pub(super) fn endpoints(&self) -> &Path {
        &self.endpoints
    }

    /// The folder of what outlives a start.
    pub(super) fn state(&self) -> &Path {
        &self.state
    }

    /// The Unix socket of a backend whose service file names none.
    pub(super) fn socket(&self, key: &BackendKey) -> PathBuf {
        self.endpoint(key, LISTENER)
    }

    /// The notify socket of one start.
    pub(super) fn notify(&self, key: &BackendKey, generation: u64) -> PathBuf {
        self.endpoint(key, &format!(".{generation}{NOTIFY}"))
    }

    /// Readable where the kernel's limit on socket paths allows it, else a hash. `@` and `~` are in no name.
    fn endpoint(&self, key: &BackendKey, suffix: &str) -> PathBuf {
        let readable = format!("{}@{}~{}", key.service, key.version, key.instance);
        let room = SOCKET_PATH_MAX.saturating_sub(self.endpoints.as_os_str().len() + 1 + SUFFIX_MAX);
        let stem = if readable.len() <= room { readable } else { format!("{:016x}", fnv1a(readable.as_bytes())) };
        self.endpoints.join(stem + suffix)
    }

    /// The private folder of a backend, which outlives it (`{state_dir}`).
    pub(super) fn data(&self, key: &BackendKey) -> PathBuf {
        self.of_backend(key).join("data")
    }

    /// The folder of a backend's log files.
    pub(super) fn logs(&self, key: &BackendKey) -> PathBuf {
        self.of_backend(key).join(LOGS)
    }

    /// The journal of backends.
    pub(super) fn journal(&self) -> PathBuf {
        self.state.join("journal.db")
    }

    /// The folder of start records.
    pub(super) fn starts(&self) -> PathBuf {
        self.state.join("starts")
    }

    /// The record of one start. Names are of a bounded length, so it is one of a file.
    pub(super) fn start(&self, key: &BackendKey, generation: u64) -> PathBuf {
        self.starts().join(start_name(key, generation))
    }

    fn of_backend(&self, key: &BackendKey) -> PathBuf {
        self.state.join("backends").join(folder_of(key))
    }

    /// Ends what an earlier broker left without a record of it, and removes the sockets that nobody serves.
    pub(super) fn sweep(&self, spared: &Spared, cgroups: &Cgroups) {
        cgroups.sweep(|name| spared.has_start(name));
        // As the kernel names them.
        let [backends, starts] = [self.state.join("backends"), self.starts()].map(|folder| folder.canonicalize().ok());
        let is_below_ours = |file: &Path| {
            let Some(below) = backends.as_ref().and_then(|folder| file.strip_prefix(folder).ok()) else { return false };
            // `INSTANCE/SERVICE/VERSION/logs/FILE`. What is in `data` is the daemon's own, or a process's.
            below.components().nth(3).is_some_and(|folder| folder.as_os_str() == LOGS)
                && !spared.backends.iter().any(|backend| below.starts_with(backend))
        };
        let is_lost = |file: &Path| start_record::start_of(file).is_some_and(|name| !spared.has_start(name));
        let is_aside_of_ours = |file: &Path| file.parent() == starts.as_deref() && is_lost(file);
        if backends.is_some() || starts.is_some() {
            let ended = end_writers(|file| is_below_ours(file) || is_aside_of_ours(file));
            if !ended.is_empty() {
                tracing::warn!(?ended, "ended what outlived an earlier broker");
            }
        }
        let lost = start_record::list(&self.starts()).unwrap_or_default().into_iter().filter(|file| is_lost(file));
        lost.for_each(|file| drop(fs::remove_file(file)));
        let entries = fs::read_dir(&self.endpoints).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()).filter(|path| !spared.sockets.contains(path)) {
            let is_socket = path.extension().is_some_and(|extension| extension == "notify" || extension == "sock");
            // Another broker may have moved its own socket elsewhere, and still have others here.
            if is_socket && let Err(error) = remove_dead_unix(&path) {
                tracing::warn!(%error, path = %path.display(), "cannot remove what an earlier broker left");
            }
        }
    }

    /// The lock that makes this state folder one broker's.
    pub(super) fn lock(&self) -> PathBuf {
        self.state.join("lock")
    }
}

/// What a socket is called where the service manager keeps it: as its file is.
pub(super) fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Makes a folder and those above it, each new one for its owner alone: 0700, or 0750 with a group.
pub(super) fn make_private(directory: &Path, group: Option<u32>) -> io::Result<()> {
    let exists = directory.is_dir();
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    if let (false, Some(group)) = (exists, group) {
        std::os::unix::fs::chown(directory, None, Some(group))?;
        fs::set_permissions(directory, fs::Permissions::from_mode(0o750))?;
    }
    Ok(())
}

/// The 64-bit FNV-1a hash (<http://www.isthe.com/chongo/tech/comp/fnv/>): the same in every release, unlike the
/// standard library's.
pub(super) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use broker_proto::{InstanceName, ServiceName};

    use super::*;

    fn key(instance: &str) -> BackendKey {
        BackendKey {
            instance: InstanceName::parse(instance).expect("valid"),
            service: ServiceName::parse("redis").expect("valid"),
            version: semver::Version::new(7, 0, 15),
        }
    }

    #[test]
    fn an_endpoint_is_readable_where_it_fits() {
        let places = Places::new(Path::new("/run/broker/broker.sock"), Path::new("/var/lib/broker"));
        let socket = places.socket(&key("default"));
        assert_eq!(socket, Path::new("/run/broker/broker.sock.d/redis@7.0.15~default.sock"));
        let notify = places.notify(&key("default"), 3);
        assert_eq!(notify, Path::new("/run/broker/broker.sock.d/redis@7.0.15~default.3.notify"));
        assert_eq!(places.logs(&key("ci")), Path::new("/var/lib/broker/backends/ci/redis/7.0.15/logs"));
    }

    #[test]
    fn a_start_is_of_one_backend_and_of_no_other() {
        let of = |instance: &str| {
            let BackendKey { instance, service, version } = key(instance);
            starts_of(&service, &version, &instance)
        };
        let name = start_name(&key("a"), 3);
        assert_eq!(name, "redis@7.0.15~a.3");
        assert!(is_start_of(&name, &of("a")));
        for (instance, other) in [("a.b", "a"), ("a.b", "a.b.3"), ("a", "a.3")] {
            assert!(!is_start_of(&start_name(&key(instance), 3), &of(other)), "{instance} {other}");
        }
        let spared =
            Spared { starts_of: vec![of("a")], starts: HashSet::from([start_name(&key("x"), 2)]), ..Spared::default() };
        assert!(spared.has_start("redis@7.0.15~a.12") && spared.has_start("redis@7.0.15~x.2"));
        assert!(!spared.has_start("redis@7.0.15~a.b.12") && !spared.has_start("redis@7.0.15~x.1"));
    }

    #[test]
    fn a_long_name_still_has_a_socket_that_the_kernel_takes() {
        let places = Places::new(Path::new("/run/user/1000/broker/broker.sock"), Path::new("/s"));
        let (one, other) = (key(&"x".repeat(64)), key(&"y".repeat(64)));
        assert!(places.socket(&one).as_os_str().len() <= SOCKET_PATH_MAX);
        assert!(places.notify(&one, u64::MAX).as_os_str().len() <= SOCKET_PATH_MAX);
        assert_ne!(places.socket(&one), places.socket(&other));
    }

    #[test]
    fn fnv_1a_agrees_with_its_published_vectors() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }
}
