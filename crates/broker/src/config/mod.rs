//! The broker's own configuration.
//!
//! Owns who wins: the command line, then `broker.toml`, then the defaults. Reads the file and creates nothing. A socket
//! and a state directory on the command line are enough: then no environment variable is needed.

mod log;
mod paths;
mod settings;

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(crate) use log::{Log, LogFormat};
use nix::unistd::{Gid, Group};
pub(crate) use paths::{NoDefault, Surroundings};
use settings::Settings;
use toml::de::DeValue;

use crate::services::values::SOCKET_PATH_MAX;
use crate::services::{self, Problem};

/// Where a broker in the background logs, in its state folder.
const LOG_FOLDER: &str = "log";

/// The group that controls the system's broker, where there is such a group.
const ADMIN_GROUP: &str = "broker-admin";

/// Where durable processes are kept, in the state folder.
const PROCESSES_FOLDER: &str = "processes";

/// What the command line says, and the service manager. Relative paths are taken from the current directory.
#[derive(Debug, Clone, Default)]
pub(crate) struct Options {
    /// Must exist, unlike the default one.
    pub(crate) config: Option<PathBuf>,
    pub(crate) socket: Option<PathBuf>,
    /// Directories of service files; empty is that none was given.
    pub(crate) services: Vec<PathBuf>,
    pub(crate) state_dir: Option<PathBuf>,
    pub(crate) log_format: Option<LogFormat>,
    pub(crate) idle_exit: Option<IdleExit>,
    /// The broker goes into the background, where it has no stderr.
    pub(crate) detach: bool,
    /// The sockets that the service manager listens on for the broker, which no option says.
    pub(crate) passed: Vec<PathBuf>,
}

/// How the broker runs. All paths are absolute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    /// The file that was read.
    pub(crate) file: Option<PathBuf>,
    /// UTF-8, and at most 107 bytes.
    pub(crate) socket: PathBuf,
    /// The group whose members may connect, by number.
    pub(crate) socket_group: Option<u32>,
    /// Who may control the broker, besides root and the user that it runs as.
    pub(crate) admins: Admins,
    /// UTF-8.
    pub(crate) state_dir: PathBuf,
    /// Directories of service files. May be empty, if the user has no home.
    pub(crate) services: Vec<PathBuf>,
    /// The broker leaves when nobody has used it for that long; `None` is never.
    pub(crate) idle_exit: Option<Duration>,
    /// How long the broker stays awake after an answer, waiting for the next request; zero is not at all.
    pub(crate) busy_poll: Duration,
    pub(crate) cgroups: Cgroups,
    pub(crate) log: Log,
    pub(crate) limits: Limits,
    pub(crate) processes: Processes,
}

/// Whether backends live in cgroups of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cgroups {
    /// Wherever the broker may make them.
    Auto,
    /// Nowhere.
    Off,
}

impl Cgroups {
    const WORDS: [(&str, Self); 2] = [("auto", Self::Auto), ("off", Self::Off)];
}

/// Whose orders are taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Admins {
    Nobody,
    Group(AdminGroup),
    /// Members of [`AdminGroup::of_the_system`]. It is looked for when it first matters: the lookup takes more time and memory
    /// than all else that a start reads.
    OfTheSystem,
}

/// A group whose members may control the broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AdminGroup {
    pub(crate) gid: u32,
    /// For people; the number if it has none.
    pub(crate) name: String,
}

impl AdminGroup {
    /// The group of that number.
    fn of(gid: u32) -> Self {
        let name = Group::from_gid(Gid::from_raw(gid)).ok().flatten().map(|group| group.name);
        Self { gid, name: name.unwrap_or_else(|| gid.to_string()) }
    }

    /// The one that controls a broker of the system unless the file says otherwise, if it exists. Whom the system asks may
    /// be far away.
    ///
    /// # Errors
    /// The system cannot say whether it does.
    pub(crate) fn of_the_system() -> nix::Result<Option<Self>> {
        let group = Group::from_name(ADMIN_GROUP)?;
        Ok(group.map(|group| Self { gid: group.gid.as_raw(), name: group.name }))
    }
}

/// How durable processes are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Processes {
    /// The folder of the store.
    pub(crate) store: PathBuf,
    /// It is not the state folder's own, so other brokers may use it, too.
    pub(crate) is_shared: bool,
    /// At least a tenth of a second.
    pub(crate) lease: Duration,
    /// The most that run at once; not zero.
    pub(crate) concurrent: usize,
}

/// After which time a broker leaves that nobody uses; `None` is never.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IdleExit(pub(crate) Option<Duration>);

impl std::str::FromStr for IdleExit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        settings::idle_exit(&DeValue::String(text.into()))
    }
}

/// Limits on what peers can make grow. None is zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) backends: usize,
    pub(crate) waiters_per_backend: usize,
    pub(crate) sessions_per_user: usize,
    pub(crate) first_message_timeout: Duration,
}

/// Why the broker cannot run so.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    /// The file is bad; one line for each problem.
    #[error("{}", lines(.0))]
    File(Vec<Problem>),
    /// Neither an option, nor the file, nor the environment says where something is.
    #[error(transparent)]
    NoDefault(#[from] NoDefault),
    /// The kernel would refuse to bind it.
    #[error(
        "the socket's path is {length} bytes long, the limit is {SOCKET_PATH_MAX}: `{}`; give a shorter one with \
         --socket",
        .path.display()
    )]
    SocketTooLong { path: PathBuf, length: usize },
    /// The service manager listens elsewhere than the broker is told to.
    #[error(
        "the service manager passed the socket `{}`, and --socket or `socket` in broker.toml says `{}`: leave that \
         out, or name it as ListenStream= of the socket unit",
        .passed.display(), .told.display()
    )]
    PassedAnother { passed: PathBuf, told: PathBuf },
    /// The path is handed to daemons and clients as text.
    #[error("{option} `{}` is not UTF-8: give another path", .path.display())]
    NotUtf8 { option: &'static str, path: PathBuf },
    /// A relative path on the command line has no meaning.
    #[error("cannot make {option} `{}` absolute", .path.display())]
    Relative {
        option: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(Problem::to_string).collect::<Vec<_>>().join("\n")
}

impl Config {
    /// Puts the configuration together.
    ///
    /// # Errors
    /// All problems of the file, or what is missing and which option gives it.
    pub(crate) fn load(options: &Options, surroundings: Surroundings<'_>) -> Result<Self, ConfigError> {
        let given = options.config.as_deref().map(|path| absolute("--config", path)).transpose()?;
        // The default file may be missing. A link that leads nowhere is not missing, it is a mistake.
        let exists = |path: &PathBuf| path.is_symlink() || path.try_exists().unwrap_or(true);
        let file = given.or_else(|| surroundings.config_file().filter(exists));
        let settings = read(file.as_deref())?;

        let socket = match (&options.socket, settings.socket) {
            (Some(path), _) => absolute("--socket", path)?,
            (None, Some(path)) => path,
            (None, None) => options.passed.first().cloned().map_or_else(|| surroundings.socket(), Ok)?,
        };
        if !options.passed.is_empty() && !options.passed.iter().any(|passed| is_same(passed, &socket)) {
            return Err(ConfigError::PassedAnother { passed: options.passed[0].clone(), told: socket });
        }
        let length = socket.as_os_str().len();
        if length > SOCKET_PATH_MAX {
            return Err(ConfigError::SocketTooLong { path: socket, length });
        }
        let state_dir = match (&options.state_dir, settings.state_dir) {
            (Some(path), _) => absolute("--state-dir", path)?,
            (None, Some(path)) => path,
            (None, None) => surroundings.state_dir()?,
        };
        let services = match (options.services.as_slice(), settings.services) {
            ([], Some(directories)) => directories,
            ([], None) => surroundings.services_dir().into_iter().collect(),
            (given, _) => given.iter().map(|path| absolute("--services", path)).collect::<Result<_, _>>()?,
        };
        let format = options.log_format.or(settings.log.format);
        let directory = match format {
            Some(LogFormat::Journal) => None,
            None | Some(LogFormat::Text | LogFormat::Json) => {
                settings.log.directory.or_else(|| options.detach.then(|| state_dir.join(LOG_FOLDER)))
            }
        };
        let log = Log { format, directory, ..settings.log };
        let processes = Processes {
            is_shared: settings.processes.store.is_some(),
            store: settings.processes.store.unwrap_or_else(|| state_dir.join(PROCESSES_FOLDER)),
            lease: settings.processes.lease,
            concurrent: settings.processes.concurrent,
        };
        Ok(Self {
            file,
            socket: utf8("--socket", socket)?,
            socket_group: settings.socket_group,
            admins: match settings.admin_group {
                Some(group) => Admins::Group(group),
                None if surroundings.uid == 0 => Admins::OfTheSystem,
                None => Admins::Nobody,
            },
            state_dir: utf8("--state-dir", state_dir)?,
            services,
            idle_exit: options.idle_exit.unwrap_or(settings.idle_exit).0,
            busy_poll: settings.busy_poll,
            cgroups: settings.cgroups,
            log,
            limits: settings.limits,
            processes,
        })
    }
}

/// Reads the file; without one, what an empty file says.
fn read(file: Option<&Path>) -> Result<Settings, ConfigError> {
    let failed = |problem| ConfigError::File(vec![problem]);
    let Some(path) = file else {
        let (settings, problems) = settings::parse(Path::new("broker.toml"), "");
        return settings.ok_or(ConfigError::File(problems));
    };
    let text = services::read_file(path).map_err(failed)?;
    if let Some(reason) = text.distrust {
        return Err(failed(Problem::error(path, format!("the file is not read: {reason}"))));
    }
    let (settings, problems) = settings::parse(path, &text.text);
    settings.ok_or(ConfigError::File(problems))
}

/// Whether two paths lead to one file, however they are written.
fn is_same(one: &Path, other: &Path) -> bool {
    let file = |path: &Path| std::fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    one == other || file(one).is_some_and(|one| Some(one) == file(other))
}

fn absolute(option: &'static str, path: &Path) -> Result<PathBuf, ConfigError> {
    std::path::absolute(path).map_err(|source| ConfigError::Relative { option, path: path.to_owned(), source })
}

fn utf8(option: &'static str, path: PathBuf) -> Result<PathBuf, ConfigError> {
    match path.to_str() {
        Some(_) => Ok(path),
        None => Err(ConfigError::NotUtf8 { option, path }),
    }
}

#[cfg(test)]
mod tests;
