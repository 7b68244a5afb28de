//! The table of requests and holds: what the broker says in, what the waiting are told and what is sent out.

use broker_proto::{ClientInfo, Delivery, Endpoint, Exit, Selection, State};

use super::*;

type Table = InFlight<&'static str>;

pub(super) fn hello(request_id: RequestId) -> Ask {
    let hello = Hello {
        request_id,
        instance: "default".to_owned(),
        service: "redis".to_owned(),
        version_requirement: "^7".to_owned(),
        client: ClientInfo { name: "test".to_owned(), version: String::new() },
        deadline_ms: None,
        delivery: Delivery::Connected,
        found_dead: None,
    };
    Ask::Hello { hello, due: None }
}

fn order() -> Ask {
    Ask::Admin(AdminRequest::Stop { selection: Selection::default(), deadline_ms: None })
}

fn report() -> Ask {
    Ask::Admin(AdminRequest::Status)
}

/// A table in which these requests have been sent.
fn sent(heals: bool, requests: Vec<(RequestId, Ask, &'static str)>) -> Table {
    let mut table = Table::new(heals);
    for (request_id, ask, reply) in requests {
        table.register(request_id, ask, reply).expect("nothing has been announced");
        assert!(table.next_to_send(Instant::now()).is_some());
    }
    table
}

pub(super) fn negotiated(request_id: RequestId) -> ServerMessage {
    process(request_id, "7.0.15", 7)
}

fn process(request_id: RequestId, version: &str, pid: u32) -> ServerMessage {
    ServerMessage::Negotiated(Negotiated {
        request_id,
        instance: "default".to_owned(),
        service: "redis".to_owned(),
        version: version.to_owned(),
        endpoint: Endpoint::Unix { path: "/run/redis".to_owned() },
        generation: 1,
        pid: Some(pid),
        connected: false,
    })
}

fn refused(request_id: RequestId, code: Code) -> ServerMessage {
    ServerMessage::Refused { request_id, refusal: Refusal::new(code, "no").retry_after_ms(5_000) }
}

fn progress(request_id: RequestId) -> ServerMessage {
    let (version, state) = ("7.0.15".to_owned(), State::Starting);
    ServerMessage::Progress(Progress { request_id, version, state, attempt: 0, elapsed_ms: 1, status: None })
}

fn event(request_id: RequestId, event: Event) -> ServerMessage {
    ServerMessage::Event { request_id, event }
}

fn document(request_id: RequestId) -> ServerMessage {
    ServerMessage::AdminReply { request_id, json: "{}".to_owned() }
}

fn goes(reconnect: Reconnect) -> ServerMessage {
    ServerMessage::GoAway { reconnect }
}

const EXITED: Event = Event::Exited { generation: 1, exit: Exit::Code(1), lived_ms: 5 };
const SOON: Reconnect = Reconnect::After { ms: 1 };

impl Table {
    fn hears(&mut self, message: ServerMessage) -> Action<'_, &'static str> {
        self.handle(Instant::now(), message)
    }

    /// The Hellos to be sent now, as `id requirement`.
    fn hellos(&mut self) -> Vec<String> {
        let mut hellos = Vec::new();
        while let Some(message) = self.next_to_send(Instant::now()) {
            if let ClientMessage::Hello(hello) = message {
                hellos.push(format!("{} {}", hello.request_id, hello.version_requirement));
            }
        }
        hellos
    }
}

#[test]
fn answers_find_their_requests_in_any_order() {
    let mut table = sent(true, vec![(1, hello(1), "a"), (2, report(), "b"), (3, hello(3), "c")]);
    assert!(matches!(table.hears(negotiated(3)), Action::Grant { reply: "c", .. }));
    assert!(matches!(table.hears(document(2)), Action::Document { reply: "b", .. }));
    assert!(matches!(table.hears(progress(1)), Action::Progress { reply: &"a", .. }));
    assert!(matches!(table.hears(refused(1, Code::Overloaded)), Action::Refuse { reply: "a", .. }));
}

#[test]
fn a_release_is_told_for_what_was_sent_or_is_held_and_once() {
    let mut table = sent(true, vec![(1, hello(1), "waits"), (2, hello(2), "held"), (3, report(), "report")]);
    let _ = table.hears(negotiated(2));
    table.register(4, hello(4), "unsent").expect("nothing has been announced");
    assert!(table.release(1) && table.release(2));
    assert!(!table.release(3), "a report has nothing to release");
    assert!(!table.release(4), "the broker does not know it");
    assert_eq!(table.hellos(), [""; 0], "what was released is not sent any more");
    assert!(!table.release(1) && !table.release(2) && !table.release(9));
}

#[test]
fn an_answer_that_nobody_waits_for_is_released() {
    let mut table = sent(true, vec![(1, hello(1), "a")]);
    assert!(table.release(1));
    assert!(matches!(table.hears(negotiated(1)), Action::Release(1)));
    assert!(matches!(table.hears(negotiated(77)), Action::Release(77)));
}

#[test]
fn a_second_answer_changes_nothing() {
    let mut table = sent(true, vec![(1, hello(1), "a")]);
    let _ = table.hears(negotiated(1));
    assert!(matches!(table.hears(negotiated(1)), Action::Ignore(_)));
    assert!(matches!(table.hears(refused(1, Code::Overloaded)), Action::Ignore(_)));
    assert!(matches!(table.hears(document(1)), Action::Ignore(_)));
    assert!(table.release(1), "it is still held");
}

#[test]
fn an_answer_of_the_wrong_kind_fails_its_request_and_leaks_no_hold() {
    let mut table = sent(true, vec![(1, hello(1), "hello"), (2, report(), "report")]);
    assert!(matches!(table.hears(document(1)), Action::WrongAnswer { reply: "hello", release: Some(1), .. }));
    assert!(matches!(table.hears(negotiated(2)), Action::WrongAnswer { reply: "report", release: Some(2), .. }));
}

#[test]
fn events_reach_only_holds_and_stopped_ends_one() {
    let mut table = sent(true, vec![(1, hello(1), "a"), (2, hello(2), "b")]);
    let Action::Grant { standing, .. } = table.hears(negotiated(1)) else { panic!("not granted") };
    assert!(matches!(table.hears(event(1, EXITED)), Action::Event { request_id: 1, .. }));
    assert!(matches!(table.hears(event(2, EXITED)), Action::Ignore(_)));
    assert!(matches!(table.hears(event(1, Event::Resumable)), Action::Ignore(_)));
    assert!(standing.borrow().is_resumable && standing.borrow().is_held);
    assert!(matches!(table.hears(event(1, Event::Stopped)), Action::Event { request_id: 1, event: Event::Stopped }));
    assert!(!standing.borrow().is_held);
    assert!(!table.release(1), "the hold is over by itself");
}

#[test]
fn a_hold_tells_of_the_generation_that_serves() {
    let mut table = sent(true, vec![(1, hello(1), "a")]);
    let Action::Grant { standing, .. } = table.hears(negotiated(1)) else { panic!("not granted") };
    let endpoint = Endpoint::Tcp { host: "127.0.0.1".to_owned(), port: 9 };
    let _ = table.hears(event(1, Event::Ready { generation: 2, endpoint: endpoint.clone() }));
    let now = standing.borrow().negotiated.clone();
    assert_eq!((now.generation, now.endpoint, now.pid), (2, endpoint, None));
}

#[test]
fn after_a_goaway_a_session_that_ends_with_it_takes_nothing_new() {
    let mut table = sent(false, vec![(1, hello(1), "old"), (2, hello(2), "older")]);
    assert!(matches!(table.hears(goes(Reconnect::Never)), Action::GoAway(_)));
    assert!(matches!(table.register(3, hello(3), "new"), Err(("new", Reconnect::Never))));
    assert!(matches!(table.hears(negotiated(1)), Action::Grant { reply: "old", .. }));
    let end = table.disconnected(std::io::Error::from(std::io::ErrorKind::ConnectionReset).into());
    assert!(matches!(end, End::GoneAway(Reconnect::Never)), "an abrupt end after it is still a drain");
    assert_eq!(table.end(), ["older"]);
}

#[test]
fn after_a_goaway_a_session_that_heals_keeps_requests_for_the_next_broker() {
    let mut table = sent(true, vec![(1, hello(1), "asked"), (2, order(), "order")]);
    let _ = table.hears(goes(SOON));
    table.register(3, hello(3), "new").expect("it is kept");
    assert_eq!(table.hellos(), [""; 0], "nothing is sent to a broker that goes");
    for request_id in [1, 2] {
        let action = table.hears(refused(request_id, Code::ShuttingDown));
        assert!(matches!(action, Action::Ignore(_)), "its going is no answer");
    }
    assert!(matches!(table.disconnected(End::Closed), End::GoneAway(SOON)));
    assert_eq!(table.requeue(&End::Closed), [""; 0], "an order that was refused was not carried out");
    assert_eq!(table.hellos(), ["1 ^7", "3 ^7"]);
}

#[test]
fn an_order_on_its_way_when_the_connection_breaks_is_not_given_twice() {
    let mut table = sent(true, vec![(1, order(), "sent"), (2, report(), "report")]);
    table.register(3, order(), "unsent").expect("nothing has been announced");
    assert!(matches!(table.disconnected(End::Closed), End::Closed));
    assert_eq!(table.requeue(&End::Closed), ["sent"]);
    let again: Vec<_> = std::iter::from_fn(|| table.next_to_send(Instant::now())).collect();
    assert!(matches!(
        &again[..],
        [
            ClientMessage::Admin { request_id: 2, request: AdminRequest::Status },
            ClientMessage::Admin { request_id: 3, request: AdminRequest::Stop { .. } }
        ]
    ));
}

#[test]
fn a_request_for_a_socket_is_not_repeated_once_there_was_no_room_for_one() {
    let mut table = sent(true, vec![(1, hello(1), "socket"), (2, report(), "report")]);
    let end = table.disconnected(End::Protocol(ProtocolError::DescriptorsLost));
    assert_eq!(table.requeue(&end), ["socket"]);
    assert!(matches!(table.next_to_send(Instant::now()), Some(ClientMessage::Admin { request_id: 2, .. })));
}

#[test]
fn holds_are_asked_for_first_in_the_version_that_was_held() {
    let mut table = sent(true, vec![(1, hello(1), "waits"), (2, hello(2), "held")]);
    let Action::Grant { standing, .. } = table.hears(negotiated(2)) else { panic!("not granted") };
    let _ = table.disconnected(End::Closed);
    assert_eq!(table.requeue(&End::Closed), [""; 0]);
    assert!(!table.is_restored());
    let Some(ClientMessage::Hello(again)) = table.next_to_send(Instant::now()) else { panic!("nothing is asked") };
    assert_eq!((again.request_id, again.version_requirement.as_str()), (2, "7.0.15"));
    assert_eq!((again.delivery, again.deadline_ms), (Delivery::Endpoint, None), "nobody waits for a socket");
    assert_eq!(table.hellos(), ["1 ^7"]);
    assert!(matches!(table.hears(negotiated(2)), Action::Ignore(_)), "it is the same process");
    assert!(table.is_restored());

    let _ = table.disconnected(End::Closed);
    let _ = table.requeue(&End::Closed);
    let _ = table.hellos();
    let action = table.hears(process(2, "7.0.15", 8));
    assert!(matches!(action, Action::Event { request_id: 2, event: Event::Ready { generation: 1, .. } }));
    assert_eq!(standing.borrow().negotiated.pid, Some(8));
}

#[test]
fn a_hold_whose_version_is_gone_takes_another_that_fits() {
    let mut table = sent(true, vec![(1, hello(1), "a")]);
    let Action::Grant { standing, .. } = table.hears(negotiated(1)) else { panic!("not granted") };
    let _ = table.disconnected(End::Closed);
    let _ = table.requeue(&End::Closed);
    assert_eq!(table.hellos(), ["1 7.0.15"]);
    assert!(matches!(table.hears(refused(1, Code::VersionUnsupported)), Action::Ignore(_)));
    assert_eq!(table.hellos(), ["1 ^7"]);
    assert!(!table.is_restored());
    assert!(matches!(table.hears(process(1, "7.2.0", 9)), Action::Event { event: Event::Ready { .. }, .. }));
    assert_eq!(standing.borrow().negotiated.version, "7.2.0");
    assert!(table.is_restored());
}

#[test]
fn a_hold_refused_for_now_is_asked_for_later_and_for_good_is_over() {
    let mut table = sent(true, vec![(1, hello(1), "a"), (2, hello(2), "b")]);
    let Action::Grant { standing, .. } = table.hears(negotiated(1)) else { panic!("not granted") };
    let _ = table.hears(negotiated(2));
    let _ = table.disconnected(End::Closed);
    let _ = table.requeue(&End::Closed);
    assert_eq!(table.hellos().len(), 2);
    let before = Instant::now();
    let action = table.hears(refused(1, Code::BackendUnavailable));
    assert!(matches!(action, Action::Event { request_id: 1, event: Event::Failed { .. } }));
    let action = table.hears(refused(2, Code::ServiceUnknown));
    assert!(matches!(action, Action::Event { request_id: 2, event: Event::Failed { .. } }));
    assert!(!table.release(2), "it is over");
    assert!(table.is_restored(), "every hold has been answered for");

    let due = table.deadline().expect("one is asked for again");
    assert!(due >= before + Duration::from_secs(5));
    table.tick(due - Duration::from_millis(1));
    assert_eq!(table.hellos(), [""; 0]);
    table.tick(due);
    assert_eq!(table.hellos(), ["1 7.0.15"]);
    assert!(standing.borrow().is_held);
}

#[test]
fn what_is_left_of_a_deadline_is_what_is_told() {
    let now = Instant::now();
    let Ask::Hello { hello, .. } = hello(1) else { unreachable!() };
    let mut table = Table::new(true);
    let due = Some(now + Duration::from_millis(1500));
    table.register(1, Ask::Hello { hello, due }, "a").expect("nothing has been announced");
    for (after, told) in [(0, 1500), (1_400, 100), (1_499, 1), (9_000, 0)] {
        let Some(ClientMessage::Hello(hello)) = table.next_to_send(now + Duration::from_millis(after)) else {
            panic!("nothing is sent")
        };
        assert_eq!(hello.deadline_ms, Some(told));
        let _ = table.requeue(&End::Closed);
    }
    assert_eq!(milliseconds(Duration::from_micros(500)), 1, "a wait that is not over stays one");
    assert_eq!(milliseconds(Duration::MAX), u64::MAX);
}

#[test]
fn a_refusal_without_an_id_is_for_all_and_explains_the_close() {
    let mut table = sent(false, vec![(1, hello(1), "a"), (2, report(), "b")]);
    let Action::RefuseAll { replies, .. } = table.hears(refused(0, Code::Overloaded)) else { panic!("not for all") };
    assert_eq!(replies, ["a", "b"]);
    assert!(matches!(table.disconnected(End::Closed), End::Refused(refusal) if refusal.code == Code::Overloaded));
}

#[test]
fn a_session_refused_for_now_keeps_its_requests_if_it_heals() {
    let mut table = sent(true, vec![(1, hello(1), "a")]);
    assert!(matches!(table.hears(refused(0, Code::RateLimited)), Action::Ignore(_)));
    assert!(matches!(table.disconnected(End::Closed), End::Refused(_)));
    let _ = table.requeue(&End::Closed);
    assert_eq!(table.hellos(), ["1 ^7"]);
    assert!(matches!(table.hears(refused(0, Code::PeerRejected)), Action::RefuseAll { .. }));
}

#[test]
fn a_refusal_that_the_session_outlived_does_not_explain_its_close() {
    let mut table = sent(false, vec![(1, hello(1), "a")]);
    let _ = table.hears(refused(0, Code::Malformed));
    table.register(2, hello(2), "b").expect("the session lives");
    let _ = table.hears(negotiated(2));
    assert!(matches!(table.disconnected(End::Closed), End::Closed));
}

#[test]
fn the_table_has_room_again_once_a_request_is_answered_or_given_up() {
    let mut table = Table::new(true);
    for request_id in 1..=WAITING_MAX as RequestId {
        assert!(table.has_room());
        table.register(request_id, hello(request_id), "x").expect("nothing has been announced");
    }
    assert!(!table.has_room());
    let _ = table.hears(negotiated(1));
    assert!(table.has_room(), "a hold does not wait");
    table.register(u64::MAX, hello(u64::MAX), "x").expect("nothing has been announced");
    let _ = table.release(2);
    assert!(table.has_room());
}
