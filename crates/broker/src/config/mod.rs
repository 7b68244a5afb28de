//! The broker's own configuration.
//!
//! Owns who wins: the command line, then `broker.toml`, then the defaults. Reads the file and creates nothing. A socket
//! and a state directory on the command line are enough: then no environment variable is needed.

mod paths;
mod settings;

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(crate) use paths::{NoDefault, Surroundings};
use settings::Settings;
use toml::de::DeValue;

use crate::services::values::SOCKET_PATH_MAX;
use crate::services::{self, Problem};

/// Where a broker in the background logs, in its state folder.
const LOG_FOLDER: &str = "log";

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
    /// UTF-8.
    pub(crate) state_dir: PathBuf,
    /// Directories of service files. May be empty, if the user has no home.
    pub(crate) services: Vec<PathBuf>,
    /// The broker leaves when nobody has used it for that long; `None` is never.
    pub(crate) idle_exit: Option<Duration>,
    pub(crate) log: Log,
    pub(crate) limits: Limits,
    pub(crate) processes: Processes,
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

/// The broker's own log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Log {
    /// `None` is the journal where stderr is a stream of it and no folder is named, and text elsewhere.
    pub(crate) format: Option<LogFormat>,
    /// A filter of `tracing-subscriber`, valid.
    pub(crate) level: String,
    /// Where the rolling file is; `None` is stderr, or the journal.
    pub(crate) directory: Option<PathBuf>,
    /// How many files are kept.
    pub(crate) keep: usize,
}

/// What the log is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
    /// Entries of the journal of systemd, with fields.
    Journal,
}

impl LogFormat {
    const WORDS: [(&str, Self); 3] = [("text", Self::Text), ("json", Self::Json), ("journal", Self::Journal)];
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
            state_dir: utf8("--state-dir", state_dir)?,
            services,
            idle_exit: options.idle_exit.unwrap_or(settings.idle_exit).0,
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
mod tests {
    use std::ffi::OsString;
    use std::fs;

    use super::*;

    const NOBODY: Surroundings<'static> = Surroundings { uid: 1000, variable: &|_| None };

    fn sufficient() -> Options {
        Options { socket: Some("/run/b.sock".into()), state_dir: Some("/var/b".into()), ..Options::default() }
    }

    /// The error of a load, with its source.
    fn error(options: &Options, surroundings: Surroundings<'_>) -> String {
        let error = Config::load(options, surroundings).expect_err("an error");
        match std::error::Error::source(&error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        }
    }

    /// Writes a configuration file and loads it.
    fn with_file(content: &str, options: Options) -> Result<Config, ConfigError> {
        let directory = tempfile::tempdir().expect("made");
        let path = directory.path().join("broker.toml");
        fs::write(&path, content).expect("written");
        Config::load(&Options { config: Some(path), ..options }, NOBODY)
    }

    #[test]
    fn a_socket_and_a_state_directory_are_enough() {
        let config = Config::load(&sufficient(), NOBODY).expect("enough");
        assert_eq!(config.socket, Path::new("/run/b.sock"));
        assert_eq!((config.file, config.services), (None, vec![]));
    }

    #[test]
    fn without_them_the_error_names_the_option() {
        let no_socket = Options { socket: None, ..sufficient() };
        let no_state = Options { state_dir: None, ..sufficient() };
        insta::assert_snapshot!(error(&no_socket, NOBODY), @"no default place for the socket: XDG_RUNTIME_DIR is not set to an absolute path; give --socket PATH");
        insta::assert_snapshot!(error(&no_state, NOBODY), @"no default place for the state: neither XDG_STATE_HOME nor HOME is set to an absolute path; give --state-dir DIR");
    }

    #[test]
    fn the_command_line_goes_over_the_file_which_goes_over_the_defaults() {
        let content = "socket = \"/file.sock\"\nstate_dir = \"/file\"\nservices = [\"/s\"]\n[log]\nformat = \"json\"";
        let config = with_file(content, Options::default()).expect("valid");
        assert_eq!((config.socket.as_path(), config.log.format), (Path::new("/file.sock"), Some(LogFormat::Json)));
        assert_eq!(config.services, [Path::new("/s")]);

        let options =
            Options { services: vec!["/a".into(), "/b".into()], log_format: Some(LogFormat::Text), ..sufficient() };
        let config = with_file(content, options).expect("valid");
        assert_eq!((config.socket.as_path(), config.log.format), (Path::new("/run/b.sock"), Some(LogFormat::Text)));
        assert_eq!(config.state_dir, Path::new("/var/b"));
        assert_eq!(config.services, [Path::new("/a"), Path::new("/b")]);
    }

    #[test]
    fn a_socket_that_was_passed_is_the_brokers_unless_it_is_told_another() {
        let passed =
            || Options { socket: None, passed: vec!["/run/p.sock".into(), "/run/q.sock".into()], ..sufficient() };
        assert_eq!(Config::load(&passed(), NOBODY).expect("valid").socket, Path::new("/run/p.sock"));
        let second = Options { socket: Some("/run/q.sock".into()), ..passed() };
        assert_eq!(Config::load(&second, NOBODY).expect("valid").socket, Path::new("/run/q.sock"));
        let other = Options { socket: Some("/run/b.sock".into()), ..passed() };
        insta::assert_snapshot!(error(&other, NOBODY), @"the service manager passed the socket `/run/p.sock`, and --socket or `socket` in broker.toml says `/run/b.sock`: leave that out, or name it as ListenStream= of the socket unit");
    }

    #[test]
    fn a_broker_in_the_background_logs_to_a_file_wherever_nobody_says_another() {
        let detached = Options { detach: true, ..sufficient() };
        let directory = |content, options| with_file(content, options).expect("valid").log.directory;
        assert_eq!(directory("", detached.clone()).as_deref(), Some(Path::new("/var/b/log")));
        assert_eq!(directory("[log]\ndirectory = \"/l\"", detached.clone()).as_deref(), Some(Path::new("/l")));
        let journal = Options { log_format: Some(LogFormat::Journal), ..detached };
        assert_eq!(directory("[log]\ndirectory = \"/l\"", journal), None, "the command line goes over the file");
        assert_eq!(directory("", sufficient()), None);
    }

    #[test]
    fn durable_processes_are_kept_in_the_state_folder_unless_the_file_names_a_store() {
        let processes = |content| with_file(content, sufficient()).expect("valid").processes;
        let own = processes("");
        assert_eq!((own.store.as_path(), own.is_shared), (Path::new("/var/b/processes"), false));
        let shared = processes("[processes]\nstore = \"/shared\"");
        assert_eq!((shared.store.as_path(), shared.is_shared), (Path::new("/shared"), true));
    }

    #[test]
    fn the_idle_exit_of_the_command_line_goes_over_the_files() {
        let idle_exit = |content, option: Option<&str>| {
            let idle_exit = option.map(|text| text.parse().expect("valid"));
            with_file(content, Options { idle_exit, ..sufficient() }).expect("valid").idle_exit
        };
        const FILE: &str = "idle_exit = \"10m\"";
        assert_eq!(idle_exit("", None), None);
        assert_eq!(idle_exit(FILE, None), Some(Duration::from_secs(600)));
        assert_eq!(idle_exit(FILE, Some("200ms")), Some(Duration::from_millis(200)));
        assert_eq!(idle_exit(FILE, Some("never")), None);
    }

    #[test]
    fn a_given_file_must_exist_and_the_default_one_need_not() {
        let options = Options { config: Some("/no/such/broker.toml".into()), ..sufficient() };
        insta::assert_snapshot!(error(&options, NOBODY), @"/no/such/broker.toml: there is no such file");

        let home = tempfile::tempdir().expect("made");
        let variable = |name: &str| (name == "HOME").then(|| OsString::from(home.path()));
        let surroundings = Surroundings { uid: 1000, variable: &variable };
        let config = Config::load(&sufficient(), surroundings).expect("valid");
        assert_eq!((config.file, config.services), (None, vec![home.path().join(".config/broker/services.d")]));

        let folder = home.path().join(".config/broker");
        fs::create_dir_all(&folder).expect("made");
        fs::write(folder.join("broker.toml"), "services = []").expect("written");
        let config = Config::load(&sufficient(), surroundings).expect("valid");
        assert_eq!((config.file, config.services), (Some(folder.join("broker.toml")), vec![]));
    }

    #[test]
    fn a_bad_file_is_an_error_with_all_its_problems() {
        let message = with_file("sokcet = 1\n[log]\nkep = 2", sufficient()).expect_err("bad").to_string();
        let message = message.lines().map(|line| line.rsplit_once('/').expect("a path").1).collect::<Vec<_>>();
        insta::assert_snapshot!(message.join("\n"), @r"
broker.toml:1:1: unknown key `sokcet` at the top of the file, did you mean `socket`?
broker.toml:3:1: unknown key `kep` in [log], did you mean `keep`?
");
    }

    #[test]
    fn a_socket_path_that_the_kernel_would_refuse_is_an_error() {
        let path = |length: usize| Some(PathBuf::from(format!("/{}", "s".repeat(length - 1))));
        assert!(Config::load(&Options { socket: path(107), ..sufficient() }, NOBODY).is_ok());
        insta::assert_snapshot!(error(&Options { socket: path(108), ..sufficient() }, NOBODY), @"the socket's path is 108 bytes long, the limit is 107: `/sssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssssss`; give a shorter one with --socket");
    }

    #[test]
    fn a_relative_path_is_made_absolute() {
        let here = std::env::current_dir().expect("there");
        let config = Config::load(&Options { state_dir: Some("state".into()), ..sufficient() }, NOBODY);
        assert_eq!(config.expect("valid").state_dir, here.join("state"));
        let empty = Options { state_dir: Some("".into()), ..sufficient() };
        insta::assert_snapshot!(error(&empty, NOBODY), @"cannot make --state-dir `` absolute: cannot make an empty path absolute");
    }
}
