//! What the linker is told of `brokerd`, so that it takes less memory and starts sooner. Without it all works as well.

use std::path::Path;
use std::{env, fs};

/// The C library that knows relative relocations in their short form.
const PACKS_RELOCATIONS: (u32, u32) = (2, 36);

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=warm.txt");
    let variable = |name: &str| env::var(name).unwrap_or_default();
    let is_linux = variable("CARGO_CFG_TARGET_OS") == "linux" && variable("CARGO_CFG_TARGET_ENV") == "gnu";
    // Another linker than the compiler's own choice need not read scripts.
    let is_usual = env::var_os("RUSTC_LINKER").is_none() && !variable("CARGO_ENCODED_RUSTFLAGS").contains("link");
    if variable("PROFILE") != "release" || !is_linux || !is_usual {
        return;
    }
    let tell = |argument: &str| println!("cargo::rustc-link-arg-bin=brokerd=-Wl,{argument}");
    let script = Path::new(&variable("OUT_DIR")).join("warm.ld");
    let list = fs::read_to_string("warm.txt").expect("warm.txt is beside this file");
    fs::write(&script, script_of(&list)).expect("cargo's folder takes a file");
    tell(&format!("-T,{}", script.display()));
    if variable("HOST") == variable("TARGET") && libc_version().is_some_and(|version| version >= PACKS_RELOCATIONS) {
        tell("-z,pack-relative-relocs");
    }
}

/// A script of GNU ld and of lld that leaves everything as it is, and puts these sections side by side before the others,
/// behind what the C library begins with.
fn script_of(list: &str) -> String {
    let names = list.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    // What a compiler's pass made of a function has something appended, or is among what it holds to be cold.
    let patterns = names.map(|name| match name.ends_with('*') {
        true => format!("    *(.text.{name} .text.unlikely.{name})\n"),
        false => format!("    *(.text.{name} .text.{name}.* .text.unlikely.{name})\n"),
    });
    let patterns: String = patterns.collect();
    let first = "    *crt*.o(.text .text.*)\n";
    format!("SECTIONS\n{{\n  .text.warm :\n  {{\n{first}{patterns}  }}\n}}\nINSERT BEFORE .text;\n")
}

/// Of the library that this runs with.
#[cfg(target_env = "gnu")]
fn libc_version() -> Option<(u32, u32)> {
    unsafe extern "C" {
        fn gnu_get_libc_version() -> *const std::ffi::c_char;
    }
    // SAFETY: it takes nothing, and returns a text that is never changed.
    let version = unsafe { std::ffi::CStr::from_ptr(gnu_get_libc_version()) }.to_str().ok()?;
    let (major, minor) = version.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(not(target_env = "gnu"))]
fn libc_version() -> Option<(u32, u32)> {
    None
}
