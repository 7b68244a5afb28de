//! Why a program could not be started, in words that tell a person what to do.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::Command;
use super::child::Step;

/// How much of a script is read for its first line: what the kernel reads (`BINPRM_BUF_SIZE`).
const SHEBANG_BYTES: u64 = 256;

/// Why a program was not started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpawnError {
    #[error("`{}` holds a NUL byte, which {what} cannot", text.escape_debug())]
    Nul { what: &'static str, text: String },
    #[error("`{}` cannot be the name of an environment variable", name.escape_debug())]
    VariableName { name: String },
    #[error("`{}` cannot be the name of an inherited socket: no colons, no control characters", name.escape_debug())]
    ListenName { name: String },
    #[error("`{program}` is a relative path; write an absolute one, or a bare name to be searched in PATH")]
    Relative { program: PathBuf },
    #[error("`{name}` is in no folder of PATH (`{searched}`){}", hint(hint_text))]
    NotFound { name: String, searched: String, hint_text: Option<String> },
    #[error("cannot change to the working directory `{path}`")]
    WorkingDirectory {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot execute `{program}`{}", hint(hint_text))]
    Execute {
        program: PathBuf,
        hint_text: Option<String>,
        #[source]
        source: io::Error,
    },
    #[error("the system is out of {what}")]
    Exhausted {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("cannot prepare the new process ({step})")]
    Prepare {
        step: &'static str,
        #[source]
        source: io::Error,
    },
}

fn hint(text: &Option<String>) -> String {
    text.as_ref().map(|text| format!(": {text}")).unwrap_or_default()
}

impl SpawnError {
    /// Whether it is a lack of resources, which passes by itself, and no fault of the command.
    pub(crate) fn is_exhausted(&self) -> bool {
        matches!(self, Self::Exhausted { .. })
    }

    /// The system's own number of the error, where there is one.
    pub(crate) fn errno(&self) -> Option<i32> {
        match self {
            Self::WorkingDirectory { source, .. }
            | Self::Execute { source, .. }
            | Self::Exhausted { source, .. }
            | Self::Prepare { source, .. } => source.raw_os_error(),
            Self::Nul { .. }
            | Self::VariableName { .. }
            | Self::ListenName { .. }
            | Self::Relative { .. }
            | Self::NotFound { .. } => None,
        }
    }

    /// A failure of the broker's own part.
    pub(super) fn prepare(step: &'static str, source: io::Error) -> Self {
        match exhausted(&source) {
            Some(what) => Self::Exhausted { what, source },
            None => Self::Prepare { step, source },
        }
    }

    /// A failure that the child reported.
    pub(super) fn in_child(step: Step, source: io::Error, command: &Command) -> Self {
        if let Some(what) = exhausted(&source) {
            return Self::Exhausted { what, source };
        }
        match step {
            Step::Directory => Self::WorkingDirectory { path: command.working_directory.clone(), source },
            Step::Execute => {
                let hint_text = explain(&command.program, source.raw_os_error().unwrap_or(0));
                Self::Execute { program: command.program.clone(), hint_text, source }
            }
            Step::Session => Self::Prepare { step: "setsid", source },
            Step::ParentDeath => Self::Prepare { step: "PR_SET_PDEATHSIG", source },
            Step::OwnDescriptors | Step::Descriptors => Self::Prepare { step: "descriptors", source },
            Step::Limit => Self::Prepare { step: "RLIMIT_NOFILE", source },
            Step::None => Self::Prepare { step: "unknown", source },
        }
    }
}

fn exhausted(error: &io::Error) -> Option<&'static str> {
    match error.raw_os_error()? {
        libc::EMFILE => Some("file descriptors (of this process: RLIMIT_NOFILE)"),
        libc::ENFILE => Some("file descriptors (of the whole system: fs.file-max)"),
        libc::EAGAIN => Some("processes (RLIMIT_NPROC, TasksMax or kernel.pid_max)"),
        libc::ENOMEM => Some("memory"),
        _ => None,
    }
}

/// What a person would find out next about a program that the kernel refused.
fn explain(program: &Path, errno: i32) -> Option<String> {
    let here = fs::symlink_metadata(program);
    match errno {
        libc::ENOENT => match here {
            Ok(link) if link.is_symlink() && !program.exists() => {
                let target = fs::read_link(program).ok()?;
                Some(format!("it is a symbolic link to `{}`, which does not exist", target.display()))
            }
            Ok(_) => Some(match interpreter(program) {
                Some(interpreter) => format!("its interpreter `{}` is missing", interpreter.escape_debug()),
                None => "its interpreter is missing (was it built for another C library?)".to_owned(),
            }),
            Err(_) => None,
        },
        libc::EACCES => {
            let file = fs::metadata(program).ok()?;
            if file.is_dir() {
                Some("it is a directory".to_owned())
            } else if !file.is_file() {
                Some("it is no regular file".to_owned())
            } else if file.permissions().mode() & 0o111 == 0 {
                Some("it is not marked as executable (chmod +x)".to_owned())
            } else {
                let interpreter = interpreter(program)?;
                Some(format!("check that its interpreter `{}` is executable", interpreter.escape_debug()))
            }
        }
        libc::ENOEXEC => Some("it is neither a program for this machine nor a script that begins with `#!`".to_owned()),
        libc::E2BIG => Some("its arguments and environment are too long together".to_owned()),
        libc::ETXTBSY => Some("it is being written to".to_owned()),
        _ => None,
    }
}

/// The interpreter that the first line of a script names.
fn interpreter(program: &Path) -> Option<String> {
    // Not blocked by a FIFO, nor confused by a device: only regular files are read.
    let file = fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(program).ok()?;
    let kind = file.metadata().ok()?.file_type();
    if !kind.is_file() {
        return None;
    }
    let mut head = Vec::new();
    file.take(SHEBANG_BYTES).read_to_end(&mut head).ok()?;
    let line = head.strip_prefix(b"#!")?.split(|&byte| byte == b'\n').next()?;
    let name = line.trim_ascii_start().split(|byte| matches!(byte, b' ' | b'\t')).next()?;
    Some(String::from_utf8_lossy(name).into_owned())
}
