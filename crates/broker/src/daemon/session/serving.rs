//! What a session's task does: it reads until the peer or the broker ends it, and hands whole messages to the driver.

use std::future::poll_fn;
use std::io;
use std::mem;
use std::rc::Rc;
use std::task::{Context, Poll};

use broker_proto::{
    Code, FIRST_FRAME_MAX, FRAME_MAX, FrameError, HIGHEST_VERSION, LOWEST_VERSION, Reassembler, Refusal,
};

use super::Session;
use crate::daemon::clock::now;
use crate::daemon::connection::{RESTS_MAX, keep_room};
use crate::daemon::driver::Shared;
use crate::daemon::watched::Watched;

/// How far the peer has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Preamble,
    /// The message that came with a preamble in a version that nobody here can read.
    UnreadableMessage,
    FirstMessage,
    Accepted,
}

/// The session is over.
struct End;

/// Why a session's task goes on.
enum Turn {
    Read(io::Result<Option<usize>>),
    Called,
}

/// Serves one connection until it ends.
pub(in crate::daemon) async fn serve(driver: Shared, session: Rc<Session>) {
    let mut input = Reassembler::default();
    let mut stage = Stage::Preamble;
    // Who connects has mostly said something by now, and is answered before the connection is watched.
    let first = session.connection.read_now(input.space());
    let is_over = take_read(&driver, &session, &mut input, &mut stage, first).is_err();
    if !is_over && session.is_posted.get() {
        let_others_go_first().await;
    }
    while !is_over && !session.closing.get() {
        // A peer that never pauses must not keep the thread to itself.
        tokio::task::coop::consume_budget().await;
        if session.is_to_hush.take() {
            hear_out(&driver, &session, &mut input, &mut stage);
            session.is_hushed.set(true);
            session.flush();
        }
        let watched = match session.connection.watched() {
            Ok(watched) => watched,
            Err(error) => {
                if driver.borrow_mut().tells_refusal() {
                    tracing::warn!(%error, pid = session.pid, "a connection cannot be watched, and is closed");
                }
                break;
            }
        };
        let turn = poll_fn(|context| poll_turn(&session, watched, context, &mut input));
        let turn = match session.is_blocked.get() {
            false => turn.await,
            true => tokio::select! {
                biased;
                turn = turn => turn,
                // In memory of its own: it is seldom waited for, and twice as large as the rest of the task.
                () = Box::pin(session.connection.has_room()) => {
                    session.flush();
                    Turn::Called
                }
            },
        };
        if let Turn::Read(read) = turn
            && take_read(&driver, &session, &mut input, &mut stage, read).is_err()
        {
            break;
        }
        if session.due.get().is_some_and(|due| due <= now()) {
            let patience = driver.borrow().config.limits.first_message_timeout;
            session.greet(HIGHEST_VERSION);
            let reason = format!("no whole message within {} ms", patience.as_millis());
            session.refuse(0, Refusal::new(Code::Malformed, reason));
            break;
        }
    }
    // One that has just been let in, and is cut off.
    if session.is_to_hush.take() {
        session.closing.set(false);
        hear_out(&driver, &session, &mut input, &mut stage);
    }
    session.flush();
    driver.borrow_mut().session_ended(session.id);
}

/// What is there already needs no wait, and was said in time.
fn poll_turn(session: &Session, watched: &Watched, context: &mut Context<'_>, input: &mut Reassembler) -> Poll<Turn> {
    if let Poll::Ready(read) = session.connection.poll_read(watched, context, input.space()) {
        return Poll::Ready(Turn::Read(read));
    }
    session.poll_call(context).map(|()| Turn::Called)
}

/// Ends this turn of the task, which has another one when those are over that were to have theirs already.
async fn let_others_go_first() {
    let mut has_waited = false;
    poll_fn(|context| {
        if mem::replace(&mut has_waited, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Works off what was read.
fn take_read(
    driver: &Shared,
    session: &Session,
    input: &mut Reassembler,
    stage: &mut Stage,
    read: io::Result<Option<usize>>,
) -> Result<(), End> {
    match read {
        Ok(None) => return Ok(()),
        Ok(Some(1..)) => {}
        Ok(Some(0)) | Err(_) => {
            session.has_ended.set(true);
            return Err(End);
        }
    }
    if session.is_hushed.get() {
        *input = Reassembler::default();
        session.due.set(None);
        return Ok(());
    }
    answer_in_time(driver, session, input, stage)?;
    keep_room(input.release_memory());
    Ok(())
}

/// Answers what has arrived by now, whether or not the runtime has seen it.
fn hear_out(driver: &Shared, session: &Session, input: &mut Reassembler, stage: &mut Stage) {
    for _ in 0..RESTS_MAX {
        // What was read before, too.
        if take_input(driver, session, input, stage).is_err() {
            return session.close();
        }
        match session.connection.read_now(input.space()) {
            Ok(Some(count)) if count > 0 => {}
            Ok(_) | Err(_) => return,
        }
    }
}

/// Works off every whole message, and sees to the time that the peer has for the rest of one: a message, once begun, must
/// be whole by then, and so must the first one, once connected.
fn answer_in_time(driver: &Shared, session: &Session, input: &mut Reassembler, stage: &mut Stage) -> Result<(), End> {
    let before = session.messages.get();
    take_input(driver, session, input, stage)?;
    if *stage == Stage::Accepted && !input.is_midway() {
        session.due.set(None);
    } else if session.messages.get() != before || session.due.get().is_none() {
        driver.borrow_mut().expect_message(session);
    }
    Ok(())
}

/// Works off every whole message.
fn take_input(driver: &Shared, session: &Session, input: &mut Reassembler, stage: &mut Stage) -> Result<(), End> {
    loop {
        let progress = match *stage {
            Stage::Preamble => take_preamble(driver, session, input, stage)?,
            Stage::UnreadableMessage => skip_message(session, input, stage)?,
            Stage::FirstMessage => take_message(driver, session, input, stage, FIRST_FRAME_MAX)?,
            Stage::Accepted => take_message(driver, session, input, stage, FRAME_MAX)?,
        };
        if !progress || session.closing.get() {
            return Ok(());
        }
    }
}

fn take_preamble(driver: &Shared, session: &Session, input: &mut Reassembler, stage: &mut Stage) -> Result<bool, End> {
    let preamble = match input.preamble() {
        Ok(Some(preamble)) => preamble,
        Ok(None) => return Ok(false),
        Err(error) => return Err(end(session, &error)),
    };
    if preamble.is_readable() {
        session.greet(preamble.written);
        driver.borrow().greeted(session);
        *stage = Stage::FirstMessage;
        return Ok(true);
    }
    // Our own preamble, and nothing after it: the client writes again in a version that both know, or goes away.
    if session.is_corrected.replace(true) {
        return Err(End);
    }
    session.send_preamble(0);
    if preamble.common().is_some() {
        *stage = Stage::UnreadableMessage;
        return Ok(true);
    }
    if driver.borrow_mut().tells_refusal() {
        tracing::info!(
            session = session.id.0,
            "a client speaks versions {} to {} of the protocol, this broker {LOWEST_VERSION} to {HIGHEST_VERSION}",
            preamble.lowest,
            preamble.highest
        );
    }
    Err(End)
}

/// Frames are the same in every version, so a message that cannot be read can be passed over.
fn skip_message(session: &Session, input: &mut Reassembler, stage: &mut Stage) -> Result<bool, End> {
    match input.frame(FIRST_FRAME_MAX) {
        Ok(Some(_)) => {
            *stage = Stage::Preamble;
            Ok(true)
        }
        Ok(None) => Ok(false),
        Err(error) => Err(end(session, &error)),
    }
}

fn take_message(
    driver: &Shared,
    session: &Session,
    input: &mut Reassembler,
    stage: &mut Stage,
    limit: usize,
) -> Result<bool, End> {
    let body = match input.frame(limit) {
        Ok(Some(body)) => body,
        Ok(None) => return Ok(false),
        Err(error) => return Err(end(session, &error)),
    };
    let said = driver.borrow_mut().client_says(session, body);
    match said {
        Ok(()) => {
            *stage = Stage::Accepted;
            session.messages.set(session.messages.get() + 1);
            Ok(true)
        }
        Err(error) => {
            let reason = match std::error::Error::source(&error) {
                Some(source) => format!("{error}: {source}"),
                None => error.to_string(),
            };
            session.refuse(0, Refusal::new(Code::Malformed, reason));
            // The frame is whole, so an accepted session goes on after it; a first message must be one.
            if *stage == Stage::Accepted { Ok(true) } else { Err(End) }
        }
    }
}

/// Says why the stream is lost, and ends it.
fn end(session: &Session, error: &FrameError) -> End {
    session.greet(HIGHEST_VERSION);
    session.refuse(0, Refusal::new(Code::Malformed, error.to_string()));
    End
}
