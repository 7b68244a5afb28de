//! The questions to `journalctl` by which a start's lines are found.
//!
//! A start's lines are those of its streams, which are found by their first line, or, where the journal has forgotten
//! that, by processes of the start; and whatever else came from its cgroup. So two instances of a service are told apart,
//! and all of a daemon's children are heard.

/// The program that reads the journal.
pub(crate) const PROGRAM: &str = "journalctl";

/// Lines of a process that are looked at to learn its streams.
const LINES_LOOKED_AT: &str = "--lines=100";

/// What is known of a start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Traces<'t> {
    pub(crate) identifier: &'t str,
    pub(crate) first_line: &'t str,
    /// The broker that wrote it, in this boot.
    pub(crate) writer: Option<u32>,
    /// Processes of the start that live, or did to its end.
    pub(crate) pids: &'t [u32],
    /// The cgroup that is the start's own.
    pub(crate) cgroup: Option<&'t str>,
}

impl Traces<'_> {
    /// Asks for the identifiers of its streams, by their first line: one a line.
    pub(crate) fn streams(&self) -> Vec<String> {
        let mut question = stream_question();
        question.extend([identifier(self.identifier), format!("MESSAGE={}", self.first_line)]);
        if let Some(writer) = self.writer {
            question.extend(["--boot".to_owned(), format!("_PID={writer}")]);
        }
        question
    }

    /// Asks for them by its processes; nothing if none is known.
    pub(crate) fn streams_of_processes(&self) -> Option<Vec<String>> {
        let pids: Vec<String> = self.pids.iter().map(|pid| format!("_PID={pid}")).collect();
        let cgroup: Vec<String> = self.cgroup.iter().map(|cgroup| format!("_SYSTEMD_CGROUP={cgroup}")).collect();
        let mut matches = Vec::new();
        for mut group in [pids, cgroup] {
            if !group.is_empty() {
                group.push(identifier(self.identifier));
                alternative(&mut matches, group);
            }
        }
        let options = ["--boot", LINES_LOOKED_AT].map(str::to_owned);
        (!matches.is_empty()).then(|| [stream_question(), options.to_vec(), matches].concat())
    }

    /// Asks for its lines, as it wrote them, given its streams; nothing if there is no way to tell them.
    pub(crate) fn lines(&self, streams: &[String]) -> Option<Vec<String>> {
        let mut matches: Vec<String> = streams.iter().map(|id| format!("_STREAM_ID={id}")).collect();
        if let Some(cgroup) = self.cgroup {
            alternative(&mut matches, vec![format!("_SYSTEMD_CGROUP={cgroup}")]);
        }
        (!matches.is_empty()).then(|| [vec!["--quiet".to_owned(), "--output=cat".to_owned()], matches].concat())
    }
}

/// The identifiers of streams in an answer, each once.
pub(crate) fn stream_ids(answer: &str) -> Vec<String> {
    let is_id = |line: &&str| line.len() == 32 && line.bytes().all(|byte| byte.is_ascii_hexdigit());
    let mut ids: Vec<String> = answer.lines().filter(is_id).map(str::to_owned).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

fn stream_question() -> Vec<String> {
    ["--quiet", "--output=cat", "--output-fields=_STREAM_ID"].map(str::to_owned).to_vec()
}

fn identifier(identifier: &str) -> String {
    format!("SYSLOG_IDENTIFIER={identifier}")
}

/// Adds matches that are enough by themselves.
fn alternative(matches: &mut Vec<String>, more: Vec<String>) {
    if !matches.is_empty() {
        matches.push("+".to_owned());
    }
    matches.extend(more);
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACES: Traces<'static> = Traces {
        identifier: "redis",
        first_line: "starting redis@7.0.15/a, generation 3",
        writer: Some(812),
        pids: &[900, 901],
        cgroup: Some("/x.service/redis@7.0.15~a.3"),
    };

    #[test]
    fn streams_are_asked_for_by_their_first_line_and_then_by_their_writers() {
        insta::assert_snapshot!(TRACES.streams().join(" "), @"--quiet --output=cat --output-fields=_STREAM_ID SYSLOG_IDENTIFIER=redis MESSAGE=starting redis@7.0.15/a, generation 3 --boot _PID=812");
        let writers = |traces: Traces<'_>| traces.streams_of_processes().map(|question| question[3..].join(" "));
        insta::assert_snapshot!(writers(TRACES).unwrap(), @"--boot --lines=100 _PID=900 _PID=901 SYSLOG_IDENTIFIER=redis + _SYSTEMD_CGROUP=/x.service/redis@7.0.15~a.3 SYSLOG_IDENTIFIER=redis");
        insta::assert_snapshot!(writers(Traces { cgroup: None, ..TRACES }).unwrap(), @"--boot --lines=100 _PID=900 _PID=901 SYSLOG_IDENTIFIER=redis");
        assert_eq!(writers(Traces { cgroup: None, pids: &[], ..TRACES }), None);
    }

    #[test]
    fn lines_are_those_of_the_streams_and_of_the_cgroup() {
        let ids =
            stream_ids("-- No entries --\n8f0c\n0123456789abcdef0123456789abcdef\n0123456789abcdef0123456789abcdef\n");
        assert_eq!(ids, ["0123456789abcdef0123456789abcdef"]);
        insta::assert_snapshot!(TRACES.lines(&ids).unwrap().join(" "), @"--quiet --output=cat _STREAM_ID=0123456789abcdef0123456789abcdef + _SYSTEMD_CGROUP=/x.service/redis@7.0.15~a.3");
        insta::assert_snapshot!(TRACES.lines(&[]).unwrap().join(" "), @"--quiet --output=cat _SYSTEMD_CGROUP=/x.service/redis@7.0.15~a.3");
        assert_eq!(Traces { cgroup: None, ..TRACES }.lines(&[]), None);
    }
}
