//! What a person sees while a command waits: a spinner on a terminal, lines with `--verbose`, otherwise nothing.
//!
//! Always on stderr: stdout is for results.

use std::time::{Duration, Instant};

use broker_client::{Error, Pending};
use broker_proto::{Progress, State};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output::{Console, harmless, humane};

/// A wait shorter than this shows nothing: a flicker tells nobody anything.
const QUIET_FOR: Duration = Duration::from_millis(200);
const TICK: Duration = Duration::from_millis(100);

/// Waits for the answer, showing what goes on meanwhile.
pub(super) async fn wait<T: Send + 'static>(
    console: &Console,
    title: &str,
    mut pending: Pending<T>,
) -> Result<T, Error> {
    let mut view = View::new(console, title);
    let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + QUIET_FOR, TICK);
    loop {
        tokio::select! {
            progress = pending.progress() => match progress {
                Some(progress) => view.update(progress),
                None => break,
            },
            _ = tick.tick() => view.draw(),
        }
    }
    view.clear();
    pending.await
}

/// Waits for something else, showing for what and for how long.
pub(super) async fn watch<T>(console: &Console, title: &str, work: impl Future<Output = T>) -> T {
    let mut view = View::new(console, title);
    let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + QUIET_FOR, TICK);
    let mut work = std::pin::pin!(work);
    let result = loop {
        tokio::select! {
            result = &mut work => break result,
            _ = tick.tick() => view.draw(),
        }
    };
    view.clear();
    result
}

struct View<'a> {
    console: &'a Console,
    title: &'a str,
    since: Instant,
    last: Option<Progress>,
    bar: Option<ProgressBar>,
}

impl<'a> View<'a> {
    fn new(console: &'a Console, title: &'a str) -> Self {
        Self { console, title, since: Instant::now(), last: None, bar: None }
    }

    fn update(&mut self, progress: Progress) {
        let same = self.last.as_ref().is_some_and(|last| {
            (last.state, last.attempt, &last.status) == (progress.state, progress.attempt, &progress.status)
        });
        if self.console.verbose && !same {
            self.console.note(sentence(self.title, Some(&progress), self.since.elapsed()));
        }
        self.last = Some(progress);
    }

    fn draw(&mut self) {
        if self.console.quiet || self.console.verbose || !self.console.stderr_is_terminal {
            return;
        }
        let bar = self.bar.get_or_insert_with(spinner);
        bar.set_message(sentence(self.title, self.last.as_ref(), self.since.elapsed()));
        bar.tick();
    }

    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for View<'_> {
    /// A wait that is given up leaves no half a line behind.
    fn drop(&mut self) {
        self.clear();
    }
}

fn spinner() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg}") {
        bar.set_style(style);
    }
    bar
}

/// `redis@7.0.15: starting, the retry, 1.2s: loading the dataset`.
fn sentence(title: &str, progress: Option<&Progress>, waited: Duration) -> String {
    let Some(Progress { version, state, attempt, status, .. }) = progress else {
        return format!("{title}: waiting, {}", humane(waited));
    };
    let name = match title.split_once('@') {
        None if !version.is_empty() => match title.split_once('/') {
            Some((service, instance)) => format!("{service}@{version}/{instance}"),
            None => format!("{title}@{version}"),
        },
        _ => title.to_owned(),
    };
    let doing = match (state, attempt) {
        (State::Starting, 0) => "starting",
        (State::Starting, _) => "starting again after a crash",
        (State::Backoff, _) => "crashed, about to start again",
        (State::Stopping, _) => "waiting for its end",
        (state, _) => state.as_str(),
    };
    let status = status.as_deref().filter(|text| !text.is_empty());
    let status = status.map(|text| format!(": {}", harmless(text))).unwrap_or_default();
    format!("{name}: {doing}, {}{status}", humane(waited))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(state: State, attempt: u32, status: Option<&str>) -> Progress {
        let status = status.map(str::to_owned);
        Progress { request_id: 1, version: "7.0.15".to_owned(), state, attempt, elapsed_ms: 0, status }
    }

    #[test]
    fn a_sentence_says_what_goes_on() {
        let say = |title, progress: Option<Progress>| sentence(title, progress.as_ref(), Duration::from_millis(1_200));
        assert_eq!(say("redis", None), "redis: waiting, 1.2s");
        assert_eq!(say("redis", Some(progress(State::Starting, 0, None))), "redis@7.0.15: starting, 1.2s");
        assert_eq!(
            say("redis/a", Some(progress(State::Starting, 1, Some("loading\x1b[1m")))),
            "redis@7.0.15/a: starting again after a crash, 1.2s: loading\\x1b[1m"
        );
        assert_eq!(
            say("redis@^7", Some(progress(State::Backoff, 0, None))),
            "redis@^7: crashed, about to start again, 1.2s"
        );
    }
}
