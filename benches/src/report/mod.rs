//! What was measured, goal by goal: a table for people, JSON for programs.

mod json;
mod row;
mod table;

pub(crate) use json::document;
pub(crate) use row::{Bound, Row, Unit, Verdict};
pub(crate) use table::table;
