//! The cgroups of this broker: where they are made, and why they are not.
//!
//! Shared by the threads that start something. A place that vanishes, because its unit was restarted, is looked for again
//! at the next start; where there is none, what is started is a process group of the broker's own cgroup, and the log
//! says so, once.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

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
pub(super) struct Cgroups(Arc<Mutex<Inner>>);

/// What was made for a start.
#[derive(Debug)]
pub(super) struct Made {
    /// With its folder opened, for what begins there.
    pub(super) cgroup: Option<(Leaf, Arc<OwnedFd>)>,
    pub(super) unenforced: Vec<Unenforced>,
}

#[derive(Debug)]
struct Inner {
    wanted: config::Cgroups,
    /// Whether a service manager started this broker.
    is_managed: bool,
    /// Tells brokers of the same cgroup apart.
    key: u64,
    /// Where they are made, or why nowhere.
    place: Result<Place, String>,
    /// What was last said of a cgroup that could not be made.
    said: String,
}

impl Cgroups {
    /// Looks for a place, before anything is started there.
    pub(super) fn new(wanted: config::Cgroups, state: &Path, is_managed: bool) -> Self {
        let key = fnv1a(state.as_os_str().as_encoded_bytes());
        let mut inner = Inner { wanted, is_managed, key, place: Err(String::new()), said: String::new() };
        inner.find();
        let cgroups = Self(Arc::new(Mutex::new(inner)));
        // Those of durable processes that have ended. Where something lives, whoever looks at that process decides.
        cgroups
            .strays(|name| !is_start_name(name))
            .iter()
            .filter(|(_, stray)| stray.members().is_empty())
            .for_each(|(_, stray)| stray.remove());
        cgroups
    }

    /// Makes the cgroup of one start, if it can be, with its limits; and says which of them do not hold.
    pub(super) fn make(&self, name: &str, limits: &Limits) -> Made {
        let place = match self.place() {
            Ok(place) => place,
            Err(reason) => return Made { cgroup: None, unenforced: limits.without_a_cgroup(&reason) },
        };
        // Not under the lock: the kernel may take its time, and the driver looks here, too.
        let made = place.leaf(name).and_then(|leaf| {
            let unenforced = place.limit(&leaf, limits);
            let opened = leaf.open().inspect_err(|_| leaf.remove())?;
            Ok(Made { cgroup: Some((leaf, Arc::new(opened))), unenforced })
        });
        made.unwrap_or_else(|error| {
            let why = format!("no cgroup can be made: {error}");
            let mut inner = self.lock();
            if why != inner.said {
                tracing::warn!(%error, name, "cannot make a cgroup, so this one is a process group alone");
                inner.said.clone_from(&why);
            }
            Made { cgroup: None, unenforced: limits.without_a_cgroup(&why) }
        })
    }

    /// The place, looked for again if it has vanished.
    fn place(&self) -> Result<Place, String> {
        let mut inner = self.lock();
        if !inner.place.as_ref().is_ok_and(Place::is_there) {
            inner.find();
        }
        inner.place.clone()
    }

    /// Whether the unit that backends live in is being taken down.
    pub(super) fn are_closing(&self) -> bool {
        self.lock().place.as_ref().is_ok_and(|place| place.is_there() && place.is_closing())
    }

    /// Whether somebody else keeps the place, who may take it down.
    pub(super) fn are_in_a_unit(&self) -> bool {
        self.lock().place.as_ref().is_ok_and(Place::is_a_units)
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
        for (name, stray) in self.strays(|name| is_start_name(name) && !is_known(name)) {
            let ended = stray.members();
            if !ended.is_empty() {
                tracing::warn!(name, ?ended, "ends what outlived an earlier broker");
                let remaining = stray.end(PATIENCE);
                if !remaining.is_empty() {
                    tracing::error!(name, ?remaining, "killed, and yet these processes remain");
                }
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
            Err(reason) => json!({ "place": null, "controllers": [], "why_not": reason }),
        }
    }

    /// What is said of a place is whole between any two calls, so a panic elsewhere does not spoil it.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn find(&mut self) {
        let found = match self.wanted {
            config::Cgroups::Auto => Place::find(self.key),
            config::Cgroups::Off => Err(NoPlace::Off),
        };
        let is_lost_at_a_restart = self.is_managed && matches!(found, Err(NoPlace::Off | NoPlace::Absent(_)));
        // Elsewhere it is as it is on that machine; this is for whoever set up the unit.
        let is_to_be_mended = is_lost_at_a_restart || matches!(found, Err(NoPlace::NoUnit { .. }));
        let found = found.map_err(|error| {
            let reason = match std::error::Error::source(&error) {
                Some(source) => format!("{error}: {source}"),
                None => error.to_string(),
            };
            if is_lost_at_a_restart { format!("{reason}; {LIVES_WITH_THE_BROKER}") } else { reason }
        });
        let before = std::mem::replace(&mut self.place, found);
        match &self.place {
            Ok(place) => tracing::debug!(place = %place.folder().display(), "what is started has a cgroup of its own"),
            Err(reason) if before.is_err_and(|known| known == *reason) => {}
            Err(reason) if is_to_be_mended => tracing::warn!(reason, "what is started has no cgroup of its own"),
            Err(reason) => tracing::info!(reason, "what is started has no cgroup of its own"),
        }
    }
}
