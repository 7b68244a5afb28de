//! The client against a scripted broker that speaks the real frames, over a real socket.

mod delivery;
mod fake;
mod lifetime;
mod negotiation;
mod session;
