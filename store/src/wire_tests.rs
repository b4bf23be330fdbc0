//! Round trips, bounds and garbage for the messages of [`crate::wire`].

use super::*;
use crate::key::Endpoint;
use crate::transaction::{Condition, Fill, TransactionId, Write};
use crate::types::{LogIndex, TenantId};
use proptest::prelude::*;

const LEADER: Ballot = Ballot { term: 7, node: 2, committed: true };

fn at(term: u64, index: u64) -> Position {
    Position { term, index }
}

fn key(n: u16) -> Key {
    let end = |port| Endpoint::v4([10, 0, 0, 1], port);
    Key::new(1, 6, TenantId(3), (end(n), end(80)))
}

fn transaction() -> Transaction {
    let put = Write::Put { key: key(1), value: Value::ZERO, fill: Fill::default(), ttl_s: 0 };
    Transaction {
        id: TransactionId { client: 5, serial: 6 },
        slot: SlotId(9),
        conditions: [Condition::Absent(key(1)), Condition::Version(key(2), Version(4))]
            .into_iter()
            .collect(),
        writes: [put, Write::Delete(key(2))].into_iter().collect(),
    }
}

fn members() -> Members {
    Members { configs: vec![vec![1, 2], vec![2, 3]], nodes: vec![1, 2, 3, 4] }
}

fn append() -> Append {
    let bodies =
        [EntryBody::Blank, EntryBody::Payload(vec![1, 2, 3]), EntryBody::Members(members())];
    let entries = bodies
        .into_iter()
        .zip(11..)
        .map(|(body, index)| LogEntry { at: at(7, index), body })
        .collect();
    Append { ballot: LEADER, prev: Some(at(6, 10)), entries, commit: Some(at(6, 9)) }
}

fn chunk() -> SnapshotChunk {
    SnapshotChunk {
        ballot: LEADER,
        transfer: 1,
        last_log: Some(at(7, 100)),
        members_at: Some(at(1, 0)),
        members: members(),
        total: 1000,
        crc: 5,
        offset: 990,
        bytes: vec![8; 10],
    }
}

fn requests() -> Vec<Request> {
    let shard = ShardId(3);
    let candidate = Ballot { committed: false, ..LEADER };
    let ask =
        AskVote { ballot: candidate, last_log: None, transfer: true, pre: false, orphaned: true };
    vec![
        Request::Vote(shard, ask),
        Request::Append(shard, append()),
        Request::Snapshot(shard, chunk()),
        Request::HandOver(shard, HandOver { ballot: LEADER, to: 3, last_log: Some(at(7, 1)) }),
        Request::Propose(shard, vec![7; 100]),
        Request::Transactions(shard, vec![transaction(), transaction()]),
        Request::ReadLease(shard),
        Request::Reads(shard, vec![(SlotId(1), key(1)), (SlotId(2), key(2))]),
        Request::App(vec![1, 2]),
    ]
}

fn responses() -> Vec<Response> {
    let outcomes = vec![Outcome::Committed(LogIndex(4)), Outcome::ConditionFailed(1)];
    let found = Found { value: Value::ZERO, version: Version(8), slot: SlotId(1) };
    vec![
        Response::Vote(Voted { ballot: LEADER, granted: true, last_log: Some(at(1, 2)) }),
        Response::Append(Appended::Success),
        Response::Append(Appended::Partial(None)),
        Response::Append(Appended::Conflict),
        Response::Append(Appended::Newer(LEADER)),
        Response::Snapshot(Some(LEADER)),
        Response::Snapshot(None),
        Response::HandOver(false),
        Response::Proposed(WireReply::None),
        Response::Proposed(WireReply::System(vec![1])),
        Response::Outcomes(outcomes),
        Response::ReadLease(Grant { path: "/dev/shm/x".into(), generation: 3, left_ns: 9 }),
        Response::Reads(Readings {
            found: vec![Reading::Absent, Reading::Found(found)],
            left_ns: 5,
        }),
        Response::Reads(Readings {
            found: vec![Reading::NotHere(None), Reading::NotHere(Some(ShardId(2)))],
            left_ns: 5,
        }),
        Response::App(vec![]),
        Response::NotServed(NotServed::NotOwner(4)),
    ]
}

#[test]
fn every_message_comes_back_as_it_went() {
    for request in requests() {
        assert_eq!(Request::decode(&request.encode().unwrap()), Ok(request));
    }
    for response in responses() {
        assert_eq!(Response::decode(&response.encode().unwrap()), Ok(response));
    }
    let hello = Hello { cluster: 1, lineage: 5, from: 2, to: 3, nonce: 4 };
    assert_eq!(Hello::decode(&hello.encode().unwrap()), Ok(hello));
    for welcome in [
        Welcome::Accepted(hello),
        Welcome::Refused(Refused::Cluster(9)),
        Welcome::Refused(Refused::Lineage(9)),
    ] {
        assert_eq!(Welcome::decode(&welcome.encode().unwrap()), Ok(welcome));
    }
}

#[test]
fn numbers_out_of_bounds_are_refused() {
    let shard = ShardId(0);
    let append_with = |change: fn(&mut Append)| {
        let mut append = append();
        change(&mut append);
        Request::Append(shard, append)
    };
    let chunk_with = |change: fn(&mut SnapshotChunk)| {
        let mut chunk = chunk();
        change(&mut chunk);
        Request::Snapshot(shard, chunk)
    };
    let cases = [
        (append_with(|a| a.ballot.term = u64::MAX), "ballot"),
        (append_with(|a| a.ballot.node = 0), "ballot"),
        (append_with(|a| a.ballot.committed = false), "leader's ballot"),
        (append_with(|a| a.entries[1].at.index = 99), "entry index"),
        (append_with(|a| a.entries[2].at.term = 8), "entry term"),
        (append_with(|a| a.entries[0].at.term = 5), "entry term"),
        (append_with(|a| a.prev = Some(at(1, u64::MAX))), "log position"),
        (append_with(|a| a.entries[2].body = EntryBody::Members(Members::default())), "group"),
        (
            append_with(|a| a.entries[1].body = EntryBody::Payload(vec![0; PAYLOAD_BYTES_MAX + 1])),
            "payload",
        ),
        (chunk_with(|c| c.total = u64::MAX), "snapshot size"),
        (chunk_with(|c| c.offset = 991), "piece of a snapshot"),
        (chunk_with(|c| c.offset = u64::MAX), "piece of a snapshot"),
        (chunk_with(|c| c.members.configs[0].push(77)), "group"),
        (chunk_with(|c| c.members.configs[0].clear()), "group"),
        (Request::Transactions(shard, vec![]), "number of transactions"),
        (Request::Reads(shard, vec![(SlotId(1), key(1)); KEYS_MAX + 1]), "number of keys"),
        (Request::App(vec![0; APP_BYTES_MAX + 1]), "message"),
    ];
    for (request, what) in cases {
        assert_eq!(request.check(), Err(WireError::Bounds(what)));
        // The same when it comes over the wire, past a sender that did not look.
        let bytes = rkyv::to_bytes::<rancor::Error>(&request).unwrap();
        assert_eq!(Request::decode(&bytes), Err(WireError::Bounds(what)));
    }
}

#[test]
fn flipped_and_cut_messages_never_panic() {
    for request in requests() {
        let good = request.encode().unwrap();
        for at in 0..good.len() {
            for mask in [1, 0x80, 0xff] {
                let mut bad = good.clone();
                bad[at] ^= mask;
                let _ = Request::decode(&bad);
                let _ = Response::decode(&bad);
            }
            let mut cut = AlignedVec::new();
            cut.extend_from_slice(&good[..at]);
            let _ = Request::decode(&cut);
        }
    }
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let mut aligned = AlignedVec::new();
        aligned.extend_from_slice(&bytes);
        let _ = Request::decode(&aligned);
        let _ = Response::decode(&aligned);
        let _ = Hello::decode(&aligned);
        let _ = Welcome::decode(&aligned);
    }
}
