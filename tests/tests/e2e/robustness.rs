//! Peers that are broken or hostile, spoken by hand: the broker answers everybody else throughout.

use std::io::Read as _;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use broker_proto::{
    ClientMessage, Code, FIRST_FRAME_MAX, FRAME_MAX, HIGHEST_VERSION, LENGTH_BYTES, Preamble, ServerMessage,
    encode_frame,
};
use broker_tests::{BOUND, Broker, Service, Session, Setup, trials};

trials![
    a_4_gib_length_prefix_is_not_believed,
    garbage_costs_its_sender_the_connection_alone,
    half_a_first_message_is_not_waited_for_for_ever,
    half_a_frame_of_an_accepted_session_blocks_nobody,
    five_hundred_idle_connections_block_nobody,
    a_bad_body_is_malformed_and_the_session_goes_on,
    a_long_first_message_is_refused_a_long_later_one_is_not,
    a_peer_that_does_not_read_blocks_nobody,
    a_peer_that_never_pauses_blocks_nobody,
    clients_that_come_without_end_pile_up_nowhere,
    a_user_with_too_many_sessions_is_refused_a_new_one,
    a_session_that_ends_in_the_middle_of_a_frame_is_forgotten,
];

fn broker() -> Broker {
    Broker::start(&[&Service::fake("x", &[])])
}

fn raw(broker: &Broker, bytes: &[u8]) -> Session {
    let mut session = Session::silent(&broker.socket());
    session.write(bytes).expect("the broker reads");
    session
}

fn preamble_then(bytes: &[u8]) -> Vec<u8> {
    [&Preamble::writing(HIGHEST_VERSION).to_bytes()[..], bytes].concat()
}

/// What the broker said before it closed the connection was nothing, or that the message is malformed.
fn assert_cut_off(session: &mut Session) {
    for message in session.closed() {
        let ServerMessage::Refused { refusal, .. } = message else { panic!("the broker said {message:?}") };
        assert_eq!(refusal.code, Code::Malformed, "{refusal}");
    }
}

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("brokerd runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a field");
    line.split_whitespace().next().and_then(|number| number.parse().ok()).expect("a number")
}

fn a_4_gib_length_prefix_is_not_believed() {
    let broker = broker();
    let before = broker.resolve("x");
    let memory = resident_kib(broker.pid());
    let mut liars: Vec<Session> = (0..20).map(|_| raw(&broker, &preamble_then(&[0xff; LENGTH_BYTES]))).collect();
    let mut accepted = broker.session();
    let _ = accepted.hold("x");
    accepted.write(&[0xff; LENGTH_BYTES]).expect("the broker reads");
    for liar in liars.iter_mut().chain([&mut accepted]) {
        assert_cut_off(liar);
    }
    assert_eq!(broker.resolve("x"), before);
    assert!(resident_kib(broker.pid()) < memory + 64 * 1024, "nothing was set aside");
    broker.wait_backend("x", "held by nobody", |b| b["holds"] == 0);
}

fn garbage_costs_its_sender_the_connection_alone() {
    let broker = broker();
    let mut held = broker.session();
    let _ = held.hold("x");
    let noise: Vec<u8> = (0..4096u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8 | 0x80).collect();
    for bytes in [b"GET / HTTP/1.1\r\n\r\n".as_slice(), &noise, b"P", b"PBRK\0\0", &[0; 64]] {
        let mut session = raw(&broker, bytes);
        if bytes.len() >= Preamble::LENGTH {
            assert_cut_off(&mut session);
        }
    }
    assert_eq!(held.hold("x").generation, 1, "others go on");
}

fn half_a_first_message_is_not_waited_for_for_ever() {
    let setup = Setup::new().config("[limits]\nfirst_message_timeout = \"1s\"\n");
    let broker = setup.service(&Service::fake("x", &[])).start();
    let mut established = broker.session();
    let _ = established.hold("x");
    let mut hello = Vec::new();
    let message = ClientMessage::Ping { nonce: 1 };
    encode_frame(&message, &mut hello).expect("short");
    let whole = preamble_then(&hello);
    let parts = [0, 3, Preamble::LENGTH, Preamble::LENGTH + 2, whole.len() - 1];
    let mut silent = parts.map(|count| raw(&broker, &whole[..count]));
    silent.iter_mut().for_each(assert_cut_off);
    established.ping();
}

fn half_a_frame_of_an_accepted_session_blocks_nobody() {
    let setup = Setup::new().config("[limits]\nfirst_message_timeout = \"1m\"\n");
    let broker = setup.service(&Service::fake("x", &[])).start();
    let mut session = broker.session();
    let _ = session.hold("x");
    let mut frame = Vec::new();
    encode_frame(&ClientMessage::Ping { nonce: 9 }, &mut frame).expect("short");
    session.write(&frame[..frame.len() - 1]).expect("the broker reads");
    assert_eq!(broker.resolve("x")["generation"], 1);
    session.write(&frame[frame.len() - 1..]).expect("the broker reads on");
    session.wait_message("pong", |message| matches!(message, ServerMessage::Pong { nonce: 9 }).then_some(()));
}

fn five_hundred_idle_connections_block_nobody() {
    let broker = broker();
    let silent: Vec<UnixStream> =
        (0..250).map(|_| UnixStream::connect(broker.socket()).expect("the broker accepts")).collect();
    let mut sessions: Vec<Session> = (0..250).map(|_| broker.session()).collect();
    for session in &mut sessions {
        assert_eq!(session.hold("x").generation, 1);
    }
    assert_eq!(broker.resolve("x")["generation"], 1);
    assert_eq!(broker.backend("x")["holds"], 250);
    drop((silent, sessions));
    broker.wait_backend("x", "held by nobody", |b| b["holds"] == 0);
    assert_eq!(broker.starts("x").len(), 1);
}

fn a_bad_body_is_malformed_and_the_session_goes_on() {
    let broker = broker();
    let mut session = broker.session();
    let _ = session.hold("x");
    let mut good = Vec::new();
    encode_frame(&ClientMessage::Ping { nonce: 5 }, &mut good).expect("short");
    let mut trailing = good[LENGTH_BYTES..].to_vec();
    trailing.push(0);
    for body in [&[][..], &[0xff; 32], &[250], &trailing] {
        let length = u32::try_from(body.len()).expect("short").to_le_bytes();
        session.write(&[&length, body].concat()).expect("the broker reads");
        let message = session.receive().expect("the broker answers");
        let ServerMessage::Refused { refusal, .. } = message else { panic!("{body:?} is answered {message:?}") };
        assert_eq!(refusal.code, Code::Malformed, "{refusal}");
    }
    assert_eq!(session.hold("x").generation, 1);
    assert_eq!(broker.backend("x")["holds"], 2, "what it held it holds");
}

fn a_long_first_message_is_refused_a_long_later_one_is_not() {
    let broker = broker();
    let prefix = |length: usize| u32::try_from(length).expect("short").to_le_bytes();
    let mut session = raw(&broker, &preamble_then(&prefix(FIRST_FRAME_MAX + 1)));
    assert_cut_off(&mut session);

    let mut session = broker.session();
    let _ = session.hold("x");
    let mut body = vec![0xff; FRAME_MAX];
    body.splice(..0, prefix(FRAME_MAX));
    session.write(&body).expect("the broker reads a whole megabyte");
    let message = session.receive().expect("the broker answers");
    assert!(
        matches!(&message, ServerMessage::Refused { refusal, .. } if refusal.code == Code::Malformed),
        "{message:?}"
    );
    session.write(&prefix(FRAME_MAX + 1)).expect("the broker reads");
    assert_cut_off(&mut session);
}

fn a_peer_that_does_not_read_blocks_nobody() {
    let broker = broker();
    let stream = UnixStream::connect(broker.socket()).expect("the broker accepts");
    stream.set_write_timeout(Some(Duration::from_secs(1))).expect("a timeout can be set");
    let mut frames = preamble_then(&[]);
    for request_id in 1..=2000 {
        let request = broker_proto::AdminRequest::Status;
        encode_frame(&ClientMessage::Admin { request_id, request }, &mut frames).expect("short");
    }
    // The broker may stop reading, or cut the connection: it must only not wait, and not gather answers for ever.
    let _ = std::io::Write::write_all(&mut &stream, &frames);
    assert_eq!(broker.session().hold("x").generation, 1);
    assert_eq!(broker.resolve("x")["generation"], 1);
    assert!(resident_kib(broker.pid()) < 512 * 1024);
    drop(stream);
    broker.wait_backend("x", "held by nobody", |b| b["holds"] == 0);
}

fn a_user_with_too_many_sessions_is_refused_a_new_one() {
    let setup = Setup::new().config("[limits]\nsessions_per_user = 3\n");
    let broker = setup.service(&Service::fake("x", &[])).start();
    let mut sessions: Vec<Session> = (0..3).map(|_| accepted_session(&broker)).collect();
    for session in &mut sessions {
        let _ = session.hold("x");
    }
    let refused = broker.ctl_json(&["resolve", "x"]).exits(75).json();
    let code = refused["refused"]["code"].as_str();
    assert!(matches!(code, Some("overloaded" | "rate_limited")), "{refused}");
    for session in &mut sessions {
        assert_eq!(session.hold("x").generation, 1, "peers in good standing are never cut");
    }
    drop(sessions.pop());
    broker_tests::wait_until("there is room again", || broker.ctl(&["resolve", "x"]).code == 0);
}

/// A session that is admitted for sure: one that ended a moment ago may still count when the next comes.
fn accepted_session(broker: &Broker) -> Session {
    broker_tests::wait_for("a session is admitted", || {
        let mut session = Session::try_open(&broker.socket()).ok()?;
        session.try_ping().ok().map(|()| session)
    })
}

fn a_session_that_ends_in_the_middle_of_a_frame_is_forgotten() {
    let broker = broker();
    let mut stream = UnixStream::connect(broker.socket()).expect("the broker accepts");
    std::io::Write::write_all(&mut stream, &preamble_then(&[200, 0, 0, 0, 1, 2, 3])).expect("the broker reads");
    stream.shutdown(std::net::Shutdown::Write).expect("half-closed");
    stream.set_read_timeout(Some(BOUND)).expect("a timeout can be set");
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).expect("the broker closes its side too");
    assert_eq!(broker.resolve("x")["generation"], 1);
}

fn a_peer_that_never_pauses_blocks_nobody() {
    let setup = Setup::new().config("[limits]\nfirst_message_timeout = \"500ms\"");
    let broker = setup.service(&Service::fake("x", &[])).start();
    let mut frames = Vec::new();
    for _ in 0..1000 {
        encode_frame(&ClientMessage::Release { request_id: 7 }, &mut frames).expect("short");
    }
    let (socket, stop) = (broker.socket(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let flood = scope.spawn(|| {
            let mut session = Session::silent(&socket);
            session.write(&preamble_then(&[])).expect("the broker reads");
            while !stop.load(Ordering::Relaxed) {
                session.write(&frames).expect("the broker reads");
            }
        });
        // Its timer fires, and others are served, while the flood goes on.
        assert_cut_off(&mut raw(&broker, b"PB"));
        let _ = broker.resolve("x");
        stop.store(true, Ordering::Relaxed);
        flood.join().expect("it was served as well");
    });
}

fn clients_that_come_without_end_pile_up_nowhere() {
    const CONNECTIONS: usize = 20_000;
    let setup = Setup::new().config("[limits]\nsessions_per_user = 8\n");
    let broker = setup.service(&Service::fake("x", &[])).start();
    let (socket, mut session) = (broker.socket(), accepted_session(&broker));
    let come_and_go = || {
        for _ in 0..CONNECTIONS {
            drop(UnixStream::connect(&socket).expect("the broker accepts"));
        }
    };
    std::thread::scope(|scope| {
        let floods = [scope.spawn(come_and_go), scope.spawn(come_and_go)];
        let mut most = 0;
        while floods.iter().any(|flood| !flood.is_finished()) {
            session.try_ping().expect("who is there already is served");
            let open = std::fs::read_dir(format!("/proc/{}/fd", broker.pid())).expect("brokerd runs").count();
            most = most.max(open);
        }
        // A turn of the runtime accepts 128 at most, and lets go of those that it turned away.
        assert!(most < 512, "{most} descriptors are open at once");
    });
}
