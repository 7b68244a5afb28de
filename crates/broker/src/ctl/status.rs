//! `brokerctl status`: the broker and its backends.

use broker_proto::{AdminRequest, Selection};
use serde_json::Value;

use super::args::{Filter, Global};
use super::documents::{self, Backend, Broker, Journal, Status, Trouble};
use super::output::{CARE, Console, FAINT, Failure, harmless, humane_ms, paint};
use super::session::{Session, in_words, selections, selects};
use super::table::{Cell, Table, Tone};

pub(super) async fn run(console: &Console, global: &Global, filter: &Filter) -> Result<(), Failure> {
    let selections = selections(&filter.backends, &filter.instance)?;
    let session = Session::open(console, global).await?;
    let mut document = session.admin("status", AdminRequest::Status).await?;
    if let Some(Value::Array(backends)) = document.get_mut("backends") {
        let text = |backend: &Value, field: &str| backend[field].as_str().unwrap_or_default().to_owned();
        backends.retain(|backend| {
            let [instance, service, version] = ["instance", "service", "version"].map(|field| text(backend, field));
            selections.iter().any(|selection| selects(selection, &instance, &service, &version))
        });
    }
    if console.json {
        return console.document(&document);
    }
    let status: Status = documents::read(&document)?;
    if console.stdout_is_terminal {
        console.line(paint(FAINT, headline(&status.broker)))?;
    }
    if status.backends.is_empty() {
        list_trouble(console, &status.broker);
        return console.line(nothing_yet(&status.broker, &selections));
    }
    let table = if console.stdout_is_terminal { wide_table } else { plain_table };
    console.print(table(&status.backends).render(console.stdout_is_terminal))?;
    list_trouble(console, &status.broker);
    if status.broker.problems > 0 {
        let problems = count(status.broker.problems, "problem", "problems");
        console.note(paint(CARE, format!("{problems} in the service files: `brokerctl services` lists them")));
    }
    Ok(())
}

/// `brokerd 0.1.0, pid 711, up 3m12s, on /run/broker/broker.sock: 4 services, 12 sessions`.
fn headline(broker: &Broker) -> String {
    format!(
        "brokerd {}, pid {}, up {}, on {}: {}, {}",
        harmless(&broker.version),
        broker.pid,
        humane_ms(broker.uptime_ms),
        harmless(&broker.socket),
        count(broker.services, "service", "services"),
        count(broker.sessions, "session", "sessions"),
    )
}

fn nothing_yet(broker: &Broker, selections: &[Selection]) -> String {
    if selections.iter().any(|selection| selection != &Selection::default()) {
        let wanted: Vec<String> = selections.iter().map(in_words).collect();
        return format!("no backend matches {}: `brokerctl status` shows all", wanted.join(", "));
    }
    let mut text = "no backends yet: `brokerctl resolve SERVICE` starts one".to_owned();
    if broker.services == 0 {
        let place = super::services::where_defined(&broker.service_directories);
        text += &format!("\nno service is defined either; {place}, see `brokerctl services`");
    } else {
        text += &format!("\n`brokerctl services` lists the {}", count(broker.services, "service", "services"));
    }
    text
}

/// Says what is wrong with the journal, if anything is, and why backends have no cgroups, if so.
fn list_trouble(console: &Console, broker: &Broker) {
    for line in broker.journal.iter().flat_map(trouble) {
        console.note(paint(CARE, line));
    }
    if let Some(line) = without_cgroups(broker) {
        console.note(paint(FAINT, line));
    }
}

fn without_cgroups(broker: &Broker) -> Option<String> {
    let why = broker.cgroups.as_ref()?.why_not.as_deref()?;
    Some(format!("backends are process groups, without a cgroup of their own: {}", harmless(why)))
}

fn trouble(journal: &Journal) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(Trouble { since, what }) = &journal.trouble {
        let since = since.strftime("%Y-%m-%d %H:%M:%S UTC");
        lines.push(format!(
            "the journal {} is not written since {since}: {}; all is served from memory until it is again, and a broker \
             that ends now leaves backends behind that the next one does not know",
            harmless(&journal.path),
            harmless(what),
        ));
    }
    if let Some(newest) = journal.set_aside.last() {
        lines.push(format!(
            "a damaged journal was set aside as {}; a new one was begun: remove it once nobody wants to look at it",
            harmless(newest)
        ));
    }
    lines
}

/// `1 service`, `2 services`.
pub(super) fn count(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// For people: the backends' names as every command takes them, and what there is to say below their endpoints.
fn wide_table(backends: &[Backend]) -> Table {
    let mut table = Table::new(["BACKEND", "STATE", "FOR", "PID", "GEN", "HOLDS", "ENDPOINT"], 6);
    for backend in backends {
        let lines = backend.endpoint.as_deref().map(harmless).into_iter().chain(notes(backend));
        table.row([
            documents::name(&backend.service, &backend.version, &backend.instance).into(),
            Cell::toned(backend.state.as_str(), tone(&backend.state)),
            humane_ms(backend.state_for_ms).into(),
            backend.pid.map(|pid| pid.to_string()).unwrap_or_default().into(),
            backend.generation.into(),
            backend.holds.into(),
            lines.collect::<Vec<_>>().join("\n").into(),
        ]);
    }
    table
}

/// For pipes: one line for each backend, each fact in a column of its own.
fn plain_table(backends: &[Backend]) -> Table {
    let mut table =
        Table::new(["SERVICE", "VERSION", "INSTANCE", "STATE", "FOR", "PID", "GEN", "HOLDS", "ENDPOINT", "NOTES"], 9);
    for backend in backends {
        table.row([
            backend.service.as_str().into(),
            backend.version.as_str().into(),
            backend.instance.as_str().into(),
            Cell::toned(backend.state.as_str(), tone(&backend.state)),
            humane_ms(backend.state_for_ms).into(),
            backend.pid.map(|pid| pid.to_string()).unwrap_or_default().into(),
            backend.generation.into(),
            backend.holds.into(),
            backend.endpoint.as_deref().map(harmless).unwrap_or_default().into(),
            notes(backend).join("; ").into(),
        ]);
    }
    table
}

fn tone(state: &str) -> Tone {
    match state {
        "ready" => Tone::Good,
        "starting" | "backoff" | "stopping" => Tone::Care,
        "failed" | "quarantined" => Tone::Bad,
        "inactive" => Tone::Faint,
        _ => Tone::Plain,
    }
}

/// What a person should know beside the columns, most urgent first.
fn notes(backend: &Backend) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(why) = backend.quarantine.as_deref() {
        let name = documents::name(&backend.service, &backend.version, &backend.instance);
        notes.push(format!("{}; `brokerctl release {name}` once that is settled", harmless(why)));
    }
    if let Some(milliseconds) = backend.retry_after_ms {
        notes.push(format!("try again in {}", humane_ms(milliseconds)));
    }
    if backend.crashes_in_window > 0 {
        notes.push(count(backend.crashes_in_window.into(), "crash", "crashes"));
    }
    if backend.draining {
        notes.push("draining".to_owned());
    }
    if backend.outdated {
        notes.push("outdated, restart to apply".to_owned());
    }
    if backend.adopted {
        notes.push("adopted".to_owned());
    }
    let unenforced = backend.limits.iter().flat_map(|limits| &limits.not_enforced);
    notes.extend(
        unenforced.map(|found| format!("`{}` is not enforced: {}", harmless(&found.limit), harmless(&found.why))),
    );
    if backend.waiters > 0 {
        notes.push(format!("{} waiting", backend.waiters));
    }
    if let Some(status) = backend.status.as_deref().filter(|status| !status.is_empty()) {
        notes.push(harmless(status));
    }
    if backend.state == "failed" {
        notes.extend(backend.log_path.as_deref().map(|path| format!("log {}", harmless(path))));
    }
    notes
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status() -> Status {
        let backend = |more: Value| {
            let mut backend = json!({
                "instance": "default", "service": "redis", "version": "7.0.15", "state": "ready",
                "state_for_ms": 192_000, "pid": 711, "generation": 1, "endpoint": "unix:/b/x", "holds": 3,
                "waiters": 0, "crashes_in_window": 0, "retry_after_ms": null, "attempt": 0, "adopted": false,
                "outdated": false, "draining": false, "status": null, "log_path": "/x.log",
            });
            for (field, value) in more.as_object().expect("an object") {
                backend[field] = value.clone();
            }
            backend
        };
        let document = json!({
            "broker": {"pid": 7, "version": "0.1.0", "uptime_ms": 1000, "socket": "/run/b/broker.sock", "services": 1,
                "sessions": 2, "problems": 0, "state_dir": "/var/lib/b"},
            "backends": [
                backend(json!({"outdated": true, "status": "\u{1b}[31m"})),
                backend(json!({"service": "flaky", "state": "failed", "pid": null, "endpoint": null, "holds": 0,
                    "retry_after_ms": 29_000, "crashes_in_window": 2, "state_for_ms": 900})),
                backend(json!({"service": "lost", "state": "quarantined", "pid": null, "endpoint": null, "holds": 0,
                    "quarantine": "pid 4242 cannot be proved to be it"})),
                backend(json!({"instance": "a", "service": "old", "adopted": true})),
                backend(json!({"service": "big", "limits": {"memory_max": 1048576, "tasks_max": 9, "not_enforced": [
                    {"limit": "memory_max", "why": "the controller `memory` is not offered by /c: none is"}]}})),
            ],
        });
        documents::read(&document).expect("understood")
    }

    #[test]
    fn a_pipe_gets_plain_columns() {
        insta::assert_snapshot!(plain_table(&status().backends).render(false), @r"
        SERVICE  VERSION  INSTANCE  STATE        FOR    PID  GEN  HOLDS  ENDPOINT   NOTES
        redis    7.0.15   default   ready        3m12s  711  1    3      unix:/b/x  outdated, restart to apply; \x1b[31m
        flaky    7.0.15   default   failed       900ms  -    1    0      -          try again in 29s; 2 crashes; log /x.log
        lost     7.0.15   default   quarantined  3m12s  -    1    0      -          pid 4242 cannot be proved to be it; `brokerctl release lost@7.0.15` once that is settled
        old      7.0.15   a         ready        3m12s  711  1    3      unix:/b/x  adopted
        big      7.0.15   default   ready        3m12s  711  1    3      unix:/b/x  `memory_max` is not enforced: the controller `memory` is not offered by /c: none is
        ");
    }

    #[test]
    fn a_journal_in_trouble_is_said_to_be() {
        let journal = |facts: Value| -> Journal { documents::read(&facts).expect("understood") };
        let well = journal(json!({"path": "/s/journal.db", "trouble": null, "set_aside": [], "rows": 3}));
        assert!(trouble(&well).is_empty());
        let lines = trouble(&journal(json!({"path": "/s/journal.db", "rows": 3,
            "trouble": {"since": "2026-11-22T03:24:16.579Z", "what": "No space left on device"},
            "set_aside": ["/s/journal.db.damaged-2026-11-21"]})));
        insta::assert_snapshot!(lines.join("\n"), @"
        the journal /s/journal.db is not written since 2026-11-22 03:24:16 UTC: No space left on device; all is served from memory until it is again, and a broker that ends now leaves backends behind that the next one does not know
        a damaged journal was set aside as /s/journal.db.damaged-2026-11-21; a new one was begun: remove it once nobody wants to look at it
        ");
    }

    #[test]
    fn why_there_are_no_cgroups_is_said() {
        let mut broker = status().broker;
        assert_eq!(without_cgroups(&broker), None, "an older broker does not know");
        broker.cgroups = Some(documents::Cgroups { why_not: None });
        assert_eq!(without_cgroups(&broker), None);
        broker.cgroups = Some(documents::Cgroups { why_not: Some("cgroup2 is not mounted".to_owned()) });
        insta::assert_snapshot!(without_cgroups(&broker).unwrap_or_default(), @"backends are process groups, without a cgroup of their own: cgroup2 is not mounted");
    }

    #[test]
    fn an_empty_status_says_what_to_do() {
        let mut status = status();
        assert_eq!(
            nothing_yet(&status.broker, &[Selection::default()]),
            "no backends yet: `brokerctl resolve SERVICE` starts one\n`brokerctl services` lists the 1 service"
        );
        status.broker.services = 0;
        status.broker.service_directories = vec!["/etc/broker/services.d".to_owned()];
        insta::assert_snapshot!(nothing_yet(&status.broker, &[Selection::default()]), @r"
        no backends yet: `brokerctl resolve SERVICE` starts one
        no service is defined either; put a file into /etc/broker/services.d, see `brokerctl services`
        ");
    }
}
