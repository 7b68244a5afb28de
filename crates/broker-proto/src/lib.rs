//! The process broker's wire protocol: types, framing and codec. Pure: no socket, no clock, no task.
//!
//! `PROTOCOL.md` beside this crate describes the same for those who write a client in another language.

mod name;
mod version;

pub use name::{Address, AddressError, DEFAULT_INSTANCE, InstanceName, NAME_MAX, NameError, ServiceName};
pub use version::{Requirement, RequirementError, VERSION_MAX, VersionError, parse_version};
