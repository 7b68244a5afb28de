//! Who may control a broker of the system: the group is looked for when somebody first gives an order who needs to be in it.
//!
//! The system's name service may ask another machine, so a worker thread waits for it, once in the broker's life. Whether an
//! order is taken is decided in `admin.rs`.

use broker_proto::{AdminRequest, Code, Refusal, RequestId};

use super::driver::Driver;
use super::session::SessionId;
use super::work::Report;
use crate::config::{AdminGroup, Admins};
use crate::core::backend::RETRY_HINT;
use crate::core::millis_up;

/// Orders that wait for the answer. More of them are refused.
const WAITING_MAX: usize = 256;

/// Orders that wait until it is known whose are taken.
#[derive(Debug, Default)]
pub(super) struct Orders(Vec<(SessionId, RequestId, AdminRequest)>);

impl Driver {
    /// Keeps an order until it is known who may give it.
    pub(super) fn look_for_admins(
        &mut self,
        session: SessionId,
        request_id: RequestId,
        request: AdminRequest,
    ) -> Result<(), Box<Refusal>> {
        let busy = |reason: &str| {
            let hint = millis_up(RETRY_HINT);
            Box::new(Refusal::new(Code::RateLimited, reason).retry_after_ms(hint))
        };
        if self.orders.0.len() >= WAITING_MAX {
            return Err(busy("too many wait to hear whether they may control this broker"));
        }
        if self.orders.0.is_empty() {
            let reports = self.reports.clone();
            let look = move || drop(reports.blocking_send(Report::Admins(AdminGroup::of_the_system())));
            self.pool.run(look).map_err(|error| busy(&format!("cannot look who may control this broker: {error}")))?;
        }
        self.orders.0.push((session, request_id, request));
        Ok(())
    }

    /// It is known now, for as long as this broker lives.
    pub(super) fn admins_found(&mut self, group: Option<AdminGroup>) {
        self.config.admins = group.map_or(Admins::Nobody, Admins::Group);
        for (session, request_id, request) in std::mem::take(&mut self.orders.0) {
            let Some(session) = self.session(session) else { continue };
            if let Err(refusal) = self.admin(&session, request_id, request) {
                session.refuse(request_id, *refusal);
            }
        }
    }
}
