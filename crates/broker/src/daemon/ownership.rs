//! One broker per state folder and per socket.
//!
//! Owns the locks and the listening sockets. A socket file is removed only under the lock, and only after the kernel said
//! that nobody listens on it; that of a socket which the service manager listens on is never touched.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use interprocess::local_socket::{GenericFilePath, ListenerOptions, ToFsName};
use interprocess::os::unix::uds_local_socket::Listener;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::Pid;

use super::inherited::Listening;
use super::listener::Door;
use super::places::{Places, make_private};
use crate::process::identity::stat;

/// How often a taken lock is looked at again whose holder is not to be seen, and the pause before the next time.
const LOOKS_MAX: u32 = 200;
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Why the broker cannot have its places.
#[derive(Debug, thiserror::Error)]
pub(super) enum OwnershipError {
    /// Another broker runs.
    #[error("another broker{who} holds `{}`: stop it first, or give this one a {option} of its own", .path.display())]
    Taken { path: PathBuf, who: String, option: &'static str },
    /// Something that is no socket is in the way.
    #[error("`{}` exists and is no socket: remove it, or give another path with --socket", .0.display())]
    NotASocket(PathBuf),
    /// The system refuses.
    #[error("cannot {what} `{}`", .path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Held as long as the broker runs.
#[derive(Debug)]
pub(super) struct Ownership {
    /// The file of a socket that this broker bound.
    bound: Option<PathBuf>,
    _state: Flock<File>,
    _socket_lock: Flock<File>,
}

impl Ownership {
    /// Takes the state folder and the socket's path, making the folders where they are missing, and listens: on the
    /// sockets that the service manager passed, else on one of its own.
    pub(super) fn take(
        socket: &Path,
        state: &Path,
        places: &Places,
        group: Option<u32>,
        passed: Vec<Listening>,
    ) -> Result<(Self, Vec<Rc<Door>>), OwnershipError> {
        let failed = |what, path: &Path| {
            let path = path.to_owned();
            move |source| OwnershipError::Io { what, path, source }
        };
        make_private(state, None).map_err(failed("make the state folder", state))?;
        let state_lock = lock(&places.lock(), state, "--state-dir")?;
        if let Some(parent) = socket.parent() {
            make_private(parent, group).map_err(failed("make the socket's folder", parent))?;
        }
        let mut lock_path = socket.as_os_str().to_owned();
        lock_path.push(".lock");
        let socket_lock = lock(Path::new(&lock_path), socket, "--socket")?;
        let endpoints = places.endpoints();
        make_private(endpoints, group).map_err(failed("make the folder of endpoints", endpoints))?;
        let ownership = |bound| Self { bound, _state: state_lock, _socket_lock: socket_lock };
        if !passed.is_empty() {
            // Who may come, and when the files go, the service manager was told.
            let serve = |Listening { path, socket }: Listening| {
                Door::new(Listener::from(socket)).map(Rc::new).map_err(failed("serve the inherited socket", &path))
            };
            return Ok((ownership(None), passed.into_iter().map(serve).collect::<Result<_, _>>()?));
        }

        remove_stale(socket)?;
        let name = socket.to_fs_name::<GenericFilePath>().map_err(failed("name", socket))?;
        let listener = ListenerOptions::new().name(name).reclaim_name(false).create_sync_as::<Listener>();
        let door = listener.and_then(Door::new).map_err(failed("listen on", socket))?;
        // Who may come as far as this file is the folder's affair; who may have what is decided by the peer's credentials.
        fs::set_permissions(socket, fs::Permissions::from_mode(0o666)).map_err(failed("set the mode of", socket))?;
        Ok((ownership(Some(socket.to_owned())), vec![Rc::new(door)]))
    }

    /// Takes the file of its own socket away, while the lock is still held. What the service manager listens on stays, and
    /// who waits there is the next broker's.
    pub(super) fn shut_door(&mut self) {
        if let Some(socket) = self.bound.take() {
            let _ = fs::remove_file(socket);
        }
    }

    /// Whether the socket is the broker's own.
    pub(super) fn is_own(&self) -> bool {
        self.bound.is_some()
    }
}

/// Locks a file and writes into it who we are and since when; the lock lasts until the process ends, however it ends.
fn lock(path: &Path, what: &Path, option: &'static str) -> Result<Flock<File>, OwnershipError> {
    let failed = |source| OwnershipError::Io { what: "lock", path: path.to_owned(), source };
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
    let mut taken = Flock::lock(file.map_err(failed)?, FlockArg::LockExclusiveNonblock);
    // What a killed broker was about to start has its files, and so this lock, until it executes its program: as long as
    // nobody is to be seen who holds it, it may become free any moment.
    for _ in 0..LOOKS_MAX {
        taken = match taken {
            Err((file, nix::errno::Errno::EWOULDBLOCK)) if holder(&file).is_none() => {
                std::thread::sleep(LOOK_AGAIN);
                Flock::lock(file, FlockArg::LockExclusiveNonblock)
            }
            result => {
                taken = result;
                break;
            }
        };
    }
    match taken {
        Ok(mut locked) => {
            // What was longer is cut afterwards: a file that is emptied first costs the disk two changes.
            let write = |file: &mut File| {
                let who = format!("{}\n{:.0}\n", std::process::id(), jiff::Timestamp::now());
                file.write_all_at(who.as_bytes(), 0)?;
                let length = u64::try_from(who.len()).unwrap_or(u64::MAX);
                if file.metadata()?.len() > length { file.set_len(length) } else { Ok(()) }
            };
            // A courtesy to whom finds it taken; a full disk is no reason not to run.
            if let Err(error) = write(&mut locked) {
                tracing::warn!(%error, path = %path.display(), "cannot write the broker's pid into its lock");
            }
            Ok(locked)
        }
        Err((file, nix::errno::Errno::EWOULDBLOCK)) => {
            let who = holder(&file).map(|who| format!(" ({who})")).unwrap_or_default();
            Err(OwnershipError::Taken { path: what.to_owned(), who, option })
        }
        Err((_, errno)) => Err(failed(errno.into())),
    }
}

/// Who has a lock, if that process lives, and since when. One that has just been taken says nothing yet, or who held it
/// before.
fn holder(mut file: &File) -> Option<String> {
    let mut text = String::new();
    file.rewind().and_then(|()| file.read_to_string(&mut text)).ok()?;
    let (pid, since) = text.trim().split_once('\n').unwrap_or((text.trim(), ""));
    let pid: i32 = pid.parse().ok()?;
    if !matches!(stat(Pid::from_raw(pid)), Ok(Some(stat)) if stat.state != b'Z') {
        return None;
    }
    let since = since.parse::<jiff::Timestamp>().map(|time| format!(", since {}", local(time)));
    Some(format!("pid {pid}{}", since.unwrap_or_default()))
}

/// A time as people here write it.
fn local(time: jiff::Timestamp) -> String {
    time.to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// Removes the socket of a broker that is gone.
fn remove_stale(socket: &Path) -> Result<(), OwnershipError> {
    let failed = |source| OwnershipError::Io { what: "look at", path: socket.to_owned(), source };
    let metadata = match fs::symlink_metadata(socket) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(failed)?,
    };
    if !std::os::unix::fs::FileTypeExt::is_socket(&metadata.file_type()) {
        return Err(OwnershipError::NotASocket(socket.to_owned()));
    }
    match UnixStream::connect(socket) {
        Ok(stream) => {
            let pid = super::peer::of(&stream, nix::unistd::getuid().as_raw())
                .map(|(_, pid)| format!(" (pid {pid})"))
                .unwrap_or_default();
            Err(OwnershipError::Taken { path: socket.to_owned(), who: pid, option: "--socket" })
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            tracing::info!(socket = %socket.display(), "removing the socket of a broker that is gone");
            fs::remove_file(socket).map_err(|source| OwnershipError::Io {
                what: "remove the stale socket",
                path: socket.to_owned(),
                source,
            })
        }
        Err(error) => Err(failed(error)),
    }
}
