//! Who wins, and what is said of what is missing.

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
    let passed = || Options { socket: None, passed: vec!["/run/p.sock".into(), "/run/q.sock".into()], ..sufficient() };
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
