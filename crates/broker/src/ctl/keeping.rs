//! How the commands that last keep their session with the broker: whether they come back when the connection ends, and
//! whether they start a broker where none runs.

use std::convert::Infallible;
use std::time::Duration;

use broker_client::{Autostart, Builder, Events, Held, ReconnectConfig, SessionEvent};
use broker_proto::Event;
use clap::{Args, ValueEnum};

use super::args::duration;
use super::output::{Console, FAILED, Failure, harmless};

/// The least value of `--max-reconnect-delay`, and the first pause: more eager clients would be in each other's way.
const DELAY_MIN: Duration = Duration::from_millis(100);

/// Where `--help` lists these options.
const HEADING: &str = "Options of the session with the broker";

/// Options of commands that keep a session.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct Keeping {
    /// Do not come back when the connection to the broker ends
    #[arg(long, help_heading = HEADING)]
    pub(super) no_reconnect: bool,
    /// The longest pause between two attempts to reconnect, at least 100ms [default: 5s]
    #[arg(long, value_name = "DURATION", value_parser = delay, help_heading = HEADING, conflicts_with = "no_reconnect")]
    max_reconnect_delay: Option<Duration>,
}

impl Keeping {
    pub(super) fn apply(&self, builder: Builder) -> Result<Builder, Failure> {
        if self.no_reconnect {
            return Ok(builder.no_reconnect());
        }
        let longest = self.max_reconnect_delay.unwrap_or(ReconnectConfig::default().max_backoff());
        let config = ReconnectConfig::new(DELAY_MIN, longest, attempts(longest));
        Ok(builder.reconnect(config.map_err(|e| Failure::because(FAILED, "cannot reconnect so", e))?))
    }
}

/// How often a broker that is away is dialled. Who asks for shorter pauses is as patient as everybody.
fn attempts(longest_pause: Duration) -> u32 {
    let default = ReconnectConfig::default();
    let times = default.max_backoff().as_millis().div_ceil(longest_pause.as_millis());
    default.max_attempts().saturating_mul(u32::try_from(times).unwrap_or(u32::MAX))
}

/// Options of commands for which a broker may be started.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct Starting {
    /// When to start a broker if none runs; auto: for ordinary users who named no socket
    #[arg(long, value_name = "WHEN", value_enum, default_value = "auto", help_heading = HEADING)]
    autostart: When,
    /// When a broker that was started so leaves if nobody uses it [default: 10m]
    #[arg(long, value_name = "DURATION", value_parser = duration, help_heading = HEADING)]
    idle_exit: Option<Duration>,
}

/// When to start a broker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum When {
    #[default]
    Auto,
    Always,
    Never,
}

impl Starting {
    /// `is_named`: somebody said which broker is meant.
    pub(super) fn apply(&self, builder: Builder, is_named: bool) -> Builder {
        let is_wanted = match self.autostart {
            When::Auto => !is_named && !nix::unistd::geteuid().is_root(),
            When::Always => true,
            When::Never => false,
        };
        if !is_wanted {
            return builder;
        }
        let mut autostart = Autostart::new();
        // The brokerd of the same build, where there is one beside this program.
        if let Ok(own) = std::env::current_exe()
            && let brokerd = own.with_file_name("brokerd")
            && brokerd.is_file()
        {
            autostart = autostart.program(brokerd);
        }
        if let Some(idle_exit) = self.idle_exit {
            autostart = autostart.idle_exit(idle_exit);
        }
        builder.autostart(autostart)
    }
}

/// Says what happens to what is held while something else goes on: with `--verbose` everything, otherwise what matters
/// to those who use it. Has no end of its own.
pub(super) async fn narrate(
    console: &Console,
    held: &Held,
    name: &str,
    mut events: Events,
    is_kept: bool,
) -> Infallible {
    while let Some(event) = events.next().await {
        let is_other = matches!(&event, SessionEvent::Backend { request_id, .. } if *request_id != held.request_id());
        let matters = match &event {
            SessionEvent::Backend { event, .. } => matches!(event, Event::Failed { .. } | Event::Stopped),
            SessionEvent::Closed => is_kept,
            _ => false,
        };
        if let Some(sentence) = sentence(name, &event).filter(|_| !is_other)
            && (console.verbose || matters && !console.quiet)
        {
            console.note(sentence);
        }
    }
    std::future::pending().await
}

fn sentence(name: &str, event: &SessionEvent) -> Option<String> {
    Some(match event {
        SessionEvent::Backend { event, .. } => match event {
            Event::Exited { generation, exit, .. } => {
                format!("{name}: generation {generation} ended ({})", ended(*exit))
            }
            Event::Restarting { .. } => format!("{name}: starting again"),
            Event::Ready { generation, endpoint } => format!("{name}: generation {generation} serves at {endpoint}"),
            Event::Failed { refusal } => format!("{name}: {} ({})", harmless(&refusal.reason), refusal.code),
            Event::Draining => format!("{name}: drained by an operator"),
            Event::Stopped => format!("{name}: stopped by an operator"),
            Event::Resumable => return None,
        },
        SessionEvent::GoAway(_) => "the broker is about to leave".to_owned(),
        SessionEvent::Disconnected { reason } => format!("{reason}; reconnecting"),
        SessionEvent::Reconnected => "connected to the broker again".to_owned(),
        SessionEvent::Closed => format!("the session with the broker is over: {name} is not held any more"),
        _ => return None,
    })
}

/// `exit code 7`, `SIGKILL (9)`.
pub(super) fn ended(exit: broker_proto::Exit) -> String {
    match exit {
        broker_proto::Exit::Code(code) => format!("exit code {code}"),
        broker_proto::Exit::Signal(number) => super::refusal::signal_name(number),
        broker_proto::Exit::Unknown => "nobody saw how".to_owned(),
    }
}

fn delay(text: &str) -> Result<Duration, String> {
    let delay = duration(text)?;
    if delay < DELAY_MIN {
        return Err(format!("it is less than {DELAY_MIN:?}, which is the least"));
    }
    Ok(delay)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shorter_pauses_do_not_make_it_give_up_sooner() {
        let default = ReconnectConfig::default();
        let (usual, longest) = (default.max_attempts(), default.max_backoff());
        assert_eq!(attempts(longest), usual);
        assert_eq!(attempts(longest * 2), usual);
        assert_eq!(attempts(longest / 50), usual * 50);
        assert_eq!(attempts(longest - DELAY_MIN), usual * 2, "rounded up");
    }

    #[test]
    fn the_longest_pause_has_a_least_value() {
        assert_eq!(delay("100ms"), Ok(DELAY_MIN));
        assert_eq!(delay("99ms"), Err("it is less than 100ms, which is the least".to_owned()));
        assert!(delay("0s").is_err() && delay("5").is_err());
    }
}
