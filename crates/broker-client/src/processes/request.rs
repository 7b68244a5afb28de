//! What a caller wants run.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

use broker_proto::{NAME_MAX, ProcessSpec, Work};

use super::milliseconds;
use crate::request::Request;

/// How many characters of an id that is made up here are of chance: 36^10 is more than 2^51.
const CHANCE: usize = 10;

/// A durable process to be: a command, or a service of kind `process`.
///
/// ```
/// # include!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/doctest.rs"));
/// # async fn example(client: broker_client::Client) -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use broker_client::{ProcessExit, ProcessRequest};
///
/// let nightly = ProcessRequest::command(["tar", "-czf", "/var/backups/home.tgz", "/home"])
///     .id("backup-2026-11-22")
///     .env("GZIP", "-9")
///     .timeout(Duration::from_secs(3600));
/// let process = client.run(nightly).await?;
///
/// // Now, or after a restart of this program, by whoever knows the id.
/// let ended = client.wait_process(process.id).await?;
/// assert_eq!(ended.exit(), Some(ProcessExit::Code(0)));
/// # Ok(())
/// # }
/// # fn main() { with_broker(example) }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a request alone runs nothing"]
pub struct ProcessRequest {
    id: String,
    work: Work,
    environment: Vec<(String, String)>,
    working_directory: Option<String>,
    timeout: Option<Duration>,
    max_attempts: Option<u32>,
}

impl ProcessRequest {
    /// A command: the program, by an absolute path or a name that the broker looks for in its `PATH`, and its arguments.
    /// No shell reads it.
    pub fn command(words: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let argv: Vec<String> = words.into_iter().map(Into::into).collect();
        let program = argv.first().map_or("", String::as_str);
        Self::of(made_up(program.rsplit('/').next().unwrap_or_default()), Work::Command { argv })
    }

    /// A service of kind `process`, in the version and the instance that the request names; its deadline and its
    /// delivery mean nothing here.
    pub fn service(request: Request) -> Self {
        let target = request.into_target();
        Self::of(made_up(&target.service), Work::Service { target })
    }

    fn of(id: String, work: Work) -> Self {
        let environment = Vec::new();
        Self { id, work, environment, working_directory: None, timeout: None, max_attempts: None }
    }

    /// Registers it under this id: a name of lower-case letters, digits, `.`, `_` and `-`. The same id with the same
    /// content is the same process, whoever asks and how often. Unless this says one, the id is new.
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.id = id.into();
        self
    }

    /// Sets a variable, on top of what the broker or the service file gives.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Runs it there, by an absolute path: by default in `/`, or where the service file says.
    pub fn working_directory(mut self, directory: impl Into<String>) -> Self {
        self.working_directory = Some(directory.into());
        self
    }

    /// Ends an attempt that takes longer; it has failed then. By default it may take for ever, or as long as the service
    /// file says.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// How often it is started at most, when attempts are lost with their machine: by default 3 times, or as often as the
    /// service file says. A command that ends by itself, however it does, is not started again.
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = Some(attempts);
        self
    }

    /// The id that it is registered under.
    #[must_use]
    pub fn process_id(&self) -> &str {
        &self.id
    }

    /// The order as the protocol has it, for [`Client::admin`](crate::Client::admin), whose answer also says whether the
    /// process is new.
    #[must_use]
    pub fn into_spec(self) -> ProcessSpec {
        let Self { id, work, environment, working_directory, timeout, max_attempts } = self;
        let timeout_ms = timeout.map(milliseconds);
        // With an id of the caller's the registration can be repeated.
        ProcessSpec { id: Some(id), work, environment, working_directory, timeout_ms, max_attempts }
    }
}

/// A new id that begins with a program's name, as far as that can be part of one: `cargo-3k9x0c2m1a`.
fn made_up(program: &str) -> String {
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-');
    let name: String = program.to_ascii_lowercase().chars().filter(|c| is_plain(*c)).collect();
    let name = name.trim_start_matches(['.', '_', '-']);
    let name = if name.is_empty() { "process" } else { name };
    let room = NAME_MAX - CHANCE - 1;
    format!("{}-{}", &name[..name.len().min(room)], chance())
}

/// Letters and digits that nobody else draws: the standard library seeds its hash tables from the kernel.
fn chance() -> String {
    let mut number = RandomState::new().build_hasher().finish();
    let mut text = String::with_capacity(CHANCE);
    for _ in 0..CHANCE {
        text.extend(char::from_digit((number % 36) as u32, 36));
        number /= 36;
    }
    text
}

#[cfg(test)]
mod tests {
    use broker_proto::ProcessId;

    use super::*;

    #[test]
    fn an_id_that_is_made_up_is_an_id_and_new() {
        for program in ["cargo", "/usr/bin/Python3.11", "./x", "", "größe", "-_.", &"x".repeat(200)] {
            let [first, second] = [(); 2].map(|()| ProcessRequest::command([program]));
            assert_ne!(first.process_id(), second.process_id());
            for request in [first, second] {
                assert!(ProcessId::parse(request.process_id()).is_ok(), "{}", request.process_id());
            }
        }
        assert!(ProcessRequest::command(["/usr/bin/Python3.11"]).process_id().starts_with("python3.11-"));
        assert!(ProcessRequest::service(Request::new("backup")).process_id().starts_with("backup-"));
    }
}
