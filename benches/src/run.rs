//! One run: the goals that were asked for, one after the other, and the report.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser as _;
use serde_json::{Value, json};

use crate::args::Args;
use crate::children::{self, say};
use crate::folder::make_folders_in;
use crate::goals::{GOALS, load};
use crate::kernel;
use crate::programs::Programs;
use crate::report::{Row, Verdict, document, table};
use crate::world::World;

/// Measures with a command line, the program's name first.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args = match Args::try_parse_from(arguments) {
        Ok(args) => args,
        Err(error) => {
            // Nobody is left to tell if it cannot be printed.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    match run(args) {
        Ok(code) => code,
        Err(error) => {
            say(&format!("broker-bench: error: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn run(args: Args) -> Result<ExitCode, String> {
    let programs = Programs::find(&args)?;
    let (json, strict) = (args.json.clone(), args.strict);
    make_folders_in(args.folder.clone());
    children::prepare();
    let began = Instant::now();
    let load_before = kernel::load();
    if let Some(kind) = args.load {
        load(&programs, kind);
        return Ok(ExitCode::SUCCESS);
    }
    let mut world = World::new(args, programs);
    let rows = measure(&mut world);
    let setting = setting(&world, load_before, began);
    drop(world);
    let left = children::sweep();
    let mut text = format!("{}\n\n{}\n", heading(&setting), table(&rows));
    if left > 0 {
        text.push_str(&format!("\n{left} processes were left and have been killed: that is a fault\n"));
    }
    // A reader that has gone wants no report.
    let _ = io::stdout().write_all(text.as_bytes());
    if let Some(path) = json {
        let text = format!("{:#}\n", document(&setting, &rows));
        std::fs::write(&path, text).map_err(|error| format!("cannot write `{}`: {error}", path.display()))?;
    }
    let is_faulty = left > 0 || rows.iter().any(|row| matches!(row.verdict, Verdict::Failed(_)));
    let is_short = rows.iter().any(|row| row.verdict == Verdict::NotMet);
    Ok(if is_faulty || strict && is_short { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// A goal whose measurement fails costs its own lines and nothing else.
fn measure(world: &mut World) -> Vec<Row> {
    let mut rows = Vec::new();
    for (goal, name, measure) in GOALS {
        if !world.args.wants(goal) {
            continue;
        }
        say(&format!("goal {goal}: {name}"));
        let measured = catch_unwind(AssertUnwindSafe(|| measure(world))).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked");
            vec![Row::failed(goal, name, text)]
        });
        rows.extend(measured);
    }
    rows
}

fn setting(world: &World, load_before: f64, began: Instant) -> Value {
    let system = nix::sys::utsname::uname().ok();
    let kernel = system.as_ref().map(|system| system.release().to_string_lossy().into_owned());
    json!({
        "at": jiff::Timestamp::now().to_string(),
        "quick": world.args.quick,
        "seconds": began.elapsed().as_secs(),
        "cpus": std::thread::available_parallelism().map(std::num::NonZero::get).unwrap_or(0),
        "kernel": kernel,
        "load_before": load_before,
        "load_after": kernel::load(),
        "brokerd": world.programs.brokerd,
        "version": env!("CARGO_PKG_VERSION"),
    })
}

fn heading(setting: &Value) -> String {
    let kind = if setting["quick"] == json!(true) { "quick" } else { "full" };
    format!(
        "broker {} on Linux {}, {} CPUs, {}: a {kind} run of {} s, load {} before and {} after",
        setting["version"].as_str().unwrap_or_default(),
        setting["kernel"].as_str().unwrap_or_default(),
        setting["cpus"],
        setting["at"].as_str().unwrap_or_default(),
        setting["seconds"],
        setting["load_before"],
        setting["load_after"],
    )
}
