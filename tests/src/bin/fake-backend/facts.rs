//! What a process finds itself to be: environment, directory, descriptors, groups, signals, limits; as JSON.

use std::collections::BTreeMap;
use std::fs;

use nix::sys::resource::{Resource, getrlimit};
use nix::unistd::{getpgid, getpid, getppid, getsid};
use serde_json::{Value, json};

/// The facts of this process now.
pub(crate) fn gather() -> Value {
    let environment: BTreeMap<String, String> = std::env::vars_os().map(|(k, v)| (lossy(&k), lossy(&v))).collect();
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or_default();
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(|text| text.trim().to_owned())
    };
    json!({
        "pid": getpid().as_raw(),
        "ppid": getppid().as_raw(),
        "pgid": getpgid(None).map(nix::unistd::Pid::as_raw).ok(),
        "sid": getsid(None).map(nix::unistd::Pid::as_raw).ok(),
        "arguments": std::env::args().collect::<Vec<_>>(),
        "environment": environment,
        "cwd": std::env::current_dir().map(|path| lossy(path.as_os_str())).ok(),
        "umask": field("Umask"),
        "blocked": field("SigBlk"),
        "ignored": field("SigIgn"),
        "descriptors": descriptors(),
        "nofile": [soft, hard],
    })
}

fn lossy(text: &std::ffi::OsStr) -> String {
    text.to_string_lossy().into_owned()
}

/// Number → target and open flags (octal, as the kernel prints them), without the one that this very look opens.
fn descriptors() -> BTreeMap<String, Value> {
    let own_look = format!("/proc/{}/fd", getpid());
    let Ok(entries) = fs::read_dir("/proc/self/fd") else { return BTreeMap::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let number = lossy(&entry.file_name());
            let target = lossy(fs::read_link(entry.path()).ok()?.as_os_str());
            if target == own_look {
                return None;
            }
            let information = fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap_or_default();
            let flags = information.lines().find_map(|line| line.strip_prefix("flags:"));
            Some((number, json!({ "target": target, "flags": flags.map(str::trim) })))
        })
        .collect()
}
