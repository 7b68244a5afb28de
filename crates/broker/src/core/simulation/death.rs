//! The death of the broker in the middle of a history, and the next one that finds what it left.

use std::time::Duration;

use broker_proto::Exit;

use super::super::backend::{Backend, Event, Memory, Trace};
use super::super::registry::Registry;
use super::world::{REGISTRY_MAX, World};

/// What the next broker finds of a backend.
enum Found {
    NeverStarted,
    Alive { generation: u64 },
    Dead { generation: u64 },
    Nothing,
}

impl World {
    /// The broker dies or makes way, daemons go on without it for a while, and the next one takes over.
    pub(super) fn broker_dies(&mut self) {
        if self.rng.bool() {
            (0..self.daemons.len()).for_each(|at| self.handle(at, Event::HandOver));
        }
        self.open.clear();
        self.invariants.everybody_left();
        let left: Vec<Memory> = self.daemons.iter().map(|daemon| self.memory(daemon.id)).collect();
        // What was on its way to the broker is heard by nobody; only ends are seen by the next one.
        let plan = std::mem::take(&mut self.plan);
        let mut never_started = vec![false; self.daemons.len()];
        for (when, (at, event)) in plan {
            match event {
                Event::Exited { .. } => {
                    self.plan.insert(when, (at, event));
                }
                Event::StartFailed { .. } => never_started[at] = true,
                _ => {}
            }
        }
        self.live_without_a_broker();
        self.registry = Registry::new(REGISTRY_MAX);
        for (at, memory) in left.into_iter().enumerate() {
            self.take_over(at, memory, never_started[at]);
        }
    }

    fn live_without_a_broker(&mut self) {
        self.now = self.now + Duration::from_millis(self.rng.u64(0..5000) >> self.rng.u32(0..10));
        while let Some((time, _)) =
            self.plan.first_key_value().map(|(key, _)| *key).filter(|(time, _)| *time <= self.now)
        {
            let (_, (at, event)) = self.plan.pop_first().expect("just seen");
            debug_assert!(time <= self.now);
            if let (Some(process), Event::Exited { generation, .. }) = (&mut self.daemons[at].process, event)
                && process.generation == generation
            {
                process.ended = true;
            }
        }
    }

    /// Does what the sweep does for one backend.
    fn take_over(&mut self, at: usize, memory: Memory, never_started: bool) {
        let written = serde_json::to_string(&memory).expect("plain data");
        let memory: Memory = serde_json::from_str(&written).expect("what was written");
        let found = match self.daemons[at].process {
            _ if never_started => Found::NeverStarted,
            Some(process) if memory.is_live() => match process.ended {
                false => Found::Alive { generation: process.generation },
                true => Found::Dead { generation: process.generation },
            },
            _ => Found::Nothing,
        };
        let memory = if never_started { memory.without_its_start() } else { memory };
        let daemon = &mut self.daemons[at];
        let backend = Backend::restored(self.now, daemon.policies, memory);
        self.invariants.restored(self.now, at, &backend, matches!(found, Found::NeverStarted));
        daemon.id = self.registry.restore(&daemon.key, backend);
        match found {
            Found::NeverStarted => self.invariants.gone(at),
            Found::Nothing => {}
            Found::Alive { generation } => {
                daemon.process.as_mut().expect("it lives").started = true;
                self.handle(at, Event::Adopted { generation });
            }
            Found::Dead { generation } => {
                daemon.process.as_mut().expect("it is to be ended").started = true;
                self.handle(at, Event::Exited { generation, exit: Exit::Unknown, survivors: false });
                let is_planned = |(other, event): &(usize, Event)| *other == at && matches!(event, Event::Gone { .. });
                if !self.plan.values().any(is_planned) {
                    self.plan(Duration::ZERO, at, Event::Gone { generation, trace: Trace::default() });
                }
            }
        }
    }
}
