//! The table of requests in flight: what the broker says in, what the waiting are told out.

use broker_proto::{Code, Endpoint, Exit, State};

use super::*;

type Table = InFlight<&'static str>;

fn waiting(entries: &[(RequestId, Kind, &'static str)]) -> Table {
    let mut table = Table::default();
    for &(request_id, kind, reply) in entries {
        table.register(request_id, kind, reply).expect("nothing has been announced");
    }
    table
}

fn negotiated(request_id: RequestId) -> ServerMessage {
    ServerMessage::Negotiated(Negotiated {
        request_id,
        instance: "default".to_owned(),
        service: "redis".to_owned(),
        version: "7.0.15".to_owned(),
        endpoint: Endpoint::Unix { path: "/run/redis".to_owned() },
        generation: 1,
        pid: Some(7),
        connected: false,
    })
}

fn refused(request_id: RequestId) -> ServerMessage {
    ServerMessage::Refused { request_id, refusal: Refusal::new(Code::Overloaded, "too much") }
}

fn progress(request_id: RequestId) -> ServerMessage {
    let version = "7.0.15".to_owned();
    ServerMessage::Progress(Progress {
        request_id,
        version,
        state: State::Starting,
        attempt: 0,
        elapsed_ms: 1,
        status: None,
    })
}

fn event(request_id: RequestId, event: Event) -> ServerMessage {
    ServerMessage::Event { request_id, event }
}

fn document(request_id: RequestId) -> ServerMessage {
    ServerMessage::AdminReply { request_id, json: "{}".to_owned() }
}

const EXITED: Event = Event::Exited { generation: 1, exit: Exit::Code(1), lived_ms: 5 };

#[test]
fn answers_find_their_requests_in_any_order() {
    let mut table = waiting(&[(1, Kind::Hello, "a"), (2, Kind::Admin, "b"), (3, Kind::Hello, "c")]);
    assert!(matches!(table.handle(negotiated(3)), Action::Grant { reply: "c", .. }));
    assert!(matches!(table.handle(document(2)), Action::Document { reply: "b", .. }));
    assert!(matches!(table.handle(progress(1)), Action::Progress { reply: &"a", .. }));
    assert!(matches!(table.handle(refused(1)), Action::Refuse { reply: "a", .. }));
}

#[test]
fn a_release_is_told_for_what_waits_or_is_held_and_once() {
    let mut table = waiting(&[(1, Kind::Hello, "waits"), (2, Kind::Hello, "held"), (3, Kind::Admin, "order")]);
    let _ = table.handle(negotiated(2));
    assert!(table.release(1) && table.release(2));
    assert!(!table.release(3), "an order has nothing to release");
    assert!(!table.release(1) && !table.release(2) && !table.release(9));
}

#[test]
fn an_answer_that_nobody_waits_for_is_released() {
    let mut table = waiting(&[(1, Kind::Hello, "a")]);
    assert!(table.release(1));
    assert!(matches!(table.handle(negotiated(1)), Action::Release(1)));
    assert!(matches!(table.handle(negotiated(77)), Action::Release(77)));
}

#[test]
fn a_second_answer_changes_nothing() {
    let mut table = waiting(&[(1, Kind::Hello, "a")]);
    let _ = table.handle(negotiated(1));
    assert!(matches!(table.handle(negotiated(1)), Action::Ignore(_)));
    assert!(matches!(table.handle(refused(1)), Action::Ignore(_)));
    assert!(matches!(table.handle(document(1)), Action::Ignore(_)));
    assert!(table.release(1), "it is still held");
}

#[test]
fn an_answer_of_the_wrong_kind_fails_its_request_and_leaks_no_hold() {
    let mut table = waiting(&[(1, Kind::Hello, "hello"), (2, Kind::Admin, "order")]);
    assert!(matches!(table.handle(document(1)), Action::WrongAnswer { reply: "hello", release: Some(1), .. }));
    assert!(matches!(table.handle(negotiated(2)), Action::WrongAnswer { reply: "order", release: Some(2), .. }));
}

#[test]
fn events_reach_only_holds_and_stopped_ends_one() {
    let mut table = waiting(&[(1, Kind::Hello, "a"), (2, Kind::Hello, "b")]);
    let _ = table.handle(negotiated(1));
    assert!(matches!(table.handle(event(1, EXITED)), Action::Event { request_id: 1, .. }));
    assert!(matches!(table.handle(event(2, EXITED)), Action::Ignore(_)));
    assert!(matches!(table.handle(event(1, Event::Stopped)), Action::Event { request_id: 1, event: Event::Stopped }));
    assert!(!table.release(1), "the hold is over by itself");
}

#[test]
fn after_a_goaway_old_requests_are_answered_and_new_ones_fail() {
    let mut table = waiting(&[(1, Kind::Hello, "old"), (2, Kind::Hello, "older")]);
    assert!(matches!(table.handle(ServerMessage::GoAway { reconnect: Reconnect::Never }), Action::GoAway(_)));
    assert_eq!(table.register(3, Kind::Hello, "new"), Err(("new", Reconnect::Never)));
    assert!(matches!(table.handle(negotiated(1)), Action::Grant { reply: "old", .. }));
    let (failed, end) = table.end(End::Lost(std::sync::Arc::new(std::io::ErrorKind::ConnectionReset.into())));
    assert_eq!(failed, ["older"]);
    assert!(matches!(end, End::GoneAway(Reconnect::Never)), "an abrupt end after it is still a drain");
}

#[test]
fn at_the_end_everything_that_waits_fails() {
    let mut table = waiting(&[(1, Kind::Hello, "a"), (2, Kind::Admin, "b"), (3, Kind::Hello, "c")]);
    let _ = table.handle(negotiated(3));
    let (mut failed, end) = table.end(End::Closed);
    failed.sort_unstable();
    assert_eq!(failed, ["a", "b"]);
    assert!(matches!(end, End::Closed));
    assert!(!table.release(1) && !table.release(3), "there is nobody to tell");
}

#[test]
fn a_refusal_without_an_id_is_for_all_and_explains_the_close() {
    let mut table = waiting(&[(1, Kind::Hello, "a"), (2, Kind::Admin, "b")]);
    let Action::RefuseAll { mut replies, .. } = table.handle(refused(0)) else { panic!("not for all") };
    replies.sort_unstable();
    assert_eq!(replies, ["a", "b"]);
    assert!(matches!(table.end(End::Closed).1, End::Refused(refusal) if refusal.code == Code::Overloaded));
}

#[test]
fn a_refusal_that_the_session_outlived_does_not_explain_its_close() {
    let mut table = waiting(&[(1, Kind::Hello, "a")]);
    let _ = table.handle(refused(0));
    table.register(2, Kind::Hello, "b").expect("the session lives");
    let _ = table.handle(negotiated(2));
    assert!(matches!(table.end(End::Closed).1, End::Closed));
}

#[test]
fn the_table_has_room_again_once_a_request_is_answered_or_given_up() {
    let mut table = Table::default();
    for request_id in 1..=WAITING_MAX as RequestId {
        assert!(table.has_room());
        table.register(request_id, Kind::Hello, "x").expect("nothing has been announced");
    }
    assert!(!table.has_room());
    let _ = table.handle(negotiated(1));
    assert!(table.has_room(), "a hold does not wait");
    table.register(u64::MAX, Kind::Hello, "x").expect("nothing has been announced");
    assert!(table.release(2));
    assert!(table.has_room());
}

/// Every kind of message, for every id around those in use, in a random order: the table neither panics nor loses
/// count.
#[test]
fn no_order_of_messages_is_fatal() {
    let mut random: u64 = 0x2545_f491_4f6c_dd1d;
    let mut next = |below: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % below
    };
    for _ in 0..200 {
        let mut table = waiting(&[(1, Kind::Hello, "a"), (2, Kind::Admin, "b"), (3, Kind::Hello, "c")]);
        for _ in 0..60 {
            let id = next(5);
            let message = match next(9) {
                0 => negotiated(id),
                1 => refused(id),
                2 => progress(id),
                3 => event(id, Event::Stopped),
                4 => event(id, EXITED),
                5 => document(id),
                6 => ServerMessage::Pong { nonce: id },
                7 => ServerMessage::GoAway { reconnect: Reconnect::After { ms: 1 } },
                _ => {
                    table.release(id);
                    continue;
                }
            };
            let _ = table.handle(message);
            let counted = table.entries.values().filter(|entry| matches!(entry, Entry::Waiting { .. })).count();
            assert_eq!(table.waiting, counted);
        }
    }
}
