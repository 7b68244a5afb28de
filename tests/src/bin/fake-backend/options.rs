//! The flags. Each is one misbehaviour or one gate; they combine freely.

use std::path::PathBuf;

/// What this run of the daemon is told to do.
#[derive(Debug, Default)]
pub(crate) struct Options {
    /// `--listen PATH|HOST:PORT`.
    pub(crate) listen: Option<String>,
    /// `--listen-fds`: serve on the descriptor that LISTEN_FDS hands over.
    pub(crate) listen_fds: bool,
    /// `--ready-when FILE`: listens (with `--notify` or `--listen-fds`: says READY=1) only once FILE exists.
    pub(crate) ready_when: Option<PathBuf>,
    /// `--ready-after MS`: the same by time, for the one test that is about time.
    pub(crate) ready_after_ms: Option<u64>,
    /// `--never-ready`: neither listens nor says so.
    pub(crate) never_ready: bool,
    /// `--exit CODE`: at once; with `--after-ready` after readiness; with `--when FILE` once FILE exists.
    pub(crate) exit: Option<i32>,
    /// See `--exit`.
    pub(crate) after_ready: bool,
    /// See `--exit`.
    pub(crate) when: Option<PathBuf>,
    /// `--die-after-ready MS`: exits that long after it became ready, with the code of `--exit` or 1.
    pub(crate) die_after_ready_ms: Option<u64>,
    /// `--fork-away`: forks twice, leaves the session; the first process exits 0 at once.
    pub(crate) fork_away: bool,
    /// `--workers N`: N forked children accept on the socket; the main process only watches, as nginx does.
    pub(crate) workers: u32,
    /// `--notify`: says READY=1 to NOTIFY_SOCKET.
    pub(crate) notify: bool,
    /// `--status TEXT`: says STATUS= to NOTIFY_SOCKET at the start.
    pub(crate) status: Option<String>,
    /// `--extend USEC`: says EXTEND_TIMEOUT_USEC= to NOTIFY_SOCKET at the start.
    pub(crate) extend_usec: Option<u64>,
    /// `--ignore-term`: SIGTERM does nothing.
    pub(crate) ignore_term: bool,
    /// `--log-start FILE`: appends `PID MONOTONIC_MS` at each start.
    pub(crate) log_start: Option<PathBuf>,
    /// `--lock FILE`: locks FILE for its whole life, and says in FILE.screams if a living process has it.
    pub(crate) lock: Option<PathBuf>,
    /// `--small`: one thread, which serves one connection after the other; for the test that has a thousand of them.
    pub(crate) small: bool,
    /// `--stderr TEXT`: writes TEXT to stderr at the start.
    pub(crate) stderr: Option<String>,
    /// `--print-facts FILE`: writes what it finds itself to be, as JSON, before it opens anything.
    pub(crate) print_facts: Option<PathBuf>,
    /// `--cat`: echoes bytes as they are; at the client's half-close it adds `EOF after N bytes` and closes.
    pub(crate) cat: bool,
    /// `--full-backlog`: listens, fills its own backlog and never accepts.
    pub(crate) full_backlog: bool,
}

impl Options {
    /// Parses the arguments after the program's name.
    pub(crate) fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self::default();
        while let Some(flag) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| format!("{flag} needs a value"));
            match flag.as_str() {
                "--listen" => options.listen = Some(value()?),
                "--listen-fds" => options.listen_fds = true,
                "--ready-when" => options.ready_when = Some(value()?.into()),
                "--ready-after" => options.ready_after_ms = Some(number(&value()?)?),
                "--never-ready" => options.never_ready = true,
                "--exit" => options.exit = Some(number(&value()?)?),
                "--after-ready" => options.after_ready = true,
                "--when" => options.when = Some(value()?.into()),
                "--die-after-ready" => options.die_after_ready_ms = Some(number(&value()?)?),
                "--fork-away" => options.fork_away = true,
                "--workers" => options.workers = number(&value()?)?,
                "--notify" => options.notify = true,
                "--status" => options.status = Some(value()?),
                "--extend" => options.extend_usec = Some(number(&value()?)?),
                "--ignore-term" => options.ignore_term = true,
                "--log-start" => options.log_start = Some(value()?.into()),
                "--lock" => options.lock = Some(value()?.into()),
                "--small" => options.small = true,
                "--stderr" => options.stderr = Some(value()?),
                "--print-facts" => options.print_facts = Some(value()?.into()),
                "--cat" => options.cat = true,
                "--full-backlog" => options.full_backlog = true,
                _ => return Err(format!("unknown argument {flag}")),
            }
        }
        Ok(options)
    }
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{text} is no number"))
}
