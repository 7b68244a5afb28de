//! The table `[limits]` of service files, of daemons and processes alike.

use toml::de::DeValue;

use super::reader::Document;
use super::values;
use crate::core::limits::Limits;

/// Its header, and its keys.
pub(super) const HEADER: &str = "[limits]";
pub(super) const KEYS: &[&str] = &["memory_max", "tasks_max", "cpu_weight", "nofile"];

/// What no program can be started with is a mistake: a number that was meant in another unit, most likely.
const MEMORY_MIN: u64 = 1 << 20;
const NOFILE_MIN: u64 = 16;

/// As many as Linux can have: 2^22 tasks (PID_MAX_LIMIT), 2^30 descriptors (the highest that fs.nr_open may be).
const TASKS_MAX: u64 = 1 << 22;
const NOFILE_MAX: u64 = 1 << 30;

/// The range of `cpu.weight`.
const WEIGHTS: std::ops::RangeInclusive<u64> = 1..=10_000;

/// Reads it. There are no defaults: what is not said is not limited.
pub(super) fn read(document: &Document<'_>) -> Limits {
    let table = document.table(HEADER);
    let number = |key, range| table.get(key, values::number(range)).map(|number| number.value);
    Limits {
        memory_max: table.get("memory_max", memory).map(|bytes| bytes.value),
        tasks_max: number("tasks_max", 1..=TASKS_MAX),
        cpu_weight: number("cpu_weight", WEIGHTS),
        nofile: number("nofile", NOFILE_MIN..=NOFILE_MAX),
    }
}

fn memory(value: &DeValue<'_>) -> Result<u64, String> {
    let bytes = values::size(value)?;
    if bytes < MEMORY_MIN {
        return Err(format!("{bytes} bytes are too few for any program: write at least \"1MiB\""));
    }
    Ok(bytes)
}
