//! Lines on their way to a thread that writes them, so that nobody waits for a disk, a terminal or a journal.
//!
//! Memory is taken for those that wait alone. What finds no room is lost, and counted.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// The most lines that wait to be written, to a disk or a journal that hangs; what is more is lost.
const LINES_MAX: usize = 4096;

/// For how many lines room is kept while none wait.
const LINES_USUAL: usize = 64;

/// How long the end of the broker waits for what is still to be written.
const PATIENCE: Duration = Duration::from_secs(1);

/// The end that lines are put in at. One write is one line.
#[derive(Debug, Clone, Default)]
pub(super) struct Queue(Arc<Shared>);

/// Has what is left written when it goes.
#[derive(Debug)]
pub(in crate::daemon) struct Guard(Queue);

/// Tells that the thread is done, also where its writer panics.
struct Over<'a>(&'a Queue);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// For the thread: there is something to do.
    work: Condvar,
    /// For the guard: the thread is done.
    done: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lines: VecDeque<Box<[u8]>>,
    lost: usize,
    /// The thread sleeps.
    is_idle: bool,
    is_closing: bool,
    is_over: bool,
}

impl Queue {
    /// Starts the thread that writes.
    pub(super) fn start(&self, writer: impl Write + Send + 'static) -> io::Result<Guard> {
        let queue = self.clone();
        thread::Builder::new().name("log".to_owned()).spawn(move || queue.write_to(writer))?;
        Ok(Guard(self.clone()))
    }

    /// How many lines have found no room.
    pub(super) fn lost(&self) -> usize {
        self.lock().lost
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under the lock can stop half-way, so a poisoned one still guards a sound state.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_to(&self, mut writer: impl Write) {
        let _over = Over(self);
        // What cannot be written has nowhere to be told.
        while let Some(line) = self.next(|| drop(writer.flush())) {
            let _ = writer.write_all(&line);
        }
    }

    /// The next line, waiting for it; none once nothing more comes. `pause` is called before it waits, and at the end.
    fn next(&self, mut pause: impl FnMut()) -> Option<Box<[u8]>> {
        let mut has_paused = false;
        let mut state = self.lock();
        loop {
            if let Some(line) = state.lines.pop_front() {
                return Some(line);
            }
            if !has_paused {
                has_paused = true;
                state.lines.shrink_to(LINES_USUAL);
                drop(state);
                pause();
                state = self.lock();
            } else if state.is_closing {
                return None;
            } else {
                state.is_idle = true;
                state = self.0.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.is_idle = false;
                has_paused = false;
            }
        }
    }
}

impl Write for Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut state = self.lock();
        if state.lines.len() < LINES_MAX {
            state.lines.push_back(line.into());
        } else {
            state.lost += 1;
        }
        let is_idle = std::mem::take(&mut state.is_idle);
        drop(state);
        if is_idle {
            self.0.work.notify_one();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Over<'_> {
    fn drop(&mut self) {
        let Self(queue) = self;
        queue.lock().is_over = true;
        queue.0.done.notify_all();
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let Self(queue) = self;
        let mut state = queue.lock();
        state.is_closing = true;
        queue.0.work.notify_one();
        let waits = |state: &mut State| !state.is_over;
        drop(queue.0.done.wait_timeout_while(state, PATIENCE, waits));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Instant;

    use super::*;

    /// Tells of each write, and waits before it until it may.
    struct Slow(mpsc::Receiver<()>, mpsc::Sender<Vec<u8>>);

    impl Write for Slow {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            self.1.send(line.to_vec()).map(|()| line.len()).map_err(io::Error::other)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn each_line_is_written_in_its_turn_and_the_last_before_the_end() {
        let ((may, allowed), (told, written)) = (mpsc::channel(), mpsc::channel());
        let mut queue = Queue::default();
        let guard = queue.start(Slow(allowed, told)).unwrap();
        for line in ["a\n", "b\n", "c\n"] {
            queue.write_all(line.as_bytes()).unwrap();
            may.send(()).unwrap();
        }
        drop(guard);
        assert_eq!(written.try_iter().collect::<Vec<_>>(), [b"a\n", b"b\n", b"c\n"]);
    }

    #[test]
    fn what_finds_no_room_is_counted_and_nobody_waits() {
        let ((may, allowed), (told, written)) = (mpsc::channel(), mpsc::channel());
        let mut queue = Queue::default();
        let guard = queue.start(Slow(allowed, told)).unwrap();
        queue.write_all(b"taken").unwrap();
        while !queue.lock().lines.is_empty() {
            thread::yield_now();
        }
        for _ in 0..LINES_MAX + 3 {
            queue.write_all(b"x").unwrap();
        }
        assert_eq!(queue.lost(), 3);
        drop(may);
        assert_eq!(written.iter().take(LINES_MAX + 1).count(), LINES_MAX + 1);
        while !queue.lock().is_idle {
            thread::yield_now();
        }
        assert!(queue.lock().lines.capacity() <= LINES_USUAL, "a burst leaves no room behind");
        drop(guard);
        assert_eq!(written.try_iter().count(), 0);
    }

    #[test]
    fn nobody_waits_for_a_writer_that_panicked() {
        struct Faulty;
        impl Write for Faulty {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                panic!("on purpose")
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut queue = Queue::default();
        let guard = queue.start(Faulty).unwrap();
        queue.write_all(b"x").unwrap();
        let begun = Instant::now();
        drop(guard);
        assert!(begun.elapsed() < PATIENCE);
    }
}
