//! Why a connection to a backend ended: the daemon closed it, or the daemon itself is gone.

use std::future::IntoFuture;

use broker_client::{Error, Events, Held, Request, SessionEvent};
use broker_proto::{Code, Event, Exit, Negotiated};

use crate::ctl::keeping::ended;
use crate::ctl::output::{Failure, humane_ms};
use crate::ctl::refusal;
use crate::ctl::session::Session;

/// What became of the backend behind a connection that ended.
pub(super) enum Fate {
    /// It lives: it closed the connection because it was done. Also where nobody can tell any more.
    Closed,
    /// It is gone, as the sentence says.
    Crashed(String),
    /// It was ended on purpose.
    Stopped,
    /// The session with the broker ended meanwhile, or the broker did not say.
    Lost(Failure),
}

/// Asks the broker, who sees the process: the end of a connection says nothing of the daemon.
pub(super) async fn fate(session: &Session<'_>, held: &Held, before: &Negotiated, events: &mut Events) -> Fate {
    let name = format!("{}@{}", before.service, before.version);
    let request =
        Request::new(&before.service).instance(&before.instance).version(&before.version).found_dead(before.generation);
    // What was told of it already may be enough: a Hello would start it again that an operator stopped.
    let mut heard = std::pin::pin!(session.client.ping().into_future());
    let mut has_heard = false;
    let mut answer = std::pin::pin!(async { session.client.resolve(request).await });
    let mut broker_is_another = false;
    loop {
        // What happened is told before the answer that follows from it.
        tokio::select! {
            biased;
            event = events.next() => match event {
                Some(SessionEvent::Backend { request_id, event }) if request_id == held.request_id() => match event {
                    // It was done, and said so.
                    Event::Exited { generation, exit: Exit::Code(0), .. } if generation == before.generation => {
                        return Fate::Closed;
                    }
                    Event::Exited { generation, exit, lived_ms } if generation == before.generation => {
                        let (how, lived) = (ended(exit), humane_ms(lived_ms));
                        return Fate::Crashed(format!("{name} ended after {lived} ({how}), and the connection with it"));
                    }
                    Event::Stopped => return Fate::Stopped,
                    _ => {}
                },
                // A broker that goes stops its backends; that is no crash, and nothing more can be learnt of it.
                Some(SessionEvent::GoAway(_)) if !session.is_kept => return Fate::Closed,
                Some(SessionEvent::Disconnected { .. }) => broker_is_another = true,
                Some(_) => {}
                // With a session that is not kept this is as far as one can see.
                None if !session.is_kept => return Fate::Closed,
                None => return Fate::Lost(session.client.closed().await.into()),
            },
            pong = &mut heard, if !has_heard => match pong {
                Ok(()) => has_heard = true,
                Err(_) if !session.is_kept => return Fate::Closed,
                Err(error) => return Fate::Lost(error.into()),
            },
            answer = &mut answer, if has_heard => return match answer {
                Ok(now) if is_same(before, &now.negotiated(), broker_is_another) => Fate::Closed,
                Ok(_) if broker_is_another => {
                    Fate::Crashed(format!("{name} ended with its broker, and the connection with it"))
                }
                Ok(_) => Fate::Crashed(format!("{name} ended, and the connection with it")),
                Err(Error::Refused(refused)) if speaks_of_the_process(refused.code) => {
                    let why = refusal::for_people(&refused, session.console.asked.as_deref());
                    Fate::Crashed(format!("the connection to {name} ended: {why}"))
                }
                // That there is nothing new to be had, as while it is drained, is no fault of the one that was.
                Err(Error::Refused(_)) => Fate::Closed,
                Err(_) if !session.is_kept => Fate::Closed,
                Err(error) => Fate::Lost(error.into()),
            },
        }
    }
}

/// Whether a refusal says that the daemon is not there.
fn speaks_of_the_process(code: Code) -> bool {
    matches!(code, Code::BackendUnavailable | Code::SpawnFailed | Code::StartTimeout)
}

/// Whether it is the same process. Another broker may count generations anew, so there the process's number decides.
fn is_same(before: &Negotiated, now: &Negotiated, broker_is_another: bool) -> bool {
    let pids_differ = before.pid.is_some() && now.pid.is_some() && before.pid != now.pid;
    let is_known = !broker_is_another || before.pid.is_some();
    before.generation == now.generation && !pids_differ && is_known
}
