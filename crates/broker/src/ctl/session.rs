//! One command's session with the broker: finding it, asking it, bounding every wait, and what a failure to reach it
//! means to a person.

use std::ffi::CString;
use std::future::Future;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use broker_client::{Builder, Client, Error, Held, Request};
use broker_proto::{Address, AdminRequest, InstanceName, Requirement, Selection};
use nix::unistd::{Gid, Group, Uid, User, getgrouplist};
use serde_json::Value;

use super::args::{Command, Events, Exec, Global, Instance, Logs, Started, Wanted};
use super::keeping::{Keeping, Starting};
use super::output::{Console, FAILED, Failure, NOT_PERMITTED, TRY_LATER, UNAVAILABLE, USAGE, humane};
use super::{documents, progress};

/// How long the broker may take beyond a deadline that it was told: its own refusal says more than ours.
const GRACE: Duration = Duration::from_secs(2);

/// A session, and how to speak on it.
pub(super) struct Session<'a> {
    pub(super) client: Client,
    pub(super) console: &'a Console,
    /// It comes back when the connection ends.
    pub(super) is_kept: bool,
    timeout: Option<Duration>,
}

impl<'a> Session<'a> {
    /// Opens a session for one order or report.
    pub(super) async fn open(console: &'a Console, global: &Global) -> Result<Self, Failure> {
        let client = builder(global).no_reconnect().connect().await?;
        Ok(Self { client, console, timeout: global.timeout, is_kept: false })
    }

    /// Opens a session that lasts as long as somebody follows what happens.
    pub(super) async fn follow(console: &'a Console, global: &Global, keeping: &Keeping) -> Result<Self, Failure> {
        let client = keeping.apply(builder(global))?.connect().await?;
        Ok(Self { client, console, timeout: global.timeout, is_kept: !keeping.no_reconnect })
    }

    /// Opens a session that lasts as long as a backend is needed, with a broker that may have to be started for it.
    pub(super) async fn keep(console: &'a Console, global: &Global, wanted: &Wanted) -> Result<Self, Failure> {
        Self::last(console, global, &wanted.keeping, &wanted.starting).await
    }

    /// Opens a session that outlasts its broker, and starts one if there is none.
    pub(super) async fn last(
        console: &'a Console,
        global: &Global,
        keeping: &Keeping,
        starting: &Starting,
    ) -> Result<Self, Failure> {
        let is_named =
            global.socket.is_some() || std::env::var_os("BROKER_SOCKET").is_some_and(|path| !path.is_empty());
        let builder = starting.apply(keeping.apply(builder(global))?, is_named);
        let client = progress::watch(console, "the broker", builder.connect()).await?;
        Ok(Self { client, console, timeout: global.timeout, is_kept: !keeping.no_reconnect })
    }

    /// Asks for a backend, showing progress, and holds it.
    pub(super) async fn resolve(&self, wanted: &Wanted) -> Result<Held, Failure> {
        let instance = one_instance(&wanted.backend, &wanted.instance)?;
        let mut request = Request::new(wanted.backend.service.as_str());
        if let Some(requirement) = &wanted.backend.requirement {
            request = request.version(requirement.as_str());
        }
        if let Some(instance) = &instance {
            request = request.instance(instance.as_str());
        }
        if let Some(timeout) = self.timeout {
            request = request.deadline(timeout);
        }
        let title = describe(&wanted.backend, instance.as_ref());
        let pending = self.client.resolve(request);
        Ok(self.bounded(progress::wait(self.console, &title, pending)).await??)
    }

    /// Gives an order or asks for a report, showing progress, and returns the document.
    pub(super) async fn admin(&self, title: &str, request: AdminRequest) -> Result<Value, Failure> {
        let pending = self.client.admin(request);
        let text = self.bounded(progress::wait(self.console, title, pending)).await??;
        documents::parse(&text)
    }

    /// Bounds a wait by `--timeout`.
    pub(super) async fn bounded<T>(&self, work: impl Future<Output = T>) -> Result<T, Failure> {
        let Some(timeout) = self.timeout else { return Ok(work.await) };
        tokio::time::timeout(timeout.saturating_add(GRACE), work)
            .await
            .map_err(|_| Failure::told(TRY_LATER, format!("the broker did not answer within {}", humane(timeout))))
    }

    /// `--timeout`, as orders carry it.
    pub(super) fn deadline_ms(&self) -> Option<u64> {
        self.timeout.map(milliseconds)
    }
}

/// A duration as orders carry it.
pub(super) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn builder(global: &Global) -> Builder {
    let mut builder = Client::builder().client_name("brokerctl", env!("CARGO_PKG_VERSION"));
    if let Some(path) = &global.socket {
        builder = builder.socket(path);
    }
    if let Some(timeout) = global.timeout {
        builder = builder.connect_timeout(timeout.max(Duration::from_millis(1)));
    }
    builder
}

/// The instance that a name or `-i` says; both may, if they agree.
pub(super) fn one_instance(address: &Address, option: &Instance) -> Result<Option<InstanceName>, Failure> {
    match (&address.instance, &option.instance) {
        (Some(named), Some(option)) if named != option => {
            Err(Failure::told(USAGE, format!("the name says instance `{named}`, but --instance says `{option}`")))
        }
        (named, option) => Ok(named.clone().or_else(|| option.clone())),
    }
}

/// Finds names and `-i` at odds before anything is done.
pub(super) fn check_usage(command: &Command) -> Result<(), Failure> {
    let (backends, option): (&[Address], &Instance) = match command {
        Command::Resolve(wanted) | Command::Connect(wanted) | Command::Exec(Exec { wanted, .. }) => {
            (std::slice::from_ref(&wanted.backend), &wanted.instance)
        }
        Command::Start(started) => (&started.backends, &started.instance),
        Command::Stop(selected)
        | Command::Restart(selected)
        | Command::Drain(selected)
        | Command::Release(selected) => (&selected.backends, &selected.instance),
        Command::Run(run) => return super::processes::request(run).map(drop),
        Command::Status(filter) | Command::Logs(Logs { filter, .. }) | Command::Events(Events { filter, .. }) => {
            (&filter.backends, &filter.instance)
        }
        _ => return Ok(()),
    };
    backends.iter().try_for_each(|address| one_instance(address, option).map(drop))
}

/// The one backend that a command asks for, as `brokerctl logs` takes it.
pub(super) fn asked(command: &Command) -> Option<String> {
    let (address, option) = match command {
        Command::Resolve(wanted) | Command::Connect(wanted) | Command::Exec(Exec { wanted, .. }) => {
            (&wanted.backend, &wanted.instance)
        }
        Command::Start(Started { backends, instance }) => match backends.as_slice() {
            [address] => (address, instance),
            _ => return None,
        },
        _ => return None,
    };
    let instance = one_instance(address, option).ok()?.map(|name| name.to_string());
    Some(in_words(&Selection { instance, service: Some(address.service.to_string()), version_requirement: None }))
}

/// What the names select; no name selects all (of the instance).
pub(super) fn selections(backends: &[Address], option: &Instance) -> Result<Vec<Selection>, Failure> {
    if backends.is_empty() {
        let instance = option.instance.as_ref().map(ToString::to_string);
        return Ok(vec![Selection { instance, ..Selection::default() }]);
    }
    let select = |address: &Address| {
        Ok(Selection {
            instance: one_instance(address, option)?.map(|name| name.to_string()),
            service: Some(address.service.to_string()),
            version_requirement: address.requirement.as_ref().map(ToString::to_string),
        })
    };
    backends.iter().map(select).collect()
}

/// Whether a selection has a backend in it.
pub(super) fn selects(selection: &Selection, instance: &str, service: &str, version: &str) -> bool {
    let version_matches = |requirement: &String| {
        let parsed = Requirement::parse(requirement).ok().zip(broker_proto::parse_version(version).ok());
        parsed.is_some_and(|(requirement, version)| requirement.matches(&version))
    };
    selection.instance.as_deref().is_none_or(|name| name == instance)
        && selection.service.as_deref().is_none_or(|name| name == service)
        && selection.version_requirement.as_ref().is_none_or(version_matches)
}

/// A selection in words: `redis@^7/ci`, `every backend`.
pub(super) fn in_words(selection: &Selection) -> String {
    let Selection { instance, service, version_requirement } = selection;
    let Some(service) = service else {
        return match instance {
            Some(instance) => format!("every backend of instance {instance}"),
            None => "every backend".to_owned(),
        };
    };
    let version = version_requirement.as_ref().map(|text| format!("@{text}")).unwrap_or_default();
    let instance = instance.as_ref().map(|text| format!("/{text}")).unwrap_or_default();
    format!("{service}{version}{instance}")
}

/// A wanted backend in the words of the command line.
pub(super) fn describe(address: &Address, instance: Option<&InstanceName>) -> String {
    in_words(&Selection {
        instance: instance.map(ToString::to_string),
        service: Some(address.service.to_string()),
        version_requirement: address.requirement.as_ref().map(ToString::to_string),
    })
}

/// A failure of the client library, with its exit code and what a person can do about it.
pub(super) fn explain(error: Error) -> Failure {
    let (code, advice) = match &error {
        Error::NoBroker { tried } => {
            return Failure::told(UNAVAILABLE, "no broker is running").advise(how_to_start(tried));
        }
        Error::PermissionDenied { path, .. } => (NOT_PERMITTED, Some(how_to_be_admitted(path))),
        Error::GoingAway(_)
        | Error::Timeout { .. }
        | Error::Disconnected { .. }
        | Error::Silent { .. }
        | Error::CleanCloses { .. } => (TRY_LATER, None),
        Error::Exhausted { .. } | Error::Autostart(_) => (UNAVAILABLE, None),
        _ => (FAILED, None),
    };
    Failure::Told { code, error: error.into(), advice }
}

fn how_to_start(tried: &[(PathBuf, std::io::Error)]) -> String {
    let looked = tried.iter().map(|(path, error)| format!("tried {}: {error}\n", path.display()));
    let start = "start one with `brokerd --detach`, `brokerd` (in the foreground) or, under systemd,\n\
                 `systemctl --user start brokerd.socket`; the system's: `sudo systemctl start brokerd.socket`;\n\
                 or name its socket with --socket or BROKER_SOCKET";
    looked.collect::<String>() + start
}

/// What keeps this user from a socket, and what is to be done. The folder says it where the socket itself is not seen.
fn how_to_be_admitted(socket: &Path) -> String {
    const GROUP_MAY_CONNECT: u32 = 0o020;
    const GROUP_MAY_ENTER: u32 = 0o010;
    let looked = [(Some(socket), GROUP_MAY_CONNECT), (socket.parent(), GROUP_MAY_ENTER)];
    let metadata = looked.into_iter().find_map(|(path, bit)| Some((std::fs::metadata(path?).ok()?, bit)));
    let group = metadata
        .filter(|(metadata, bit)| metadata.mode() & bit != 0 && metadata.gid() != 0)
        .and_then(|(metadata, _)| Group::from_gid(Gid::from_raw(metadata.gid())).ok().flatten());
    let Some(group) = group else {
        return "it is for its owner and root: use sudo, or run a broker of your own: `brokerd`".to_owned();
    };
    let user = User::from_uid(Uid::current()).ok().flatten();
    let name = user.as_ref().map_or("YOU", |user| user.name.as_str());
    let groups = user.as_ref().and_then(|user| getgrouplist(&CString::new(user.name.as_str()).ok()?, user.gid).ok());
    // The groups of a process are those that its user had at the login.
    if groups.unwrap_or_default().contains(&group.gid) {
        return format!(
            "it is for members of the group `{0}`; {name} is one by now, and was none at the login: log in again, or use \
             `newgrp {0}`",
            group.name
        );
    }
    format!(
        "it is for members of the group `{0}`: join it (`sudo usermod -aG {0} {name}`, and log in again), or run a broker of \
         your own: `brokerd`",
        group.name
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        text.parse().expect("a valid name")
    }

    fn instance(text: &str) -> Instance {
        Instance { instance: Some(InstanceName::parse(text).expect("a valid name")) }
    }

    #[test]
    fn an_instance_is_said_once_or_twice_alike() {
        let said =
            |name: &str, option: &Instance| one_instance(&address(name), option).map(|i| i.map(|i| i.to_string()));
        assert!(matches!(said("redis", &Instance::default()), Ok(None)));
        assert!(matches!(said("redis/a", &instance("a")), Ok(Some(name)) if name == "a"));
        assert!(matches!(said("redis", &instance("a")), Ok(Some(name)) if name == "a"));
        assert!(matches!(said("redis/a", &instance("b")), Err(Failure::Told { code: USAGE, .. })));
    }

    #[test]
    fn what_is_asked_for_is_named_as_logs_takes_it() {
        let asked = |line: &str| {
            let words = std::iter::once("brokerctl").chain(line.split(' '));
            asked(&<super::super::args::Cli as clap::Parser>::parse_from(words).command)
        };
        assert_eq!(asked("resolve redis@^7").as_deref(), Some("redis"));
        assert_eq!(asked("exec -i ci redis -- true").as_deref(), Some("redis/ci"));
        assert_eq!((asked("start a/x").as_deref(), asked("start a b"), asked("status a")), (Some("a/x"), None, None));
    }

    #[test]
    fn a_part_left_out_selects_all() {
        let chosen = |name: &str| selections(&[address(name)], &Instance::default()).expect("valid").remove(0);
        assert!(selects(&chosen("redis"), "any", "redis", "7.0.15"));
        assert!(selects(&chosen("redis@^7/a"), "a", "redis", "7.0.15"));
        assert!(!selects(&chosen("redis@^7/a"), "b", "redis", "7.0.15"));
        assert!(!selects(&chosen("redis@^8"), "a", "redis", "7.0.15"));
        assert!(selects(&Selection::default(), "a", "redis", "7.0.15"));
    }

    #[test]
    fn a_selection_reads_as_it_was_typed() {
        let chosen = selections(&[address("redis@^7/a")], &Instance::default()).expect("valid").remove(0);
        assert_eq!(in_words(&chosen), "redis@^7/a");
        assert_eq!(in_words(&Selection::default()), "every backend");
    }
}
