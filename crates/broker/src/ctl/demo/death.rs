//! The demo's broker is killed, and the next one finds what it left.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::super::output::Failure;
use super::client::Crowd;
use super::echo::starts;
use super::narrator::{Narrator, millis};
use super::story::{CLIENTS, join, unique};
use super::world::World;

/// How long the holds of the clients may take to be there again.
const PATIENCE: Duration = Duration::from_secs(10);

/// Kills the broker under its clients and starts another one. Says its pid.
pub(super) async fn survive(
    narrator: &mut Narrator<'_>,
    world: &mut World,
    crowd: &mut Crowd,
    recorded: &Path,
) -> Result<u32, Failure> {
    narrator.step("4. The broker is killed")?;
    let before = starts(recorded);
    narrator.command("run --id job --detach -- sleep 0.5")?;
    narrator.quote(&world.run("run --id job --detach -- sleep 0.5").await?.stdout)?;
    world.kill_broker();
    narrator.say("kill -9 of the broker, while a process runs and the clients hold the daemon")?;
    let answers = crowd.ask("still there?").await?;
    let by = unique(answers.iter().map(|served| served.pid));
    narrator.state(
        answers.len() == CLIENTS && by.len() == 1 && before.last().map(|start| start.pid) == by.first().copied(),
        format_args!("without a broker {} clients go on talking to process {}", answers.len(), join(&by)),
    )?;
    let broker = world.start_broker().await?;
    narrator.say(format_args!("another brokerd runs, as process {broker}"))?;
    let (backend, took) = held_again(world).await?;
    let (pid, generation) = (backend["pid"].as_u64().unwrap_or(0), backend["generation"].as_u64().unwrap_or(0));
    narrator.state(
        backend["adopted"] == true && by.first().is_some_and(|by| u64::from(*by) == pid) && generation == 2,
        format_args!("it has adopted process {pid}, generation {generation}"),
    )?;
    narrator.state(
        backend["holds"] == CLIENTS && starts(recorded).len() == before.len(),
        format_args!("{} clients hold it again after {} ms; nothing was started", backend["holds"], millis(took)),
    )?;
    narrator.command("wait job")?;
    let ended = world.run("wait job").await?;
    let processes = world.run("processes job --json").await?;
    let document: Value = serde_json::from_str(&processes.stdout).unwrap_or_default();
    let process = document["processes"].as_array().and_then(|all| all.first()).cloned().unwrap_or_default();
    narrator.state(
        ended.code == Some(0) && process["exit_code"] == 0 && process["attempt"] == 1,
        format_args!("the process has ended with code {}, at attempt {}", process["exit_code"], process["attempt"]),
    )?;
    Ok(broker)
}

/// Waits until every client holds the daemon again. The daemon as `status` shows it then, or at last.
async fn held_again(world: &World) -> Result<(Value, Duration), Failure> {
    let began = Instant::now();
    loop {
        let status = world.run("status --json").await?;
        let document: Value = serde_json::from_str(&status.stdout).unwrap_or_default();
        let backend = document["backends"].as_array().and_then(|all| all.first()).cloned().unwrap_or_default();
        if backend["holds"] == CLIENTS || began.elapsed() > PATIENCE {
            return Ok((backend, began.elapsed()));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
