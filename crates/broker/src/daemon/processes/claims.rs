//! Claims on records: taken, renewed and given up.
//!
//! Who may claim what is decided in `core::lease`.

use broker_proto::ProcessId;
use rusqlite::{Connection, params};

use super::record::{Owner, Record, select, text};
use super::records::{Records, next_token};
use super::store::Place;
use crate::core::lease::{Decision, Lease, Me, Seen, decide};
use crate::core::millis;
use crate::process::boot::since_boot;

/// What a sweep found.
#[derive(Debug, Default)]
pub(super) struct Swept {
    /// Ours, as of now or before.
    pub(super) ours: Vec<Record>,
    /// When the first of our leases is due, in milliseconds since the boot.
    pub(super) renew_at: Option<u64>,
    /// Others' and when the first of their leases ends.
    pub(super) owners: Vec<Owner>,
    pub(super) look_again_at: Option<u64>,
    /// Whether more wait to be run than were asked for.
    pub(super) more: bool,
}

impl Records {
    /// Claims what is to be claimed: all that may run already, and of what waits as many as there is room for. What is
    /// read and what is written is one transaction, so nobody comes between.
    pub(super) fn sweep(&mut self, room: usize, seen: &mut dyn FnMut(&Owner) -> Seen) -> rusqlite::Result<Swept> {
        let claim = self.claim();
        let me = self.place.me.clone();
        self.write(|transaction| {
            let mut swept = Swept::default();
            let room = i64::try_from(room).unwrap_or(i64::MAX);
            let leased =
                select(transaction, "WHERE state = 'running' OR (state = 'pending' AND lease_token NOT NULL)", [])?;
            let mut waiting = select(
                transaction,
                "WHERE state = 'pending' AND lease_token IS NULL ORDER BY seq LIMIT ?1",
                [room.saturating_add(1)],
            )?;
            swept.more = i64::try_from(waiting.len()).unwrap_or(i64::MAX) > room;
            waiting.truncate(usize::try_from(room).unwrap_or(usize::MAX));
            for record in leased.into_iter().chain(waiting) {
                let lease = record.lease.as_ref();
                let other = lease.filter(|(lease, _)| lease.token != me.token);
                let owner = other.map_or(Seen::Unknown, |(_, owner)| seen(owner));
                match decide(claim.now, &me, lease.map(|(lease, _)| lease), owner) {
                    Decision::Claim => {
                        let token = next_token(transaction)?;
                        claim.write(transaction, &record.id, token)?;
                        let lease = Some((claim.lease.clone(), claim.owner.clone()));
                        swept.ours.push(Record { fencing_token: token, lease, ..record });
                    }
                    Decision::Mine { renew_at } => {
                        swept.renew_at = Some(swept.renew_at.map_or(renew_at, |other| other.min(renew_at)));
                        swept.ours.push(record);
                    }
                    Decision::Skip { look_again_at } => {
                        let at = swept.look_again_at.map_or(look_again_at, |other| other.min(look_again_at));
                        swept.look_again_at = Some(at);
                        swept.owners.extend(record.lease.map(|(_, owner)| owner));
                    }
                }
            }
            swept.owners.sort_by_key(|owner| owner.pid);
            swept.owners.dedup();
            Ok(swept)
        })
    }

    /// Renews all our leases; how many there are, and when they are due again.
    pub(super) fn renew(&mut self) -> rusqlite::Result<usize> {
        let Claim { lease, .. } = self.claim();
        self.connection.execute(
            "UPDATE processes SET claimed_at = ?2, expires_at = ?3
             WHERE lease_token = ?1 AND state IN ('pending', 'running')",
            params![lease.token, i64_of(lease.claimed_at), i64_of(lease.expires_at)],
        )
    }

    /// Gives all our leases up.
    pub(super) fn release(&mut self) -> rusqlite::Result<usize> {
        self.connection.execute(
            "UPDATE processes SET owner = NULL, lease_token = NULL, boot_id = NULL, claimed_at = NULL, expires_at = NULL
             WHERE lease_token = ?1",
            [&self.place.me.token],
        )
    }

    pub(super) fn claim(&self) -> Claim {
        let now = millis(since_boot());
        let Place { me: Me { token, boot_id }, owner, lease: life, .. } = self.place.clone();
        let expires_at = now.saturating_add(millis(life));
        Claim { now, lease: Lease { token, boot_id, claimed_at: now, expires_at }, owner }
    }
}

/// A claim about to be made.
pub(super) struct Claim {
    now: u64,
    lease: Lease,
    owner: Owner,
}

impl Claim {
    pub(super) fn write(&self, connection: &Connection, id: &ProcessId, token: i64) -> rusqlite::Result<()> {
        let Lease { token: lease_token, boot_id, claimed_at, expires_at } = &self.lease;
        connection.execute(
            "UPDATE processes SET owner = ?2, lease_token = ?3, boot_id = ?4, claimed_at = ?5, expires_at = ?6,
                 fencing_token = ?7 WHERE id = ?1",
            params![
                id.as_str(),
                text(&self.owner)?,
                lease_token,
                boot_id,
                i64_of(*claimed_at),
                i64_of(*expires_at),
                token
            ],
        )?;
        Ok(())
    }
}

fn i64_of(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
