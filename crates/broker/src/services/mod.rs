//! Service files: what a person may write, and what the broker makes of it.
//!
//! Owns the format and its messages. Starts nothing and decides nothing: the catalogue is read by the driver, and the
//! reader of TOML serves the broker's own configuration too.

mod catalog;
mod defaults;
mod definition;
mod file;
mod installed;
mod limits;
pub(crate) mod problem;
mod process;
pub(crate) mod reader;
mod schema;
mod template;
#[cfg(test)]
mod tests;
pub(crate) mod values;

pub(crate) use catalog::Catalog;
pub(crate) use definition::{
    Command, Definition, Endpoint, Environment, Kind, Log, Probe, ProcessDefinition, Resume, Service,
};
pub(crate) use file::{read as read_file, writable_by_others};
pub(crate) use problem::{Position, Problem, Severity};
pub(crate) use process::ATTEMPTS_MAX;
pub(crate) use template::{Template, Values};
