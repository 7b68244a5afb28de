//! The catalogue: all services that the service files define, and what is wrong with the files.
//!
//! Owns the loading of directories. One bad file never takes the others down: its service is missing and its problems
//! are kept. A catalogue is never changed; a reload makes a new one.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use broker_proto::ServiceName;
use nix::unistd::Uid;

use super::definition::Service;
use super::file::{self, writable_by_others};
use super::problem::{Problem, Severity};
use super::schema;

/// All services by name.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Catalog {
    pub(crate) services: BTreeMap<ServiceName, Service>,
    /// What is wrong with the files, in the order of directories, files and lines.
    pub(crate) problems: Vec<Problem>,
    /// Directories that do not exist, which is no problem: nothing is defined there.
    pub(crate) missing: Vec<PathBuf>,
    /// How many files were read or tried.
    pub(crate) files: usize,
}

/// What follows when others can write a file.
#[derive(Clone, Copy)]
enum Distrust {
    /// It is not loaded: it says what the broker runs.
    Refuse,
    /// It is only looked at.
    Warn,
}

impl Catalog {
    /// Loads `*.toml` of each directory, in the order of names. Hidden files are an editor's and passed over.
    ///
    /// A service that is defined twice is a problem of the second file; the first stays.
    pub(crate) fn load(directories: &[PathBuf]) -> Self {
        let mut catalog = Self::default();
        let mut seen = Vec::new();
        for directory in directories {
            let canonical = directory.canonicalize().unwrap_or_else(|_| directory.clone());
            if seen.contains(&canonical) {
                continue;
            }
            seen.push(canonical);
            match service_files(directory) {
                Ok(files) => files.iter().for_each(|file| catalog.add(file, Distrust::Refuse)),
                Err(Unlisted::Missing) => catalog.missing.push(directory.clone()),
                Err(Unlisted::Problem(message)) => catalog.problems.push(Problem::error(directory, message)),
            }
        }
        catalog
    }

    /// Loads one file, wherever it lies, to see what is wrong with it.
    pub(crate) fn load_file(path: &Path) -> Self {
        let mut catalog = Self::default();
        catalog.add(path, Distrust::Warn);
        catalog
    }

    /// Whether a file or a directory could not be used.
    #[cfg(test)]
    pub(crate) fn has_errors(&self) -> bool {
        self.problems.iter().any(|problem| problem.severity == Severity::Error)
    }

    /// Why the file that bears the name of a service defines nothing.
    pub(crate) fn errors_in_file_of(&self, name: &ServiceName) -> impl Iterator<Item = &Problem> {
        let is_of_it = |problem: &&Problem| problem.file.file_stem().is_some_and(|stem| stem == name.as_str());
        self.problems.iter().filter(|problem| problem.severity == Severity::Error).filter(is_of_it)
    }

    fn add(&mut self, path: &Path, distrust: Distrust) {
        self.files += 1;
        let file = match file::read(path) {
            Ok(file) => file,
            Err(problem) => return self.problems.push(problem),
        };
        match (file.distrust, distrust) {
            (Some(reason), Distrust::Refuse) => {
                return self.problems.push(Problem::error(path, format!("the file is not loaded: {reason}")));
            }
            (Some(reason), Distrust::Warn) => {
                self.problems.push(Problem::warning(path, format!("the broker would not load the file: {reason}")));
            }
            (None, _) => {}
        }
        let (service, problems) = schema::parse(path, &file.text);
        self.problems.extend(problems);
        let Some(service) = service else { return };
        match self.services.get(&service.name) {
            None => drop(self.services.insert(service.name.clone(), service)),
            Some(first) => {
                let (name, first) = (&service.name, first.source.display());
                let message =
                    format!("service `{name}` is already defined in {first}, which stays: remove one of them");
                self.problems.push(Problem { key: Some("service.name".to_owned()), ..Problem::error(path, message) });
            }
        }
    }
}

/// Why the files of a directory are not listed.
enum Unlisted {
    Missing,
    Problem(String),
}

fn service_files(directory: &Path) -> Result<Vec<PathBuf>, Unlisted> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => Unlisted::Missing,
        io::ErrorKind::NotADirectory => Unlisted::Problem("this is not a directory".to_owned()),
        _ => Unlisted::Problem(format!("cannot read the directory: {error}")),
    };
    let metadata = directory.metadata().map_err(failed)?;
    let entries = fs::read_dir(directory).map_err(failed)?;
    if let Some(reason) = writable_by_others(&metadata, Uid::effective().as_raw()) {
        return Err(Unlisted::Problem(format!("nothing is loaded from the directory: {reason}")));
    }
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if path.extension().is_some_and(|extension| extension == "toml") && !hidden {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
