//! An event as a line: for people a sentence behind its time and its backend, for programs as the broker wrote it.

use anstyle::Style;
use broker_proto::Code;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::Value;

use super::super::documents::Event;
use super::super::output::{BAD, CARE, Console, FAINT, Failure, GOOD, harmless, humane_ms, paint};
use super::super::refusal::{self, signal_name};

/// Prints events: for people in columns, for programs as they are.
pub(super) struct Printer<'a> {
    console: &'a Console,
    zone: TimeZone,
    time_width: usize,
    name_width: usize,
}

impl<'a> Printer<'a> {
    pub(super) fn new(console: &'a Console, zone: TimeZone) -> Self {
        Self { console, zone, time_width: 0, name_width: 0 }
    }

    /// Makes the columns as wide as these events need them.
    pub(super) fn align<'e>(&mut self, events: impl IntoIterator<Item = &'e Event>, now: Timestamp) {
        for event in events {
            self.time_width = self.time_width.max(self.time(event, now).len());
            self.name_width = self.name_width.max(event.subject.name().chars().count());
        }
    }

    pub(super) fn print(&mut self, event: &Event, document: &Value) -> Result<(), Failure> {
        if self.console.json {
            return self.console.document(document);
        }
        let line = self.line(event, Timestamp::now());
        self.console.line(line)
    }

    fn line(&mut self, event: &Event, now: Timestamp) -> String {
        let (time, name) = (self.time(event, now), harmless(&event.subject.name()));
        self.name_width = self.name_width.max(name.chars().count());
        let (style, sentence) = sentence(event);
        let (time_width, name_width) = (self.time_width, self.name_width);
        let time = paint(FAINT, format_args!("{time:>time_width$}"));
        format!("{time}  {name:name_width$}  {}", paint(style, sentence))
    }

    /// The time of day where the caller is; with the date, if that is not today.
    fn time(&self, event: &Event, now: Timestamp) -> String {
        let [time, now] = [event.time, now].map(|time| time.to_zoned(self.zone.clone()));
        let form = if time.date() == now.date() { "%H:%M:%S%.3f" } else { "%Y-%m-%d %H:%M:%S%.3f" };
        time.strftime(form).to_string()
    }
}

/// What happened, and how urgent it is.
fn sentence(event: &Event) -> (Style, String) {
    let plain = Style::new();
    let pid = event.pid.map(|pid| format!(", pid {pid}")).unwrap_or_default();
    let endpoint = event.endpoint.as_deref().map(|endpoint| format!(", {}", harmless(endpoint))).unwrap_or_default();
    let after = |word: &str, ms: Option<u64>| ms.map(|ms| format!("{word}{}", humane_ms(ms))).unwrap_or_default();
    let generation = event.generation;
    match event.event.as_str() {
        "starting" if event.attempt.unwrap_or(0) > 0 => {
            (plain, format!("starting again after a crash, generation {generation}"))
        }
        "starting" => (plain, format!("starting, generation {generation}")),
        "started" => (plain, format!("started{pid}")),
        "forked" => (plain, format!("forked away{pid} now")),
        "ready" => (GOOD, format!("ready{}{pid}{endpoint}", after(" after ", event.after_ms))),
        "exited" => {
            let how = match (event.exit_code, event.signal) {
                (Some(code), _) => format!("exited with code {code}"),
                (None, Some(signal)) => format!("ended by {}", signal_name(signal)),
                (None, None) => "ended, nobody saw how,".to_owned(),
            };
            let what = format!("{how}{}", after(" after ", event.lived_ms));
            if event.crash == Some(true) { (CARE, format!("crashed: {what}")) } else { (plain, what) }
        }
        "killed" => (CARE, format!("did not end{}, killed", after(" within ", event.after_ms))),
        "restarting" => (plain, format!("starts again{}", after(" in ", event.delay_ms))),
        "failed" => (BAD, failure(event)),
        "stopping" => (plain, format!("stopping: {}", reason(event.why.as_deref().unwrap_or("nobody says why")))),
        "stopped" => (plain, "stopped".to_owned()),
        "finished" => (plain, "finished by itself".to_owned()),
        "taken_down" => (CARE, "ended with the unit of all backends, which is no crash".to_owned()),
        "draining" => (CARE, "draining: takes no new clients".to_owned()),
        "drain_ended" => (plain, "takes new clients again".to_owned()),
        "adopted" => (plain, format!("goes on under this broker{pid}{endpoint}")),
        "quarantined" => {
            (BAD, format!("quarantined: {}", harmless(event.reason.as_deref().unwrap_or("nobody says why"))))
        }
        "released" => (plain, "released from quarantine".to_owned()),
        "process_registered" => (plain, "registered".to_owned()),
        "process_started" => (plain, format!("attempt {} runs{pid}", event.attempt.unwrap_or(1))),
        "process_adopted" => (plain, format!("attempt {} goes on under this broker{pid}", event.attempt.unwrap_or(1))),
        "process_lost" => {
            (CARE, format!("attempt {} is lost, with its machine or its reaper", event.attempt.unwrap_or(1)))
        }
        "process_ended" => process_end(event),
        other => (plain, harmless(other)),
    }
}

/// How a process ended, and how.
fn process_end(event: &Event) -> (Style, String) {
    let state = event.state.as_deref().unwrap_or("ended");
    let style = match state {
        "succeeded" => GOOD,
        "failed" => BAD,
        _ => CARE,
    };
    let how = match (event.exit_code, event.signal) {
        (Some(0), _) => String::new(),
        (Some(code), _) => format!(": exited with code {code}"),
        (None, Some(signal)) => format!(": ended by {}", signal_name(signal)),
        (None, None) => String::new(),
    };
    (style, format!("{}{how}", harmless(state)))
}

fn failure(event: &Event) -> String {
    let refusal = event.refused.as_ref().map(refusal::from_json);
    let Some(refusal) = refusal else { return "failed".to_owned() };
    let wait = refusal.retry_after_ms.map(|ms| format!(" for {}", humane_ms(ms))).unwrap_or_default();
    let what = match refusal.code {
        Code::BackendUnavailable => format!("crashed again: refused{wait}"),
        _ => "cannot be started".to_owned(),
    };
    let words = refusal.evidence.stderr.as_deref().and_then(|text| text.lines().rfind(|line| !line.trim().is_empty()));
    let words = words.map(|line| format!("; it wrote: {}", harmless(line.trim()))).unwrap_or_default();
    format!("{what}: {}{words}", harmless(&refusal.reason))
}

fn reason(why: &str) -> String {
    let known = match why {
        "order" => "an operator ordered it",
        "restart" => "an operator ordered a restart",
        "idle" => "idle",
        "drain" => "drained, and its last client is gone",
        "shutdown" => "the broker ends",
        "ceiling" => "not ready in time",
        other => return harmless(other),
    };
    known.to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::super::documents;
    use super::*;

    fn event(time: &str, more: Value) -> Event {
        let mut event = json!({"number": 1, "time": time, "instance": "default", "service": "redis",
            "version": "7.0.15", "generation": 2, "event": "stopped"});
        for (field, value) in more.as_object().expect("an object") {
            event[field] = value.clone();
        }
        documents::read(&event).expect("understood")
    }

    fn said(more: Value) -> String {
        sentence(&event("2026-11-22T03:24:16.579Z", more)).1
    }

    #[test]
    fn each_event_is_a_sentence() {
        let refused = |code: &str| {
            json!({"event": "failed", "refused": {"code": code, "reason": "the daemon\x1b exited", "retry_after_ms": 29_500,
                "evidence": {"stderr": "one\n  no database \n\n"}}})
        };
        let all = [
            json!({"event": "starting", "attempt": 0}),
            json!({"event": "starting", "attempt": 1}),
            json!({"event": "started", "pid": 4242, "endpoint": "unix:/b/x"}),
            json!({"event": "forked", "pid": 4243}),
            json!({"event": "ready", "after_ms": 12, "pid": 4242, "endpoint": "unix:/b/x"}),
            json!({"event": "exited", "exit_code": 7, "signal": null, "lived_ms": 3_200, "crash": true}),
            json!({"event": "exited", "exit_code": null, "signal": 15, "lived_ms": 3_200, "crash": false}),
            json!({"event": "exited", "exit_code": null, "signal": null, "lived_ms": 3_200, "crash": true}),
            json!({"event": "killed", "after_ms": 10_000}),
            json!({"event": "restarting", "delay_ms": 250}),
            refused("backend_unavailable"),
            refused("spawn_failed"),
            json!({"event": "stopping", "why": "idle"}),
            json!({"event": "stopping", "why": "a whim\x07"}),
            json!({"event": "stopped"}),
            json!({"event": "finished"}),
            json!({"event": "draining"}),
            json!({"event": "drain_ended"}),
            json!({"event": "of a newer broker"}),
            json!({"event": "process_registered", "attempt": 0, "state": "pending"}),
            json!({"event": "process_started", "attempt": 1, "pid": 4242, "state": "running"}),
            json!({"event": "process_adopted", "attempt": 1, "pid": 4242, "state": "running"}),
            json!({"event": "process_lost", "attempt": 2, "state": "pending"}),
            json!({"event": "process_ended", "attempt": 2, "state": "succeeded", "exit_code": 0}),
            json!({"event": "process_ended", "attempt": 2, "state": "failed", "exit_code": 7}),
            json!({"event": "process_ended", "attempt": 2, "state": "failed"}),
            json!({"event": "process_ended", "attempt": 2, "state": "cancelled", "signal": 15}),
        ];
        insta::assert_snapshot!(all.map(said).join("\n"), @r"
        starting, generation 2
        starting again after a crash, generation 2
        started, pid 4242
        forked away, pid 4243 now
        ready after 12ms, pid 4242, unix:/b/x
        crashed: exited with code 7 after 3.2s
        ended by SIGTERM (15) after 3.2s
        crashed: ended, nobody saw how, after 3.2s
        did not end within 10s, killed
        starts again in 250ms
        crashed again: refused for 29s: the daemon\x1b exited; it wrote: no database
        cannot be started: the daemon\x1b exited; it wrote: no database
        stopping: idle
        stopping: a whim\x07
        stopped
        finished by itself
        draining: takes no new clients
        takes new clients again
        of a newer broker
        registered
        attempt 1 runs, pid 4242
        attempt 1 goes on under this broker, pid 4242
        attempt 2 is lost, with its machine or its reaper
        succeeded
        failed: exited with code 7
        failed
        cancelled: ended by SIGTERM (15)
        ");
    }

    #[test]
    fn a_line_has_the_local_time_and_the_date_if_that_is_not_today() {
        let console = Console {
            json: false,
            quiet: false,
            verbose: false,
            asked: None,
            stdout_is_terminal: false,
            stderr_is_terminal: false,
        };
        let zone = TimeZone::fixed(jiff::tz::offset(-5));
        let mut printer = Printer::new(&console, zone);
        let now: Timestamp = "2026-11-22T12:00:00Z".parse().expect("a time");
        let process = json!({"process": "nightly", "number": 2, "time": "2026-11-22T11:59:01.000Z", "attempt": 1,
            "event": "process_ended", "state": "succeeded", "exit_code": 0});
        let process = documents::read(&process).expect("understood");
        let news = json!({"sandbox": "x", "number": 3, "time": "2026-11-22T11:59:02.000Z", "event": "sandbox_made"});
        let news = documents::read(&news).expect("no error, though of a newer broker");
        let events = [
            event("2026-11-22T04:59:59.999Z", json!({})),
            event("2026-11-22T05:00:00.001Z", json!({"instance": "tenant-a"})),
            event("2026-11-22T11:59:00.100Z", json!({})),
            process,
            news,
        ];
        printer.align(&events, now);
        let lines: Vec<String> = events.iter().map(|event| printer.line(event, now)).collect();
        let text = anstream::adapter::strip_str(&lines.join("\n")).to_string();
        insta::assert_snapshot!(text, @"
        2026-11-21 23:59:59.999  redis@7.0.15           stopped
                   00:00:00.001  redis@7.0.15/tenant-a  stopped
                   06:59:00.100  redis@7.0.15           stopped
                   06:59:01.000  process nightly        succeeded
                   06:59:02.000  -                      sandbox_made
        ");
    }
}
