//! Looks at every process there is, shared by those who want one at the same time.
//!
//! Who ends a backend of an earlier broker must look at them all. A thousand that end together would each read what all
//! the others are, a million times; so whoever asks while a look is under way waits, and the next look is for all who wait.
//! It never answers with a look that began before it was asked for.

use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::identity::{self, Stat};

static CENSUS: Census = Census::new();

/// Reads the facts of every process there is, in no order, as they are now or a moment later. Blocks.
///
/// # Errors
/// `/proc` cannot be listed.
pub(crate) fn look() -> io::Result<Arc<[Stat]>> {
    CENSUS.look(identity::all)
}

struct Census {
    /// How many looks have begun.
    begun: AtomicU64,
    /// How many wait for one.
    waiting: AtomicUsize,
    /// The last look and its number, as long as somebody waits for it. Locked while a look is under way.
    last: Mutex<Option<(u64, Arc<[Stat]>)>>,
}

impl Census {
    const fn new() -> Self {
        Self { begun: AtomicU64::new(0), waiting: AtomicUsize::new(0), last: Mutex::new(None) }
    }

    fn look(&self, all: impl FnOnce() -> io::Result<Vec<Stat>>) -> io::Result<Arc<[Stat]>> {
        let before = self.begun.load(Ordering::SeqCst);
        self.waiting.fetch_add(1, Ordering::SeqCst);
        // It is whole whoever panicked: it is replaced at one stroke.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        let found = match &*last {
            Some((number, found)) if *number > before => Arc::clone(found),
            _ => {
                let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
                let found: Arc<[Stat]> = all()?.into();
                *last = Some((number, Arc::clone(&found)));
                found
            }
        };
        if self.waiting.load(Ordering::SeqCst) == 0 {
            *last = None;
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;
    use std::sync::{Barrier, mpsc};
    use std::thread;

    use super::*;
    use crate::process::testing::wait_for;

    const WAITERS: usize = 10;

    #[test]
    fn who_asks_during_a_look_shares_the_next_one() {
        let census = Census::new();
        let looks = AtomicU32::new(0);
        let count = || {
            looks.fetch_add(1, Ordering::SeqCst);
            Ok(Vec::new())
        };
        let (is_under_way, goes_on) = (Barrier::new(2), Barrier::new(2));
        thread::scope(|scope| {
            scope.spawn(|| {
                census.look(|| {
                    is_under_way.wait();
                    goes_on.wait();
                    count()
                })
            });
            is_under_way.wait();
            let (sender, answers) = mpsc::channel();
            for _ in 0..WAITERS {
                let (sender, census, count) = (sender.clone(), &census, &count);
                scope.spawn(move || sender.send(census.look(count).expect("a look")).expect("it is received"));
            }
            wait_for("all of them wait", || census.waiting.load(Ordering::SeqCst) == WAITERS);
            assert_eq!(looks.load(Ordering::SeqCst), 0);
            goes_on.wait();
            let answers: Vec<_> = (0..WAITERS).map(|_| answers.recv().expect("an answer")).collect();
            assert!(answers.iter().all(|answer| Arc::ptr_eq(answer, &answers[0])), "one look for all of them");
        });
        assert_eq!(looks.load(Ordering::SeqCst), 2);
        assert!(census.last.lock().expect("whole").is_none(), "nobody waits for it");
    }

    #[test]
    fn each_look_is_a_new_one_where_nobody_else_asks() {
        let census = Census::new();
        let first = census.look(identity::all).expect("readable");
        let second = census.look(identity::all).expect("readable");
        assert!(!Arc::ptr_eq(&first, &second));
    }

    #[test]
    fn a_look_in_vain_is_nobody_elses() {
        let census = Census::new();
        assert!(census.look(|| Err(io::ErrorKind::Other.into())).is_err());
        assert!(census.look(|| Ok(Vec::new())).is_ok());
    }
}
