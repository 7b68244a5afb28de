//! Catalogues of directories on disk.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::{NAMED, VERSION, daemons};
use crate::services::{Catalog, Service};

/// A directory with these files.
fn directory(files: &[(&str, &str)]) -> TempDir {
    let directory = tempfile::tempdir().expect("made");
    for (name, content) in files {
        fs::write(directory.path().join(name), content).expect("written");
    }
    directory
}

fn load(directories: &[&Path]) -> Catalog {
    Catalog::load(&directories.iter().map(|path| PathBuf::from(*path)).collect::<Vec<_>>())
}

fn names(catalog: &Catalog) -> Vec<&str> {
    catalog.services.keys().map(broker_proto::ServiceName::as_str).collect()
}

fn named(name: &str) -> String {
    format!("[service]\nname = \"{name}\"\n{VERSION}")
}

/// The problems, with the directory left out.
fn problems(catalog: &Catalog, directory: &Path) -> String {
    let text: Vec<String> = catalog.problems.iter().map(ToString::to_string).collect();
    text.join("\n").replace(&format!("{}/", directory.display()), "").replace(&directory.display().to_string(), "DIR")
}

#[test]
fn one_bad_file_does_not_take_the_others_down() {
    let (a, c) = (named("a"), named("c"));
    let directory =
        directory(&[("a.toml", &a), ("b.toml", "[service\n"), ("c.toml", &c), ("d.toml", ""), ("notes", "x")]);
    fs::write(directory.path().join("e.toml"), b"\xff").expect("written");
    fs::create_dir(directory.path().join("f.toml")).expect("made");
    let catalog = load(&[directory.path()]);
    assert_eq!(names(&catalog), ["a", "c"]);
    assert!(catalog.has_errors());
    assert_eq!(catalog.files, 6);
    insta::assert_snapshot!(problems(&catalog, directory.path()), @r"
b.toml:1:9: not valid TOML: unclosed table, expected `]`
d.toml: the file is empty: a service file has [service] with a `name`, and [[version]]
e.toml:1:1: the file is not UTF-8: save it in that encoding
f.toml: this is a directory, not a file
");
}

#[test]
fn a_service_that_is_defined_twice_keeps_its_first_file() {
    let (a, also) = (named("a"), named("a").replace("\"7\"", "\"8\""));
    let first = directory(&[("1.toml", &a), ("2.toml", &also)]);
    let second = directory(&[("0.toml", &also)]);
    let catalog = load(&[first.path(), second.path()]);
    let service: &Service = catalog.services.values().next().expect("one");
    assert_eq!(service.source, first.path().join("1.toml"));
    assert_eq!(catalog.problems.len(), 2);
    let only_first = load(&[first.path()]);
    insta::assert_snapshot!(problems(&only_first, first.path()), @"2.toml: service `a` is already defined in 1.toml, which stays: remove one of them");
}

#[test]
fn a_directory_that_is_given_twice_is_read_once() {
    let a = directory(&[("a.toml", &named("a"))]);
    let catalog = load(&[a.path(), &a.path().join(".")]);
    assert_eq!((names(&catalog), catalog.problems.len()), (vec!["a"], 0));
}

#[test]
fn a_missing_directory_is_empty_and_is_told_apart() {
    let catalog = load(&[Path::new("/no/such/services.d")]);
    assert_eq!((catalog.services.len(), catalog.problems.len()), (0, 0));
    assert_eq!(catalog.missing, [Path::new("/no/such/services.d")]);
}

#[test]
fn a_file_in_place_of_a_directory_is_a_problem() {
    let directory = directory(&[("services.d", "")]);
    let catalog = load(&[&directory.path().join("services.d")]);
    insta::assert_snapshot!(problems(&catalog, directory.path()), @"services.d: this is not a directory");
}

#[test]
fn hidden_files_and_other_endings_are_passed_over() {
    let directory = directory(&[(".a.toml", "x"), ("a.toml~", "x"), ("a.toml.bak", "x"), ("README", "x")]);
    symlink("user@host.123", directory.path().join(".#a.toml")).expect("made");
    let catalog = load(&[directory.path()]);
    assert_eq!((catalog.files, catalog.problems.len()), (0, 0));
}

#[test]
fn what_others_can_write_is_not_loaded() {
    let directory = directory(&[("a.toml", &named("a")), ("b.toml", &named("b"))]);
    fs::set_permissions(directory.path().join("a.toml"), fs::Permissions::from_mode(0o666)).expect("changed");
    let catalog = load(&[directory.path()]);
    assert_eq!(names(&catalog), ["b"]);
    insta::assert_snapshot!(problems(&catalog, directory.path()), @"a.toml: the file is not loaded: everybody can write it (mode 0666): take that away with chmod o-w");

    let checked = Catalog::load_file(&directory.path().join("a.toml"));
    assert!(!checked.has_errors());
    insta::assert_snapshot!(problems(&checked, directory.path()), @"a.toml: warning: the broker would not load the file: everybody can write it (mode 0666): take that away with chmod o-w");

    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).expect("changed");
    let catalog = load(&[directory.path()]);
    assert_eq!(catalog.services.len(), 0);
    insta::assert_snapshot!(problems(&catalog, directory.path()), @"DIR: nothing is loaded from the directory: everybody can write it (mode 0777): take that away with chmod o-w");
}

/// Loads a service whose versions are the folders of a directory; returns what each version runs, and the problems.
fn installed(root: &Path) -> (Vec<String>, String) {
    let command = format!("[\"{}/{{version}}/bin/redis\", \"{{endpoint}}\"]", root.display());
    let file = root.join("redis.toml");
    fs::write(&file, format!("{NAMED}[versions]\ndirectory = \"{}/*\"\ncommand = {command}\n", root.display()))
        .expect("written");
    let catalog = Catalog::load_file(&file);
    let service = catalog.services.values().next().expect("the service is there");
    let versions =
        daemons(service).iter().map(|(version, definition)| format!("{version} from {}", definition.spelling));
    (versions.collect(), problems(&catalog, root))
}

#[test]
fn the_folders_of_a_directory_are_versions_spelled_as_they_stand() {
    let root = tempfile::tempdir().expect("made");
    for folder in ["7.0", "7.2.4", "15", "8.0.0-rc.1", "current", "src", ".9"] {
        fs::create_dir(root.path().join(folder)).expect("made");
    }
    fs::write(root.path().join("6.0"), "a file").expect("written");
    let (versions, problems) = installed(root.path());
    assert_eq!(versions, ["7.0.0 from 7.0", "7.2.4 from 7.2.4", "8.0.0-rc.1 from 8.0.0-rc.1", "15.0.0 from 15"]);
    assert_eq!(problems, "");
}

#[test]
fn a_link_to_a_neighbour_is_an_alias_and_a_link_elsewhere_is_a_version() {
    let (root, store) = (tempfile::tempdir().expect("made"), tempfile::tempdir().expect("made"));
    fs::create_dir(root.path().join("7.0.15")).expect("made");
    symlink("7.0.15", root.path().join("7")).expect("made");
    symlink(store.path(), root.path().join("8")).expect("made");
    symlink("/no/where", root.path().join("9")).expect("made");
    assert_eq!(installed(root.path()), (vec!["7.0.15 from 7.0.15".into(), "8.0.0 from 8".into()], String::new()));
}

#[test]
fn two_folders_of_the_same_version_are_doubtful() {
    let root = tempfile::tempdir().expect("made");
    for folder in ["7", "7.0.0"] {
        fs::create_dir(root.path().join(folder)).expect("made");
    }
    let (versions, problems) = installed(root.path());
    assert_eq!(versions, ["7.0.0 from 7"]);
    insta::assert_snapshot!(problems, @"redis.toml:4:13: warning: `directory` in [versions]: `7` and `7.0.0` are both 7.0.0: `7` is used, remove one");
}

#[test]
fn a_large_file_of_nonsense_is_cut_short() {
    for line in ["=\n", "a\n", "[[version]]\n", "[\n", "x = '", "{endpoint}", "[[version]]\nversion = '1'\n"] {
        let text = line.repeat((1 << 16) / line.len());
        let directory = directory(&[("a.toml", &text), ("b.toml", &named("b"))]);
        let catalog = load(&[directory.path()]);
        assert_eq!(names(&catalog), ["b"]);
        assert!((1..=51).contains(&catalog.problems.len()), "{line:?}: {}", catalog.problems.len());
    }
}
