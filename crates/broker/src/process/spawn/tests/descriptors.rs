//! Programs that are started by a broker with many descriptors.

use super::*;

/// Numbers that would leak if nobody closed them.
fn leaks(count: usize) -> Vec<fs::File> {
    let leak = |_| {
        let leak = fs::File::open("/").unwrap();
        nix::fcntl::fcntl(&leak, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
        leak
    };
    (0..count).map(leak).collect()
}

/// What a program says that lists its own descriptors, and that what it was given has come.
#[track_caller]
fn assert_has_its_own() {
    let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
    let socket = Listen { socket: Arc::new(socket.into()), name: "one".to_owned() };
    let folder = tempfile::tempdir().unwrap();
    let record = Arc::new(OwnedFd::from(fs::File::create(folder.path().join("record")).unwrap()));
    let script = "ls /proc/$$/fd; readlink /proc/$$/fd/0 /proc/$$/fd/1 /proc/$$/fd/3";
    let output = output_of(script, |command| {
        command.listen = vec![socket];
        command.record = Some(record);
    });
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines[..4], ["0", "1", "2", "3"], "{output}");
    assert!(lines[4] == "/dev/null" && lines[5].ends_with("/log") && lines[6].starts_with("socket:"), "{output}");
    assert_eq!(lines.len(), 7, "{output}");
    assert!(fs::read_to_string(folder.path().join("record")).unwrap().ends_with('\n'));
}

#[test]
fn a_program_takes_nothing_of_a_broker_with_many_descriptors() {
    as_broker(|| {
        assert_has_its_own();
        reserve_descriptors();
        let _leaks = leaks(500);
        for _ in 0..3 {
            assert_has_its_own();
        }
    });
}

/// Has the kernel refuse these calls to this process and to what it starts.
fn forbid(calls: [libc::c_long; 2]) {
    let statement = |code: u32, jt, k: u32| libc::sock_filter { code: u16::try_from(code).unwrap(), jt, jf: 0, k };
    let equals = |call: libc::c_long, jt| {
        statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, jt, u32::try_from(call).unwrap())
    };
    let returns = |value| statement(libc::BPF_RET | libc::BPF_K, 0, value);
    let mut filter = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        equals(calls[0], 2),
        equals(calls[1], 1),
        returns(libc::SECCOMP_RET_ALLOW),
        returns(libc::SECCOMP_RET_ERRNO | libc::EPERM.cast_unsigned()),
    ];
    let program = libc::sock_fprog { len: 5, filter: filter.as_mut_ptr() };
    // SAFETY: the program and its statements are live, and the kernel copies them.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program), 0);
    }
}

/// Starts a program where these calls are refused; the broker keeps what it has.
fn start_without(calls: [libc::c_long; 2]) {
    reserve_descriptors();
    forbid(calls);
    let leaks = leaks(50);
    assert_has_its_own();
    assert!(leaks.iter().all(|leak| leak.metadata().is_ok()));
}

#[test]
fn where_a_child_may_not_have_a_table_of_its_own_it_gets_a_copy() {
    as_broker(|| start_without([libc::SYS_close_range, libc::SYS_unshare]));
}

#[test]
fn a_kernel_that_copies_all_or_nothing_does_as_well() {
    as_broker(|| start_without([libc::SYS_close_range, libc::SYS_close_range]));
}
