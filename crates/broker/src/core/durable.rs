//! A durable process in the hands of its owner: when it is looked at, launched, watched, asked to end, and what its end
//! means.
//!
//! What is known comes from its folder alone ([`Found`]): an owner that has just come, one that comes back after a sleep
//! and one that has been there all the time decide alike.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Timestamp;

/// The first pause after a launch or a look that came to nothing; it doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// The pause after an attempt that was interrupted from outside: the machine may be going down, and this broker is next.
const AFTER_INTERRUPTION: Duration = Duration::from_secs(1);

/// Who ended an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum EndedBy {
    /// The command itself.
    #[default]
    None,
    /// Somebody who cancelled it.
    Cancel,
    /// Its timeout.
    Timeout,
    /// Somebody who ended its reaper without cancelling it, such as a machine that goes down. It is run again.
    Interrupted,
}

impl EndedBy {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Cancel => "cancel",
            Self::Timeout => "timeout",
            Self::Interrupted => "interrupted",
        }
    }
}

/// How an attempt ended, as its reaper wrote it down.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Ended {
    pub(crate) exit_code: Option<i32>,
    pub(crate) signal: Option<i32>,
    pub(crate) ended_by: EndedBy,
    /// Why it could not be executed.
    pub(crate) reason: Option<String>,
}

impl Ended {
    /// Whether this is the end of the process, and not of the attempt alone.
    pub(crate) fn is_final(&self) -> bool {
        self.ended_by != EndedBy::Interrupted
    }
}

/// What a look at the folder showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// A reaper runs it, and can be watched.
    Runs { attempt: u32 },
    /// Somebody holds the lock who has not written down who he is.
    Held,
    /// An attempt ended and wrote down how.
    Ended { attempt: u32, ended: Ended },
    /// Nobody runs it; so many attempts were begun.
    Free { attempts: u32 },
    /// The folder is gone.
    Missing,
    /// The look failed.
    Unseen,
}

/// What a process came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Succeeded,
    Failed,
    Cancelled,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// It was looked at, as [`Effect::Look`] asked.
    Looked(Found),
    /// The launched reaper has executed the command, or has ended.
    Announced,
    /// The watched reaper has ended.
    ReaperEnded,
    /// The launch failed, or the outcome could not be stored.
    Hindered,
    /// Somebody cancelled it, which the record and the folder say already.
    Cancelled,
    /// The time of [`Durable::next_deadline`] has come.
    Tick,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Effect {
    Look,
    /// Start this attempt.
    Launch {
        attempt: u32,
    },
    /// Watch the reaper that the look found.
    Watch {
        attempt: u32,
        adopted: bool,
    },
    /// Tell the reaper that it is cancelled.
    AskToEnd,
    /// Say that an attempt was lost with its reaper or its machine.
    Lost {
        attempt: u32,
    },
    /// Store the outcome; the owner's work is over.
    Finish {
        attempt: u32,
        verdict: Verdict,
        ended: Ended,
    },
}

/// One process.
#[derive(Debug)]
pub(crate) struct Durable {
    max_attempts: u32,
    is_cancelled: bool,
    state: State,
    pause: Duration,
    /// The newest attempt that was said to be lost.
    lost: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// A look is on its way.
    Looking {
        launched: Option<u32>,
    },
    /// A reaper was launched and has not been heard of.
    Launched {
        attempt: u32,
    },
    Running,
    /// Looked at again when the time has come.
    Resting {
        until: Timestamp,
        launched: Option<u32>,
    },
    Over,
}

impl Durable {
    /// A process that has just become ours. Ask for a look at it.
    pub(crate) fn new(max_attempts: u32, is_cancelled: bool) -> Self {
        let state = State::Looking { launched: None };
        Self { max_attempts, is_cancelled, state, pause: FIRST_PAUSE, lost: 0 }
    }

    #[must_use]
    pub(crate) fn next_deadline(&self) -> Option<Timestamp> {
        match self.state {
            State::Resting { until, .. } => Some(until),
            State::Looking { .. } | State::Launched { .. } | State::Running | State::Over => None,
        }
    }

    pub(crate) fn handle(&mut self, now: Timestamp, event: Event, effects: &mut Vec<Effect>) {
        match (self.state, event) {
            (State::Over, _) => {}
            (State::Looking { launched }, Event::Looked(found)) => self.take(now, found, launched, effects),
            (State::Launched { attempt }, Event::Announced | Event::ReaperEnded) => {
                self.look(Some(attempt), effects);
            }
            (State::Running, Event::ReaperEnded) => self.look(None, effects),
            (State::Launched { .. } | State::Running | State::Looking { .. }, Event::Hindered) => self.rest(now, None),
            (State::Resting { until, launched }, Event::Tick) if until <= now => self.look(launched, effects),
            (State::Resting { launched, .. }, Event::Cancelled) => {
                self.is_cancelled = true;
                self.look(launched, effects);
            }
            (State::Running, Event::Cancelled) => {
                self.is_cancelled = true;
                effects.push(Effect::AskToEnd);
            }
            // The reaper reads for itself whether it is cancelled, and the look that follows tells it once more.
            (State::Looking { .. } | State::Launched { .. }, Event::Cancelled) => self.is_cancelled = true,
            // The end of a pipe after the end of its reaper, a look that nobody waits for any more.
            (
                State::Looking { .. } | State::Launched { .. } | State::Running | State::Resting { .. },
                Event::Announced | Event::ReaperEnded | Event::Looked(_) | Event::Hindered | Event::Tick,
            ) => {}
        }
    }

    fn look(&mut self, launched: Option<u32>, effects: &mut Vec<Effect>) {
        self.state = State::Looking { launched };
        effects.push(Effect::Look);
    }

    fn rest(&mut self, now: Timestamp, launched: Option<u32>) {
        self.state = State::Resting { until: now + self.pause, launched };
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }

    /// Decides by what was found.
    fn take(&mut self, now: Timestamp, found: Found, launched: Option<u32>, effects: &mut Vec<Effect>) {
        match found {
            Found::Runs { attempt } => {
                self.state = State::Running;
                self.pause = FIRST_PAUSE;
                effects.push(Effect::Watch { attempt, adopted: launched != Some(attempt) });
                if self.is_cancelled {
                    effects.push(Effect::AskToEnd);
                }
            }
            Found::Held | Found::Unseen => self.rest(now, launched),
            Found::Ended { attempt, ended } if ended.is_final() => self.finish(attempt, ended, effects),
            Found::Ended { attempt, ended } => {
                if !self.is_cancelled && attempt < self.max_attempts && self.lost < attempt {
                    self.lose(attempt, effects);
                    self.state = State::Resting { until: now + AFTER_INTERRUPTION, launched: None };
                } else {
                    self.go_on(attempt, Some(ended), effects);
                }
            }
            // The launched reaper has ended and begun nothing: somebody else was quicker, or the disk is full.
            Found::Free { attempts } if launched.is_some_and(|launched| attempts < launched) => {
                self.rest(now, None);
            }
            Found::Free { attempts } => self.go_on(attempts, None, effects),
            Found::Missing => {
                let reason = Some("its folder in the store is gone".to_owned());
                self.fail(0, Ended { reason, ..Ended::default() }, effects);
            }
        }
    }

    /// Nobody runs it after so many attempts: starts the next one, if there may be one.
    fn go_on(&mut self, attempts: u32, ended: Option<Ended>, effects: &mut Vec<Effect>) {
        if attempts > self.lost {
            self.lose(attempts, effects);
        }
        let ended = ended.unwrap_or_default();
        if self.is_cancelled {
            self.over(attempts, Verdict::Cancelled, Ended { ended_by: EndedBy::Cancel, ..ended }, effects);
        } else if attempts >= self.max_attempts {
            let times = if attempts == 1 { "once".to_owned() } else { format!("{attempts} times") };
            let last = ended.reason.as_ref().map(|reason| format!(", at last: {reason}")).unwrap_or_default();
            let reason = format!("lost {times}, which is as often as it may be started{last}");
            self.fail(attempts, Ended { reason: Some(reason), ..ended }, effects);
        } else {
            self.state = State::Launched { attempt: attempts + 1 };
            effects.push(Effect::Launch { attempt: attempts + 1 });
        }
    }

    fn lose(&mut self, attempt: u32, effects: &mut Vec<Effect>) {
        self.lost = attempt;
        effects.push(Effect::Lost { attempt });
    }

    fn finish(&mut self, attempt: u32, ended: Ended, effects: &mut Vec<Effect>) {
        match (ended.ended_by, ended.exit_code) {
            (EndedBy::Cancel, _) => self.over(attempt, Verdict::Cancelled, ended, effects),
            (EndedBy::None, Some(0)) => self.over(attempt, Verdict::Succeeded, ended, effects),
            (EndedBy::None | EndedBy::Timeout | EndedBy::Interrupted, _) => self.fail(attempt, ended, effects),
        }
    }

    fn fail(&mut self, attempt: u32, ended: Ended, effects: &mut Vec<Effect>) {
        self.over(attempt, Verdict::Failed, ended, effects);
    }

    fn over(&mut self, attempt: u32, verdict: Verdict, ended: Ended, effects: &mut Vec<Effect>) {
        // Not yet over: if the outcome cannot be stored, it is looked at again.
        self.state = State::Looking { launched: None };
        effects.push(Effect::Finish { attempt, verdict, ended });
    }

    /// Its outcome is stored.
    pub(crate) fn close(&mut self) {
        self.state = State::Over;
    }
}

#[cfg(test)]
#[path = "durable_tests.rs"]
mod tests;
