//! Small tasks that wait for something each, and report it to the driver.

use std::cell::RefCell;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Weak;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::sync::watch;
use tokio::task::spawn_local;

use super::driver::Driver;
use super::grant::LaterGrant;
use super::hosted::{Ear, Main, Task};
use super::mains::Mains;
use super::watched::Watched;
use crate::core::backend::{Event, Ticket, Word};
use crate::core::registry::BackendId;
use crate::net::endpoint::{ConnectError, Connection, finish_tcp};
use crate::net::notify_socket::Message;
use crate::process::exit::peek;
use crate::process::group::{Doomed, END_PATIENCE, Tree, end};
use crate::process::kernel;
use crate::process::pool::SpawnPool;
use crate::process::spawn::Spawned;

/// A probe command that takes longer is ended and counts as not ready: one that hangs must not hide that the next would
/// succeed.
const PROBE_MAX: Duration = Duration::from_secs(10);

/// How long a tcp connection of ours to the loopback address may take.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// How soon survivors are looked for again while somebody is just ending.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// How often a process is looked at that cannot be watched.
const LOOK_EVERY: Duration = Duration::from_millis(500);

type Handle = Weak<RefCell<Driver>>;

/// Waits until a process has ended.
async fn ended(pidfd: Arc<OwnedFd>) {
    let watching = Arc::clone(&pidfd);
    match Watched::new(pidfd, Interest::READABLE) {
        Ok(watched) => {
            let _ = watched.readable().await;
        }
        Err(error) => {
            tracing::error!(%error, "cannot be told of a process's end; looking now and then");
            while !kernel::has_ended(watching.as_fd()) {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
    }
}

pub(super) fn watch_main(driver: Handle, id: BackendId, generation: u64, pidfd: Arc<OwnedFd>) -> Task {
    Task(spawn_local(async move {
        ended(pidfd).await;
        while let Some(driver) = driver.upgrade() {
            if driver.borrow_mut().main_ended(id, generation) {
                return;
            }
            drop(driver);
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }))
}

/// Hands what a daemon says of itself to its machine.
pub(super) fn watch_notify(driver: Handle, id: BackendId, generation: u64, ear: Ear) -> Task {
    Task(spawn_local(async move {
        let watched = match Watched::duplicate_of(&ear.socket) {
            Ok(watched) => watched,
            Err(error) => return tracing::error!(%error, "cannot watch a notify socket"),
        };
        // What the next broker would hear again is taken out only once nobody need hear it again.
        let is_kept = ear.stored.is_some();
        while let Ok(mut guard) = watched.readable().await {
            tokio::task::coop::consume_budget().await;
            let next = if is_kept { ear.socket.look() } else { ear.socket.receive() };
            match next {
                Ok(Some(message)) => {
                    let is_remembered = message.ready || message.extend_timeout.is_some();
                    let Some(driver) = driver.upgrade() else { return };
                    let is_heard = driver.borrow_mut().hear(id, generation, message);
                    if is_kept {
                        let journal = driver.borrow().journal.clone();
                        drop(driver);
                        if is_heard && is_remembered {
                            journal.written().await;
                        }
                        let _ = ear.socket.receive();
                    }
                }
                Ok(None) => guard.clear_ready(),
                Err(error) => return tracing::warn!(%error, "cannot read a notify socket"),
            }
        }
    }))
}

impl Driver {
    /// Takes what was said on the notify socket of a generation, if it was said by its backend; whether it was.
    fn hear(&mut self, id: BackendId, generation: u64, message: Message) -> bool {
        if !self.may_speak(id, generation, message.sender) {
            let backend = self.registry.get(id).map(|(key, _)| tracing::field::display(key));
            tracing::warn!(backend, generation, sender = ?message.sender, "a stranger wrote to a notify socket");
            return false;
        }
        let status = message.status.map(Word::Status);
        let extension = message.extend_timeout.map(Word::ExtendTimeout);
        let ready = message.ready.then_some(Word::Ready);
        for word in status.into_iter().chain(extension).chain(ready) {
            self.dispatch(id, Event::Notified { generation, word });
        }
        true
    }

    /// Whether a process speaks for a generation. One that has already ended cannot be looked at; the socket's folder is
    /// private, and its path was told to the daemon alone.
    fn may_speak(&mut self, id: BackendId, generation: u64, sender: Option<nix::unistd::Pid>) -> bool {
        let Some(running) = self.hosted.get_mut(&id).and_then(|h| h.generation(generation)) else { return false };
        let backend = running.processes();
        let is_gone = |pid| matches!(crate::process::identity::stat(pid), Ok(None));
        sender.is_none_or(|pid| backend.includes(pid) || is_gone(pid))
    }
}

/// Waits for a probe command, as long as the generation that it is for.
pub(super) fn watch_probe(
    driver: Handle,
    id: BackendId,
    generation: u64,
    probe: Spawned,
    mut is_over: watch::Receiver<()>,
) {
    let Spawned { pid, pidfd, dies_with_parent, strayed, nofile_lowered_to } = probe;
    let pidfd = Arc::new(pidfd);
    spawn_local(async move {
        let obstacle = tokio::select! {
            () = ended(Arc::clone(&pidfd)) => match peek(pidfd.as_fd()) {
                Ok(Some(exit)) if exit.is_success() => None,
                Ok(Some(exit)) => Some(format!("the probe {exit}")),
                Ok(None) | Err(_) => Some("how the probe ended cannot be seen".to_owned()),
            },
            () = tokio::time::sleep(PROBE_MAX) => Some(format!("the probe ran for {PROBE_MAX:?} and was ended")),
            _ = is_over.changed() => Some("the generation is over".to_owned()),
        };
        let Some(driver) = driver.upgrade() else { return };
        let mut driver = driver.borrow_mut();
        end_probe(&driver.pool, Spawned { pid, pidfd: own(pidfd), dies_with_parent, strayed, nofile_lowered_to });
        driver.dispatch(id, Event::Probed { generation, ready: obstacle.is_none(), obstacle });
    });
}

/// The only owner of the descriptor, once nobody watches it any more.
fn own(descriptor: Arc<OwnedFd>) -> OwnedFd {
    match Arc::try_unwrap(descriptor) {
        Ok(descriptor) => descriptor,
        Err(_) => unreachable!("the watch ended with its future"),
    }
}

/// Reaps a main process that did not end though it was killed, once it does.
pub(super) fn reap_later(mains: Mains, main: Main) {
    spawn_local(async move {
        ended(Arc::clone(&main.pidfd)).await;
        mains.remove(main.pid);
        if let Err(error) = kernel::reap(&main.pidfd) {
            tracing::warn!(%error, pid = main.pid.as_raw(), "cannot reap a process");
        }
    });
}

/// Ends what is left of a probe command and reaps it.
pub(super) fn end_probe(pool: &SpawnPool, probe: Spawned) {
    let result = pool.run(move || {
        let doomed = Doomed {
            main: probe.pid,
            group: probe.pid,
            pidfd: probe.pidfd.as_fd(),
            start: None,
            tree: Tree::default(),
            is_other: &|_| true,
        };
        end(doomed, END_PATIENCE);
        if let Err(error) = kernel::reap(&probe.pidfd) {
            tracing::debug!(%error, "a probe was reaped already");
        }
    });
    if let Err(error) = result {
        tracing::error!(%error, "no thread to end a probe from");
    }
}

/// Waits until a tcp connection is made, and hands it over.
pub(super) fn finish_connection(driver: Handle, ticket: Ticket, grant: LaterGrant, socket: OwnedFd) {
    spawn_local(async move {
        let result = tokio::time::timeout(CONNECT_MAX, connected(socket)).await;
        let Some(driver) = driver.upgrade() else { return };
        let mut driver = driver.borrow_mut();
        let Some(asked) = driver.asked.get(&ticket).copied() else { return };
        match result {
            Ok(Ok(socket)) => {
                if let Some(session) = driver.session(asked.session) {
                    grant.as_ref().send(&session, Some(socket));
                }
            }
            Ok(Err(error)) => driver.connection_failed(ticket, grant.negotiated.generation, &error),
            Err(_) => driver.connection_failed(ticket, grant.negotiated.generation, &ConnectError::Busy),
        }
    });
}

async fn connected(mut socket: OwnedFd) -> Result<OwnedFd, ConnectError> {
    loop {
        let shared = Arc::new(socket);
        let watched = Watched::new(Arc::clone(&shared), Interest::WRITABLE).map_err(ConnectError::Io)?;
        watched.writable().await.map_err(ConnectError::Io)?.clear_ready();
        drop(watched);
        match finish_tcp(own(shared))? {
            Connection::Made(made) => return Ok(made),
            Connection::Pending(pending) => socket = pending,
        }
    }
}
