//! What must hold of the record in every history: each generation's happenings once, and in an order that makes sense.

use broker_proto::State;

use super::super::backend::{Effect, Event, Happening, View};

/// What the record says of one backend.
#[derive(Debug, Default)]
pub(super) struct Recorded {
    generation: u64,
    started: bool,
    ready: bool,
    ended: bool,
    stopping: bool,
    draining: bool,
}

impl Recorded {
    /// Takes what one event led to.
    pub(super) fn take(&mut self, before: Option<&View>, event: &Event, after: &View, effects: &[Effect]) {
        for effect in effects {
            match effect {
                Effect::Record { generation, happening } => self.happened(*generation, happening),
                Effect::Start { generation } => {
                    assert_eq!(*generation, self.generation, "no start without a record of it");
                }
                Effect::Negotiate { .. } => self.check_it_serves(),
                _ => {}
            }
        }
        if after.state == State::Ready {
            self.check_it_serves();
        }
        assert_eq!(after.draining, self.draining, "a drain is on record from its beginning to its end");
        if before.is_some_and(|before| before.state == State::Ready) && matches!(event, Event::Hello(_)) {
            let recorded = effects.iter().any(|effect| matches!(effect, Effect::Record { .. }));
            assert!(!recorded, "a warm Hello leaves no record");
        }
    }

    /// The program ran, whether or not the broker that started it lived to say so.
    ///
    /// Of one that was asked to end its end may be told twice, since the first to tell did not live to act on it.
    pub(super) fn ran(&mut self) {
        self.started = true;
        self.ended &= !self.stopping;
    }

    /// The broker died before the program ran.
    pub(super) fn never_started(&mut self) {
        self.stopping = false;
    }

    fn check_it_serves(&self) {
        assert!(self.ready && !self.ended, "what serves is recorded as ready, and not as ended: {self:?}");
    }

    fn happened(&mut self, generation: u64, happening: &Happening) {
        if let Happening::Starting { .. } = happening {
            assert_eq!(generation, self.generation + 1, "every generation is recorded, in order");
            assert!(!self.stopping, "what is asked to end is gone before the next start");
            *self = Self { generation, draining: self.draining, ..Self::default() };
            return;
        }
        assert_eq!(generation, self.generation, "only the newest generation has news: {happening:?}");
        match happening {
            Happening::Starting { .. } => {}
            Happening::Started => once(&mut self.started, happening),
            Happening::Forked => assert!(self.started && !self.ended, "only what runs forks away"),
            Happening::Ready { .. } => {
                assert!(self.started && !self.ended && !self.stopping, "only what runs becomes ready");
                once(&mut self.ready, happening);
            }
            Happening::Exited { crash, .. } => {
                assert!(self.started && !(*crash && self.stopping), "only what runs exits, and as it was asked to");
                once(&mut self.ended, happening);
            }
            Happening::Killed { .. } => {
                assert!(self.started && self.stopping, "nothing is killed that was not asked to end");
                once(&mut self.ended, happening);
            }
            Happening::Stopping { .. } => once(&mut self.stopping, happening),
            Happening::Stopped => {
                assert!(std::mem::take(&mut self.stopping), "only what was asked to end has stopped");
            }
            Happening::Finished => assert!(self.ready && self.ended && !self.stopping, "it served and went by itself"),
            Happening::TakenDown => assert!(self.ended && !self.stopping, "it is asked by nobody here"),
            Happening::Restarting { .. } | Happening::Failed { .. } => {
                assert!(self.ended == self.started && !self.stopping, "nothing is left when recovery decides");
            }
            Happening::Draining => once(&mut self.draining, happening),
            Happening::Adopted => {
                self.started = true;
                assert!(!self.ended, "only what runs is adopted");
            }
            Happening::Quarantined { .. } | Happening::Released => {}
            Happening::DrainEnded => assert!(std::mem::take(&mut self.draining), "only a drain ends"),
        }
    }
}

fn once(seen: &mut bool, happening: &Happening) {
    assert!(!std::mem::replace(seen, true), "recorded twice: {happening:?}");
}
