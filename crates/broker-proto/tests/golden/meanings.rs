//! What the golden bytes mean, as JSON below each line, for the tests of clients in other languages.
//!
//! The JSON is serde's: an enum with fields is an object with the variant's name, one without is that name.

use std::collections::BTreeMap;

use broker_proto::{ClientMessage, HIGHEST_VERSION, LOWEST_VERSION, ServerMessage};
use serde::Serialize;

use super::samples::{Sample, samples};
use super::{GOLDEN, PREAMBLES, lines};

/// What a line that is a meaning begins with.
const MEANS: &str = "# means ";

fn json(message: &impl Serialize) -> String {
    serde_json::to_string(message).expect("messages have names as keys")
}

fn meaning(sample: &Sample) -> String {
    match sample {
        Sample::Client(message) => json(message),
        Sample::Server(message) => json(message),
    }
}

/// The meaning of every line.
fn meanings() -> BTreeMap<String, String> {
    let preambles = PREAMBLES.map(|(name, written)| {
        let json = format!(r#"{{"lowest":{LOWEST_VERSION},"highest":{HIGHEST_VERSION},"written":{written}}}"#);
        (name.to_owned(), json)
    });
    samples().iter().map(|(name, sample)| (name.clone(), meaning(sample))).chain(preambles).collect()
}

#[test]
fn below_every_line_stands_its_meaning() {
    let meanings = meanings();
    let mut wrong = String::new();
    for (name, bytes) in lines(GOLDEN) {
        let line = format!("{name} = {bytes}\n");
        let after = GOLDEN.split_once(&line).map_or("", |(_, after)| after).lines().next();
        let expected = meanings.get(name).map(|json| format!("{MEANS}{json}"));
        let expected = expected.unwrap_or_else(|| panic!("`{name}` has no sample"));
        if after != Some(&expected) {
            wrong += &format!("{line}{expected}\n");
        }
    }
    assert!(wrong.is_empty(), "golden/v1.txt should say here:\n{wrong}");
    let written = GOLDEN.lines().filter(|line| line.starts_with(MEANS)).count();
    assert_eq!(written, meanings.len(), "golden/v1.txt has meanings without a line of bytes");
}

#[test]
fn the_meanings_read_as_their_messages() {
    for (name, sample) in samples() {
        let text = meaning(&sample);
        let read = match &sample {
            Sample::Client(_) => serde_json::from_str::<ClientMessage>(&text).map(Sample::Client),
            Sample::Server(_) => serde_json::from_str::<ServerMessage>(&text).map(Sample::Server),
        };
        assert_eq!(read.expect("a message"), sample, "{name}");
    }
}
