//! What a spawned program inherits, and what a failed spawn says: as real programs see it.

use super::*;
use crate::process::exit::Exit;
use crate::process::group;
use crate::process::kernel::wait_ended;
use crate::process::testing::{GENEROUS, as_broker, command, on_worker, wait_for};
use nix::sys::signal::Signal;
use std::fs;
use std::os::fd::AsFd;
use std::os::fd::FromRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

mod cgroups;
mod descriptors;
mod signals;

/// Runs the script to its end and returns what it wrote.
fn output_of(script: &str, change: impl FnOnce(&mut Command)) -> String {
    let folder = tempfile::tempdir().unwrap();
    let mut command = command("/bin/sh", &["-c", script], &folder.path().join("log"));
    change(&mut command);
    let spawned = on_worker(command).unwrap();
    assert!(wait_ended(spawned.pidfd.as_fd(), GENEROUS), "`{script}` does not end");
    let output = fs::read_to_string(folder.path().join("log")).unwrap();
    assert_eq!(reap(&spawned.pidfd).unwrap(), Some(Exit::Code(0)), "{output}");
    output.trim_end().to_owned()
}

/// The whole chain of messages, as a person reads it.
fn failure_of(change: impl FnOnce(&mut Command)) -> String {
    let folder = tempfile::tempdir().unwrap();
    let mut command = command("/bin/sh", &["-c", "exit 0"], &folder.path().join("log"));
    change(&mut command);
    let error = on_worker(command).map(|spawned| spawned.pid).expect_err("it cannot be started");
    assert!(!error.is_exhausted());
    match std::error::Error::source(&error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn file(folder: &Path, content: &str, mode: u32) -> PathBuf {
    let path = folder.join("program");
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    path
}

#[test]
fn a_program_inherits_three_descriptors_and_no_more() {
    // Descriptors that would leak if exec did not close them.
    let leak = fs::File::open("/").unwrap();
    nix::fcntl::fcntl(&leak, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
    // The fourth is the folder that ls reads.
    assert_eq!(output_of("exec ls /proc/self/fd", |_| {}), "0\n1\n2\n3");
    let links = output_of("exec ls -l /proc/self/fd", |_| {});
    assert_eq!(links.matches("/dev/null").count(), 1, "{links}");
    assert_eq!(links.matches("/log").count(), 2, "{links}");
}

#[test]
fn sockets_follow_as_systemd_passes_them() {
    let sockets: Vec<Listen> = ["one", "two"]
        .map(|name| {
            let (socket, _) = std::os::unix::net::UnixStream::pair().unwrap();
            Listen { socket: Arc::new(socket.into()), name: name.to_owned() }
        })
        .into();
    let inodes: Vec<String> =
        sockets.iter().map(|listen| nix::sys::stat::fstat(&listen.socket).unwrap().st_ino.to_string()).collect();
    let script = "echo $LISTEN_FDS $LISTEN_FDNAMES; test $LISTEN_PID = $$ && echo ours; ls /proc/$$/fd; \
                  readlink /proc/$$/fd/3 /proc/$$/fd/4; exec sh -c 'echo ${LISTEN_PID}'";
    let output = output_of(script, |command| {
        command.listen = sockets;
        command.environment.push(("LISTEN_FDS".into(), "77".into()));
    });
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(&lines[..3], ["2 one:two", "ours", "0"], "{output}");
    assert_eq!(&lines[3..7], ["1", "2", "3", "4"]);
    assert_eq!(&lines[7..9], [format!("socket:[{}]", inodes[0]), format!("socket:[{}]", inodes[1])]);
    assert!(lines[9].parse::<u32>().is_ok());
}

#[test]
fn sources_with_small_numbers_do_not_overwrite_each_other() {
    as_broker(|| {
        // Stdin, stdout and stderr of this process are passed crosswise to themselves.
        let folder = tempfile::tempdir().unwrap();
        let mut command =
            command("/bin/sh", &["-c", "readlink /proc/$$/fd/* >/proc/$$/fd/1"], &folder.path().join("log"));
        let log = Arc::clone(&command.stdout);
        for target in [0, 4] {
            // SAFETY: nothing else of this fresh process uses these numbers.
            assert_eq!(unsafe { libc::dup2(log.as_raw_fd(), target) }, target);
        }
        let root: OwnedFd = fs::File::open("/usr").unwrap().into();
        // SAFETY: as above.
        let at_one = unsafe {
            assert_eq!(libc::dup2(root.as_raw_fd(), 1), 1);
            OwnedFd::from_raw_fd(1)
        };
        // SAFETY: as above.
        let at_zero = unsafe { OwnedFd::from_raw_fd(0) };
        command.stdout = Arc::new(at_zero);
        command.listen = vec![Listen { socket: Arc::new(at_one), name: "usr".into() }];
        let spawned = on_worker(command).unwrap();
        assert!(wait_ended(spawned.pidfd.as_fd(), GENEROUS));
        let log = folder.path().join("log").display().to_string();
        let output = fs::read_to_string(&log).unwrap();
        assert_eq!(output, format!("/dev/null\n{log}\n{log}\n/usr\n"));
    });
}

#[test]
fn the_environment_is_exactly_what_was_given() {
    let change = |command: &mut Command| {
        command.environment = vec![("A".into(), "1 = 2".into()), ("EMPTY".into(), "".into()), ("Ü".into(), "ß".into())];
    };
    assert_eq!(output_of("/bin/cat /proc/$$/environ | /usr/bin/tr '\\0' '\\n'", change), "A=1 = 2\nEMPTY=\nÜ=ß");
}

#[test]
fn umask_folder_session_and_limit_are_set() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().to_owned();
    let script = "umask; pwd; ulimit -Sn; cut -d' ' -f5,6 /proc/$$/stat; echo $$ $$";
    let output = output_of(script, |command| {
        command.umask = 0o027;
        command.working_directory = place.clone();
        command.nofile_soft = Some(99);
    });
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(&lines[..3], ["0027", folder.path().to_str().unwrap(), "99"]);
    assert_eq!(lines[3], lines[4], "leader of its own group and session");
}

#[test]
fn a_limit_of_descriptors_is_for_good_and_is_as_high_as_it_may_be() {
    let limited = |nofile: u64, program: &str| {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let mut command = command("/bin/sh", &["-c", program], &log);
        (command.nofile_soft, command.nofile) = (Some(99), Some(nofile));
        let spawned = on_worker(command).unwrap();
        assert!(wait_ended(spawned.pidfd.as_fd(), GENEROUS));
        (spawned.nofile_lowered_to, fs::read_to_string(log).unwrap())
    };
    let script = "ulimit -Sn; ulimit -Hn";
    assert_eq!(limited(64, script), (None, "64\n64\n".to_owned()));
    // More than the kernel lets anybody have.
    let (lowered, shown) = limited(1 << 40, script);
    let most = lowered.expect("nobody may have so many");
    assert_eq!(shown, format!("{most}\n{most}\n"));
}

#[test]
fn no_signal_is_blocked_or_ignored() {
    // A Rust program ignores SIGPIPE; this one blocks and ignores more, on the thread that spawns.
    as_broker(|| {
        // SAFETY: this process is fresh and ours; ignoring a signal runs no handler.
        unsafe { libc::signal(libc::SIGUSR1, libc::SIG_IGN) };
        nix::sys::signal::SigSet::all().thread_block().unwrap();
        let status = output_of("exec cat /proc/self/status", |_| {});
        for field in ["SigBlk", "SigIgn", "SigCgt"] {
            let line = status.lines().find(|line| line.starts_with(field)).unwrap();
            assert_eq!(line.split_ascii_whitespace().last(), Some("0000000000000000"), "{line}");
        }
    });
}

#[test]
fn the_spawning_thread_keeps_its_own_mask() {
    let before = nix::sys::signal::SigSet::thread_get_mask().unwrap();
    output_of("exit 0", |_| {});
    let folder = tempfile::tempdir().unwrap();
    let spawned = spawn(&command("/bin/true", &[], &folder.path().join("log"))).unwrap();
    assert_eq!(nix::sys::signal::SigSet::thread_get_mask().unwrap(), before);
    assert!(wait_ended(spawned.pidfd.as_fd(), GENEROUS));
    reap(&spawned.pidfd).unwrap();
}

#[test]
fn a_program_dies_with_the_broker_if_it_shall() {
    for (dies, script) in [(true, "echo $$; exec sleep 1000"), (false, "echo $$; exec sleep 1000")] {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let mut command = command("/bin/sh", &["-c", script], &log);
        command.die_with_parent = dies;
        // The thread that spawns plays the broker that dies: the signal is tied to it.
        let spawned = std::thread::spawn(move || spawn(&command).unwrap()).join().unwrap();
        if !dies {
            wait_for("it runs", || fs::read_to_string(&log).unwrap().ends_with('\n'));
            assert!(group::signal(spawned.pid, Signal::SIGTERM).unwrap());
        }
        assert!(wait_ended(spawned.pidfd.as_fd(), GENEROUS));
        let number = if dies { libc::SIGKILL } else { libc::SIGTERM };
        assert_eq!(reap(&spawned.pidfd).unwrap(), Some(Exit::Signal { number, core_dumped: false }));
    }
}

#[test]
fn a_program_that_cannot_be_executed_is_explained() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let check = |program: PathBuf, expected: String| {
        assert_eq!(failure_of(|command| command.program = program), expected);
    };
    let name = here.join("program").display().to_string();
    check(here.join("program"), format!("cannot execute `{name}`: No such file or directory (os error 2)"));
    check(
        here.to_owned(),
        format!("cannot execute `{}`: it is a directory: Permission denied (os error 13)", here.display()),
    );
    check(
        file(here, "#!/bin/sh\n", 0o600),
        format!("cannot execute `{name}`: it is not marked as executable (chmod +x): Permission denied (os error 13)"),
    );
    check(
        file(here, "#! /no/such/sh -e\nexit 0\n", 0o700),
        format!(
            "cannot execute `{name}`: its interpreter `/no/such/sh` is missing: No such file or directory (os error 2)"
        ),
    );
    check(
        file(here, "#!/bin/sh\r\nexit 0\n", 0o700),
        format!(
            "cannot execute `{name}`: its interpreter `/bin/sh\\r` is missing: No such file or directory (os error 2)"
        ),
    );
    check(
        file(here, "echo no shebang\n", 0o700),
        format!(
            "cannot execute `{name}`: it is neither a program for this machine nor a script that begins with `#!`: \
             Exec format error (os error 8)"
        ),
    );
    fs::remove_file(&name).unwrap();
    std::os::unix::fs::symlink("/no/where", &name).unwrap();
    check(
        here.join("program"),
        format!(
            "cannot execute `{name}`: it is a symbolic link to `/no/where`, which does not exist: \
             No such file or directory (os error 2)"
        ),
    );
}

#[test]
fn a_program_that_is_being_written_is_waited_for_a_moment() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("program");
    let mut writer = fs::File::create(&program).unwrap();
    io::Write::write_all(&mut writer, &fs::read("/bin/true").unwrap()).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
    let failure = failure_of(|command| command.program.clone_from(&program));
    assert!(failure.ends_with("it is being written to: Text file busy (os error 26)"), "{failure}");
    drop(writer);
    output_of("", |command| command.program = program);
}

#[test]
fn other_failures_name_their_cause() {
    let gone = failure_of(|command| command.working_directory = "/no/where".into());
    assert_eq!(gone, "cannot change to the working directory `/no/where`: No such file or directory (os error 2)");
    let nul = failure_of(|command| command.argv.push("a\0b".into()));
    assert_eq!(nul, "`a\\0b` holds a NUL byte, which an argument cannot");
    let name = failure_of(|command| command.environment.push(("A=B".into(), "".into())));
    assert_eq!(name, "`A=B` cannot be the name of an environment variable");
    let long = failure_of(|command| command.argv.push("x".repeat(3 << 20).into()));
    assert!(long.ends_with("too long together: Argument list too long (os error 7)"), "{long}");
}

#[test]
fn a_failed_spawn_leaves_nothing() {
    as_broker(|| {
        let folder = tempfile::tempdir().unwrap();
        let open = || fs::read_dir("/proc/self/fd").unwrap().count();
        let mut missing = command("/no/such/program", &[], &folder.path().join("log"));
        missing.die_with_parent = true;
        on_worker(missing.clone()).unwrap_err();
        let before = open();
        on_worker(missing.clone()).unwrap_err();
        assert_eq!(open(), before);
        let ours = |stat: &crate::process::identity::Stat| stat.parent == Pid::this();
        assert!(!crate::process::identity::all().unwrap().iter().any(ours));
    });
}

#[test]
fn exhaustion_is_told_from_a_bad_command() {
    as_broker(|| {
        let folder = tempfile::tempdir().unwrap();
        let command = command("/bin/true", &[], &folder.path().join("log"));
        // The pool's thread exists before the limit falls.
        assert!(on_worker(command.clone()).is_ok());
        let (_, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).unwrap();
        nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, 4, hard).unwrap();
        let result = on_worker(command);
        nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, 1024, hard).unwrap();
        let error = result.unwrap_err();
        assert!(error.is_exhausted(), "{error}");
        assert_eq!(error.errno(), Some(libc::EMFILE));
    });
}

#[test]
fn descriptors_are_sealed_without_close_range_too() {
    let mut command = std::process::Command::new("/bin/ls");
    command.arg("/proc/self/fd");
    let leak = fs::File::open("/").unwrap();
    nix::fcntl::fcntl(&leak, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
    // SAFETY: the function makes async-signal-safe system calls only.
    unsafe {
        std::os::unix::process::CommandExt::pre_exec(&mut command, || {
            child::seal_descriptors_one_by_one(3);
            Ok(())
        });
    }
    assert_eq!(command.output().unwrap().stdout, b"0\n1\n2\n3\n");
}

#[test]
fn many_threads_spawn_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let command = command("/bin/true", &[], &folder.path().join("log"));
    let started = std::time::Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..63 {
                    let spawned = spawn(&command).unwrap();
                    assert!(wait_ended(spawned.pidfd.as_fd(), GENEROUS));
                    assert_eq!(reap(&spawned.pidfd).unwrap(), Some(Exit::Code(0)));
                }
            });
        }
    });
    println!("504 spawns on 8 threads took {:?}", started.elapsed());
    let started = std::time::Instant::now();
    let spawned = spawn(&command).unwrap();
    println!("one spawn took {:?}", started.elapsed());
    assert!(wait_ended(spawned.pidfd.as_fd(), GENEROUS));
    reap(&spawned.pidfd).unwrap();
}

#[test]
fn a_bare_name_is_searched_in_path() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = std::env::join_paths(["relative".as_ref(), first.path(), second.path()]).unwrap();
    let resolve = |name: &str| resolve_program(name.as_ref(), Some(&path));
    fs::create_dir(first.path().join("program")).unwrap();
    let found = file(second.path(), "#!/bin/sh\n", 0o755);
    assert_eq!(resolve("program").unwrap(), found);
    assert_eq!(resolve("/not/looked/at").unwrap(), Path::new("/not/looked/at"));
    assert!(matches!(resolve("./program"), Err(SpawnError::Relative { .. })));
    assert!(matches!(resolve(""), Err(SpawnError::NotFound { .. })));
    fs::set_permissions(&found, fs::Permissions::from_mode(0o644)).unwrap();
    if !nix::unistd::geteuid().is_root() || resolve("program").is_err() {
        let error = resolve("program").unwrap_err().to_string();
        assert!(error.ends_with(&format!("`{}` is there, but not executable", found.display())), "{error}");
    }
    assert!(resolve_program("program".as_ref(), None).is_err());
}
