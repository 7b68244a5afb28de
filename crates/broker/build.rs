//! What the linker is told of `brokerd`, so that it takes less memory and starts sooner. Without it all works as well, so
//! where anything is unusual it is told nothing.

use std::path::Path;
use std::process::{Command, Stdio};
use std::{env, fs};

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
    let (Ok(folder), Ok(list)) = (env::var("OUT_DIR"), fs::read_to_string("warm.txt")) else { return };
    let script = format!("{folder}/warm.ld");
    if fs::write(&script, script_of(&list)).is_ok() && is_understood(&script, Path::new(&folder)) {
        // As two arguments: in `-Wl,` a comma of the path would end it.
        for argument in ["-T", &script] {
            println!("cargo::rustc-link-arg-bin=brokerd={argument}");
        }
    }
}

/// Whether the linker that the compiler takes makes a program with this script, and the program runs.
fn is_understood(script: &str, folder: &Path) -> bool {
    let (Some(compiler), Ok(host), Ok(target)) = (env::var_os("RUSTC"), env::var("HOST"), env::var("TARGET")) else {
        return false;
    };
    let (source, program) = (folder.join("trial.rs"), folder.join("trial"));
    if fs::write(&source, "fn main() {}").is_err() {
        return false;
    }
    let does = |command: &mut Command| {
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        quiet.status().is_ok_and(|status| status.success())
    };
    let mut link = Command::new(compiler);
    link.args(["--crate-name=trial", "--target", &target, "-Clink-arg=-T"]).arg(format!("-Clink-arg={script}"));
    does(link.arg("-o").arg(&program).arg(&source)) && (host != target || does(&mut Command::new(&program)))
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
