//! `cargo bench -p broker-bench --bench pure`: what the pure parts of a warm Hello cost, without a socket.

use std::hint::black_box;

use broker::Machines;
use broker_proto::{
    ClientInfo, ClientMessage, Delivery, Endpoint, FRAME_MAX, HIGHEST_VERSION, Hello, InstanceName, Negotiated,
    Preamble, PreparedNegotiated, Reassembler, Requirement, ServerMessage, ServiceName, UnreadHello, decode,
    encode_frame,
};
use criterion::{Criterion, criterion_group, criterion_main};

fn hello() -> ClientMessage {
    ClientMessage::Hello(Hello {
        request_id: 7,
        instance: "default".to_owned(),
        service: "rust-analyzer".to_owned(),
        version_requirement: "^1.4".to_owned(),
        client: ClientInfo { name: "broker-bench".to_owned(), version: "0.1.0".to_owned() },
        deadline_ms: None,
        delivery: Delivery::Endpoint,
        found_dead: None,
    })
}

fn negotiated() -> ServerMessage {
    ServerMessage::Negotiated(Negotiated {
        request_id: 7,
        instance: "default".to_owned(),
        service: "rust-analyzer".to_owned(),
        version: "1.4.2".to_owned(),
        endpoint: Endpoint::Unix {
            path: "/run/user/1000/broker/broker.sock.d/rust-analyzer@1.4.2~default.sock".to_owned(),
        },
        generation: 1,
        pid: Some(4711),
        connected: false,
    })
}

fn body(message: &impl serde::Serialize) -> Vec<u8> {
    let mut frame = Vec::new();
    encode_frame(message, &mut frame).expect("a short message");
    frame.split_off(broker_proto::LENGTH_BYTES)
}

fn codec(criterion: &mut Criterion) {
    let (hello, negotiated) = (hello(), negotiated());
    let (hello_body, negotiated_body) = (body(&hello), body(&negotiated));
    let mut out = Vec::with_capacity(4096);
    let mut group = criterion.benchmark_group("codec");
    group.bench_function("hello, encoded", |bencher| {
        bencher.iter(|| {
            out.clear();
            encode_frame(black_box(&hello), &mut out).expect("a short message");
        });
    });
    group.bench_function("hello, decoded", |bencher| {
        bencher.iter(|| decode::<ClientMessage>(black_box(&hello_body)).expect("a message"));
    });
    group.bench_function("hello, taken apart unread", |bencher| {
        bencher.iter(|| UnreadHello::of(black_box(&hello_body)).expect("a hello"));
    });
    group.bench_function("negotiated, encoded", |bencher| {
        bencher.iter(|| {
            out.clear();
            encode_frame(black_box(&negotiated), &mut out).expect("a short message");
        });
    });
    let ServerMessage::Negotiated(granted) = &negotiated else { unreachable!("it is one") };
    let prepared = PreparedNegotiated::new(&granted.as_ref()).expect("it can be encoded");
    group.bench_function("negotiated, prepared", |bencher| {
        bencher.iter(|| {
            out.clear();
            prepared.append_frame(black_box(7), &mut out).expect("a short message");
        });
    });
    group.bench_function("negotiated, decoded", |bencher| {
        bencher.iter(|| decode::<ServerMessage>(black_box(&negotiated_body)).expect("a message"));
    });
    group.finish();
}

/// What a session does with the bytes of a first Hello before and after anybody decides.
fn stream(criterion: &mut Criterion) {
    let mut first = Preamble::writing(HIGHEST_VERSION).to_bytes().to_vec();
    encode_frame(&hello(), &mut first).expect("a short message");
    criterion.bench_function("stream, preamble and hello taken apart", |bencher| {
        bencher.iter(|| {
            let mut input = Reassembler::default();
            input.space().extend_from_slice(black_box(&first));
            let preamble = input.preamble().expect("a preamble").expect("a whole one");
            let body = input.frame(FRAME_MAX).expect("a frame").expect("a whole one");
            (preamble, decode::<ClientMessage>(body).expect("a message"))
        });
    });
}

fn names(criterion: &mut Criterion) {
    criterion.bench_function("names, instance, service and requirement parsed", |bencher| {
        bencher.iter(|| {
            let instance = InstanceName::parse(black_box("default")).expect("a name");
            let service = ServiceName::parse(black_box("rust-analyzer")).expect("a name");
            (instance, service, Requirement::parse(black_box("^1.4")).expect("a requirement"))
        });
    });
}

/// A Hello and its release, as the machine of a live backend takes them.
fn machine(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("machine, hello and release");
    for backends in [1, 1000] {
        let mut machines = Machines::ready(backends);
        let mut turn = 0;
        group.bench_function(format!("{backends} live"), |bencher| {
            bencher.iter(|| {
                turn += 1;
                assert!(machines.hello_and_release(black_box(turn)), "it is ready");
            });
        });
    }
    group.finish();
}

criterion_group!(benches, codec, stream, names, machine);
criterion_main!(benches);
