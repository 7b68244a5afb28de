//! How a generation ends: its main process seen dead or followed, its group asked to end, the rest ended.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use broker_proto::Endpoint;
use nix::unistd::Pid;

use super::clock::now;
use super::driver::Driver;
use super::hosted::{Main, Running};
use super::ledger::Start;
use super::perform::serves;
use super::sweep::judge::{Was, seek_daemon_left_by};
use super::work::{self, Ending, Finished, Report};
use super::{tasks, telling};
use crate::core::Timestamp;
use crate::core::backend::Event;
use crate::core::registry::BackendId;
use crate::failpoint;
use crate::process::exit::{Exit, peek};
use crate::process::forked::{Survivor, survivors};
use crate::process::group::{Tree, signal};
use crate::process::identity::{self, Stat};
use crate::process::kernel;
use crate::process::start::Evidence;

/// How long survivors are looked for while somebody is just ending.
const SEARCH_MAX: Duration = Duration::from_millis(500);

/// What a look at a main process showed.
pub(super) enum Look {
    /// It runs, or it is another generation's.
    Runs,
    /// It ended, and perhaps forked away: that cannot be told yet.
    Unsettled,
    /// It ended.
    Ended(Event),
}

/// How far it is with those who may be the daemon now that the main process has ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Search {
    #[default]
    NotBegun,
    /// They are looked for since then, in vain so far.
    Since(Timestamp),
    /// A worker thread looks for them.
    UnderWay,
    /// Whoever there is was found.
    Over,
}

impl Search {
    /// Whether a look in vain is to be followed by another one.
    fn goes_on(&mut self, now: Timestamp) -> bool {
        match self {
            Self::NotBegun => {
                *self = Self::Since(now);
                true
            }
            Self::Since(began) => now.since(*began) < SEARCH_MAX,
            Self::UnderWay => true,
            Self::Over => false,
        }
    }
}

impl Driver {
    /// The main process has ended, or seems to have. `false` if it must be looked at again soon.
    pub(super) fn main_ended(&mut self, id: BackendId, generation: u64) -> bool {
        let look = self.look_again(id, generation);
        self.take_look(id, look)
    }

    /// A client says that the main process has ended. `false` if that is not settled yet.
    pub(super) fn main_found_dead(&mut self, id: BackendId, generation: u64) -> bool {
        let look = self.look_at_main(id, generation);
        self.take_look(id, look)
    }

    fn take_look(&mut self, id: BackendId, look: Look) -> bool {
        match look {
            Look::Unsettled => return false,
            Look::Runs => {}
            Look::Ended(event) => {
                self.hold_for_waiting(id, &event);
                self.dispatch(id, event);
                self.settle_doubts(id);
            }
        }
        true
    }

    /// Looks at the main process on behalf of a client. Where it is looked at again and again already that goes on at its
    /// own pace, however many clients come.
    pub(super) fn look_at_main(&mut self, id: BackendId, generation: u64) -> Look {
        let running = self.hosted.get_mut(&id).and_then(|hosted| hosted.generation(generation));
        match running.map(|running| running.search) {
            Some(Search::Since(_) | Search::UnderWay) => Look::Unsettled,
            Some(Search::NotBegun | Search::Over) | None => self.look_again(id, generation),
        }
    }

    /// Looks at the main process now.
    fn look_again(&mut self, id: BackendId, generation: u64) -> Look {
        let Some((key, backend)) = self.registry.get(id) else { return Look::Runs };
        let is_ready = backend.view(now()).state == broker_proto::State::Ready;
        let Some(running) = self.hosted.get_mut(&id).and_then(|h| h.generation(generation)) else { return Look::Runs };
        if !kernel::has_ended(running.main.pidfd.as_fd()) {
            return Look::Runs;
        }
        let exit = peek(running.main.pidfd.as_fd()).ok().flatten().unwrap_or(Exit::Unknown);
        if exit.is_success() {
            let mains = &self.mains;
            match survivors(&running.facts, |pid| mains.contains(pid)) {
                Ok(look) if look.survivors.is_empty() && !look.is_settled && running.search.goes_on(now()) => {
                    return Look::Unsettled;
                }
                Ok(look) => running.survivors = look.survivors,
                Err(error) => tracing::warn!(backend = %key, generation, %error, "survivors cannot be looked for"),
            }
        }
        // Of one that was adopted it cannot be seen how it ended.
        let was = Was::in_phase(&backend.memory().phase);
        if running.is_adopted && exit == Exit::Unknown && was != Was::Settled && running.search != Search::Over {
            if std::mem::replace(&mut running.search, Search::UnderWay) != Search::UnderWay {
                self.seek_heirs(id, generation, was);
            }
            return Look::Unsettled;
        }
        // One that was ready must still be: then its listening socket lives on in those who survive.
        let survives = (exit.is_success() || exit == Exit::Unknown)
            && !running.survivors.is_empty()
            && (!is_ready || serves(&running.endpoint));
        let taken_down = !survives && self.cgroups.are_lost_to(&running.facts);
        let pid = running.main.pid.as_raw();
        tracing::info!(backend = %key, generation, pid, survives, taken_down, "the main process {exit}");
        if taken_down {
            return Look::Ended(Event::TakenDown { generation, exit: telling::exit(exit) });
        }
        Look::Ended(Event::Exited { generation, exit: telling::exit(exit), survivors: survives })
    }

    /// Has a worker thread look for the daemon that a process has become whose end nobody saw: it takes a look at every
    /// process there is.
    fn seek_heirs(&mut self, id: BackendId, generation: u64, was: Was) {
        let Some(running) = self.hosted.get_mut(&id).and_then(|h| h.generation(generation)) else { return };
        let (facts, endpoint) = (Arc::clone(&running.facts), running.endpoint.clone());
        let job = move || {
            let survivor = |(stat, pidfd): (Stat, OwnedFd)| Survivor {
                pid: stat.pid,
                identity: stat.identity(),
                evidence: facts.proof(&stat, false).unwrap_or(Evidence::Executable),
                pidfd,
            };
            let heirs = seek_daemon_left_by(&facts, was, &endpoint).into_iter().map(survivor).collect();
            Report::Heirs { id, generation, heirs }
        };
        let faulty = move || {
            let _ = telling::fault("the search for a daemon that forked away failed");
            Report::Heirs { id, generation, heirs: Vec::new() }
        };
        if let Err(error) = self.work(job, faulty) {
            tracing::error!(%error, "no thread to look for a daemon from that forked away");
            if let Some(running) = self.hosted.get_mut(&id).and_then(|h| h.generation(generation)) {
                running.search = Search::Over;
            }
        }
    }

    /// Whoever there is was found.
    pub(super) fn heirs_found(&mut self, id: BackendId, generation: u64, heirs: Vec<Survivor>) {
        let Some(running) = self.hosted.get_mut(&id).and_then(|h| h.generation(generation)) else { return };
        (running.survivors, running.search) = (heirs, Search::Over);
        self.main_ended(id, generation);
    }

    /// Takes the oldest survivor of a daemon that forked away for the main process. If it has ended meanwhile that is
    /// the next thing to be seen of it.
    pub(super) fn follow(&mut self, id: BackendId, generation: u64) {
        let Some(running) = self.hosted.get_mut(&id).and_then(|h| h.generation(generation)) else { return };
        let mains = &self.mains;
        let launcher = running.main.pid;
        let mut found = std::mem::take(&mut running.survivors).into_iter();
        let Some(survivor) = found.next() else { return };
        running.search = Search::NotBegun;
        let group = identity::stat(survivor.pid).ok().flatten().map_or(survivor.pid, |s| s.group);
        tracing::info!(
            backend = %running.start.key, generation, launcher = launcher.as_raw(), pid = survivor.pid.as_raw(), evidence = ?survivor.evidence,
            "the daemon forked away"
        );
        mains.insert(survivor.pid);
        mains.remove(launcher);
        if let Err(error) = kernel::reap(&running.main.pidfd)
            && !running.is_adopted
        {
            tracing::warn!(backend = %running.start.key, generation, %error, "a launcher cannot be reaped");
        }
        running.known.push(launcher);
        running.known.extend(found.map(|other| other.pid));
        if let Some(process) = &mut Arc::make_mut(&mut running.start).process {
            process.main = survivor.identity;
            process.group = group;
            process.known = running.known.iter().map(|pid| pid.as_raw()).collect();
        }
        running.main = Main { pid: survivor.pid, pidfd: Arc::new(survivor.pidfd), group };
        let watch = tasks::watch_main(self.me.clone(), id, generation, Arc::clone(&running.main.pidfd));
        running.tasks.push(watch);
        self.remember_main(id);
    }

    /// Asks the group to end. The main process is not reaped before its end is worked off here, so the number is its own.
    /// The descendants are looked for first: once the main process has ended nothing leads to those that left its group.
    pub(super) fn terminate(&mut self, id: BackendId, generation: u64) {
        let Some(running) = self.hosted.get_mut(&id).and_then(|h| h.generation(generation)) else { return };
        let main = running.main.pid;
        running.tree = Tree::snapshot(main).unwrap_or_else(|error| {
            tracing::warn!(
                backend = %running.start.key, generation, %error, pid = main.as_raw(),
                "cannot look at the descendants of a process"
            );
            Tree::default()
        });
        let stop_signal = running.definition.lifecycle.stop_signal;
        let backend = &running.start.key;
        tracing::info!(%backend, generation, signal = stop_signal.as_str(), "stopping");
        failpoint::reached("before-terminate");
        // An adopted one is nobody's zombie here once it has ended, and its number anybody's; and it may have made itself
        // another group since it was found.
        if running.is_adopted {
            match group_of(&running.main) {
                Some(group) => running.main.group = group,
                None => return,
            }
        }
        if let Err(error) = signal(running.main.group, stop_signal) {
            tracing::warn!(%backend, generation, %error, pid = main.as_raw(), "cannot signal a process group");
            let _ = kernel::pidfd_signal(running.main.pidfd.as_fd(), stop_signal);
        }
        failpoint::reached("after-terminate");
    }

    /// Ends what is left of a generation.
    pub(super) fn end(&mut self, id: BackendId, generation: u64) {
        self.unwatch(id);
        let Some(hosted) = self.hosted.get_mut(&id) else { return };
        let Some(running) = hosted.running.take_if(|running| running.generation == generation) else { return };
        let inherits = hosted.listener.is_some();
        let socket = match &running.endpoint {
            Endpoint::Unix { path } if !inherits => Some(PathBuf::from(path)),
            Endpoint::Unix { .. } | Endpoint::Tcp { .. } => None,
        };
        let Running { main, facts, tree, stream, start, .. } = *running;
        let (main, facts) = (Some(main), Some(facts));
        let Start { log, record, cgroup, .. } = Arc::unwrap_or_clone(start);
        let ending = Ending { main, facts, tree, socket, log, stream, is_explained: false, record, cgroup };
        self.end_with(id, generation, ending);
    }

    /// Ends what is left, on a worker thread.
    pub(super) fn end_with(&mut self, id: BackendId, generation: u64, mut ending: Ending) {
        // Nothing that was registered is forgotten.
        let Some((key, backend)) = self.registry.get(id) else { return };
        ending.is_explained = backend.will_refuse();
        let (key, mains, journal) = (Arc::new(key.clone()), self.mains.clone(), self.journal.clone());
        // Shared, so that it is not lost with a job that no thread takes.
        let ending = Arc::new(Mutex::new(Some(ending)));
        let (theirs, name) = (Arc::clone(&ending), Arc::clone(&key));
        let job = move || {
            let taken = theirs.lock().unwrap_or_else(PoisonError::into_inner).take();
            let finished = taken.map(|ending| work::finish(ending, &name, generation, &mains, &journal));
            Report::Gone { id, generation, finished: finished.unwrap_or_default() }
        };
        self.ending += 1;
        let faulty = move || {
            let _ = telling::fault("the end of a backend failed");
            Report::Gone { id, generation, finished: Finished::default() }
        };
        if let Err(error) = self.work(job, faulty) {
            // Nothing may be started over what still runs: so it is ended here, whoever waits meanwhile.
            tracing::error!(backend = %key, generation, %error, "no thread to end a backend from");
            let taken = ending.lock().unwrap_or_else(PoisonError::into_inner).take();
            let finished = taken.map(|ending| work::finish(ending, &key, generation, &self.mains, &self.journal));
            let Finished { trace, .. } = finished.unwrap_or_default();
            self.ending -= 1;
            self.remember_end(id, generation, &trace);
            self.follow_up(id, Event::Gone { generation, trace });
        }
    }

    /// Nothing of a backend is left.
    pub(super) fn gone(&mut self, id: BackendId, generation: u64, finished: Finished) {
        let Finished { trace, remaining, lingering } = finished;
        self.ending -= 1;
        if let Some((key, _)) = self.registry.get(id) {
            if remaining.is_empty() {
                tracing::debug!(backend = %key, generation, "gone");
            } else {
                tracing::error!(backend = %key, generation, ?remaining, "killed, and yet these processes remain");
            }
        }
        if let Some(main) = lingering {
            tasks::reap_later(self.mains.clone(), main);
        }
        self.remember_end(id, generation, &trace);
        if let Some(hosted) = self.hosted.get_mut(&id) {
            hosted.drop_unserved_listener();
        }
        self.dispatch(id, Event::Gone { generation, trace });
    }
}

/// The group of a main process, which is its own as long as it lives; none if it does not.
fn group_of(main: &Main) -> Option<Pid> {
    let stat = identity::stat(main.pid).ok().flatten()?;
    (!kernel::has_ended(main.pidfd.as_fd())).then_some(stat.group)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_is_over_when_its_time_is_and_not_when_many_have_asked() {
        let began = Timestamp::from_nanos(1);
        let mut search = Search::default();
        assert!((0..1000).all(|_| search.goes_on(began)));
        assert!(search.goes_on(began + (SEARCH_MAX - Duration::from_millis(1))));
        assert!(!search.goes_on(began + SEARCH_MAX));
    }
}
