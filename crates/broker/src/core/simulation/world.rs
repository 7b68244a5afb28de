//! The world around the machines: clients, operators, daemons and time, all of them random and none of them real.

use std::collections::BTreeMap;
use std::time::Duration;

use broker_proto::{Code, Exit, InstanceName, Refusal, ServiceName};
use fastrand::Rng;
use semver::Version;

use super::super::Timestamp;
use super::super::backend::{Effect, Event, Memory, Policies, Ticket, Trace, View, Waiter, Word};
use super::super::readiness::Pace;
use super::super::recovery;
use super::super::registry::{BackendId, BackendKey, Registry};
use super::invariants::Invariants;

/// More ticks than this at one instant are a machine that spins.
const TICKS_MAX: u32 = 100;

/// More than there are backends.
pub(super) const REGISTRY_MAX: usize = 64;

/// A daemon's process, as far as the machine can tell.
#[derive(Debug, Clone, Copy)]
pub(super) struct Process {
    pub(super) generation: u64,
    /// When it serves.
    ready_at: Option<Timestamp>,
    ignores_terminate: bool,
    /// The machine was told that it runs. No exit is seen before that.
    pub(super) started: bool,
    pub(super) ended: bool,
}

#[derive(Debug)]
pub(super) struct Daemon {
    pub(super) id: BackendId,
    pub(super) key: BackendKey,
    pub(super) policies: Policies,
    pub(super) process: Option<Process>,
}

/// Many backends and what happens to them.
pub(super) struct World {
    pub(super) rng: Rng,
    pub(super) now: Timestamp,
    pub(super) registry: Registry,
    pub(super) daemons: Vec<Daemon>,
    pub(super) invariants: Invariants,
    /// What will happen, by time and then by order of planning.
    pub(super) plan: BTreeMap<(Timestamp, u64), (usize, Event)>,
    planned: u64,
    next_ticket: u64,
    /// Tickets that wait or hold, and may be withdrawn.
    pub(super) open: Vec<(usize, Ticket)>,
    faulty: bool,
    steps: u64,
    /// Print every step, for the reader of a replay.
    narrated: bool,
}

impl World {
    pub(super) fn new(seed: u64, narrated: bool) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut registry = Registry::new(REGISTRY_MAX);
        let now = Timestamp::from_nanos(rng.u64(0..1 << 50));
        let daemons: Vec<_> = (0..rng.usize(1..6))
            .map(|number| {
                let policies = random_policies(&mut rng);
                let key = BackendKey {
                    instance: InstanceName::default(),
                    service: ServiceName::parse(&format!("s{number}")).expect("valid"),
                    version: Version::new(1, 0, 0),
                };
                let id = registry.open(now, &key, policies).expect("room");
                Daemon { id, key, policies, process: None }
            })
            .collect();
        let invariants = Invariants::new(daemons.iter().map(|d| d.policies).collect());
        Self {
            rng,
            now,
            registry,
            daemons,
            invariants,
            plan: BTreeMap::new(),
            planned: 0,
            next_ticket: 0,
            open: Vec::new(),
            faulty: true,
            steps: 0,
            narrated,
        }
    }

    /// Lives through a history with faults, then one without, in which every request must succeed.
    pub(super) fn run(mut self, steps: u64) -> u64 {
        while self.steps < steps {
            self.somebody_acts();
            let pause = self.rng.u64(0..3_000_000_000) >> self.rng.u32(0..20);
            self.pass(Duration::from_nanos(pause));
        }
        self.faulty = false;
        self.pass(Duration::from_secs(600));
        self.invariants.check_everybody_was_answered(self.now);
        for at in 0..self.daemons.len() {
            self.must_succeed(at);
        }
        self.steps
    }

    fn must_succeed(&mut self, at: usize) {
        let operator = self.ticket(at, None, false);
        self.handle(at, Event::Start(operator));
        self.pass(Duration::from_secs(300));
        self.invariants.check_succeeded(operator.ticket);
        let client = self.ticket(at, None, true);
        self.handle(at, Event::Hello(client));
        self.pass(Duration::from_secs(300));
        self.invariants.check_succeeded(client.ticket);
    }

    fn ticket(&mut self, at: usize, deadline: Option<Timestamp>, holds: bool) -> Waiter {
        self.next_ticket += 1;
        let ticket = Ticket(self.next_ticket);
        self.open.push((at, ticket));
        Waiter { ticket, deadline, holds }
    }

    fn somebody_acts(&mut self) {
        let at = self.rng.usize(0..self.daemons.len());
        let deadline = self.rng.bool().then(|| self.now + Duration::from_millis(self.rng.u64(0..20_000)));
        match self.rng.u32(0..21) {
            0..=9 => {
                let waiter = self.ticket(at, deadline, true);
                self.handle(at, Event::Hello(waiter));
            }
            10..=13 => {
                if !self.open.is_empty() {
                    let (at, ticket) = self.open.swap_remove(self.rng.usize(0..self.open.len()));
                    self.invariants.withdrawn(ticket);
                    self.handle(at, Event::Withdraw(ticket));
                }
            }
            14 => {
                let waiter = self.ticket(at, deadline, false);
                self.handle(at, Event::Start(waiter));
            }
            15 => {
                let observer = self.rng.bool().then(|| self.ticket(at, deadline, false));
                self.handle(at, Event::Stop(observer));
            }
            16 => {
                let waiter = self.ticket(at, deadline, false);
                self.handle(at, Event::Restart(waiter));
            }
            17 => self.handle(at, Event::Drain),
            18 => {
                let policies = Policies { stop_timeout: Duration::from_secs(3), ..self.daemons[at].policies };
                self.handle(at, Event::Redefine(policies));
            }
            19 => self.broker_dies(),
            _ => self.kill(at),
        }
    }

    /// Ends a daemon's main process without being asked.
    fn kill(&mut self, at: usize) {
        if let Some(process) = self.daemons[at].process
            && process.started
            && !process.ended
        {
            let exit = if self.rng.bool() { Exit::Signal(9) } else { Exit::Code(0) };
            self.exit(at, exit);
        }
    }

    fn exit(&mut self, at: usize, exit: Exit) {
        if let Some(process) = &mut self.daemons[at].process {
            process.ended = true;
            let generation = process.generation;
            let event = match self.rng.u32(0..8) {
                0 => Event::Exited { generation, exit, survivors: true },
                1 => Event::TakenDown { generation, exit },
                _ => Event::Exited { generation, exit, survivors: false },
            };
            self.handle(at, event);
        }
    }

    pub(super) fn plan(&mut self, delay: Duration, at: usize, event: Event) {
        self.planned += 1;
        self.plan.insert((self.now + delay, self.planned), (at, event));
    }

    /// Lets time pass, and with it deadlines and what was planned, in order.
    fn pass(&mut self, duration: Duration) {
        let end = self.now + duration;
        let mut ticks = 0;
        loop {
            let planned = self.plan.first_key_value().map(|((time, _), _)| *time);
            let deadline = self.registry.next_deadline();
            let next = [planned, deadline].into_iter().flatten().min().filter(|time| *time <= end);
            let Some(next) = next else { break };
            ticks = if next > self.now { 0 } else { ticks + 1 };
            assert!(ticks < TICKS_MAX, "ticks at {:?} without end: a deadline stays in the past", self.now);
            self.now = self.now.max(next);
            if planned == Some(next) {
                let (_, (at, event)) = self.plan.pop_first().expect("just seen");
                self.happen(at, event);
            } else {
                let id = *self.registry.due(self.now).first().expect("just seen");
                let at = self.daemons.iter().position(|d| d.id == id).expect("ours");
                self.handle(at, Event::Tick);
            }
        }
        self.now = end;
    }

    /// What was planned happens, if the process that it is about still lives.
    fn happen(&mut self, at: usize, event: Event) {
        let process = self.daemons[at].process;
        match event {
            Event::Exited { generation, exit, .. } => {
                if process.is_some_and(|p| p.generation == generation && !p.ended) {
                    self.exit(at, exit);
                }
            }
            Event::Started { .. } => {
                self.daemons[at].process.as_mut().expect("it has a process").started = true;
                self.handle(at, event);
            }
            Event::StartFailed { .. } => {
                self.invariants.gone(at);
                self.handle(at, event);
            }
            Event::Gone { .. } => {
                self.daemons[at].process = None;
                self.invariants.gone(at);
                self.handle(at, event);
            }
            other => self.handle(at, other),
        }
    }

    pub(super) fn memory(&self, id: BackendId) -> Memory {
        self.registry.get(id).expect("registered").1.memory()
    }

    pub(super) fn handle(&mut self, at: usize, event: Event) {
        self.steps += 1;
        let id = self.daemons[at].id;
        self.invariants.before(self.now, at, &event);
        let mut effects = Vec::new();
        self.registry.handle(self.now, id, event.clone(), &mut effects);
        let (_, backend) = self.registry.get(id).expect("registered");
        if self.narrated {
            narrate(self.now, at, &event, &backend.view(self.now), &effects);
        }
        self.invariants.after(self.now, at, &event, &backend.view(self.now), &effects);
        for effect in effects {
            self.perform(at, effect);
        }
    }

    fn perform(&mut self, at: usize, effect: Effect) {
        match effect {
            Effect::Start { generation } => self.spawn(at, generation),
            Effect::Probe { generation } => {
                let now = self.now;
                let process = self.daemons[at].process;
                let ready = process.is_some_and(|p| !p.ended && p.ready_at.is_some_and(|time| time <= now));
                let event = Event::Probed { generation, ready, obstacle: None };
                if self.daemons[at].policies.pace == Pace::Command {
                    let takes = Duration::from_millis(self.rng.u64(0..500));
                    self.plan(takes, at, event);
                } else {
                    self.handle(at, event);
                }
            }
            Effect::Follow { .. } => {
                self.daemons[at].process.as_mut().expect("it has a process").ended = false;
            }
            Effect::Terminate { generation } => {
                let process = self.daemons[at].process.expect("only a process is asked to end");
                if !process.ended && !process.ignores_terminate {
                    let takes = Duration::from_millis(self.rng.u64(0..2000));
                    self.plan(takes, at, Event::Exited { generation, exit: Exit::Signal(15), survivors: false });
                }
            }
            Effect::End { generation } => {
                let takes = Duration::from_micros(self.rng.u64(0..5000));
                self.daemons[at].process.as_mut().expect("only a process is ended").ended = true;
                self.plan(takes, at, Event::Gone { generation, trace: Trace::default() });
            }
            Effect::CountConnections { generation } => {
                let count = usize::from(self.faulty && self.rng.bool());
                self.handle(at, Event::Connections { generation, count });
            }
            Effect::Negotiate { .. }
            | Effect::Refuse { .. }
            | Effect::Stopped { .. }
            | Effect::Progress { .. }
            | Effect::Tell { .. }
            | Effect::Record { .. } => {}
        }
    }

    fn spawn(&mut self, at: usize, generation: u64) {
        let takes = Duration::from_micros(self.rng.u64(100..100_000));
        if self.faulty && self.rng.u32(0..10) == 0 {
            let refusal = Refusal::new(Code::SpawnFailed, "simulated");
            self.plan(takes, at, Event::StartFailed { generation, refusal });
            return;
        }
        let fault = if self.faulty { self.rng.u32(0..6) } else { 6 };
        let ready_in = Duration::from_millis(self.rng.u64(0..if self.faulty { 1500 } else { 100 }));
        let ready_at = (fault != 0).then(|| self.now + takes + ready_in);
        let ignores_terminate = fault == 1;
        self.daemons[at].process =
            Some(Process { generation, ready_at, ignores_terminate, started: false, ended: false });
        self.plan(takes, at, Event::Started { generation });
        if matches!(fault, 2 | 3) {
            let lives = takes + Duration::from_millis(self.rng.u64(0..4000));
            let exit = Exit::Code(i32::from(self.rng.bool()));
            self.plan(lives, at, Event::Exited { generation, exit, survivors: false });
        }
        if fault == 4 {
            let word = Word::ExtendTimeout(Duration::from_secs(2));
            self.plan(takes, at, Event::Notified { generation, word });
        }
        if self.daemons[at].policies.pace == Pace::Silent && ready_at.is_some() {
            self.plan(takes + ready_in, at, Event::Notified { generation, word: Word::Ready });
        } else if self.rng.bool() && ready_at.is_some() {
            self.plan(takes + ready_in, at, Event::Appeared { generation });
        }
    }
}

fn narrate(now: Timestamp, at: usize, event: &Event, view: &View, effects: &[Effect]) {
    println!("{:>15} backend {at}: {event:?}", now.as_nanos());
    println!("{:>15} {view:?}", "");
    effects.iter().for_each(|effect| println!("{:>15} -> {effect:?}", ""));
}

fn random_policies(rng: &mut Rng) -> Policies {
    let pace = [Pace::Path, Pace::Port, Pace::Command, Pace::Silent][rng.usize(0..4)];
    let mut ms = |from: u64, to: u64| Duration::from_millis(rng.u64(from..to));
    let recovery = recovery::Policy::new(ms(0, 500), ms(0, 30_000), ms(0, 10_000));
    let (hard_ceiling, stop_timeout, idle) = (ms(1, 5000), ms(0, 5000), ms(0, 5000));
    Policies {
        pace,
        ready_at_exec: pace == Pace::Silent && rng.bool(),
        hard_ceiling: hard_ceiling.max(Duration::from_secs(2)),
        recovery,
        idle_timeout: rng.bool().then_some(idle),
        stop_timeout,
        waiters_max: rng.usize(1..50),
    }
}
