//! `brokerctl connect`: stdin and stdout become a connection to a backend.
//!
//! The end of stdin is a half-close; the end of what the backend sends is the end, unless the backend crashed and its
//! service allows to go on with the next start of it (`[session] resume = "reconnect"`).

mod crash;
mod pipes;

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use broker_client::{BackendStream, Held};

use self::crash::{Fate, fate};
use self::pipes::{Input, Output};
use super::args::{Global, Wanted};
use super::output::{Console, FAILED, Failure, stdout_failure};
use super::session::Session;

pub(super) async fn run(console: &Console, global: &Global, wanted: &Wanted) -> Result<(), Failure> {
    let session = Session::keep(console, global, wanted).await?;
    let mut events = session.client.events();
    let (mut held, mut stream) = connect(&session, wanted).await?;
    // Nothing is read before there is somebody to send it to.
    let descriptors = (io::stdin().as_fd().try_clone_to_owned(), io::stdout().as_fd().try_clone_to_owned());
    let (Ok(stdin), Ok(stdout)) = descriptors else {
        return Err(Failure::told(FAILED, "stdin or stdout is closed"));
    };
    let mut pipes = Pipes { input: Input::read(File::from(stdin)), output: Output::write(File::from(stdout)) };
    let result = loop {
        let before = stream.held().negotiated();
        let broken = tokio::select! {
            carried = pipes.carry(stream) => carried.err(),
            // It was to end with the session, though the backend outlives the broker.
            _ = session.client.closed(), if !session.is_kept => break Ok(()),
        };
        if pipes.output.is_closed() {
            break Ok(());
        }
        let fate = fate(&session, &held, &before, &mut events).await;
        let went_on = match fate {
            Fate::Crashed(sentence)
                if may_resume(held.is_resumable(), wanted.keeping.no_reconnect, pipes.input.has_ended()) =>
            {
                if !console.quiet {
                    console.note(format_args!("{sentence}; going on with the next start of it"));
                }
                connect(&session, wanted).await
            }
            fate => break end(fate, broken, &held, &pipes),
        };
        match went_on {
            Ok(connected) => (held, stream) = connected,
            Err(failure) => break Err(failure),
        }
    };
    let written = pipes.output.finish().await.map_err(stdout_failure);
    result.and(written).and(pipes.input.finish())
}

async fn connect(session: &Session<'_>, wanted: &Wanted) -> Result<(Held, BackendStream), Failure> {
    let held = session.resolve(wanted).await?;
    let stream = held.connect().await?;
    Ok((held, stream))
}

/// stdin and stdout.
struct Pipes {
    input: Input,
    output: Output,
}

impl Pipes {
    /// Carries bytes in both directions until the backend, or the reader of stdout, ends it.
    async fn carry(&mut self, stream: BackendStream) -> io::Result<()> {
        let (from_backend, to_backend) = stream.into_split();
        let mut sending = std::pin::pin!(self.input.send(to_backend));
        let mut receiving = std::pin::pin!(self.output.receive(from_backend));
        tokio::select! {
            () = &mut sending => receiving.await,
            received = &mut receiving => received,
        }
    }
}

/// Whether the next start of a crashed backend can take over: what it would be asked must still be to come, for the
/// answers to what was asked are lost.
fn may_resume(service_allows_it: bool, no_reconnect: bool, input_has_ended: bool) -> bool {
    service_allows_it && !no_reconnect && !input_has_ended
}

/// How the command ends with its connection.
fn end(fate: Fate, broken: Option<io::Error>, held: &Held, pipes: &Pipes) -> Result<(), Failure> {
    match (fate, broken) {
        (Fate::Closed, None) => Ok(()),
        (Fate::Closed, Some(error)) => Err(Failure::because(FAILED, "the connection to the backend broke", error)),
        (Fate::Stopped, _) => Err(Failure::told(FAILED, "an operator stopped the backend, and the connection with it")),
        (Fate::Lost(failure), _) => Err(failure),
        (Fate::Crashed(sentence), _) => {
            let failure = Failure::told(FAILED, sentence);
            Err(if pipes.input.has_ended() {
                failure.advise("what it had still to answer is lost: run the command again")
            } else if held.is_resumable() {
                failure
            } else {
                failure.advise(
                    "`[session] resume = \"reconnect\"` in its service file lets `connect` go on with the next start",
                )
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_resumed_only_where_nothing_is_lost_unnoticed() {
        assert!(may_resume(true, false, false));
        assert!(!may_resume(false, false, false) && !may_resume(true, true, false) && !may_resume(true, false, true));
    }
}
