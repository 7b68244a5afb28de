//! Who may work on a durable process when several brokers share a store: one owner at a time, for as long as it says.
//!
//! A lease moves a record; it never authorises a second run, which the reaper's lock forbids. Times are milliseconds of
//! CLOCK_BOOTTIME, the same clock for every broker of the machine.

/// One owner's claim, as it is in the record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lease {
    /// Names the claiming broker's life; never given out twice.
    pub(crate) token: String,
    /// The boot whose clock the times are of.
    pub(crate) boot_id: String,
    pub(crate) claimed_at: u64,
    pub(crate) expires_at: u64,
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Me {
    pub(crate) token: String,
    pub(crate) boot_id: String,
}

/// What can be seen of a lease's owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seen {
    Alive,
    /// Proved by pid, start time and boot.
    Dead,
    /// It cannot be looked at from here.
    Unknown,
}

/// What to do about a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Nobody has it, or its owner's time is over: take it, with the next fencing token.
    Claim,
    /// Somebody has it.
    Skip { look_again_at: u64 },
    /// It is ours already.
    Mine { renew_at: u64 },
}

/// Decides about one record that has not ended.
#[must_use]
pub(crate) fn decide(now: u64, me: &Me, lease: Option<&Lease>, owner: Seen) -> Decision {
    let Some(lease) = lease else { return Decision::Claim };
    if lease.token == me.token {
        // Even if it has expired: nobody has claimed it, and the next renewal is due.
        return Decision::Mine { renew_at: renewal(lease.claimed_at, lease.expires_at) };
    }
    // The clock of another boot says nothing here, and nobody lived on.
    if lease.boot_id != me.boot_id || owner == Seen::Dead || lease.expires_at <= now {
        return Decision::Claim;
    }
    Decision::Skip { look_again_at: lease.expires_at }
}

/// A lease is renewed at a third of its life, so that two renewals may fail.
#[must_use]
pub(crate) fn renewal(claimed_at: u64, expires_at: u64) -> u64 {
    claimed_at + expires_at.saturating_sub(claimed_at) / 3
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIFE: u64 = 30_000;

    fn me(name: &str) -> Me {
        Me { token: name.to_owned(), boot_id: "boot".to_owned() }
    }

    fn lease(name: &str, claimed_at: u64) -> Lease {
        Lease { token: name.to_owned(), boot_id: "boot".to_owned(), claimed_at, expires_at: claimed_at + LIFE }
    }

    #[test]
    fn a_record_without_an_owner_is_claimed() {
        assert_eq!(decide(0, &me("a"), None, Seen::Unknown), Decision::Claim);
    }

    #[test]
    fn our_own_is_renewed_at_a_third_of_its_life_even_when_it_has_expired() {
        let own = lease("a", 1000);
        for now in [1000, 20_000, 1_000_000] {
            assert_eq!(decide(now, &me("a"), Some(&own), Seen::Unknown), Decision::Mine { renew_at: 11_000 });
        }
    }

    #[test]
    fn a_live_owner_is_left_alone_until_its_time_is_over() {
        let foreign = lease("b", 1000);
        for owner in [Seen::Alive, Seen::Unknown] {
            let skip = Decision::Skip { look_again_at: 31_000 };
            assert_eq!(decide(30_999, &me("a"), Some(&foreign), owner), skip);
            assert_eq!(decide(31_000, &me("a"), Some(&foreign), owner), Decision::Claim);
        }
    }

    #[test]
    fn a_dead_owner_and_one_of_another_boot_are_taken_over_at_once() {
        assert_eq!(decide(1001, &me("a"), Some(&lease("b", 1000)), Seen::Dead), Decision::Claim);
        let rebooted = Lease { boot_id: "earlier".to_owned(), ..lease("b", 1000) };
        assert_eq!(decide(1001, &me("a"), Some(&rebooted), Seen::Unknown), Decision::Claim);
    }

    /// One step of the brokers on one record.
    #[derive(Debug, Clone)]
    enum Step {
        Pass(u64),
        /// This broker sweeps.
        Sweep(usize),
        /// This broker, if it believes to own the record, renews it.
        Renew(usize),
        Die(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (0..LIFE).prop_map(Step::Pass),
            (0..3_usize).prop_map(Step::Sweep),
            (0..3_usize).prop_map(Step::Renew),
            (0..3_usize).prop_map(Step::Die),
        ];
        proptest::collection::vec(step, 0..200)
    }

    proptest! {
        /// What the store does with these decisions: a claim takes the next fencing token, and a write needs the newest.
        #[test]
        fn a_claim_never_takes_from_a_live_owner_in_time_and_a_stale_write_is_rejected(steps in steps()) {
            let (mut now, mut fence, mut record) = (0, 0, None::<(Lease, usize)>);
            let mut believes = [None::<u64>; 3];
            let mut dead = [false; 3];
            for step in steps {
                match step {
                    Step::Pass(time) => now += time,
                    Step::Die(who) => dead[who] = true,
                    Step::Sweep(who) if !dead[who] => {
                        let seen = match &record {
                            Some((_, owner)) if dead[*owner] => Seen::Dead,
                            _ => Seen::Alive,
                        };
                        let name = who.to_string();
                        let found = record.as_ref().map(|(lease, _)| lease);
                        match decide(now, &me(&name), found, seen) {
                            Decision::Claim => {
                                if let Some((lease, owner)) = &record {
                                    prop_assert!(dead[*owner] || lease.expires_at <= now);
                                    prop_assert!(*owner != who);
                                }
                                fence += 1;
                                believes[who] = Some(fence);
                                record = Some((lease(&name, now), who));
                            }
                            Decision::Skip { look_again_at } => prop_assert!(look_again_at > now),
                            Decision::Mine { .. } => prop_assert_eq!(record.as_ref().map(|(_, owner)| *owner), Some(who)),
                        }
                    }
                    Step::Renew(who) if !dead[who] => {
                        let Some(token) = believes[who] else { continue };
                        let is_owner = record.as_ref().is_some_and(|(_, owner)| *owner == who);
                        // The fence knows the owner, without a look at it.
                        prop_assert_eq!(token == fence, is_owner);
                        if token == fence {
                            record = Some((lease(&who.to_string(), now), who));
                        } else {
                            believes[who] = None;
                        }
                    }
                    Step::Sweep(_) | Step::Renew(_) => {}
                }
            }
        }
    }
}
