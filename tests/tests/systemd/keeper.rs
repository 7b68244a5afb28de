//! The keeper of the backends' cgroup: when it settles there, and when it goes.

use std::fs;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use broker_tests::{BOUND, Machine, Running, Service, own_cgroup, sibling, trials, wait_until};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

trials![it_settles_once_the_manager_has_put_it_where_it_belongs, who_takes_his_time_to_end_with_the_unit_is_asked_once,];

const BROKER: &str = "brokerd.service";
const BACKENDS: &str = "brokerd-backends.service";

/// The cgroup of a unit that is delegated; it is removed at the end, when nobody is left there.
struct Unit(PathBuf);

impl Unit {
    fn delegated(name: &str) -> Self {
        let path = own_cgroup().expect("cgroup2 is mounted").join(format!("{name}-{}.service", std::process::id()));
        fs::create_dir(&path).expect("a cgroup can be made");
        let file = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).expect("no zero in it");
        // SAFETY: two strings and a buffer that live through the call.
        let set = unsafe { libc::setxattr(file.as_ptr(), c"trusted.delegate".as_ptr(), c"1".as_ptr().cast(), 1, 0) };
        assert_eq!(set, 0, "{}", io::Error::last_os_error());
        Self(path)
    }

    fn members(&self, below: &str) -> String {
        fs::read_to_string(self.0.join(below).join("cgroup.procs")).unwrap_or_default().trim().to_owned()
    }

    fn put(&self, pid: u32) {
        fs::write(self.0.join("cgroup.procs"), pid.to_string()).expect("a process can be moved");
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("cgroup.kill"), "1");
        wait_until("the cgroups are removed", || {
            let _ = fs::remove_dir(self.0.join("keeper"));
            fs::remove_dir(&self.0).is_ok()
        });
    }
}

/// A message to the manager, and the descriptor that came with it.
fn hear(socket: &UnixDatagram) -> (String, Option<OwnedFd>) {
    let mut bytes = [0; 4096];
    let mut control = nix::cmsg_space!([RawFd; 1]);
    let mut slices = [IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let heard = recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut control), flags).expect("a message");
    let descriptors = heard.cmsgs().expect("room for one").filter_map(|message| match message {
        // SAFETY: the kernel has just made it for us.
        ControlMessageOwned::ScmRights(numbers) => Some(unsafe { OwnedFd::from_raw_fd(*numbers.first()?) }),
        _ => None,
    });
    let (descriptor, length) = (descriptors.last(), heard.bytes);
    (String::from_utf8_lossy(&bytes[..length]).into_owned(), descriptor)
}

/// systemd puts what it has forked into the unit's cgroup as well, and may be slower at that than the keeper is.
fn it_settles_once_the_manager_has_put_it_where_it_belongs() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let manager = UnixDatagram::bind(folder.path().join("notify")).expect("a path of its own");
    manager.set_read_timeout(Some(BOUND)).expect("a bound");
    let unit = Unit::delegated("kept");
    let mut command = Command::new(sibling("brokerd"));
    command.arg("--keep-cgroup").env("NOTIFY_SOCKET", folder.path().join("notify"));
    let procs = unit.0.join("cgroup.procs");
    // SAFETY: between fork and exec it makes system calls, with a path that was made before.
    unsafe { command.pre_exec(move || fs::write(Path::new(&procs), "0")) };
    let keeper = Running::start(&mut command);
    let (said, barrier) = hear(&manager);
    assert_eq!((said.trim(), barrier.is_some()), ("BARRIER=1", true));
    assert_eq!(unit.members(""), keeper.pid().to_string());
    unit.put(keeper.pid());
    drop(barrier);
    let (said, _) = hear(&manager);
    assert!(said.contains("READY=1"), "{said}");
    assert_eq!((unit.members(""), unit.members("keeper")), (String::new(), keeper.pid().to_string()));
}

/// Not a second time when the keeper has ended, which to many a daemon says that it is to give up.
fn who_takes_his_time_to_end_with_the_unit_is_asked_once() {
    let script =
        "trap 'echo asked >>\"$0.asked\"; kill $!; sleep 0.5; echo done >>\"$0.asked\"; exit 0' TERM; \"$@\" & wait";
    let command = ["/bin/sh", "-c", script, "{starts}", "{fake-backend}", "--listen", "{endpoint}"];
    let machine = Machine::boot();
    machine.service(&Service::named("slow").command("1.0.0", &command));
    machine.systemctl(&["start", BROKER]);
    for (times, what) in [(1, ["stop", BACKENDS]), (2, ["kill", BACKENDS])] {
        let pid = machine.resolve("slow")["pid"].as_u64().expect("it runs");
        let keeper = machine.main_pid(BACKENDS);
        machine.systemctl(&what);
        wait_until("the unit is gone", || !machine.process_exists(pid) && machine.main_pid(BACKENDS) != keeper);
        assert_eq!(machine.read("/run/trial/slow.asked"), "asked\ndone\n".repeat(times));
        machine.systemctl(&["start", BROKER]);
        machine.wait_unit(BACKENDS, "active");
        machine.wait_unit(BROKER, "active");
    }
}
