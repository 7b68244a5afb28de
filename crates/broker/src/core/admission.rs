//! Admission: which peer may use a service, and which may control the broker.
//!
//! Owns the rule and nothing else. Who the peer is comes from the kernel (`SO_PEERCRED`, `SO_PEERGROUPS`), who it says
//! it is never matters. Names of users and groups are numbers before they come here.

/// The user whom no rule keeps out.
const ROOT: u32 = 0;

/// The process at the other end of a connection, as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Peer {
    pub(crate) uid: u32,
    /// The primary group and the supplementary ones.
    pub(crate) gids: Vec<u32>,
}

/// Who may use a service, besides root and the user that the broker runs as.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct AccessRules {
    pub(crate) users: Vec<u32>,
    pub(crate) groups: Vec<u32>,
    /// Whether a peer of another user may be handed a socket that the broker connected: the daemon sees the broker's
    /// credentials on it, not the peer's.
    pub(crate) connected: bool,
}

/// Why a peer is turned away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Rejection {
    /// The rules list neither the user nor one of its groups.
    #[error("user {uid} may not use this service: list it in `users` or one of its groups in `groups` of [access]")]
    NotListed { uid: u32 },
    /// The peer asked for a connected socket, to which the service did not consent.
    #[error("user {uid} may not be handed a connection to this service: it needs `connected = true` in [access]")]
    NoConnection { uid: u32 },
}

/// Decides whether a peer may use a service.
///
/// # Errors
/// The peer is neither root nor the broker's own user, and the rules list neither it nor one of its groups.
pub(crate) fn admit(peer: &Peer, broker_uid: u32, rules: &AccessRules) -> Result<(), Rejection> {
    let listed = rules.users.contains(&peer.uid) || peer.gids.iter().any(|gid| rules.groups.contains(gid));
    match is_owner(peer, broker_uid) || listed {
        true => Ok(()),
        false => Err(Rejection::NotListed { uid: peer.uid }),
    }
}

/// Decides whether a peer may use a service through a socket that the broker connects for it.
///
/// # Errors
/// As [`admit`]; or the peer is another user than root and the broker's, and the service does not consent.
pub(crate) fn admit_connected(peer: &Peer, broker_uid: u32, rules: &AccessRules) -> Result<(), Rejection> {
    admit(peer, broker_uid, rules)?;
    match is_owner(peer, broker_uid) || rules.connected {
        true => Ok(()),
        false => Err(Rejection::NoConnection { uid: peer.uid }),
    }
}

/// Whether a peer is root or the user that the broker runs as, to whom everything is permitted.
pub(crate) fn is_owner(peer: &Peer, broker_uid: u32) -> bool {
    peer.uid == ROOT || peer.uid == broker_uid
}

/// Whether a peer may stop, drain and reload: the owners may, and members of the group that is there for it. What the
/// broker's user can do by having the broker run a command is not among it.
pub(crate) fn may_control(peer: &Peer, broker_uid: u32, admins: Option<u32>) -> bool {
    is_owner(peer, broker_uid) || admins.is_some_and(|group| peer.gids.contains(&group))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BROKER: u32 = 990;

    fn peer(uid: u32, gids: &[u32]) -> Peer {
        Peer { uid, gids: gids.to_vec() }
    }

    fn rules() -> AccessRules {
        AccessRules { users: vec![1000], groups: vec![50], connected: false }
    }

    #[test]
    fn root_and_the_brokers_user_are_always_admitted() {
        for uid in [ROOT, BROKER] {
            assert_eq!(admit(&peer(uid, &[]), BROKER, &AccessRules::default()), Ok(()));
            assert_eq!(admit_connected(&peer(uid, &[]), BROKER, &AccessRules::default()), Ok(()));
        }
    }

    #[test]
    fn without_rules_nobody_else_is_admitted() {
        let rejected = admit(&peer(1000, &[1000]), BROKER, &AccessRules::default());
        assert_eq!(rejected, Err(Rejection::NotListed { uid: 1000 }));
    }

    #[test]
    fn a_listed_user_or_a_member_of_a_listed_group_is_admitted() {
        assert_eq!(admit(&peer(1000, &[]), BROKER, &rules()), Ok(()));
        assert_eq!(admit(&peer(1001, &[7, 50]), BROKER, &rules()), Ok(()));
        assert_eq!(admit(&peer(1001, &[7]), BROKER, &rules()), Err(Rejection::NotListed { uid: 1001 }));
    }

    #[test]
    fn a_user_number_is_not_taken_for_a_group_number() {
        assert!(admit(&peer(50, &[1000]), BROKER, &rules()).is_err());
        assert!(admit(&peer(1001, &[ROOT, BROKER]), BROKER, &AccessRules::default()).is_err());
    }

    #[test]
    fn another_user_is_handed_a_connection_only_by_consent() {
        assert_eq!(admit_connected(&peer(1000, &[]), BROKER, &rules()), Err(Rejection::NoConnection { uid: 1000 }));
        let consenting = AccessRules { connected: true, ..rules() };
        assert_eq!(admit_connected(&peer(1000, &[]), BROKER, &consenting), Ok(()));
        assert_eq!(admit_connected(&peer(1, &[]), BROKER, &consenting), Err(Rejection::NotListed { uid: 1 }));
    }

    #[test]
    fn root_and_the_brokers_user_may_control_and_so_may_the_group_that_is_there_for_it() {
        for admins in [None, Some(60)] {
            assert!(may_control(&peer(ROOT, &[]), BROKER, admins));
            assert!(may_control(&peer(BROKER, &[]), BROKER, admins));
            assert!(!may_control(&peer(1000, &[50]), BROKER, admins));
            assert_eq!(may_control(&peer(1000, &[50, 60]), BROKER, admins), admins.is_some());
        }
        assert!(!may_control(&peer(60, &[]), BROKER, Some(60)), "a user's number is no group's");
    }

    #[test]
    fn who_may_control_is_not_admitted_for_that() {
        assert!(admit(&peer(1000, &[60]), BROKER, &AccessRules::default()).is_err());
        assert!(!is_owner(&peer(1000, &[60, ROOT, BROKER]), BROKER));
    }

    #[test]
    fn a_rejection_says_what_to_do() {
        insta::assert_snapshot!(Rejection::NotListed { uid: 1000 }, @"user 1000 may not use this service: list it in `users` or one of its groups in `groups` of [access]");
        insta::assert_snapshot!(Rejection::NoConnection { uid: 1000 }, @"user 1000 may not be handed a connection to this service: it needs `connected = true` in [access]");
    }
}
