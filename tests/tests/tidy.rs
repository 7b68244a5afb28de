//! What the house promises about its own text: sizes, headings, dead files, and dependencies that point one way.

use std::fs;
use std::path::{Path, PathBuf};

/// A longer file asks for a second room.
const LINES_MAX: usize = 400;

/// Files that are longer nevertheless, and why.
const LONG: &[(&str, &str)] = &[];

/// Folders that are not ours to judge.
const FOREIGN: [&str; 3] = [".git", "target", "node_modules"];

/// What the pure heart of the broker never names: a clock, a task, a file, a process, or those that perform for it.
const ABSENT_FROM_CORE: [&str; 16] = [
    "tokio",
    "Instant",
    "SystemTime",
    "std::fs",
    "std::net",
    "std::os",
    "std::process",
    "std::thread",
    "nix::",
    "libc::",
    "crate::config",
    "crate::ctl",
    "crate::daemon",
    "crate::net",
    "crate::process",
    "crate::services",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace is around this crate").to_owned()
}

/// Every file of the workspace with its text, by its path from the root; bytes that are no text are left out.
fn files() -> Vec<(String, String)> {
    let root = root();
    let mut folders = vec![root.clone()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a readable folder").flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            let kind = entry.file_type().expect("a file's type");
            if kind.is_dir() && !FOREIGN.iter().any(|foreign| name == *foreign) {
                folders.push(path);
            } else if let (true, Ok(text)) = (kind.is_file(), fs::read_to_string(&path)) {
                let path = path.strip_prefix(&root).expect("below the root");
                found.push((path.to_str().expect("a UTF-8 path").to_owned(), text));
            }
        }
    }
    found.sort();
    found
}

fn sources() -> Vec<(String, String)> {
    let all: Vec<_> = files().into_iter().filter(|(path, _)| path.ends_with(".rs")).collect();
    assert!(all.len() > 20, "the sources are found");
    all
}

#[track_caller]
fn assert_none(what: &str, found: Vec<String>) {
    assert!(found.is_empty(), "{what}:\n  {}", found.join("\n  "));
}

#[test]
fn no_source_file_is_long_without_a_reason() {
    let mut found = Vec::new();
    for (path, text) in sources() {
        let (lines, listed) = (text.lines().count(), LONG.iter().any(|(long, _)| *long == path));
        if (lines > LINES_MAX) != listed {
            found.push(format!("{path}: {lines} lines, listed: {listed}"));
        }
    }
    assert_none("files over the limit, or listed without need", found);
}

#[test]
fn every_source_file_says_what_it_is() {
    let all = sources();
    // What is included into the examples of the documentation cannot have a head of that kind.
    let has_head =
        |path: &str, text: &str| text.starts_with("//! ") || text.starts_with("// ") && is_included(&all, path);
    let silent = all.iter().filter(|(path, text)| !has_head(path, text)).map(|(path, _)| path.clone()).collect();
    assert_none("files that do not begin with `//! `", silent);
}

/// Whether some source names the file in an `include!`, by its path from the crate's folder.
fn is_included(all: &[(String, String)], path: &str) -> bool {
    let below = |other: &str| other.split('/').take(2).eq(path.split('/').take(2));
    let from_crate = path.splitn(3, '/').nth(2).map(|rest| format!("\"/{rest}\")"));
    from_crate.is_some_and(|named| {
        all.iter().any(|(other, text)| below(other) && text.contains("include!(") && text.contains(&named))
    })
}

#[test]
fn every_source_file_is_part_of_a_crate() {
    let all = sources();
    let declares = |parent: &str, module: &str| {
        let declaration = format!("mod {module};");
        let text = all.iter().find(|(path, _)| path == parent).map(|(_, text)| text.as_str());
        let ends_so = |line: &str| line.trim_start_matches(|c: char| c != 'm').ends_with(&declaration);
        text.is_some_and(|text| text.lines().any(|line| !line.trim_start().starts_with("//") && ends_so(line)))
    };
    let mut dead = Vec::new();
    for (path, _) in &all {
        let path_of = Path::new(path);
        let stem = path_of.file_stem().and_then(|stem| stem.to_str()).expect("UTF-8");
        let folder = path_of.parent().expect("a file is in a folder");
        let (module, folder) = match stem {
            "lib" | "main" | "build" => continue,
            "mod" => (folder.file_name().and_then(|n| n.to_str()).expect("UTF-8"), folder.parent().expect("a crate")),
            _ => (stem, folder),
        };
        let name = folder.file_name().and_then(|name| name.to_str()).expect("UTF-8");
        if stem != "mod" && ["bin", "tests", "examples", "benches"].contains(&name) && is_crate_root(folder) {
            continue;
        }
        let beside = ["mod.rs", "lib.rs", "main.rs"].map(|file| folder.join(file));
        let above = folder.parent().expect("a crate").join(format!("{name}.rs"));
        let parents = beside.iter().chain([&above]).filter_map(|parent| parent.to_str());
        let by_path = format!("#[path = \"{stem}.rs\"]");
        let included =
            all.iter().any(|(other, text)| Path::new(other).parent() == Some(folder) && text.contains(&by_path));
        let is_target = folder.parent().is_some_and(|around| {
            let manifest = fs::read_to_string(root().join(around).join("Cargo.toml")).unwrap_or_default();
            manifest.contains(&format!("path = \"{name}/{stem}.rs\""))
        });
        if !included
            && !is_target
            && !is_included(&all, path)
            && !parents.into_iter().any(|parent| declares(parent, module))
        {
            dead.push(path.clone());
        }
    }
    assert_none("files that no module declares", dead);
}

/// Whether each file in the folder is a crate of its own: `src/bin`, or `tests` beside a `Cargo.toml`.
fn is_crate_root(folder: &Path) -> bool {
    let around = folder.parent().expect("a crate");
    root().join(around).join("Cargo.toml").is_file() || around.ends_with("src")
}

#[test]
fn no_file_puts_work_off_or_names_somebodys_machine() {
    let forbidden = [concat!("TO", "DO"), concat!("FIX", "ME")];
    let places = [concat!("/wo", "rk/"), concat!("/ro", "ot/")];
    let mut found = Vec::new();
    for (path, text) in files() {
        for (at, line) in text.lines().enumerate() {
            let word = |word: &&str| line.split(|c: char| !c.is_alphanumeric()).any(|found| found == *word);
            let place = |place: &&str| line.contains(*place);
            if forbidden.iter().any(word) || places.iter().any(place) {
                found.push(format!("{path}:{}: {}", at + 1, line.trim()));
            }
        }
    }
    assert_none("work put off, or paths of one machine", found);
}

#[test]
fn the_core_is_pure() {
    let mut found = Vec::new();
    for (path, text) in sources().iter().filter(|(path, _)| path.starts_with("crates/broker/src/core")) {
        for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//")) {
            let named = ABSENT_FROM_CORE.iter().filter(|name| line.contains(**name));
            found.extend(named.map(|name| format!("{path}:{}: {name}", at + 1)));
        }
    }
    assert_none("core names what it must not know", found);
}

/// The names of a crate's dependencies, those of its tests apart.
fn dependencies(package: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join(package).join("Cargo.toml")).expect("a manifest");
    let section = text.split("\n[").find_map(|part| part.strip_prefix("dependencies]")).expect("dependencies");
    section.lines().filter_map(|line| Some(line.split_once(['.', ' ', '='])?.0.to_owned())).collect()
}

#[test]
fn dependencies_point_one_way() {
    let absent = [
        ("crates/broker-proto", &["tokio", "nix", "libc", "interprocess", "broker-client", "broker"][..]),
        ("crates/broker-client", &["broker", "clap", "toml", "rusqlite", "tracing-subscriber", "sd-notify"]),
        ("crates/broker", &["broker-tests"]),
    ];
    let mut found = Vec::new();
    for (package, names) in absent {
        let depends = dependencies(package);
        found.extend(
            names.iter().filter(|name| depends.iter().any(|d| d == *name)).map(|name| format!("{package}: {name}")),
        );
    }
    assert_none("dependencies that point the wrong way", found);
}

#[test]
fn every_dependency_of_the_workspace_is_used() {
    let text = fs::read_to_string(root().join("Cargo.toml")).expect("a manifest");
    let section =
        text.split("\n[").find_map(|part| part.strip_prefix("workspace.dependencies]")).expect("dependencies");
    let names = section.lines().filter_map(|line| line.split_once(" = ")).map(|(name, _)| name);
    let manifests: Vec<_> = files().into_iter().filter(|(path, _)| path.ends_with("/Cargo.toml")).collect();
    let used = |name: &str| manifests.iter().any(|(_, text)| text.contains(&format!("\n{name}.workspace = true")));
    assert_none("dependencies that nobody uses", names.filter(|name| !used(name)).map(str::to_owned).collect());
}
