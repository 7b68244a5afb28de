//! Threads for blocking work, above all for spawning.
//!
//! They never exit while the process lives: `PR_SET_PDEATHSIG` is tied to the *thread* that spawned, so a pool that
//! shrinks would kill daemons.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// The most threads of one pool; what is more waits in the queue.
const THREADS_MAX: usize = 64;

type Job = Box<dyn FnOnce() + Send>;

/// Runs blocking jobs, each on a thread of its own as long as there are fewer than [`THREADS_MAX`] of them.
#[derive(Clone, Default)]
pub(crate) struct SpawnPool {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    threads: usize,
    /// Threads that wait for work, those included that were woken for a job still in the queue.
    idle: usize,
}

impl SpawnPool {
    /// Makes an empty pool; threads come with the jobs.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Runs the job soon. It never waits behind another job, unless the cap is reached or the system has no more
    /// threads.
    ///
    /// # Errors
    /// The first thread could not be made: the job is dropped, nothing runs it.
    pub(crate) fn run(&self, job: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let mut state = self.shared.lock();
        if state.queue.len() >= state.idle && state.threads < THREADS_MAX {
            let shared = Arc::clone(&self.shared);
            let name = format!("worker-{}", state.threads);
            match std::thread::Builder::new().name(name).spawn(move || shared.work_for_ever()) {
                Ok(_) => state.threads += 1,
                Err(error) if state.threads == 0 => return Err(error),
                Err(error) => tracing::warn!(%error, "cannot start one more worker thread; the job waits for one"),
            }
        }
        state.queue.push_back(Box::new(job));
        drop(state);
        self.shared.work.notify_one();
        Ok(())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No job runs under the lock, so a poisoned one still guards a sound state.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work_for_ever(&self) {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.queue.pop_front() {
                drop(state);
                // A job's panic was printed by the hook; the thread must outlive it.
                let _ = catch_unwind(AssertUnwindSafe(job));
                state = self.lock();
            } else {
                state.idle += 1;
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::testing::GENEROUS;
    use std::collections::HashSet;
    use std::sync::{Barrier, mpsc};

    #[test]
    fn a_job_never_waits_behind_another() {
        let pool = SpawnPool::new();
        let all = Arc::new(Barrier::new(THREADS_MAX));
        let (done, results) = mpsc::channel();
        for _ in 0..THREADS_MAX {
            let (all, done) = (Arc::clone(&all), done.clone());
            // The barrier opens only once every job runs at the same time.
            pool.run(move || {
                all.wait();
                done.send(std::thread::current().id()).unwrap();
            })
            .unwrap();
        }
        let threads: HashSet<_> = (0..THREADS_MAX).map(|_| results.recv_timeout(GENEROUS).unwrap()).collect();
        assert_eq!(threads.len(), THREADS_MAX);
    }

    #[test]
    fn beyond_the_cap_jobs_queue() {
        let pool = SpawnPool::new();
        let gate = Arc::new(Barrier::new(THREADS_MAX + 1));
        let (done, results) = mpsc::channel();
        for _ in 0..THREADS_MAX {
            let gate = Arc::clone(&gate);
            pool.run(move || {
                gate.wait();
            })
            .unwrap();
        }
        pool.run(move || done.send(()).unwrap()).unwrap();
        assert_eq!(pool.shared.lock().threads, THREADS_MAX);
        assert!(results.try_recv().is_err());
        gate.wait();
        results.recv_timeout(GENEROUS).unwrap();
    }

    #[test]
    fn a_thread_outlives_a_panicking_job() {
        let pool = SpawnPool::new();
        let (done, results) = mpsc::channel();
        pool.run(|| panic!("this panic is part of the test")).unwrap();
        while pool.shared.lock().idle == 0 {
            std::thread::yield_now();
        }
        pool.run(move || done.send(()).unwrap()).unwrap();
        results.recv_timeout(GENEROUS).unwrap();
        assert_eq!(pool.shared.lock().threads, 1);
    }
}
