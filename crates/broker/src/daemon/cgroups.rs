//! The cgroups of this broker: where they are made, and why they are not.
//!
//! Shared by the threads that start something. A place that vanishes, because its unit was restarted, is looked for again
//! at the next start, and until it is back nothing is started; where there never was one, what is started is a process
//! group of the broker's own cgroup, and the log says so, once.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::places::{fnv1a, is_start_name};
use crate::config;
use crate::core::limits::{Limits, Unenforced};
use crate::process::cgroup::{Leaf, NoPlace, Place};
use crate::process::start::StartFacts;

/// How long what an earlier broker left may take to end once it is killed.
const PATIENCE: Duration = Duration::from_secs(5);

/// What follows where a service manager runs a broker that makes no cgroups.
const LIVES_WITH_THE_BROKER: &str = "what is started lives in the broker's own cgroup, and the service manager ends it \
                                     with the broker, unless the unit has `KillMode=process`";

/// The cgroups of this broker, as each thread holds them.
#[derive(Debug, Clone)]
pub(super) struct Cgroups(Arc<Shared>);

/// What was made for a start.
#[derive(Debug)]
pub(super) struct Made {
    /// With its folder opened, for what begins there.
    pub(super) cgroup: Option<(Leaf, Arc<OwnedFd>)>,
    pub(super) unenforced: Vec<Unenforced>,
}

/// The unit that backends live in is being taken down, or is down. What began there now would be killed with it, and
/// systemd would wait for that; what began in the broker's own unit instead would go with that.
#[derive(Debug)]
pub(super) struct Closing;

#[derive(Debug)]
struct Shared {
    wanted: config::Cgroups,
    /// Whether a service manager started this broker.
    is_managed: bool,
    /// Tells brokers of the same cgroup apart.
    key: u64,
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Known {
    /// Where they are made, or why nowhere.
    place: Result<Place, Absence>,
    /// What was last said of a cgroup that could not be made.
    said: String,
}

/// Why there is no place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Absence {
    reason: String,
    /// Whether there may be one later.
    may_end: bool,
    /// Whether whoever set up the unit can mend it; elsewhere it is as it is on that machine.
    is_to_be_mended: bool,
}

/// Why nothing can be made just now.
enum Nowhere {
    Absent(String),
    Closing,
}

impl Cgroups {
    /// Looks for a place, before anything is started there.
    pub(super) fn new(wanted: config::Cgroups, state: &Path, is_managed: bool) -> Self {
        let key = fnv1a(state.as_os_str().as_encoded_bytes());
        let known = Mutex::new(Known { place: Err(Absence::default()), said: String::new() });
        let cgroups = Self(Arc::new(Shared { wanted, is_managed, key, known }));
        let found = cgroups.find();
        cgroups.lock().settle(found);
        // Those of durable processes that have ended. Where something lives, whoever looks at that process decides.
        cgroups
            .strays(|name| !is_start_name(name))
            .iter()
            .filter(|(_, stray)| stray.members().is_empty())
            .for_each(|(_, stray)| stray.remove());
        cgroups
    }

    /// Makes the cgroup of one start, if it can be, with its limits; and says which of them do not hold.
    pub(super) fn make(&self, name: &str, limits: &Limits) -> Result<Made, Closing> {
        let place = match self.place() {
            Ok(place) => place,
            Err(Nowhere::Closing) => return Err(Closing),
            Err(Nowhere::Absent(reason)) => {
                return Ok(Made { cgroup: None, unenforced: limits.without_a_cgroup(&reason) });
            }
        };
        // Not under the lock: the kernel may take its time, and the driver looks here, too.
        let made = place.leaf(name).and_then(|leaf| {
            let unenforced = place.limit(&leaf, limits);
            let opened = leaf.open().inspect_err(|_| leaf.remove())?;
            Ok(Made { cgroup: Some((leaf, Arc::new(opened))), unenforced })
        });
        made.or_else(|error| {
            if place.is_a_units() && !place.is_there() {
                return Err(Closing);
            }
            let why = format!("no cgroup can be made: {error}");
            let mut known = self.lock();
            if why != known.said {
                tracing::warn!(%error, name, "cannot make a cgroup, so this one is a process group alone");
                known.said.clone_from(&why);
            }
            Ok(Made { cgroup: None, unenforced: limits.without_a_cgroup(&why) })
        })
    }

    /// The place, looked for again if it has vanished, or its unit was not there. Not under the lock: many may start
    /// something at the same time.
    fn place(&self) -> Result<Place, Nowhere> {
        let before = self.lock().place.clone();
        match &before {
            Ok(place) if place.is_there() => return Ok(place.clone()),
            Err(absence) if !absence.may_end => return Err(Nowhere::Absent(absence.reason.clone())),
            Ok(_) | Err(_) => {}
        }
        let found = self.find();
        // Who had a unit and has none waits for it: it comes back, and the broker's own is none that may be used instead.
        if before.is_ok_and(|place| place.is_a_units()) && found.is_err() {
            return Err(Nowhere::Closing);
        }
        self.lock().settle(found.clone());
        found.map_err(|absence| Nowhere::Absent(absence.reason))
    }

    /// Whether the unit that backends live in is being taken down, or is down.
    pub(super) fn are_closing(&self) -> bool {
        // Where there was none nothing can be taken down.
        self.lock().place.is_ok()
            && match self.place() {
                Ok(place) => place.is_closing(),
                Err(Nowhere::Closing) => true,
                Err(Nowhere::Absent(_)) => false,
            }
    }

    /// Whether what began so ended because the place was taken down around it.
    pub(super) fn are_lost_to(&self, facts: &StartFacts) -> bool {
        facts.cgroup.as_ref().is_some_and(|cgroup| cgroup.has_lost_its_place() || self.are_closing())
    }

    /// Those that there are, with their names.
    fn strays(&self, which: impl Fn(&str) -> bool) -> Vec<(String, Leaf)> {
        let Ok(place) = self.lock().place.clone() else { return Vec::new() };
        let names = place.names().into_iter().filter(|name| which(name));
        names.filter_map(|name| place.existing(&name).map(|leaf| (name, leaf))).collect()
    }

    /// Ends what an earlier broker left in cgroups of backends that nobody knows any more, and removes them.
    pub(super) fn sweep(&self, is_known: impl Fn(&str) -> bool) {
        let strays = self.strays(|name| is_start_name(name) && !is_known(name));
        // All are killed first, so that all are waited for together.
        for (name, stray) in &strays {
            let ended = stray.members();
            if !ended.is_empty() {
                tracing::warn!(name, ?ended, "ends what outlived an earlier broker");
                stray.kill();
            }
        }
        let deadline = Instant::now() + PATIENCE;
        for (name, stray) in &strays {
            let remaining = stray.end(deadline.saturating_duration_since(Instant::now()));
            if !remaining.is_empty() {
                tracing::error!(name, ?remaining, "killed, and yet these processes remain");
            }
            stray.remove();
        }
    }

    /// Leaves nothing of the broker's own behind, unless something lives there.
    pub(super) fn leave(&self) {
        if let Ok(place) = &self.lock().place {
            place.leave();
        }
    }

    /// For `status`.
    pub(super) fn report(&self) -> Value {
        match &self.lock().place {
            Ok(place) => json!({ "place": place.folder(), "controllers": place.controllers(), "why_not": null }),
            Err(absence) => json!({ "place": null, "controllers": [], "why_not": absence.reason }),
        }
    }

    /// Looks for a place, and for the words that say why there is none.
    fn find(&self) -> Result<Place, Absence> {
        let Shared { wanted, is_managed, key, .. } = &*self.0;
        let found = match wanted {
            config::Cgroups::Auto => Place::find(*key),
            config::Cgroups::Off => Err(NoPlace::Off),
        };
        found.map_err(|error| {
            let is_lost_at_a_restart = *is_managed && matches!(error, NoPlace::Off | NoPlace::Absent(_));
            let has_no_unit = matches!(error, NoPlace::NoUnit { .. });
            let reason = match std::error::Error::source(&error) {
                Some(source) => format!("{error}: {source}"),
                None => error.to_string(),
            };
            let reason = if is_lost_at_a_restart { format!("{reason}; {LIVES_WITH_THE_BROKER}") } else { reason };
            Absence { reason, may_end: has_no_unit, is_to_be_mended: is_lost_at_a_restart || has_no_unit }
        })
    }

    /// What is said of a place is whole between any two calls, so a panic elsewhere does not spoil it.
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    /// Takes what was found, and says so if it is news.
    fn settle(&mut self, found: Result<Place, Absence>) {
        let before = std::mem::replace(&mut self.place, found);
        match &self.place {
            Ok(place) => tracing::debug!(place = %place.folder().display(), "what is started has a cgroup of its own"),
            Err(absence) if before.is_err_and(|known| known == *absence) => {}
            Err(Absence { reason, is_to_be_mended: true, .. }) => {
                tracing::warn!(reason, "what is started has no cgroup of its own");
            }
            Err(Absence { reason, .. }) => tracing::info!(reason, "what is started has no cgroup of its own"),
        }
    }
}
