//! The client against a scripted broker that speaks the real frames, over a real socket.

mod delivery;
mod ending;
mod fake;
mod healing;
mod keeping;
mod lifetime;
mod negotiation;
mod processes;
mod session;
