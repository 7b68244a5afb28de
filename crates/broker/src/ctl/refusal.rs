//! Refusals, as people read them and as programs do, and the exit code that goes with each.

use std::fmt::Write as _;

use broker_proto::{Code, Evidence, Refusal};
use nix::sys::signal::Signal;
use serde_json::{Map, Value, json};

use super::output::{NOT_PERMITTED, TRY_LATER, UNAVAILABLE, harmless, humane_ms};
use crate::process::log_place::JOURNAL;

/// The exit code of a refused command.
pub(super) fn exit_code(code: Code) -> u8 {
    match code {
        Code::PeerRejected => NOT_PERMITTED,
        code if code.is_fatal() => UNAVAILABLE,
        _ => TRY_LATER,
    }
}

/// `{"refused": {..}}`, with only the evidence that is known.
pub(super) fn to_json(refusal: &Refusal) -> Value {
    let Evidence { exit_code, signal, lived_ms, attempt, stderr, log_path, available } = &refusal.evidence;
    let mut evidence = Map::new();
    let mut known = |name: &str, value: Value| {
        let empty = value.is_null() || value.as_array().is_some_and(Vec::is_empty) || value.as_str() == Some("");
        if !empty {
            evidence.insert(name.to_owned(), value);
        }
    };
    known("exit_code", json!(exit_code));
    known("signal", json!(signal));
    known("lived_ms", json!(lived_ms));
    known("attempt", json!(attempt));
    known("stderr", json!(stderr));
    known("log_path", json!(log_path));
    known("available", json!(available));
    json!({"refused": {
        "code": refusal.code.as_str(),
        "reason": refusal.reason,
        "retry_after_ms": refusal.retry_after_ms,
        "evidence": evidence,
    }})
}

/// Reads what [`to_json`] or the broker's documents write; a field that is missing is not known.
pub(super) fn from_json(refused: &Value) -> Refusal {
    let code = refused["code"].as_str().and_then(|text| Code::ALL.into_iter().find(|code| code.as_str() == text));
    let evidence = &refused["evidence"];
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let number = |value: &Value| value.as_i64().and_then(|number| i32::try_from(number).ok());
    Refusal {
        code: code.unwrap_or(Code::Internal),
        reason: text(&refused["reason"]).unwrap_or_default(),
        retry_after_ms: refused["retry_after_ms"].as_u64(),
        evidence: Evidence {
            exit_code: number(&evidence["exit_code"]),
            signal: number(&evidence["signal"]),
            lived_ms: evidence["lived_ms"].as_u64(),
            attempt: evidence["attempt"].as_u64().and_then(|number| u32::try_from(number).ok()),
            stderr: text(&evidence["stderr"]),
            log_path: text(&evidence["log_path"]),
            available: evidence["available"].as_array().into_iter().flatten().filter_map(text).collect(),
        },
    }
}

/// What happened, the evidence, and when to try again or what to do: the first line goes behind a prefix, the rest is
/// indented. `asked` is the backend that it is about, where that is one.
pub(super) fn for_people(refusal: &Refusal, asked: Option<&str>) -> String {
    let Evidence { exit_code, signal, lived_ms, attempt, stderr, log_path, available } = &refusal.evidence;
    let mut text = format!("{} ({})", harmless(&refusal.reason), refusal.code);
    let mut row = |label: &str, value: String| {
        let _ = write!(text, "\n  {label:<10}{value}");
    };
    if let Some(code) = exit_code {
        row("exit code", code.to_string());
    }
    if let Some(number) = signal {
        row("signal", signal_name(*number));
    }
    if let Some(lived) = lived_ms {
        row("lived", humane_ms(*lived));
    }
    if let Some(attempt) = attempt {
        row("attempt", ordinal(*attempt));
    }
    if !available.iter().all(|version| refusal.reason.contains(version.as_str())) {
        row("installed", available.join(", "));
    }
    if let Some(lines) = stderr.as_deref().map(str::trim_end).filter(|lines| !lines.is_empty()) {
        row("wrote", String::new());
        text.truncate(text.trim_end().len());
        for line in lines.lines() {
            let _ = write!(text, "\n    {}", harmless(line));
        }
    }
    if let Some(path) = log_path {
        let place = match asked {
            _ if path != JOURNAL => harmless(path),
            Some(name) => format!("the journal; `brokerctl logs {name}` shows it"),
            None => "the journal; `brokerctl logs` shows it".to_owned(),
        };
        let _ = write!(text, "\n  {:<10}{place}", "log");
    }
    for line in [advice(refusal.code).map(str::to_owned), refusal.retry_after_ms.map(retry_after)].into_iter().flatten()
    {
        let _ = write!(text, "\n  {line}");
    }
    text
}

fn retry_after(milliseconds: u64) -> String {
    format!("try again in {}", humane_ms(milliseconds.max(1)))
}

fn advice(code: Code) -> Option<&'static str> {
    match code {
        Code::ServiceUnknown => Some("`brokerctl services` lists what can be asked for"),
        Code::SpawnFailed => Some("correct the service file or install the program, then `brokerctl reload`"),
        Code::StartTimeout => Some("the start goes on: ask again, or wait longer with --timeout"),
        Code::PeerRejected => {
            Some("root and the broker's own user may do all; others have what [access] in service files admits")
        }
        Code::BackendUnavailable => Some("`brokerctl start` tries at once, once the cause is removed"),
        _ => None,
    }
}

/// `SIGKILL (9)`; the number alone when it has no name.
pub(super) fn signal_name(number: i32) -> String {
    match Signal::try_from(number) {
        Ok(signal) => format!("{signal} ({number})"),
        Err(_) => number.to_string(),
    }
}

/// Which start an attempt is.
pub(super) fn ordinal(attempt: u32) -> String {
    match attempt {
        0 => "the first".to_owned(),
        1 => "the retry".to_owned(),
        n => format!("retry {n}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crashed() -> Refusal {
        let mut refusal =
            Refusal::new(Code::BackendUnavailable, "`flaky` crashed again after its one retry").retry_after_ms(29_500);
        refusal.evidence = Evidence {
            exit_code: Some(7),
            lived_ms: Some(12),
            attempt: Some(1),
            stderr: Some("no database\n\x1b]0;title\x07boom\n".to_owned()),
            log_path: Some("/var/log/flaky.log".to_owned()),
            ..Evidence::default()
        };
        refusal
    }

    #[test]
    fn people_read_what_happened_the_evidence_and_when_to_try_again() {
        insta::assert_snapshot!(for_people(&crashed(), None), @r"
        `flaky` crashed again after its one retry (backend_unavailable)
          exit code 7
          lived     12ms
          attempt   the retry
          wrote
            no database
            \x1b]0;title\x07boom
          log       /var/log/flaky.log
          `brokerctl start` tries at once, once the cause is removed
          try again in 29s
        ");
    }

    #[test]
    fn a_log_in_the_journal_is_shown_by_a_command() {
        let mut refusal = crashed();
        refusal.evidence.log_path = Some("journal".to_owned());
        for (asked, command) in [(Some("flaky/ci"), "brokerctl logs flaky/ci"), (None, "brokerctl logs")] {
            let text = for_people(&refusal, asked);
            assert!(text.contains(&format!("\n  log       the journal; `{command}` shows it\n")), "{text}");
        }
    }

    #[test]
    fn a_bare_refusal_is_one_sentence_and_its_advice() {
        let refusal = Refusal::new(Code::ServiceUnknown, "no service is called `rediss`; did you mean `redis`?");
        insta::assert_snapshot!(for_people(&refusal, None), @r"
        no service is called `rediss`; did you mean `redis`? (service_unknown)
          `brokerctl services` lists what can be asked for
        ");
    }

    #[test]
    fn json_has_only_the_evidence_that_is_known_and_reads_back() {
        let document = to_json(&crashed());
        let evidence = document["refused"]["evidence"].as_object().expect("an object");
        assert!(!evidence.contains_key("signal") && !evidence.contains_key("available"));
        assert_eq!(from_json(&document["refused"]), crashed());
    }

    #[test]
    fn exit_codes_follow_the_code() {
        let with = |wanted: u8| Code::ALL.into_iter().filter(move |code| exit_code(*code) == wanted).count();
        assert_eq!((with(UNAVAILABLE), with(TRY_LATER), with(NOT_PERMITTED)), (6, 6, 1));
        assert_eq!(exit_code(Code::BackendUnavailable), TRY_LATER);
        assert_eq!(exit_code(Code::SpawnFailed), UNAVAILABLE);
        assert_eq!(exit_code(Code::PeerRejected), NOT_PERMITTED);
    }
}
