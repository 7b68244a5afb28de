//! brokerctl: the command line of the broker, for people and their scripts.
//!
//! Owns words, tables, exit codes and the waiting; decides nothing about backends. It talks to the broker through the
//! client library alone, except for `check`, which needs no broker.

mod args;
mod bridge;
mod check;
mod demo;
mod documents;
mod events;
mod exec;
mod keeping;
mod logs;
mod operate;
mod output;
mod processes;
mod progress;
mod refusal;
mod resolve;
mod services;
mod session;
mod status;
mod table;
mod tail;
mod watch;

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use args::{Cli, Command};
use output::{Console, FAILED, Failure, USAGE};

/// Runs brokerctl with the process's arguments, the program's name first.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    if let Some(code) = demo::run_hidden(&arguments) {
        return code;
    }
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help goes to stdout and errors to stderr; whether anybody reads them is not known here.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
        }
    };
    let console = Console { asked: session::asked(&cli.command), ..Console::new(&cli.global) };
    match run(&console, cli) {
        Ok(code) => code,
        Err(failure) => console.report(failure),
    }
}

fn run(console: &Console, cli: Cli) -> Result<ExitCode, Failure> {
    let Cli { global, command } = cli;
    let global = &global;
    session::check_usage(&command)?;
    match command {
        Command::Check(check) => return check::run(console, &check),
        Command::Completions { shell } => return completions(shell),
        _ => {}
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::because(FAILED, "cannot begin", e))?;
    runtime.block_on(async {
        match command {
            Command::Status(filter) => status::run(console, global, &filter).await?,
            Command::Services => services::run(console, global).await?,
            Command::Resolve(wanted) => resolve::run(console, global, &wanted).await?,
            Command::Connect(wanted) => bridge::run(console, global, &wanted).await?,
            Command::Exec(exec) => return exec::run(console, global, &exec).await,
            Command::Start(started) => operate::start(console, global, &started).await?,
            Command::Stop(selected) => operate::stop(console, global, &selected).await?,
            Command::Restart(selected) => operate::restart(console, global, &selected).await?,
            Command::Drain(selected) => operate::drain(console, global, &selected).await?,
            Command::Logs(logs) => logs::run(console, global, &logs).await?,
            Command::Events(events) => events::run(console, global, &events).await?,
            Command::Reload => services::reload(console, global).await?,
            Command::Release(selected) => operate::release(console, global, &selected).await?,
            Command::Run(run) => return processes::run(console, global, &run).await,
            Command::Wait(waited) => return processes::wait(console, global, &waited).await,
            Command::Processes(listed) => processes::list(console, global, &listed).await?,
            Command::Cancel(cancel) => processes::cancel(console, global, &cancel).await?,
            Command::Prune(prune) => processes::prune(console, global, &prune).await?,
            Command::Shutdown(shutdown) => operate::shutdown(console, global, &shutdown).await?,
            Command::Demo(demo) => return demo::run(console, &demo).await,
            Command::Check(_) | Command::Completions { .. } => {}
        }
        Ok(ExitCode::SUCCESS)
    })
}

fn completions(shell: clap_complete::Shell) -> Result<ExitCode, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "brokerctl", &mut script);
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(&script).and_then(|()| stdout.flush()).map_err(output::stdout_failure)?;
    Ok(ExitCode::SUCCESS)
}
