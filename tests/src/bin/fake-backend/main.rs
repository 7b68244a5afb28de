//! A daemon that does as it is told: it becomes ready, misbehaves and ends when a test says so, by flags, by files that
//! appear, and by lines on its connections. It never decides anything by time unless a flag names a time.
//!
//! It has no Rust runtime in front of `main`, which would set SIGPIPE to ignored and so hide what the broker handed over.
#![no_main]
#![expect(clippy::print_stderr, reason = "a daemon's stderr is what the tests look at")]

mod facts;
mod life;
mod options;
mod serve;

use std::ffi::{c_char, c_int};

use crate::options::Options;

/// The entry point that the C library calls.
#[unsafe(no_mangle)]
extern "C" fn main(_count: c_int, _arguments: *const *const c_char) -> c_int {
    match Options::parse(std::env::args().skip(1)) {
        Ok(options) => life::live(&options),
        Err(message) => {
            eprintln!("fake-backend: {message}");
            2
        }
    }
}
