//! Client library of the process broker: ask for a service, get a backend that runs.
//!
//! A [`Client`] is one session with the broker. [`Client::resolve`] asks for a backend and yields a [`Held`], which
//! keeps it running; [`Held::connect`] yields a [`BackendStream`], whose bytes go to the backend directly.
//! [`Client::connect_backend`] does both. See [`Client`] for an example.
//!
//! The broker's refusals arrive as [`Error::Refused`]; their [`Code`](broker_proto::Code) knows whether asking again
//! can help. The library never starts a process and never reads a clock for anything but the limits that its caller
//! sets.

#![deny(unsafe_code)]

mod client;
mod dial;
mod error;
mod events;
mod held;
mod in_flight;
mod pending;
mod request;
mod session;
mod stream;
mod wire;

pub use client::{Builder, Client};
pub use dial::candidate_sockets;
pub use error::{Error, ProtocolError};
pub use events::{Events, SessionEvent};
pub use held::Held;
pub use pending::Pending;
pub use request::Request;
pub use stream::{BackendStream, ReadHalf, WriteHalf};

/// The examples of the README compile.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
