//! Who votes for a follower whose owner is gone, and what voters take from that owner meanwhile.

use super::*;
use crate::consensus::Compaction;
use crate::machine::{Machine, SnapshotError};
use crate::transport::Identity;
use crate::wire::{AskVote, Ballot, EntryBody, LogEntry, Members, Position};

/// Holds nothing.
struct Empty;

impl Machine for Empty {
    fn check(_: &[u8]) -> Result<(), PayloadError> {
        Ok(())
    }

    fn apply(&mut self, _: LogIndex, _: &[u8]) -> Reply {
        Reply::None
    }

    fn snapshot(&self) -> Vec<u8> {
        Vec::new()
    }

    fn install(&mut self, _: &[u8]) -> Result<(), SnapshotError> {
        Ok(())
    }

    fn state_hash(&self) -> u64 {
        0
    }
}

const OWNER: u64 = 1;
const VOTER: NodeId = NodeId(2);
const CANDIDATE: u64 = 3;
const END: Position = Position { term: 1, index: 0 };

/// A voter that has just heard its owner.
async fn voter(lease_ms: u64) -> Replica {
    let timing = Timing {
        heartbeat_ms: 1,
        // Long: nothing here is to happen by the library's own clock.
        election_min_ms: 50_000,
        election_max_ms: 60_000,
        lease_ms,
        lease_margin_ms: 0,
    };
    let setup = ReplicaSetup {
        shard: ShardId(1),
        node: VOTER,
        timing,
        compaction: Compaction::default(),
        machine: Box::new(Empty),
        check: Empty::check,
        files: None,
    };
    let identity = Identity { cluster: 1, lineage: 1, node: VOTER, nonce: 1 };
    let replica = Replica::start(setup, Transport::new(identity)).await.unwrap();
    assert_eq!(replica.append(append()).await, Ok(Appended::Success));
    replica
}

fn append() -> Append {
    let nodes = vec![OWNER, VOTER.0, CANDIDATE];
    let members = Members { configs: vec![nodes.clone()], nodes };
    Append {
        ballot: Ballot { term: 1, node: OWNER, committed: true },
        prev: None,
        entries: vec![LogEntry { at: END, body: EntryBody::Members(members) }],
        commit: None,
    }
}

fn ask(pre: bool, orphaned: bool) -> AskVote {
    let ballot = Ballot { term: 2, node: CANDIDATE, committed: false };
    AskVote { ballot, last_log: Some(END), transfer: true, pre, orphaned }
}

async fn votes(replica: &Replica, ask: AskVote) -> bool {
    replica.vote(ask).await.unwrap().granted
}

#[tokio::test]
async fn a_voter_that_has_just_heard_its_owner_votes_for_nobody_in_its_place() {
    let replica = voter(60_000).await;
    assert!(!votes(&replica, ask(true, true)).await);
    assert!(!votes(&replica, ask(false, true)).await);
    replica.succeed(Term(1), NodeId(OWNER)).await;
    assert_eq!(replica.append(append()).await, Ok(Appended::Success), "it has stood itself");
    // An owner that hands over has let its lease run out before.
    assert!(votes(&replica, ask(false, false)).await);
    replica.stop().await;
}

#[tokio::test]
async fn a_voter_votes_once_its_owners_lease_is_over_for_who_misses_nothing() {
    let replica = voter(3).await;
    while !votes(&replica, ask(true, true)).await {
        tokio::task::yield_now().await;
    }
    assert!(!votes(&replica, AskVote { last_log: None, ..ask(true, true) }).await);
    assert!(votes(&replica, ask(false, true)).await);
    // The owner comes back too late.
    assert!(matches!(replica.append(append()).await, Ok(Appended::Newer(_))));
    replica.stop().await;
}

#[tokio::test]
async fn nothing_is_taken_from_an_owner_while_its_place_is_voted_on() {
    let replica = voter(60_000).await;
    replica.fence(1);
    assert_eq!(replica.append(append()).await, Err(NotServed::Busy));
    replica.fence(0);
    assert_eq!(replica.append(append()).await, Ok(Appended::Success));
    replica.stop().await;
}
