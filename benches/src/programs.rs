//! Where the programs are, and that they are those of the sources at hand.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::args::Args;

/// The programs that are measured and that measure.
#[derive(Debug)]
pub(crate) struct Programs {
    pub(crate) brokerd: PathBuf,
    pub(crate) echo: PathBuf,
    pub(crate) echo_tokio: PathBuf,
    pub(crate) daemon: PathBuf,
    pub(crate) launcher: PathBuf,
}

impl Programs {
    /// Builds them if cargo runs this, and finds them beside this program.
    ///
    /// # Errors
    /// What is missing, and how to build it.
    pub(crate) fn find(args: &Args) -> Result<Self, String> {
        let own = env::current_exe().map_err(|error| format!("this program does not know where it is: {error}"))?;
        let folder = own.parent().unwrap_or(Path::new("/"));
        // `cargo bench` has its own in `deps`.
        let folder = if folder.ends_with("deps") { folder.parent().unwrap_or(folder) } else { folder };
        let release = folder.file_name().is_some_and(|name| name == "release");
        if let (Some(cargo), false) = (env::var_os("CARGO"), args.no_build) {
            build(&cargo, release)?;
        }
        let find = |name: &str| {
            let path = folder.join(name);
            let hint = if release { " --release" } else { "" };
            match path.is_file() {
                true => Ok(path),
                false => Err(format!(
                    "`{}` is missing: run `cargo build{hint} --bins -p broker -p broker-bench` first",
                    path.display()
                )),
            }
        };
        let brokerd = match &args.brokerd {
            Some(path) => std::path::absolute(path).map_err(|error| format!("`{}`: {error}", path.display()))?,
            None => find("brokerd")?,
        };
        Ok(Self {
            brokerd,
            echo: find("bench-echo")?,
            echo_tokio: find("bench-echo-tokio")?,
            daemon: find("bench-daemon")?,
            launcher: find("bench-launcher")?,
        })
    }
}

/// Has cargo build the programs, so that no stale one is measured.
fn build(cargo: &std::ffi::OsStr, release: bool) -> Result<(), String> {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--bins", "-p", "broker", "-p", "broker-bench", "--manifest-path", manifest]);
    if release {
        command.arg("--release");
    }
    let status = command.stdin(Stdio::null()).status().map_err(|error| format!("cannot run cargo: {error}"))?;
    if status.success() { Ok(()) } else { Err("the programs cannot be built".to_owned()) }
}
