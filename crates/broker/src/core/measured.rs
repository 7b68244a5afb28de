//! The machines of live backends, for the benchmark alone: what a Hello costs where nothing is read or written.

use std::time::Duration;

use broker_proto::{InstanceName, ServiceName};
use semver::Version;

use super::Timestamp;
use super::backend::{Effect, Event, Policies, Ticket, Waiter};
use super::readiness::Pace;
use super::recovery;
use super::registry::{BackendId, BackendKey, Registry};

/// A registry in which all backends are ready.
#[derive(Debug)]
pub struct Machines {
    registry: Registry,
    ids: Vec<BackendId>,
    now: Timestamp,
    tickets: u64,
    effects: Vec<Effect>,
}

impl Machines {
    /// So many backends of one service.
    ///
    /// # Panics
    /// There are none.
    #[must_use]
    pub fn ready(count: usize) -> Self {
        assert!(count > 0, "a backend to ask for");
        let now = Timestamp::from_nanos(1);
        let mut machines =
            Self { registry: Registry::new(count), ids: Vec::new(), now, tickets: 0, effects: Vec::new() };
        let service = ServiceName::parse("measured").expect("a name");
        for number in 0..count {
            let instance = InstanceName::parse(&format!("i{number}")).expect("a name");
            let key = BackendKey { instance, service: service.clone(), version: Version::new(1, 0, 0) };
            let id = machines.registry.open(now, &key, policies()).expect("there is room");
            machines.ids.push(id);
            let first = machines.hello(number);
            machines.tell(id, Event::Started { generation: 1 });
            machines.tell(id, Event::Withdraw(first));
        }
        machines
    }

    /// One of them, in turn, is asked for and given up; whether the answer was the backend.
    pub fn hello_and_release(&mut self, turn: usize) -> bool {
        let ticket = self.hello(turn);
        let is_negotiated = matches!(self.effects.last(), Some(Effect::Negotiate { generation: 1, .. }));
        self.tell(self.ids[turn % self.ids.len()], Event::Withdraw(ticket));
        is_negotiated
    }

    fn hello(&mut self, turn: usize) -> Ticket {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.tell(self.ids[turn % self.ids.len()], Event::Hello(Waiter { ticket, deadline: None, holds: true }));
        ticket
    }

    fn tell(&mut self, id: BackendId, event: Event) {
        self.effects.clear();
        self.registry.handle(self.now, id, event, &mut self.effects);
    }
}

/// Those of a service that says nothing of them, of a daemon that is ready as soon as it runs.
fn policies() -> Policies {
    Policies {
        pace: Pace::Path,
        ready_at_exec: true,
        hard_ceiling: Duration::from_secs(60),
        recovery: recovery::Policy::new(Duration::from_millis(250), Duration::from_secs(30), Duration::from_secs(10)),
        idle_timeout: None,
        stop_timeout: Duration::from_secs(10),
        waiters_max: 16_384,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_backend_answers_again_and_again() {
        let mut machines = Machines::ready(3);
        assert!((0..9).all(|turn| machines.hello_and_release(turn)));
    }
}
