//! Starting a broker, with a script in its place.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;

use nix::sys::signal::kill;
use nix::sys::socket::{Backlog, bind, listen};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::*;

/// Far more than anything here takes; it only turns a hang into a failure.
const PATIENCE: Duration = Duration::from_secs(60);

/// A folder with a script in brokerd's place.
struct Place(TempDir);

impl Place {
    /// The script has the folder as its current directory.
    fn with(script: &str) -> Self {
        let place = Self(tempfile::tempdir().expect("a folder"));
        let text = format!("#!/bin/sh\ncd {} || exit 9\n{script}\n", place.0.path().display());
        // Another process writes it: who executes a file while a child of ours still has it open for writing is refused.
        let write = "printf %s \"$1\" > \"$2\" && chmod 700 \"$2\"";
        let status = Command::new("sh").args(["-c", write, "sh", &text]).arg(place.path("program")).status();
        assert!(status.expect("sh runs").success());
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn socket(&self) -> PathBuf {
        self.path("run/s")
    }

    fn autostart(&self) -> Autostart {
        Autostart::new().program(self.path("program"))
    }

    async fn start(&self) -> Result<(), AutostartError> {
        self.autostart().start(&self.socket(), PATIENCE).await
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    async fn wait_for(&self, name: &str) -> String {
        wait_until(|| self.text(name).ends_with('\n')).await;
        self.text(name).trim_end().to_owned()
    }
}

async fn wait_until(condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < PATIENCE, "waited in vain");
        tokio::time::sleep(PAUSE_FIRST).await;
    }
}

fn is_gone(pid: &str) -> bool {
    kill(Pid::from_raw(pid.parse().expect("a number")), None) == Err(Errno::ESRCH)
}

/// The code and the words of a start that the program did not make.
fn failed(result: Result<(), AutostartError>) -> (Option<i32>, String) {
    match result {
        Err(AutostartError::Failed { code, message, .. }) => (code, message),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn where_a_broker_answers_none_is_started() {
    let place = Place::with("touch started");
    let socket = place.path("s");
    let _listener = UnixListener::bind(&socket).expect("bound");
    place.autostart().start(&socket, PATIENCE).await.expect("one runs");
    assert!(!place.path("started").exists() && !place.path("s.start").exists());
}

#[tokio::test]
async fn a_full_backlog_is_a_broker() {
    let place = Place::with("touch started");
    let socket = place.path("s");
    let flags = SockFlag::SOCK_CLOEXEC;
    let full = super::socket(AddressFamily::Unix, SockType::Stream, flags, None).expect("a socket");
    bind(full.as_raw_fd(), &UnixAddr::new(&socket).expect("a short path")).expect("bound");
    listen(&full, Backlog::new(0).expect("a backlog")).expect("listening");
    let _first = std::os::unix::net::UnixStream::connect(&socket).expect("there is room for one");
    place.autostart().start(&socket, PATIENCE).await.expect("one runs");
    assert!(!place.path("started").exists());
}

#[tokio::test]
async fn the_program_is_told_where_and_for_how_long() {
    let place = Place::with("for one in \"$@\"; do echo \"$one\" >> told; done");
    place.start().await.expect("it says so");
    let socket = place.socket().display().to_string();
    assert_eq!(place.text("told"), format!("--detach\n--socket\n{socket}\n--idle-exit\n600000ms\n"));
    let mode = |name: &str| fs::metadata(place.path(name)).expect("made").permissions().mode() & 0o777;
    assert_eq!((mode("run"), mode("run/s.start")), (0o700, 0o600));

    fs::remove_file(place.path("told")).expect("there");
    let autostart = place.autostart().idle_exit(Duration::from_micros(1500)).argument("--services").argument("x y");
    autostart.start(&place.socket(), PATIENCE).await.expect("it says so");
    assert!(place.text("told").ends_with("--idle-exit\n2ms\n--services\nx y\n"), "{}", place.text("told"));
}

#[tokio::test]
async fn of_many_clients_one_starts_it() {
    let place = Arc::new(Place::with("echo $$ >> starts; while [ ! -S run/s ]; do sleep 0.01; done"));
    let clients: Vec<_> = (0..50)
        .map(|_| {
            let place = Arc::clone(&place);
            tokio::spawn(async move { place.start().await })
        })
        .collect();
    place.wait_for("starts").await;
    let _listener = UnixListener::bind(place.socket()).expect("the folder is there");
    for client in clients {
        client.await.expect("no panic").expect("started");
    }
    assert_eq!(place.text("starts").lines().count(), 1);
}

#[tokio::test]
async fn why_none_was_started_is_in_the_programs_own_words() {
    let place = Place::with("echo 'brokerd: error: there is no such file' >&2; exit 3");
    let error = place.start().await.expect_err("it says so");
    let program = place.path("program").display().to_string();
    assert_eq!(error.to_string(), format!("`{program}` started no broker: there is no such file"));
    assert_eq!(failed(Err(error)), (Some(3), "brokerd: error: there is no such file".to_owned()));

    for (script, code, words) in [
        ("exit 4", Some(4), "it exited with code 4 and said nothing"),
        ("kill -9 $$", None, "it was killed and said nothing"),
    ] {
        let error = Place::with(script).start().await.expect_err("it started none");
        assert!(error.to_string().ends_with(words), "{error}");
        assert_eq!(failed(Err(error)), (code, String::new()));
    }
}

#[tokio::test]
async fn a_place_that_is_taken_for_a_moment_is_waited_for() {
    let place = Place::with("echo taken >> starts; exit 75");
    let listening = async {
        place.wait_for("starts").await;
        UnixListener::bind(place.socket()).expect("the folder is there")
    };
    let (result, _listener) = tokio::join!(place.start(), listening);
    result.expect("the other one answers");
}

#[tokio::test]
async fn a_place_that_stays_taken_is_an_error() {
    let place = Place::with("echo once >> starts; echo 'another broker (pid 7) holds it' >&2; exit 75");
    assert_eq!(failed(place.start().await), (Some(75), "another broker (pid 7) holds it".to_owned()));
    assert!(place.text("starts").lines().count() > 1, "it was tried again");
}

#[tokio::test]
async fn a_program_that_is_not_there_is_named() {
    let place = Place::with("");
    let error = place.autostart().program("/no/such/brokerd").start(&place.socket(), PATIENCE).await;
    let error = error.expect_err("nothing to execute");
    assert_eq!(error.to_string(), "cannot execute `/no/such/brokerd` to start a broker");
    assert!(matches!(error, AutostartError::Program { source, .. } if source.kind() == io::ErrorKind::NotFound));
}

#[tokio::test]
async fn a_lock_is_no_link_to_elsewhere() {
    let place = Place::with("");
    fs::create_dir(place.path("run")).expect("a new folder");
    std::os::unix::fs::symlink(place.path("precious"), place.path("run/s.start")).expect("a link");
    let error = place.start().await.expect_err("links are not followed");
    assert!(matches!(error, AutostartError::Lock { .. }), "{error:?}");
    assert!(!place.path("precious").exists());
}

#[tokio::test]
async fn a_start_that_is_given_up_leaves_neither_process_nor_lock() {
    let place = Arc::new(Place::with("echo $$ >> pid; exec sleep 1000"));
    let start = tokio::spawn({
        let place = Arc::clone(&place);
        async move { place.start().await }
    });
    let pid = place.wait_for("pid").await;
    let late = place.autostart().start(&place.socket(), Duration::from_millis(10)).await;
    assert!(matches!(late, Err(AutostartError::Timeout { .. })), "the lock is taken: {late:?}");
    start.abort();
    wait_until(|| is_gone(&pid)).await;
    fs::remove_file(place.path("pid")).expect("there");

    let next = place.autostart().start(&place.socket(), Duration::from_secs(1)).await;
    assert!(matches!(next, Err(AutostartError::Timeout { .. })), "the lock was free, and it hangs again: {next:?}");
    if let Some(pid) = place.text("pid").lines().next() {
        wait_until(|| is_gone(pid)).await;
    }
    let lock = lock(&place.socket()).await.expect("a lock");
    assert!(lock.is_some());
}

#[tokio::test]
async fn much_said_is_cut_and_a_pipe_that_stays_open_is_not_waited_for() {
    let place = Place::with("head -c 1000000 /dev/zero | tr '\\0' x >&2; sleep 1000 & echo $! >> pid; exit 1");
    let (code, message) = failed(place.start().await);
    assert_eq!((code, message.len()), (Some(1), MESSAGE_MAX));
    kill(Pid::from_raw(place.text("pid").trim_end().parse().expect("a number")), nix::sys::signal::SIGKILL)
        .expect("it runs");
}
