//! Which versions of a service are installed: those that the file lists, or the folders of a directory.
//!
//! Owns `[[version]]` and `[versions] directory`. Looks at the disk for folders, and never into one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use broker_proto::parse_version;
use semver::Version;

use super::definition::Command;
use super::problem::quoted;
use super::reader::{Document, Located};
use super::schema::command;
use super::template::Subject;
use super::values;

/// The most versions of a service. A directory that holds more is not one of versions.
const VERSIONS_MAX: usize = 1024;

/// One installed version.
#[derive(Debug)]
pub(crate) struct Installed {
    pub(crate) version: Version,
    /// As the file or the folder's name spells it.
    pub(crate) spelling: String,
    pub(crate) command: Located<Command>,
}

/// Reads what is installed, and reports what is doubtful about it.
pub(crate) fn read(document: &Document<'_>, subject: Subject) -> Vec<Installed> {
    let table = document.table("[versions]");
    let directory = table.get("directory", pattern);
    let in_each = command(document, &table, subject);
    let listed = listed(document, subject);
    match (table.has("directory"), !document.table("").has("version")) {
        (true, false) => {
            table.error(
                Some("directory"),
                "both `directory` in [versions] and [[version]] are there: keep one".to_owned(),
            );
        }
        (true, true) if !table.has("command") => {
            let message = "missing key `command` in [versions]: what is run in each folder of `directory`";
            table.error(Some("command"), message.to_owned());
        }
        (false, false) if let Some(command) = &in_each => {
            document.error(&command.place, "goes with `directory`; a [[version]] has a `command` of its own");
        }
        (false, true) => document.error_in_file(
            "no version: add a [[version]] with `version` and `command`, or `directory` and `command` to [versions]",
        ),
        _ => {}
    }
    match (directory, in_each) {
        (Some(directory), Some(command)) if listed.is_empty() => in_directory(document, &directory, &command),
        _ => listed,
    }
}

fn listed(document: &Document<'_>, subject: Subject) -> Vec<Installed> {
    let mut seen: BTreeMap<Version, (String, usize)> = BTreeMap::new();
    let mut installed = Vec::new();
    for (count, table) in document.tables("[[version]]").into_iter().enumerate() {
        if count == VERSIONS_MAX {
            table.error(None, format!("more than {VERSIONS_MAX} times [[version]]: split the service up"));
            break;
        }
        let version = table.require("version", values::version);
        table.require("command", |_| Ok(()));
        let command = command(document, &table, subject);
        let Some(Located { value: (version, spelling), place }) = version else { continue };
        if let Some((earlier, line)) = seen.get(&version) {
            document.error(&place, format!("version {version} is already defined, as `{earlier}` on line {line}"));
            continue;
        }
        seen.insert(version.clone(), (spelling.clone(), document.line(&place)));
        installed.extend(command.map(|command| Installed { version, spelling, command }));
    }
    installed
}

/// A pattern of folders: absolute, and without `**`, which would walk the whole tree.
fn pattern(value: &toml::de::DeValue<'_>) -> Result<String, String> {
    values::absolute_path(value)?;
    let text = values::text(value)?;
    if text.contains("**") {
        return Err("`**` would search the whole tree: write one `*`, \"/opt/redis/*\"".to_owned());
    }
    if !text.contains(['*', '?', '[']) {
        return Err(format!("{} is one folder: end it with /* to mean the folders in it", quoted(&text)));
    }
    match glob::Pattern::new(&text) {
        Ok(_) => Ok(text),
        Err(error) => Err(format!("{} is no pattern: {}", quoted(&text), error.msg)),
    }
}

/// Finds the folders whose names are versions. Others are passed over: there is often a `current` beside them.
fn in_directory(document: &Document<'_>, pattern: &Located<String>, command: &Located<Command>) -> Vec<Installed> {
    let mut found: BTreeMap<Version, String> = BTreeMap::new();
    for (folder, version) in folders(document, pattern) {
        let spelling = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if let Some(first) = found.get(&version) {
            let message = format!("`{first}` and `{spelling}` are both {version}: `{first}` is used, remove one");
            document.warning(&pattern.place, message);
        } else if found.len() == VERSIONS_MAX {
            document.warning(&pattern.place, format!("more than {VERSIONS_MAX} versions: the rest is left out"));
            break;
        } else {
            found.insert(version, spelling);
        }
    }
    if found.is_empty() {
        let message = format!("no folder's name is a version in {}: the service has none yet", quoted(&pattern.value));
        document.warning(&pattern.place, message);
    }
    found.into_iter().map(|(version, spelling)| Installed { version, spelling, command: command.clone() }).collect()
}

/// The folders that match, in the order of their names. A symbolic link to another match (`7` beside `7.0.15`) is an
/// alias of it and no version; one that leads elsewhere is a folder like any other.
fn folders(document: &Document<'_>, pattern: &Located<String>) -> Vec<(PathBuf, Version)> {
    let options = glob::MatchOptions { require_literal_leading_dot: true, ..glob::MatchOptions::new() };
    // The pattern was parsed when the value was read, so that it is valid here.
    let Ok(paths) = glob::glob_with(&pattern.value, options) else { return Vec::new() };
    let mut matches = Vec::new();
    for path in paths {
        match path {
            Ok(path) if path.is_dir() => matches.extend(version_of(&path).map(|version| (path, version))),
            Ok(_) => {}
            Err(error) => {
                let message = format!("cannot read `{}`: {}", error.path().display(), error.error());
                document.warning(&pattern.place, message);
            }
        }
    }
    let real: Vec<PathBuf> = matches.iter().map(|(path, _)| path).filter(|path| !path.is_symlink()).cloned().collect();
    let is_alias = |path: &Path| {
        path.is_symlink() && path.canonicalize().is_ok_and(|target| real.iter().any(|other| is_same(other, &target)))
    };
    matches.retain(|(path, _)| !is_alias(path));
    matches
}

fn is_same(path: &Path, canonical: &Path) -> bool {
    path.canonicalize().is_ok_and(|path| path == canonical)
}

fn version_of(folder: &Path) -> Option<Version> {
    parse_version(folder.file_name()?.to_str()?).ok()
}
