//! A process that runs to its end, whatever becomes of the broker and of this program: register it, wait, act on how it
//! ended.
//!
//! `cargo run --example process -- nightly sh -c 'sleep 60; echo done'`; then end the broker and start another, or end this
//! and run it again: the same id is the same process, and it runs once.
#![expect(clippy::print_stdout, reason = "an example that prints what it hears")]

use std::process::ExitCode;

use broker_client::{Client, ProcessExit, ProcessRequest};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let mut words = std::env::args().skip(1);
    let id = words.next().unwrap_or_else(|| "example".to_owned());
    let command: Vec<String> = words.collect();
    let command = if command.is_empty() { vec!["true".to_owned()] } else { command };

    let client = Client::connect().await?;
    let process = client.run(ProcessRequest::command(command).id(id)).await?;
    println!("{}: {}, attempt {} of {}", process.id, process.state, process.attempt, process.max_attempts);

    let process = client.wait_process(process.id).await?;
    let output = process.stdout.as_deref().map(std::fs::read_to_string).transpose()?;
    println!("{}: {}, and wrote {:?}", process.id, process.state, output.unwrap_or_default());
    Ok(ExitCode::from(process.exit().map_or(1, ProcessExit::status)))
}
