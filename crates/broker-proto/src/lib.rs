//! The process broker's wire protocol: types, framing and codec. Pure: no socket, no clock, no task.
//!
//! `PROTOCOL.md` beside this crate describes the same for those who write a client in another language.

mod codec;
mod frame;
mod message;
mod name;
mod refusal;
mod version;

pub use codec::{CodecError, decode, encode_frame};
pub use frame::{
    FIRST_FRAME_MAX, FRAME_MAX, FrameError, HIGHEST_VERSION, LENGTH_BYTES, LOWEST_VERSION, MAGIC, Preamble, Reassembler,
};
pub use message::{
    AdminRequest, ClientInfo, ClientMessage, Delivery, Endpoint, Event, Exit, HEARTBEAT_INTERVAL, Hello, Negotiated,
    Progress, Reconnect, RequestId, Selection, ServerMessage, State, Target,
};
pub use name::{Address, AddressError, DEFAULT_INSTANCE, InstanceName, NAME_MAX, NameError, ServiceName};
pub use refusal::{Code, Evidence, Refusal};
pub use version::{Requirement, RequirementError, VERSION_MAX, VersionError, parse_version};
