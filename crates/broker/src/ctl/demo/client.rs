//! The demo's clients: processes of their own that use the client library as any program would, and the crowd of them.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use broker_client::{BackendStream, Client, Error, Request};
use clap::Parser;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::unix::pipe;

use super::super::output::{FAILED, Failure, chain};
use super::world::{Process, World};

/// How often a client that lost its daemon asks the broker again for one line.
const TRIES: usize = 3;

/// Sends each line of stdin to a backend and prints what came back, as JSON.
#[derive(Debug, Parser)]
#[command(name = "__client")]
struct Arguments {
    /// The service
    service: String,
    /// The broker's socket
    #[arg(long)]
    socket: PathBuf,
}

pub(super) fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(2);
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.and_then(|runtime| runtime.block_on(talk(&arguments)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = print(&json!({ "error": error.to_string() }));
            ExitCode::FAILURE
        }
    }
}

async fn talk(arguments: &Arguments) -> io::Result<()> {
    let builder = Client::builder().socket(&arguments.socket).client_name("demo", env!("CARGO_PKG_VERSION"));
    let client = builder.connect().await.map_err(io::Error::other)?;
    print(&json!({ "connected": true }))?;
    let stdin = pipe::Receiver::from_owned_fd(io::stdin().as_fd().try_clone_to_owned()?)?;
    let mut questions = BufReader::new(stdin).lines();
    let mut link = None;
    while let Some(question) = questions.next_line().await? {
        let began = Instant::now();
        let answer = ask(&client, &arguments.service, &mut link, &question).await;
        let took_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        print(&match answer {
            Ok((pid, generation)) => json!({ "pid": pid, "generation": generation, "took_us": took_us }),
            Err(error) => json!({ "error": error }),
        })?;
    }
    Ok(())
}

/// A connection to the daemon.
struct Link {
    stream: BufReader<BackendStream>,
    generation: u64,
}

/// Sends the question to the daemon. One that is gone is asked for again: the broker has it started, or says why not.
async fn ask(client: &Client, service: &str, link: &mut Option<Link>, question: &str) -> Result<(u32, u64), String> {
    let mut last = String::new();
    for _ in 0..TRIES {
        let current = match link {
            Some(link) => link,
            None => link.insert(connect(client, service).await.map_err(|error| chain(&error))?),
        };
        match exchange(&mut current.stream, question).await {
            Ok(pid) => return Ok((pid, current.generation)),
            Err(error) => last = error.to_string(),
        }
        *link = None;
    }
    Err(last)
}

async fn connect(client: &Client, service: &str) -> Result<Link, Error> {
    let held = client.resolve(Request::new(service)).await?;
    let generation = held.generation();
    Ok(Link { stream: BufReader::new(held.connect().await?), generation })
}

async fn exchange(stream: &mut BufReader<BackendStream>, question: &str) -> io::Result<u32> {
    stream.get_mut().write_all(format!("{question}\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_line(&mut answer).await?;
    let mut words = answer.trim_end().splitn(3, ' ');
    let (pid, echoed) = (words.next(), words.nth(1));
    if echoed != Some(question) {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the daemon did not answer"));
    }
    pid.and_then(|pid| pid.parse().ok()).ok_or_else(|| io::Error::other("the daemon did not say its pid"))
}

fn print(value: &Value) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{value}")?;
    stdout.flush()
}

/// Client processes that ask together.
pub(super) struct Crowd(Vec<Member>);

struct Member {
    process: Process,
    answers: Lines<BufReader<pipe::Receiver>>,
}

/// One client's answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Served {
    pub(super) pid: u32,
    pub(super) generation: u64,
    pub(super) took: Duration,
}

/// A line that a client printed.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Line {
    Served { pid: u32, generation: u64, took_us: u64 },
    Connected { connected: bool },
    Failed { error: String },
}

impl Crowd {
    /// Starts the clients and waits until each has its session.
    pub(super) async fn gather(world: &World, service: &str, count: usize) -> Result<Self, Failure> {
        let failed = |e| Failure::because(FAILED, "cannot start a client", e);
        let mut members = Vec::with_capacity(count);
        for _ in 0..count {
            let mut process = world.spawn(&["__client", service]).map_err(failed)?;
            let stdout =
                process.0.stdout.take().map(OwnedFd::from).ok_or_else(|| failed(io::ErrorKind::Other.into()))?;
            let answers = BufReader::new(pipe::Receiver::from_owned_fd(stdout).map_err(failed)?).lines();
            members.push(Member { process, answers });
        }
        for member in &mut members {
            match member.line().await? {
                Line::Connected { connected: true } => {}
                line => return Err(Failure::told(FAILED, format!("a client did not begin: {line:?}"))),
            }
        }
        Ok(Self(members))
    }

    /// Has all clients ask, then waits for all answers. A client that is refused fails the demo.
    pub(super) async fn ask(&mut self, question: &str) -> Result<Vec<Served>, Failure> {
        for member in &mut self.0 {
            let Some(stdin) = &mut member.process.0.stdin else { continue };
            stdin
                .write_all(format!("{question}\n").as_bytes())
                .map_err(|e| Failure::because(FAILED, "cannot speak to a client", e))?;
        }
        let mut served = Vec::with_capacity(self.0.len());
        for member in &mut self.0 {
            match member.line().await? {
                Line::Served { pid, generation, took_us } => {
                    served.push(Served { pid, generation, took: Duration::from_micros(took_us) });
                }
                Line::Failed { error } => {
                    return Err(Failure::told(FAILED, format!("a client was not served: {error}")));
                }
                line => return Err(Failure::told(FAILED, format!("a client is out of step: {line:?}"))),
            }
        }
        Ok(served)
    }

    /// Ends the clients, and says how many there were.
    pub(super) async fn leave(mut self) -> Result<usize, Failure> {
        for member in &mut self.0 {
            drop(member.process.0.stdin.take());
        }
        for member in &mut self.0 {
            let status = member.process.ended().await;
            let status = status.map_err(|e| Failure::because(FAILED, "cannot wait for a client", e))?;
            if !status.success() {
                return Err(Failure::told(FAILED, format!("a client failed: {status}")));
            }
        }
        Ok(self.0.len())
    }
}

impl Member {
    async fn line(&mut self) -> Result<Line, Failure> {
        let line = self.answers.next_line().await;
        let line = line.map_err(|e| Failure::because(FAILED, "cannot hear a client", e))?;
        let line = line.ok_or_else(|| Failure::told(FAILED, "a client ended before its time"))?;
        serde_json::from_str(&line).map_err(|e| Failure::because(FAILED, format!("a client said `{line}`"), e))
    }
}
