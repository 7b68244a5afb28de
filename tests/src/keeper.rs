//! A service manager with an FD store, as far as one broker sees it: what it is given to keep it passes to the next one.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use crate::broker::Broker;
use crate::wait::BOUND;

/// Descriptors are passed from this one on, and prepared above the other.
const FIRST: RawFd = 3;
const ABOVE: RawFd = 500;

/// What a test says to find out that everything before was heard.
const MARK: &[u8] = b"X_MARK=1";

type Store = Arc<Mutex<Vec<(String, OwnedFd)>>>;

/// The manager. It hears until its broker's folder is gone.
#[derive(Debug)]
pub(crate) struct Keeper {
    path: PathBuf,
    store: Store,
    marks: Mutex<Receiver<()>>,
}

impl Keeper {
    /// One that listens at the path.
    pub(crate) fn at(path: PathBuf) -> Self {
        let socket = UnixDatagram::bind(&path).expect("a short path");
        let store = Store::default();
        let (marked, marks) = channel();
        let theirs = Arc::clone(&store);
        thread::spawn(move || hear(&socket, &theirs, &marked));
        Self { path, store, marks: Mutex::new(marks) }
    }

    fn store(&self) -> MutexGuard<'_, Vec<(String, OwnedFd)>> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The names of what is kept, once all that was said is heard.
    fn names(&self) -> Vec<String> {
        self.catch_up();
        let mut names: Vec<_> = self.store().iter().map(|(name, _)| name.clone()).collect();
        names.sort();
        names
    }

    fn lose_everything(&self) {
        self.catch_up();
        self.store().clear();
    }

    fn catch_up(&self) {
        let marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        let socket = UnixDatagram::unbound().expect("a socket");
        socket.send_to(MARK, &self.path).expect("the manager hears");
        marks.recv_timeout(BOUND).expect("the manager hears");
    }

    /// Has a command inherit everything that is kept. It still has to say to which process it was passed.
    pub(crate) fn pass_on(&self, command: &mut Command) {
        self.catch_up();
        let mut names = Vec::new();
        let mut prepared = Vec::new();
        for (name, descriptor) in self.store().iter() {
            let number = fcntl(descriptor, FcntlArg::F_DUPFD_CLOEXEC(ABOVE)).expect("descriptors are left");
            // SAFETY: it was made just now.
            prepared.push(unsafe { OwnedFd::from_raw_fd(number) });
            names.push(name.clone());
        }
        command.env("NOTIFY_SOCKET", &self.path);
        if names.is_empty() {
            return;
        }
        command.env("LISTEN_FDS", names.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
        let pass = move || {
            for (to, from) in (FIRST..).zip(&prepared) {
                // SAFETY: two integers; what is replaced belongs to nobody after the exec.
                if unsafe { libc::dup2(from.as_raw_fd(), to) } < 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            Ok(())
        };
        // SAFETY: between fork and exec it makes system calls only.
        unsafe { command.pre_exec(pass) };
    }
}

impl Broker {
    /// The names of what the broker's service manager keeps for it.
    ///
    /// # Panics
    /// It has none.
    #[track_caller]
    #[must_use]
    pub fn kept(&self) -> Vec<String> {
        self.setup.keeper.as_ref().expect("a setup with a manager that keeps").names()
    }

    /// Has the service manager lose what it keeps, as systemd does when the broker is stopped and not restarted.
    ///
    /// # Panics
    /// It has none.
    #[track_caller]
    pub fn lose_kept(&self) {
        self.setup.keeper.as_ref().expect("a setup with a manager that keeps").lose_everything();
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // An empty message ends it.
        let _ = UnixDatagram::unbound().and_then(|socket| socket.send_to(b"", &self.path));
    }
}

/// Hears, and does as systemd does with FDSTORE=1, FDSTOREREMOVE=1 and BARRIER=1.
fn hear(socket: &UnixDatagram, store: &Store, marked: &Sender<()>) {
    let mut bytes = [0; 4096];
    loop {
        let Ok((count, descriptor)) = receive(socket, &mut bytes) else { return };
        let message = &bytes[..count];
        if message.is_empty() {
            return;
        }
        if message == MARK {
            let _ = marked.send(());
            continue;
        }
        let text = String::from_utf8_lossy(message);
        let says = |line: &str| text.lines().any(|own| own == line);
        let Some(name) = text.lines().find_map(|line| line.strip_prefix("FDNAME=")) else { continue };
        let mut store = store.lock().unwrap_or_else(PoisonError::into_inner);
        if says("FDSTOREREMOVE=1") {
            store.retain(|(own, _)| own != name);
        } else if let (true, Some(descriptor)) = (says("FDSTORE=1"), descriptor) {
            assert!(says("FDPOLL=0"), "a listening socket that nobody polls hangs up never: {text}");
            store.push((name.to_owned(), descriptor));
        }
    }
}

/// One message, and the descriptor that came with it.
fn receive(socket: &UnixDatagram, bytes: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut control = nix::cmsg_space!([RawFd; 1]);
    let mut slices = [IoSliceMut::new(bytes)];
    let received = recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut descriptor = None;
    for message in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = message {
            for number in numbers {
                // SAFETY: the kernel has just made it for us.
                descriptor = Some(unsafe { OwnedFd::from_raw_fd(number) });
            }
        }
    }
    Ok((received.bytes, descriptor))
}
