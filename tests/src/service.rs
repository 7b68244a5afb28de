//! Service files for the tests.

use std::fmt::Write as _;
use std::path::Path;

/// Stands for the fake backend's path in a command that is not written yet.
const FAKE_BACKEND: &str = "{fake-backend}";

/// A service file in the making. Its daemon is the fake backend unless a version says otherwise.
#[derive(Debug, Clone)]
pub struct Service {
    pub(crate) name: String,
    versions: Vec<(String, Vec<String>)>,
    in_journal: bool,
    toml: String,
}

impl Service {
    /// A service whose version 1.0.0 is the fake backend listening on `{endpoint}`, with further arguments.
    #[must_use]
    pub fn fake(name: &str, arguments: &[&str]) -> Self {
        Self::named(name).version("1.0.0", &[&["--listen", "{endpoint}"], arguments].concat())
    }

    /// The same for the socket probe: the fake backend serves what the broker bound.
    #[must_use]
    pub fn fake_on_passed_socket(name: &str, arguments: &[&str]) -> Self {
        Self::named(name).version("1.0.0", &[&["--listen-fds"], arguments].concat())
    }

    /// A service without a version yet.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned(), versions: Vec::new(), in_journal: false, toml: String::new() }
    }

    /// Adds a version that is the fake backend with these arguments.
    #[must_use]
    pub fn version(self, version: &str, arguments: &[&str]) -> Self {
        let mut command = vec![FAKE_BACKEND, "--log-start", "{starts}"];
        command.extend(arguments);
        self.command(version, &command)
    }

    /// Adds a version that is any command.
    #[must_use]
    pub fn command(mut self, version: &str, command: &[&str]) -> Self {
        self.versions.push((version.to_owned(), command.iter().map(|&text| text.to_owned()).collect()));
        self
    }

    /// Has it log to the journal of systemd.
    #[must_use]
    pub fn in_journal(mut self) -> Self {
        self.in_journal = true;
        self
    }

    /// Adds tables, as TOML.
    #[must_use]
    pub fn toml(mut self, text: &str) -> Self {
        let _ = writeln!(self.toml, "{text}");
        self
    }

    /// The file's text; `starts` is where each start of the fake backend is noted, `fake_backend` where that is.
    pub(crate) fn text(&self, starts: &Path, fake_backend: &Path) -> String {
        let (starts, fake_backend) = (starts.display().to_string(), fake_backend.display().to_string());
        let mut text = format!("[service]\nname = {:?}\n", self.name);
        if self.in_journal {
            text += "log = \"journal\"\n";
        }
        for (version, command) in &self.versions {
            let filled = |text: &String| text.replace("{starts}", &starts).replace(FAKE_BACKEND, &fake_backend);
            let command: Vec<String> = command.iter().map(filled).collect();
            // A list of texts is written in TOML as it is in JSON.
            let command = serde_json::Value::from(command);
            let _ = write!(text, "\n[[version]]\nversion = {version:?}\ncommand = {command}\n");
        }
        let _ = write!(text, "\n{}", self.toml);
        text
    }
}
