//! What a broker is started with: its folder, its files, its arguments.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::broker::Broker;
use crate::cgroups;
use crate::keeper::Keeper;
use crate::programs::{fake_backend, sibling};
use crate::service::Service;

/// What a broker is started with.
#[derive(Debug)]
pub struct Setup {
    folder: TempDir,
    pub(crate) arguments: Vec<String>,
    pub(crate) variables: Vec<(String, String)>,
    /// What brokerd's command line is handed to, if anything.
    wrapper: Vec<String>,
    /// The service manager that keeps its sockets, if it has one.
    pub(crate) keeper: Option<Keeper>,
}

impl Drop for Setup {
    fn drop(&mut self) {
        // A broker that was killed leaves the empty ones of what was killed after it to the next one.
        if let Some(place) = cgroups::place(&self.folder().join("state")) {
            let _ = cgroups::remove(&place);
        }
    }
}

impl Default for Setup {
    fn default() -> Self {
        Self::new()
    }
}

impl Setup {
    /// A new folder below `/tmp`, whose path is short: a socket's path may have 108 bytes.
    ///
    /// # Panics
    /// The folder cannot be made.
    #[must_use]
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("bt.").tempdir_in("/tmp").expect("a folder in /tmp");
        for name in ["services.d", "starts", "home"] {
            fs::create_dir(folder.path().join(name)).expect("a new folder is empty");
        }
        Self { folder, arguments: Vec::new(), variables: Vec::new(), wrapper: Vec::new(), keeper: None }
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A path in the folder, as text for a service file.
    ///
    /// # Panics
    /// Never: the path is ASCII.
    #[must_use]
    pub fn path(&self, name: &str) -> String {
        self.folder().join(name).to_str().expect("an ASCII path").to_owned()
    }

    /// Adds a service file.
    #[must_use]
    pub fn service(self, service: &Service) -> Self {
        self.write(service);
        self
    }

    pub(crate) fn write(&self, service: &Service) {
        let path = self.folder().join("services.d").join(format!("{}.toml", service.name));
        let text = service.text(&self.folder().join("starts").join(&service.name), &fake_backend());
        fs::write(&path, text).expect("the folder takes a file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("own files can be changed");
    }

    /// Writes the broker's own configuration file.
    ///
    /// # Panics
    /// The file cannot be written.
    #[must_use]
    pub fn config(mut self, toml: &str) -> Self {
        let path = self.path("broker.toml");
        fs::write(&path, toml).expect("the folder takes a file");
        self.arguments.extend(["--config".to_owned(), path]);
        self
    }

    /// Adds arguments to brokerd's.
    #[must_use]
    pub fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|&text| text.to_owned()));
        self
    }

    /// Adds a variable to brokerd's environment.
    #[must_use]
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Has brokerd executed by another command, which is handed brokerd's command line behind these arguments.
    #[must_use]
    pub fn wrapper(mut self, command: &[&str]) -> Self {
        self.wrapper = command.iter().map(|&text| text.to_owned()).collect();
        self
    }

    /// Gives the broker a service manager that keeps its sockets and passes them to the next broker of the folder.
    #[must_use]
    pub fn kept(mut self) -> Self {
        self.keeper = Some(Keeper::at(self.folder().join("manager")));
        // What the shell executes is the shell's own process.
        self.wrapper(&["sh", "-c", "export LISTEN_PID=$$; exec \"$@\"", "brokerd"])
    }

    /// brokerd's program, without arguments.
    pub(crate) fn program(&self) -> Command {
        let program = sibling("brokerd");
        let Some((wrapper, arguments)) = self.wrapper.split_first() else { return Command::new(program) };
        let mut command = Command::new(wrapper);
        command.args(arguments).arg(program);
        command
    }

    /// A broker that has not been started yet.
    #[must_use]
    pub fn unstarted(self) -> Broker {
        Broker::unstarted(self)
    }

    /// Starts the broker and waits until it accepts.
    ///
    /// # Panics
    /// It does not answer.
    #[track_caller]
    #[must_use]
    pub fn start(self) -> Broker {
        Broker::of(self)
    }
}
