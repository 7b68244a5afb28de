//! Random histories of the table, with a model of the broker at the other end.

use std::collections::BTreeSet;

use super::tests::{hello, negotiated};
use super::*;

/// A broker that holds and waits, answers in any order, breaks connections and comes back; callers that ask and give up
/// at any time. In the end every request was answered once, and the broker holds exactly what callers hold.
#[test]
fn no_history_leaks_a_hold_or_answers_twice() {
    let seed =
        std::env::var("BROKER_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(|| fastrand::u64(..));
    println!("BROKER_SEED={seed} replays this");
    let mut random = fastrand::Rng::with_seed(seed);
    for _ in 0..300 {
        let mut table = InFlight::<RequestId>::new(true);
        let (mut wanted, mut held) = (BTreeSet::new(), BTreeSet::new());
        let (mut asked, mut granted) = (BTreeSet::new(), BTreeSet::new());
        let mut last = 0;
        let mut quiet = false;
        for step in 0..120 {
            // In the last steps nothing new happens, and everything is answered.
            quiet |= step == 80;
            match random.u8(0..if quiet { 3 } else { 6 }) {
                0 => {
                    while let Some(message) = table.next_to_send(Instant::now()) {
                        if let ClientMessage::Hello(hello) = message {
                            assert!(asked.insert(hello.request_id) && !granted.contains(&hello.request_id));
                        }
                    }
                }
                1 | 2 => {
                    let Some(&id) = asked.iter().nth(random.usize(..=asked.len()).min(asked.len().saturating_sub(1)))
                    else {
                        continue;
                    };
                    asked.remove(&id);
                    granted.insert(id);
                    match table.handle(Instant::now(), negotiated(id)) {
                        Action::Grant { reply, .. } => {
                            assert!(reply == id && wanted.remove(&id) && held.insert(id));
                        }
                        Action::Release(id) => assert!(granted.remove(&id)),
                        Action::Ignore(_) | Action::Event { .. } => assert!(held.contains(&id)),
                        other => panic!("{other:?}"),
                    }
                }
                3 => {
                    last += 1;
                    table.register(last, hello(last), last).expect("it heals");
                    wanted.insert(last);
                }
                4 => {
                    let id = random.u64(0..=last);
                    wanted.remove(&id);
                    held.remove(&id);
                    if table.release(id) {
                        // The broker drops what it holds, or will not answer.
                        assert!(granted.remove(&id) || asked.remove(&id));
                    }
                }
                _ => {
                    let _ = table.disconnected(End::Closed);
                    assert_eq!(table.requeue(&End::Closed), [0; 0], "a Hello can be repeated");
                    (asked, granted) = Default::default();
                }
            }
        }
        while let Some(ClientMessage::Hello(hello)) = table.next_to_send(Instant::now()) {
            asked.insert(hello.request_id);
        }
        for id in asked {
            granted.insert(id);
            if let Action::Grant { reply, .. } = table.handle(Instant::now(), negotiated(id)) {
                assert!(wanted.remove(&reply) && held.insert(reply));
            }
        }
        assert_eq!((wanted, &granted), (BTreeSet::new(), &held), "seed {seed}");
        assert!(table.is_restored() && table.waiting.is_empty());
    }
}
