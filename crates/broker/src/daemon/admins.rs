//! Who may control a broker of the system: the group is looked for when somebody first gives an order who needs to be in it.
//!
//! The system's name service may ask another machine, so a worker thread waits for it. What it says is remembered; where it
//! cannot say, the next order has it asked again. Whether an order is taken is decided in `admin.rs`.

use std::collections::BTreeMap;
use std::mem;
use std::time::Duration;

use broker_proto::{AdminRequest, Code, Refusal, RequestId};
use tokio::task::spawn_local;

use super::clock::now;
use super::driver::Driver;
use super::hosted::Task;
use super::session::SessionId;
use super::work::Report;
use crate::config::AdminGroup;
use crate::core::backend::{RETRY_HINT, Ticket};
use crate::core::{Timestamp, millis, millis_up};
use crate::failpoint;

/// Orders that wait for the answer, of all and of one session. More of them are refused.
const WAITING_MAX: usize = 256;
const WAITING_PER_SESSION_MAX: usize = 16;

/// How long an order waits for it.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is known of the group that controls a broker of the system, and the orders that wait for it.
#[derive(Default)]
pub(super) struct SystemAdmins {
    /// `Some(None)` is that there is none.
    pub(super) known: Option<Option<AdminGroup>>,
    is_asked: bool,
    waiting: BTreeMap<Ticket, Order>,
}

/// One that waits until it is known whose are taken.
struct Order {
    session: SessionId,
    request_id: RequestId,
    request: AdminRequest,
    read: Timestamp,
    /// Refuses it when it has waited for too long.
    _over: Task,
}

impl SystemAdmins {
    /// Has a group looked for again that was not there.
    pub(super) fn look_again(&mut self) {
        self.known = self.known.take().filter(Option::is_some);
    }

    /// Forgets an order that nobody waits for any longer.
    pub(super) fn forget(&mut self, ticket: Ticket) {
        self.waiting.remove(&ticket);
    }

    fn has_room(&self, session: SessionId) -> bool {
        let of_session = self.waiting.values().filter(|order| order.session == session).count();
        self.waiting.len() < WAITING_MAX && of_session < WAITING_PER_SESSION_MAX
    }
}

impl Driver {
    /// Keeps an order until it is known who may give it.
    pub(super) fn wait_for_admins(
        &mut self,
        session: SessionId,
        request_id: RequestId,
        request: AdminRequest,
    ) -> Result<(), Box<Refusal>> {
        if !self.admins.has_room(session) {
            return Err(later(Code::RateLimited, "too many orders wait to hear whether they are taken"));
        }
        if !self.admins.is_asked {
            let look = || {
                failpoint::reached("looking-for-admins");
                let is_out_of_reach = failpoint::is_next("admins-out-of-reach");
                let found = if is_out_of_reach { Err(nix::Error::EIO) } else { AdminGroup::of_the_system() };
                Report::Admins(found.map_err(|error| error.to_string()))
            };
            let faulty = || Report::Admins(Err("the lookup panicked".to_owned()));
            self.work(look, faulty).map_err(|error| unknown(&format!("no thread for it: {error}")))?;
            self.admins.is_asked = true;
        }
        let ticket = Ticket(self.number());
        self.file_request(session, request_id, ticket)?;
        let driver = self.me.clone();
        let over = Task(spawn_local(async move {
            tokio::time::sleep(PATIENCE).await;
            if let Some(driver) = driver.upgrade() {
                driver.borrow_mut().order_is_late(ticket);
            }
        }));
        let order = Order { session, request_id, request, read: now(), _over: over };
        self.admins.waiting.insert(ticket, order);
        Ok(())
    }

    /// It is known now, or cannot be.
    pub(super) fn admins_found(&mut self, found: Result<Option<AdminGroup>, String>) {
        self.admins.is_asked = false;
        let trouble = match found {
            Ok(group) => {
                self.admins.known = Some(group);
                None
            }
            Err(error) => {
                tracing::warn!(error, "cannot look up the group that may control this broker");
                Some(error)
            }
        };
        for (ticket, Order { session, request_id, mut request, read, .. }) in mem::take(&mut self.admins.waiting) {
            self.unfile_request(session, request_id, ticket);
            let Some(session) = self.session(session) else { continue };
            age(&mut request, now().since(read));
            let outcome = match &trouble {
                Some(error) => Err(unknown(error)),
                None => self.admin(&session, request_id, request),
            };
            if let Err(refusal) = outcome {
                session.refuse(request_id, *refusal);
            }
        }
    }

    /// Refuses an order for which it has not become known in time.
    fn order_is_late(&mut self, ticket: Ticket) {
        let Some(order) = self.admins.waiting.remove(&ticket) else { return };
        self.unfile_request(order.session, order.request_id, ticket);
        if let Some(session) = self.session(order.session) {
            session.refuse(order.request_id, *unknown(&format!("the system has not answered for {PATIENCE:?}")));
        }
    }
}

/// What a client waits for at most counts from when its order was read.
fn age(request: &mut AdminRequest, by: Duration) {
    match request {
        AdminRequest::Start { deadline_ms: patience, .. }
        | AdminRequest::Stop { deadline_ms: patience, .. }
        | AdminRequest::Restart { deadline_ms: patience, .. }
        | AdminRequest::Events { wait_ms: patience, .. }
        | AdminRequest::Wait { wait_ms: patience, .. } => {
            *patience = patience.map(|patience| patience.saturating_sub(millis(by)));
        }
        _ => {}
    }
}

fn unknown(why: &str) -> Box<Refusal> {
    later(Code::Overloaded, &format!("cannot look up who may control this broker: {why}"))
}

fn later(code: Code, reason: &str) -> Box<Refusal> {
    Box::new(Refusal::new(code, reason).retry_after_ms(millis_up(RETRY_HINT)))
}

#[cfg(test)]
mod tests {
    use broker_proto::Selection;

    use super::*;

    #[test]
    fn a_group_that_was_not_there_is_looked_for_again() {
        let group = AdminGroup { gid: 7, name: "broker-admin".to_owned() };
        for (known, after) in [(None, None), (Some(None), None), (Some(Some(group.clone())), Some(Some(group)))] {
            let mut admins = SystemAdmins { known, ..SystemAdmins::default() };
            admins.look_again();
            assert_eq!(admins.known, after);
        }
    }

    #[test]
    fn an_order_that_waited_has_less_time_left() {
        let stop = |deadline_ms| AdminRequest::Stop { selection: Selection::default(), deadline_ms };
        for (before, after) in [(Some(5000), Some(3500)), (Some(100), Some(0)), (None, None)] {
            let mut request = stop(before);
            age(&mut request, Duration::from_millis(1500));
            assert_eq!(request, stop(after));
        }
    }
}
