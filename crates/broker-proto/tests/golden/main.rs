//! What shipped stays readable: every message against the bytes in `golden/v1.txt`.
//!
//! A line there is never changed or removed. A new message gets a sample, and its line is appended: the tests that
//! miss it, or the meaning below it, print it.

mod meanings;
mod samples;
mod variants;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use broker_proto::{
    ClientInfo, ClientMessage, ClientMessageRef, CodecError, Delivery, Hello, LENGTH_BYTES, Negotiated, Preamble,
    PreparedNegotiated, Reassembler, ServerMessage, ServerMessageRef, UnreadHello, decode, encode_frame,
};
use proptest::prelude::*;

use samples::{Sample, samples};

const GOLDEN: &str = include_str!("../../golden/v1.txt");
const PROTOCOL: &str = include_str!("../../PROTOCOL.md");

/// The lines that are no message, and the version that each names.
const PREAMBLES: [(&str, u16); 2] = [("preamble.version_1", 1), ("preamble.nothing_follows", 0)];

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Vec<u8> {
    assert!(text.len().is_multiple_of(2), "`{text}` has half a byte");
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("hexadecimal")).collect()
}

/// The `name = hex` lines of a text.
fn lines(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let lines = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once(" = "));
    lines.filter(|(_, bytes)| bytes.len() >= 2 && bytes.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

fn golden() -> BTreeMap<&'static str, Vec<u8>> {
    let mut golden = BTreeMap::new();
    for (name, bytes) in lines(GOLDEN) {
        assert!(golden.insert(name, unhex(bytes)).is_none(), "`{name}` stands twice in golden/v1.txt");
    }
    golden
}

fn frame(sample: &Sample) -> Vec<u8> {
    let mut bytes = Vec::new();
    match sample {
        Sample::Client(message) => encode_frame(message, &mut bytes),
        Sample::Server(message) => encode_frame(message, &mut bytes),
    }
    .expect("a sample fits a frame");
    bytes
}

fn read(like: &Sample, body: &[u8]) -> Result<Sample, CodecError> {
    match like {
        Sample::Client(_) => decode(body).map(Sample::Client),
        Sample::Server(_) => decode(body).map(Sample::Server),
    }
}

#[test]
fn every_message_has_the_bytes_that_shipped() {
    let golden = golden();
    let mut missing = String::new();
    for (name, sample) in samples() {
        let bytes = frame(&sample);
        match golden.get(name.as_str()) {
            Some(shipped) => assert_eq!(hex(&bytes), hex(shipped), "`{name}` has changed on the wire"),
            None => missing += &format!("{name} = {}\n", hex(&bytes)),
        }
    }
    assert!(missing.is_empty(), "golden/v1.txt lacks these lines:\n{missing}");
}

#[test]
fn messages_of_borrowed_texts_have_the_same_bytes() {
    let mut written = 0;
    for (name, sample) in samples() {
        let bytes = frame(&sample);
        match &sample {
            Sample::Client(message) => {
                let read: ClientMessageRef<'_> = decode(&bytes[LENGTH_BYTES..]).expect("it reads");
                assert_eq!(format!("{read:?}"), format!("{message:?}"), "{name}");
            }
            Sample::Server(ServerMessage::Negotiated(negotiated)) => {
                let mut again = Vec::new();
                encode_frame(&ServerMessageRef::Negotiated(negotiated.as_ref()), &mut again).expect("it fits");
                assert_eq!(&negotiated.as_ref().into_owned(), negotiated);
                assert_eq!(hex(&again), hex(&bytes), "{name}");
                written += 1;
            }
            Sample::Server(_) => {}
        }
    }
    assert!(written >= 2, "what is granted with a socket, and without");
}

#[test]
fn a_prepared_answer_has_the_same_bytes() {
    let negotiated = samples().into_iter().filter_map(|(name, sample)| match sample {
        Sample::Server(ServerMessage::Negotiated(negotiated)) => Some((name, negotiated)),
        _ => None,
    });
    for (name, negotiated) in negotiated {
        let prepared = PreparedNegotiated::new(&negotiated.as_ref()).expect("it fits");
        for request_id in [0, 250, 251, 0xffff, 0x1_0000, u64::from(u32::MAX), u64::MAX] {
            let negotiated = ServerMessage::Negotiated(Negotiated { request_id, ..negotiated.clone() });
            let mut bytes = vec![42];
            prepared.append_frame(request_id, &mut bytes).expect("it fits");
            assert_eq!(hex(&bytes[1..]), hex(&frame(&Sample::Server(negotiated))), "{name}, {request_id}");
        }
    }
}

#[test]
fn of_all_messages_a_hello_alone_is_taken_for_one() {
    let mut hellos = 0;
    for (name, sample) in samples() {
        let Sample::Client(message) = &sample else { continue };
        let bytes = frame(&sample);
        let unread = UnreadHello::of(&bytes[LENGTH_BYTES..]);
        match message {
            ClientMessage::Hello(hello) => {
                assert_eq!(unread.map(|unread| unread.terms), Some(hello.terms()), "{name}");
                hellos += 1;
            }
            _ => assert_eq!(unread, None, "{name}"),
        }
    }
    assert!(hellos >= 2, "with everything, and with the least");
}

#[test]
fn the_bytes_that_shipped_read_as_their_messages() {
    let mut golden = golden();
    for (name, sample) in samples() {
        let shipped = golden.remove(name.as_str()).unwrap_or_else(|| panic!("`{name}` is not in golden/v1.txt"));
        let mut stream = Reassembler::default();
        stream.space().extend_from_slice(&shipped);
        let body = stream.frame(shipped.len()).expect("a frame").expect("a whole one");
        assert_eq!(read(&sample, body).expect("a message"), sample, "{name}");
        assert!(!stream.is_midway(), "{name}");
    }
    golden.retain(|name, _| !name.starts_with("preamble."));
    assert_eq!(golden.keys().collect::<Vec<_>>(), Vec::<&&str>::new(), "these lines have lost their samples");
}

#[test]
fn the_preamble_is_frozen() {
    let golden = golden();
    for (name, written) in PREAMBLES {
        assert_eq!(hex(&Preamble::writing(written).to_bytes()), hex(&golden[name]), "{name}");
    }
}

#[test]
fn no_variant_is_without_a_sample() {
    let mut seen = BTreeSet::new();
    for (_, sample) in samples() {
        match &sample {
            Sample::Client(message) => variants::of_client(message, &mut seen),
            Sample::Server(message) => variants::of_server(message, &mut seen),
        }
    }
    let missing: Vec<_> = variants::all().difference(&seen).copied().collect();
    assert!(missing.is_empty(), "no sample has {missing:?}");
}

#[test]
fn a_message_cut_short_or_followed_by_bytes_is_an_error() {
    for (name, sample) in samples() {
        let bytes = frame(&sample);
        let body = &bytes[LENGTH_BYTES..];
        for length in 0..body.len() {
            assert!(read(&sample, &body[..length]).is_err(), "{name} was read from {length} of {} bytes", body.len());
        }
        for count in 1..=9 {
            let longer = [body, &vec![0; count]].concat();
            let result = read(&sample, &longer);
            assert!(matches!(result, Err(CodecError::Trailing { count: left }) if left == count), "{name}: {result:?}");
        }
    }
}

#[test]
fn the_examples_in_the_protocols_page_are_the_golden_bytes() {
    let golden = golden();
    let mut examples = 0;
    for (name, bytes) in lines(PROTOCOL) {
        assert_eq!(golden.get(name).map(|shipped| hex(shipped)).as_deref(), Some(bytes), "`{name}` in PROTOCOL.md");
        examples += 1;
    }
    assert!(examples >= 8, "PROTOCOL.md has {examples} examples");
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = decode::<ClientMessage>(&bytes);
        let _ = decode::<ServerMessage>(&bytes);
    }

    /// Damage deep inside a message, where random bytes do not reach.
    #[test]
    fn damaged_messages_never_panic(
        which in any::<prop::sample::Index>(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let samples = samples();
        let (_, sample) = which.get(&samples);
        let mut body = frame(sample).split_off(LENGTH_BYTES);
        for (at, byte) in damage {
            let at = at.index(body.len());
            body[at] = byte;
        }
        let _ = read(sample, &body);
        if let (Some(unread), Ok(ClientMessage::Hello(hello))) = (UnreadHello::of(&body), decode(&body)) {
            prop_assert_eq!(unread.terms, hello.terms());
        }
    }

    /// Whoever knows what some texts say knows it of each Hello that has the same bytes there, and of no other.
    #[test]
    fn the_texts_of_a_hello_stay_together_unread(
        texts in proptest::collection::vec("\\PC{0,90}", 5),
        request_id in any::<u64>(),
        deadline_ms in any::<Option<u64>>(),
        found_dead in any::<Option<u64>>(),
        is_connected in any::<bool>(),
    ) {
        let [instance, service, version_requirement, name, version] = &texts[..] else { unreachable!("five") };
        let delivery = if is_connected { Delivery::Connected } else { Delivery::Endpoint };
        let client = ClientInfo { name: &**name, version: &**version };
        let hello = Hello {
            request_id, instance: &**instance, service, version_requirement, client, deadline_ms, delivery, found_dead,
        };
        let mut bytes = Vec::new();
        encode_frame(&ClientMessageRef::Hello(hello.clone()), &mut bytes).expect("it fits");
        let together: Vec<u8> = texts.iter().flat_map(|text| {
            [&[u8::try_from(text.len()).unwrap_or(u8::MAX)], text.as_bytes()].concat()
        }).collect();
        let is_short = texts.iter().all(|text| text.len() <= 250);
        let unread = UnreadHello { texts: &together, terms: hello.terms() };
        prop_assert_eq!(UnreadHello::of(&bytes[LENGTH_BYTES..]), is_short.then_some(unread));
    }
}
