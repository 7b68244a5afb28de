//! Client library of the process broker: ask for a service, get a backend that runs.
//!
//! A [`Client`] is a session with the broker. [`Client::resolve`] asks for a backend and yields a [`Held`], which keeps it
//! running; [`Held::connect`] yields a [`BackendStream`], whose bytes go to the backend directly.
//! [`Client::connect_backend`] does both. See [`Client`] for an example, and [`blocking`] for programs without an
//! asynchronous runtime.
//!
//! A session heals itself, as [`ReconnectConfig`] says: when the connection to the broker breaks it is made again, what
//! is held is asked for again, and requests go on waiting within their deadlines. [`Client::events`] tells of it. A
//! broker that is silent for too long counts as gone, and [`Autostart`] starts one where none runs.
//!
//! [`Client::run`] has the broker run a command to its end, even if the broker dies meanwhile: see [`ProcessRequest`].
//!
//! The broker's refusals arrive as [`Error::Refused`]; their [`Code`](broker_proto::Code) knows whether asking again
//! can help. The machines inside (what to send again, when to dial again, whether the broker lives) are told the time and
//! touch no socket; one task drives them.

#![deny(unsafe_code)]

mod autostart;
pub mod blocking;
mod builder;
mod client;
mod dial;
mod dialler;
mod error;
mod events;
mod held;
mod pending;
mod processes;
mod reconnect;
mod request;
mod session;
mod stream;
mod wire;

pub use autostart::{Autostart, AutostartError};
pub use builder::Builder;
pub use client::Client;
pub use dial::candidate_sockets;
pub use error::{Error, ProtocolError};
pub use events::{Events, SessionEvent};
pub use held::Held;
pub use pending::Pending;
pub use processes::{
    Process, ProcessEvent, ProcessEvents, ProcessExit, ProcessHappening, ProcessLease, ProcessRequest, ProcessState,
};
pub use reconnect::{InvalidReconnectConfig, ReconnectConfig};
pub use request::Request;
pub use stream::{BackendStream, ReadHalf, WriteHalf};

/// The examples of the README compile.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
