//! The process broker's wire protocol: types, framing and codec. Pure: no socket, no clock, no task.
//!
//! `PROTOCOL.md` beside this crate describes the same for those who write a client in another language.

mod admin;
mod codec;
mod frame;
mod message;
mod name;
mod refusal;
mod repeated;
mod version;

pub use admin::{AdminRequest, ProcessSpec, Selection, Target, Work};
pub use codec::{CodecError, decode, encode_frame};
pub use frame::{
    FIRST_FRAME_MAX, FRAME_MAX, FrameError, HIGHEST_VERSION, LENGTH_BYTES, LOWEST_VERSION, MAGIC, Preamble, Reassembler,
};
pub use message::{
    ClientInfo, ClientMessage, ClientMessageOf, ClientMessageRef, Delivery, Endpoint, Event, Exit, HEARTBEAT_INTERVAL,
    Hello, HelloRef, Negotiated, NegotiatedRef, Progress, Reconnect, RequestId, ServerMessage, ServerMessageOf,
    ServerMessageRef, State,
};
pub use name::{Address, AddressError, DEFAULT_INSTANCE, InstanceName, NAME_MAX, NameError, ProcessId, ServiceName};
pub use refusal::{Code, Evidence, Refusal};
pub use repeated::{PreparedNegotiated, Terms, UnreadHello};
pub use version::{Requirement, RequirementError, VERSION_MAX, VersionError, parse_version};
