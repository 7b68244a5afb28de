//! What the demo does, step by step, and what must be seen at each.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::super::operate::is_zombie;
use super::super::output::{FAILED, Failure, TRY_LATER};
use super::client::{Crowd, Served};
use super::death;
use super::echo::{Start, starts};
use super::narrator::{Narrator, millis};
use super::world::{Finished, World};

/// How many client processes race.
pub(super) const CLIENTS: usize = 20;
/// How long the cold daemon takes to get ready.
const SLOW_START_MS: u64 = 300;
/// The broker's own pause before its one retry.
const RETRY_BACKOFF: Duration = Duration::from_millis(250);
/// The recovery window of the daemon that fails.
const WINDOW: Duration = Duration::from_secs(3);
/// The longest that a refusal without a start may take, new process and busy machine included.
const AT_ONCE: Duration = Duration::from_millis(500);
/// How long to wait for something that must happen.
const PATIENCE: Duration = Duration::from_secs(10);

/// Tells all but the end.
pub(super) async fn tell(narrator: &mut Narrator<'_>, world: &mut World) -> Result<(), Failure> {
    narrator.plainly(format_args!("The process broker with real processes, in {}", world.path().display()))?;
    narrator.legend()?;
    narrator.step("0. A broker, and two services")?;
    let echo_starts = world.file("echo.starts");
    let flaky_starts = world.file("flaky.starts");
    let fault = world.write("fault", "in the way\n").map_err(cannot("write a file"))?;
    write_services(world, &echo_starts, &flaky_starts, &fault)?;
    let first = world.start_broker().await?;
    narrator.say(format_args!("brokerd runs as process {first} and accepts connections"))?;

    let mut crowd = race(narrator, world, &echo_starts).await?;
    share(narrator, world, &mut crowd, &echo_starts).await?;
    crash(narrator, &mut crowd, &echo_starts).await?;
    let broker = death::survive(narrator, world, &mut crowd, &echo_starts).await?;
    let leave = crowd.leave().await?;
    narrator.say(format_args!("the {leave} clients end"))?;
    refuse(narrator, world, &flaky_starts).await?;
    heal(narrator, world, &flaky_starts, &fault).await?;
    shut_down(narrator, world, broker, &[&echo_starts, &flaky_starts]).await
}

/// Removes the folder and says what is left.
pub(super) fn end(narrator: &mut Narrator<'_>, world: &mut World, keep: bool) -> Result<(), Failure> {
    world.clean_up(keep);
    let folder = world.path().display().to_string();
    if keep {
        narrator.say(format_args!("{folder} is kept: service files, logs, the broker's own log"))?;
    } else {
        narrator.state(!world.path().exists(), format_args!("{folder} is removed, no file is left"))?;
    }
    narrator.plainly(format_args!("\n{}", narrator.summary()))
}

async fn race(narrator: &mut Narrator<'_>, world: &World, recorded: &Path) -> Result<Crowd, Failure> {
    narrator.step(format_args!("1. {CLIENTS} processes race for a daemon that does not run"))?;
    let mut crowd = Crowd::gather(world, "echo", CLIENTS).await?;
    narrator.say(format_args!("{CLIENTS} client processes are connected to the broker; none has asked yet"))?;
    narrator.state(starts(recorded).is_empty(), "the daemon has not been started")?;
    narrator.say(format_args!("all ask at once; the daemon takes {SLOW_START_MS} ms to get ready"))?;
    let answers = crowd.ask("hello").await?;
    let started = starts(recorded);
    let (fastest, slowest) = fastest_and_slowest(&answers);
    narrator.state(
        answers.len() == CLIENTS,
        format_args!(
            "{} were served, after {} to {} ms; nobody was refused",
            answers.len(),
            millis(fastest),
            millis(slowest)
        ),
    )?;
    narrator.state(
        started.len() == 1,
        format_args!("the daemon was started {}, as process {}", times(started.len()), pids(&started)),
    )?;
    Ok(crowd)
}

async fn share(narrator: &mut Narrator<'_>, world: &World, crowd: &mut Crowd, recorded: &Path) -> Result<(), Failure> {
    narrator.step("2. They share it")?;
    let answers = crowd.ask("again").await?;
    let mut by: Vec<u32> = answers.iter().map(|served| served.pid).collect();
    by.sort_unstable();
    by.dedup();
    narrator.state(
        by.len() == 1 && starts(recorded).iter().any(|start| Some(&start.pid) == by.first()),
        format_args!("{} of {CLIENTS} clients talk to process {}, directly", answers.len(), join(&by)),
    )?;
    let status = world.run("status --json").await?;
    let document: Value = serde_json::from_str(&status.stdout).unwrap_or_default();
    let backend = document["backends"].as_array().and_then(|backends| backends.first()).cloned().unwrap_or_default();
    let holds = backend["holds"].as_u64().unwrap_or(0);
    narrator.state(holds == CLIENTS as u64, format_args!("the broker counts {holds} holds on it"))?;
    narrator.command("status")?;
    narrator.quote(&world.run("status").await?.stdout)
}

async fn crash(narrator: &mut Narrator<'_>, crowd: &mut Crowd, recorded: &Path) -> Result<(), Failure> {
    narrator.step("3. The daemon is killed")?;
    let Some(first) = starts(recorded).last().copied() else {
        return Err(Failure::told(FAILED, "the daemon's record of its starts is empty"));
    };
    let killed = Instant::now();
    i32::try_from(first.pid)
        .map_err(|_| Errno::ESRCH)
        .and_then(|pid| kill(Pid::from_raw(pid), Signal::SIGKILL))
        .map_err(|e| Failure::because(FAILED, format!("cannot kill process {}", first.pid), e))?;
    narrator.say(format_args!("kill -9 {}; no client asks for anything", first.pid))?;
    let restarted = happens(|| starts(recorded).len() > 1).await;
    narrator.state(
        restarted && killed.elapsed() >= RETRY_BACKOFF,
        format_args!("the broker started it again by itself, {} ms later", millis(killed.elapsed())),
    )?;
    let answers = crowd.ask("still there?").await?;
    let started = starts(recorded);
    let second = started.last().map_or(0, |start| start.pid);
    let generations: Vec<u64> = answers.iter().map(|served| served.generation).collect();
    narrator.state(
        answers.len() == CLIENTS && answers.iter().all(|served| served.pid == second && served.pid != first.pid),
        format_args!("the same {} clients ask again and are served by process {second}", answers.len()),
    )?;
    narrator.state(
        started.len() == 2 && generations.iter().all(|generation| *generation == 2),
        format_args!("it is generation {}; {} starts in all", join(&unique(generations)), started.len()),
    )
}

async fn refuse(narrator: &mut Narrator<'_>, world: &World, recorded: &Path) -> Result<(), Failure> {
    narrator.step("5. A daemon that crashes at every start")?;
    narrator.command("resolve flaky")?;
    let first = world.run("resolve flaky").await?;
    narrator.quote(&first.stderr)?;
    let started = starts(recorded);
    let apart = started.windows(2).map(|two| two[1].at.saturating_sub(two[0].at)).next().unwrap_or_default();
    narrator.state(
        first.code == Some(TRY_LATER.into()),
        format_args!("refused after {} ms, exit code {}: try later", millis(first.took), code(&first)),
    )?;
    narrator.state(
        started.len() == 2 && apart >= RETRY_BACKOFF,
        format_args!("it was started {}, {} ms apart: once, and the one retry", times(started.len()), millis(apart)),
    )?;

    narrator.command("resolve flaky --json")?;
    let second = world.run("resolve flaky --json").await?;
    let document: Value = serde_json::from_str(&second.stdout).unwrap_or_default();
    let refused = &document["refused"];
    let no_start = starts(recorded).len() == started.len();
    narrator.state(
        second.code == Some(TRY_LATER.into()) && no_start && second.took < AT_ONCE,
        format_args!("asked again: refused in {} ms, without a start", millis(second.took)),
    )?;
    let retry_after = Duration::from_millis(refused["retry_after_ms"].as_u64().unwrap_or(0));
    narrator.state(
        refused["code"] == "backend_unavailable" && !retry_after.is_zero() && retry_after <= WINDOW,
        format_args!("{}, retry after {} ms", refused["code"].as_str().unwrap_or("no code"), millis(retry_after)),
    )?;
    let evidence = &refused["evidence"];
    let wrote = evidence["stderr"].as_str().unwrap_or_default();
    narrator.state(
        evidence["exit_code"] == 7 && wrote.contains("fatal:"),
        format_args!("the evidence: exit code {}, and what it wrote: {}", evidence["exit_code"], last_line(wrote)),
    )
}

async fn heal(narrator: &mut Narrator<'_>, world: &World, recorded: &Path, fault: &Path) -> Result<(), Failure> {
    narrator.step("6. The fault is removed")?;
    std::fs::remove_file(fault).map_err(cannot("remove a file"))?;
    let refused = world.run("resolve flaky --json").await?;
    let document: Value = serde_json::from_str(&refused.stdout).unwrap_or_default();
    let retry_after = Duration::from_millis(document["refused"]["retry_after_ms"].as_u64().unwrap_or(0));
    if !retry_after.is_zero() {
        narrator.say(format_args!("waiting {} ms, as the refusal says", millis(retry_after)))?;
        tokio::time::sleep(retry_after).await;
    }
    let before = starts(recorded).len();
    narrator.command("resolve flaky")?;
    let healed = world.run("resolve flaky").await?;
    narrator.quote(&healed.stdout)?;
    narrator.quote(&healed.stderr)?;
    let started = starts(recorded).len() - before;
    narrator.state(
        healed.code == Some(0) && started == 1,
        format_args!("started {} and ready after {} ms", times(started), millis(healed.took)),
    )?;
    let mut one = Crowd::gather(world, "flaky", 1).await?;
    let answers = one.ask("better?").await?;
    narrator.state(
        answers.len() == 1,
        format_args!("it answers, as process {}", join(&unique(answers.iter().map(|a| a.pid)))),
    )?;
    one.leave().await.map(drop)
}

async fn shut_down(
    narrator: &mut Narrator<'_>,
    world: &mut World,
    broker: u32,
    recorded: &[&PathBuf],
) -> Result<(), Failure> {
    narrator.step("7. Shutdown")?;
    let seen = world.processes();
    narrator.say(format_args!("{} processes run: the broker and its daemons", seen.len()))?;
    narrator.command("shutdown")?;
    let finished = world.run("shutdown").await?;
    narrator.quote(&finished.stdout)?;
    narrator.quote(&finished.stderr)?;
    let status = world.broker_ended().await?;
    narrator.state(
        finished.code == Some(0) && status.success(),
        format_args!("the broker, process {broker}, ended with {status}"),
    )?;
    let mut pids: Vec<u32> = recorded.iter().flat_map(|path| starts(path)).map(|start| start.pid).collect();
    pids.push(broker);
    let left = world.processes();
    let alive = pids.iter().filter(|pid| is_alive(**pid)).count();
    narrator.state(
        left.is_empty() && alive == 0,
        format_args!("no process is left: {} of {} that ran", left.len().max(alive), pids.len()),
    )?;
    let sockets = world.sockets();
    narrator.state(sockets.is_empty(), format_args!("no socket is left: {}", sockets.len()))
}

fn write_services(world: &World, echo: &Path, flaky: &Path, fault: &Path) -> Result<(), Failure> {
    let quoted = |path: &Path| -> String {
        let text = path.to_string_lossy().replace('{', "{{").replace('}', "}}");
        Value::from(text).to_string()
    };
    let program = quoted(world.daemon());
    let file = |name: &str, description: &str, recorded: &Path, more: &str, tables: &str| {
        format!(
            "[service]\nname = \"{name}\"\ndescription = \"{description}\"\n\n[[version]]\nversion = \"1.0.0\"\n\
             command = [{program}, \"__echo\", \"{{endpoint}}\", \"--starts\", {}, {more}]\n{tables}",
            quoted(recorded),
        )
    };
    let slow = format!("\"--ready-after-ms\", \"{SLOW_START_MS}\"");
    let failing = format!("\"--fail-if-exists\", {}", quoted(fault));
    let window = format!("\n[recovery]\nbudget_window = \"{}s\"\n", WINDOW.as_secs());
    let write = |name: &str, text: String| world.write(name, &text).map_err(cannot("write a service file"));
    write("services/echo.toml", file("echo", "Slow to get ready", echo, &slow, ""))?;
    write("services/flaky.toml", file("flaky", "Crashes while a file exists", flaky, &failing, &window))?;
    Ok(())
}

fn cannot(action: &'static str) -> impl Fn(std::io::Error) -> Failure {
    move |error| Failure::because(FAILED, format!("cannot {action}"), error)
}

/// Waits until it is so. `false` if it does not come about.
pub(super) async fn happens(is_so: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if is_so() {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    false
}

fn is_alive(pid: u32) -> bool {
    // An adopted daemon is no child of the broker, and whose it is may be slow to reap.
    i32::try_from(pid).is_ok_and(|pid| kill(Pid::from_raw(pid), None) != Err(Errno::ESRCH) && !is_zombie(pid))
}

fn fastest_and_slowest(answers: &[Served]) -> (Duration, Duration) {
    let took = || answers.iter().map(|served| served.took);
    (took().min().unwrap_or_default(), took().max().unwrap_or_default())
}

pub(super) fn unique<T: Ord>(values: impl IntoIterator<Item = T>) -> Vec<T> {
    let mut values: Vec<T> = values.into_iter().collect();
    values.sort_unstable();
    values.dedup();
    values
}

pub(super) fn join<T: ToString>(values: &[T]) -> String {
    values.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn pids(starts: &[Start]) -> String {
    join(&starts.iter().map(|start| start.pid).collect::<Vec<_>>())
}

fn times(count: usize) -> String {
    match count {
        1 => "once".to_owned(),
        2 => "twice".to_owned(),
        n => format!("{n} times"),
    }
}

fn code(finished: &Finished) -> String {
    finished.code.map_or("none".to_owned(), |code| code.to_string())
}

fn last_line(text: &str) -> String {
    super::super::output::harmless(text.lines().last().unwrap_or("nothing"))
}
