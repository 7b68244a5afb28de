//! `brokerctl events`: what people and programs read of what happened, and of what happens.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;

use broker_tests::{BOUND, Broker, Service, trials, wait_until};
use serde_json::Value;

use crate::events::{bad, json_lines, numbers};
use crate::recovery::kill_backend;

trials![
    people_read_a_line_for_each_event,
    where_nothing_happened_a_hint_says_so,
    following_shows_a_crash_as_it_happens,
    following_several_names_shows_each_event_once,
    following_ends_with_its_reader_its_time_and_its_broker,
];

fn people_read_a_line_for_each_event() {
    let missing = Service::named("missing").command("1.0.0", &["/no/such/\u{1b}[31mprogram", "{endpoint}"]);
    let broker = Broker::start(&[&Service::fake("x", &[]), &bad(), &missing]);
    let backend = broker.resolve("x");
    let _ = broker.ctl(&["resolve", "bad"]).exits(75);
    let _ = broker.ctl(&["resolve", "missing"]).exits(69);
    let text = broker.ctl(&["events"]).done().stdout;
    assert!(!text.contains('\x1b'), "{text:?}");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 13, "{text}");
    let ready = format!("pid {}, {}", backend["pid"], backend["endpoint"].as_str().expect("a text"));
    for (line, parts) in [
        (0, &["x@1.0.0", "starting, generation 1"][..]),
        (2, &["x@1.0.0", "ready after", &ready]),
        (5, &["bad@1.0.0", "crashed: exited with code 7 after"]),
        (6, &["starts again in"]),
        (10, &["crashed again: refused for", "it wrote: the disk is on fire"]),
        (12, &["missing@1.0.0", "cannot be started", "\\x1b[31mprogram"]),
    ] {
        assert!(parts.iter().all(|part| lines[line].contains(part)), "{parts:?} in line {line} of\n{text}");
    }
    let column = |line: &str| line.find("starting").or_else(|| line.find("cannot"));
    assert_eq!(column(lines[0]), column(lines[12]), "sentences begin in one column:\n{text}");

    let shown = |arguments: &[&str]| broker.ctl(&[&["events"], arguments].concat()).done().stdout.lines().count();
    assert_eq!((shown(&["-n", "2"]), shown(&["-n", "0"]), shown(&["--since", "1h"])), (2, 0, 13));
    assert_eq!((shown(&["--since", "0s"]), shown(&["x", "missing"]), shown(&["-i", "other"])), (0, 5, 0));
    assert_eq!(broker.ctl(&["events", "-n", "1"]).done().stdout.trim_end(), lines[12]);
}

fn where_nothing_happened_a_hint_says_so() {
    let broker = Broker::start(&[&Service::fake("x", &[])]);
    for (arguments, hint) in [(&["events"][..], "nothing has happened"), (&["events", "x"], "of x")] {
        let output = broker.ctl(arguments).done();
        assert_eq!(output.stdout, "");
        assert!(output.stderr.contains(hint) && output.stderr.contains("brokerctl"), "{}", output.stderr);
    }
    let output = broker.ctl_json(&["events"]).done();
    assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("", ""));
    for names in [&["nosuch"][..], &["x", "nosuch"]] {
        let _ = broker.ctl_json(&[&["events"], names].concat()).refused(69, "service_unknown");
    }
}

/// `brokerctl events -f`, and the lines that it prints.
struct Following {
    child: Child,
    lines: Receiver<String>,
}

impl Following {
    fn new(broker: &Broker, arguments: &[&str]) -> Self {
        let mut command = broker.ctl_command(&[&["events", "-f"], arguments].concat());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("brokerctl runs");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, lines }
    }

    /// The next lines, up to the one that contains these words.
    #[track_caller]
    fn until(&self, words: &str) -> Vec<String> {
        let mut seen = Vec::new();
        loop {
            let line = self.lines.recv_timeout(BOUND);
            let line = line.unwrap_or_else(|error| panic!("no `{words}` ({error}) after {seen:#?}"));
            let found = line.contains(words);
            seen.push(line);
            if found {
                return seen;
            }
        }
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn following_shows_a_crash_as_it_happens() {
    let broker = Broker::start(&[&Service::fake("x", &[])]);
    let mut session = broker.session();
    let _ = session.hold("x");
    let following = Following::new(&broker, &["-n", "1", "x"]);
    assert_eq!(following.until("ready after").len(), 1, "one line of the past");
    kill_backend(&broker.backend("x"));
    let seen = following.until("ready after");
    let expected =
        ["crashed: ended by SIGKILL (9)", "starts again in", "starting again after a crash", "started", "ready after"];
    assert_eq!(seen.len(), expected.len(), "{seen:#?}");
    for (line, words) in seen.iter().zip(expected) {
        assert!(line.contains(words), "`{words}` in `{line}`");
    }
}

fn following_several_names_shows_each_event_once() {
    let broker = Broker::start(&["a", "b", "c"].map(|name| Service::fake(name, &[])).each_ref());
    let following = Following::new(&broker, &["--json", "a", "a/default", "b/tenant-a"]);
    for name in ["a", "b", "c", "b/tenant-a", "a/tenant-a"] {
        let _ = broker.resolve(name);
    }
    let seen: Vec<Value> = (0..9).map(|_| json_lines(&following.until("").concat()).remove(0)).collect();
    assert_eq!(numbers(&seen), [1, 2, 3, 10, 11, 12, 13, 14, 15]);
}

fn following_ends_with_its_reader_its_time_and_its_broker() {
    let mut broker = Broker::start(&[&Service::fake("x", &[])]);
    let _ = broker.resolve("x");
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let mut unread = broker.ctl_command(&["events", "-f"]).stdout(writer).spawn().expect("brokerctl runs");
    BufReader::new(reader).lines().next().expect("a line").expect("text");
    let mut end = None;
    wait_until("it sees that its reader is gone, though nothing happens", || {
        end = unread.try_wait().expect("a child can be waited for");
        end.is_some()
    });
    assert!(end.is_some_and(|status| status.success()), "{end:?}");
    let timed = broker.ctl(&["events", "-f", "--timeout", "100ms"]).done();
    assert_eq!(timed.stdout.lines().count(), 3);

    let mut following = Following::new(&broker, &[]);
    following.until("ready after");
    let _ = broker.ctl(&["shutdown"]).done();
    assert!(broker.ended().success());
    following.until("the broker ends");
    assert!(!following.child.wait().expect("a child can be waited for").success(), "there is nothing to follow");
}
