//! The broker's log as entries of the journal: the line that people read, and its fields for those who search.
//!
//! Every field of a line is one of the entry, `BROKER_` before its name. A backend is named in parts as well.

use std::fmt::Debug;
use std::io::Write;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_appender::non_blocking::NonBlocking;
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{DefaultFields, Writer};
use tracing_subscriber::layer::Context;

use crate::journald::native::{Entry, Priority};

/// What `journalctl -t` finds the broker's log by.
pub(super) const IDENTIFIER: &str = "brokerd";

/// What the names of our fields begin with, so that they are nobody else's.
const PREFIX: &str = "BROKER_";

/// Hands each event to the journal.
pub(super) struct Journal {
    /// Whose thread sends, so that nobody waits for the journal here.
    pub(super) writer: NonBlocking,
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        // What finds no room is counted, and told of by the thread that sends.
        let _ = self.writer.clone().write_all(entry(event).as_bytes());
    }
}

fn entry(event: &Event<'_>) -> Entry {
    let metadata = event.metadata();
    let priority = match *metadata.level() {
        Level::ERROR => Priority::Error,
        Level::WARN => Priority::Warning,
        Level::INFO => Priority::Info,
        Level::DEBUG | Level::TRACE => Priority::Debug,
    };
    let mut entry = Entry::new(priority, IDENTIFIER);
    // The sentence with its fields, as it stands in a text log.
    let mut message = String::new();
    let _ = DefaultFields::new().format_fields(Writer::new(&mut message), event);
    entry.field("MESSAGE", &message);
    if let (Some(file), Some(line)) = (metadata.file(), metadata.line()) {
        entry.field("CODE_FILE", file);
        entry.field("CODE_LINE", &line.to_string());
    }
    event.record(&mut Fields(&mut entry));
    entry
}

/// Adds what it is shown to the entry.
struct Fields<'e>(&'e mut Entry);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.record_str(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        // That is in the sentence.
        if field.name() == "message" {
            return;
        }
        self.0.prefixed_field(PREFIX, field.name(), value);
        if field.name() == "backend"
            && let Some((service, version, instance)) = parts(value)
        {
            self.0.prefixed_field(PREFIX, "service", service);
            self.0.prefixed_field(PREFIX, "version", version);
            self.0.prefixed_field(PREFIX, "instance", instance);
        }
    }
}

/// The parts of `SERVICE@VERSION/INSTANCE`, as a backend's key is displayed. None of them has `@` or `/` in it.
fn parts(key: &str) -> Option<(&str, &str, &str)> {
    let (service, rest) = key.split_once('@')?;
    let (version, instance) = rest.rsplit_once('/')?;
    Some((service, version, instance))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::prelude::*;

    use super::*;

    /// Keeps the last entry.
    struct Kept(Arc<Mutex<String>>);

    impl<S: Subscriber> Layer<S> for Kept {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            let bytes = entry(event).as_bytes().to_vec();
            *self.0.lock().unwrap() = String::from_utf8(bytes).unwrap();
        }
    }

    /// The entry of what is logged, without the place in the sources.
    fn logged(log: impl FnOnce()) -> String {
        let kept = Arc::new(Mutex::new(String::new()));
        let subscriber = tracing_subscriber::registry().with(Kept(Arc::clone(&kept)));
        tracing::subscriber::with_default(subscriber, log);
        let entry = kept.lock().unwrap().clone();
        assert!(entry.contains("\nCODE_FILE=crates/broker/src/daemon/log/fields.rs\nCODE_LINE="), "{entry}");
        entry.lines().filter(|line| !line.starts_with("CODE_")).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn a_line_about_a_backend_is_found_by_each_part_of_its_name() {
        let key = crate::core::registry::BackendKey {
            instance: broker_proto::InstanceName::parse("tenant-a").unwrap(),
            service: broker_proto::ServiceName::parse("redis").unwrap(),
            version: semver::Version::parse("7.0.15-rc.1+deb").unwrap(),
        };
        let entry = logged(|| tracing::info!(backend = %key, generation = 3_u64, "started"));
        insta::assert_snapshot!(entry, @r"
        PRIORITY=6
        SYSLOG_IDENTIFIER=brokerd
        MESSAGE=started backend=redis@7.0.15-rc.1+deb/tenant-a generation=3
        BROKER_BACKEND=redis@7.0.15-rc.1+deb/tenant-a
        BROKER_SERVICE=redis
        BROKER_VERSION=7.0.15-rc.1+deb
        BROKER_INSTANCE=tenant-a
        BROKER_GENERATION=3
        ");
    }

    #[test]
    fn every_kind_of_value_is_a_field() {
        let error = std::io::Error::other("disk full");
        let entry =
            logged(|| tracing::error!(%error, pid = 42, text = "a b", list = ?[1, 2], done = true, "cannot {}", "go"));
        insta::assert_snapshot!(entry, @r#"
        PRIORITY=3
        SYSLOG_IDENTIFIER=brokerd
        MESSAGE=cannot go error=disk full pid=42 text="a b" list=[1, 2] done=true
        BROKER_ERROR=disk full
        BROKER_PID=42
        BROKER_TEXT=a b
        BROKER_LIST=[1, 2]
        BROKER_DONE=true
        "#);
    }

    #[test]
    fn what_is_no_key_stays_whole() {
        assert_eq!(parts("redis@1.0.0/default"), Some(("redis", "1.0.0", "default")));
        assert_eq!(parts("redis"), None);
        assert_eq!(parts("redis@1.0.0"), None);
    }
}
