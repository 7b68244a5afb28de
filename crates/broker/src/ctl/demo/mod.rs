//! `brokerctl demo`: the broker's behaviour, shown with real processes in a temporary folder, measured as it happens.
//!
//! Nothing that it prints is taken for granted: a statement that does not hold is marked, and the demo then fails.
//! However it ends, its processes and its folder are gone afterwards.

mod client;
mod death;
mod echo;
mod narrator;
mod story;
mod world;

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use nix::sys::signal::Signal;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::low_level::pipe;
use tokio::io::AsyncReadExt as _;

use super::args;
use super::output::{Console, FAILED, Failure};
use narrator::Narrator;
use world::World;

/// Exit code, as shells use it: ended by Ctrl-C.
const INTERRUPTED: u8 = 130;

/// Set for the demo's broker, which then ends with the demo even if that is killed.
const DEMO_VARIABLE: &str = "BROKERCTL_DEMO";

/// Runs what the demo starts this program as, if the arguments ask for that: the broker, the small daemon, a client.
pub(super) fn run_hidden(arguments: &[OsString]) -> Option<ExitCode> {
    let rest = || arguments.iter().enumerate().filter(|(at, _)| *at != 1).map(|(_, argument)| argument.clone());
    match arguments.get(1).map(OsString::as_os_str).and_then(OsStr::to_str)? {
        "__brokerd" => {
            if std::env::var_os(DEMO_VARIABLE).is_some() {
                let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGINT);
            }
            Some(crate::brokerd_main(rest()))
        }
        // The reaper of a process, which the broker has this program play.
        crate::reaper::MODE => crate::reaper::play(arguments),
        "__echo" => Some(echo::main(rest())),
        "__client" => Some(client::main(rest())),
        _ => None,
    }
}

pub(super) async fn run(console: &Console, args: &args::Demo) -> Result<ExitCode, Failure> {
    let mut interruption = Interruption::watch().map_err(|e| Failure::because(FAILED, "cannot receive signals", e))?;
    let mut world = World::new()?;
    let mut narrator = Narrator::new(console);
    let told = tokio::select! {
        told = story::tell(&mut narrator, &mut world) => Some(told),
        () = interruption.arrived() => None,
    };
    let result = match told {
        Some(Ok(())) => story::end(&mut narrator, &mut world, args.keep),
        Some(Err(failure)) => Err(failure),
        None => {
            console.note("interrupted: ending what was started");
            world.clean_up(false);
            return Ok(ExitCode::from(INTERRUPTED));
        }
    };
    if matches!(result, Err(Failure::Told { .. } | Failure::Refused(_))) {
        world.show_broker_log(console);
    }
    world.clean_up(args.keep);
    result.map(|()| if narrator.all_held() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

/// A signal that asks the demo to end. It waits in a pipe, so none is missed.
struct Interruption(tokio::net::UnixStream);

impl Interruption {
    fn watch() -> io::Result<Self> {
        let (read, write) = UnixStream::pair()?;
        read.set_nonblocking(true)?;
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            pipe::register(signal, write.try_clone()?)?;
        }
        Ok(Self(tokio::net::UnixStream::from_std(read)?))
    }

    async fn arrived(&mut self) {
        let _ = self.0.read_u8().await;
    }
}
