//! Sessions that have something to send. It is written once everybody who was heard in this turn of the runtime has had
//! their answer made: peers that wait are then woken in a row, and the first ones ask again while the last are written to.

use std::cell::RefCell;
use std::mem;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::yield_now;

use super::clock::now;
use super::session::Session;

/// For how many room is kept.
const SENDERS_USUAL: usize = 64;

/// How much room is made for an answer, in bytes: what a Hello is told, with the longest path of a socket.
const ANSWER_USUAL: usize = 384;

/// Who has something to send.
#[derive(Debug, Default)]
pub(super) struct Mail {
    senders: RefCell<Vec<Rc<Session>>>,
    /// Room for answers, from whoever has sent theirs.
    rooms: RefCell<Vec<Vec<u8>>>,
    has_come: Notify,
}

impl Mail {
    /// Enters a session, which must not be there already.
    pub(super) fn post(&self, sender: Rc<Session>) {
        self.senders.borrow_mut().push(sender);
        self.has_come.notify_one();
    }

    /// Room for somebody's answer.
    pub(super) fn room(&self) -> Vec<u8> {
        self.rooms.borrow_mut().pop().unwrap_or_else(|| Vec::with_capacity(ANSWER_USUAL))
    }

    /// Takes room back once what was there is sent.
    pub(super) fn keep_room(&self, room: Vec<u8>) {
        let mut rooms = self.rooms.borrow_mut();
        if rooms.len() < SENDERS_USUAL && (1..=ANSWER_USUAL).contains(&room.capacity()) {
            rooms.push(room);
        }
    }

    /// Writes what there is, for as long as the broker runs, and stays awake for that long afterwards: who asks again at
    /// once is then answered without a processor that has to wake first.
    pub(super) async fn deliver(&self, busy_poll: Duration) {
        let mut senders = Vec::new();
        loop {
            self.has_come.notified().await;
            mem::swap(&mut senders, &mut *self.senders.borrow_mut());
            senders.drain(..).for_each(|session| session.deliver());
            senders.shrink_to(SENDERS_USUAL);
            if !busy_poll.is_zero() {
                let until = now() + busy_poll;
                while self.senders.borrow().is_empty() && now() < until {
                    yield_now().await;
                }
            }
        }
    }
}
