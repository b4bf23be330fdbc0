//! What comes over connections: frames, the messages between nodes, and control messages.

use crate::engine::Target;
use crate::seal;
use nearstate_placement::api;
use nearstate_placement::store_api::StoreRequest;
use nearstate_placement::{Map, Side};
use nearstate_store::frame::{self, FRAME_BODY_MAX, FrameDecoder, FrameKind};
use nearstate_store::wire::{
    Append, AskVote, Ballot, EntryBody, Grant, Hello, LogEntry, Members, Position, Reading,
    Readings, Request, Response, SnapshotChunk, Voted, Welcome,
};
use nearstate_store::{
    Epoch, Key, LogIndex, Outcome, ShardId, SlotId, TenantId, Transaction, TransactionId, Value,
    Write,
};
use rkyv::util::AlignedVec;

type Samples = Vec<(&'static str, Vec<u8>)>;

const SHARD: ShardId = ShardId(1);
const KEY: Key = Key([1, 2, 3, 4, 5]);

/// The cutting of a stream into frames.
pub(crate) const FRAMES: Target = Target {
    name: "frames",
    samples: frame_samples,
    is_fresh: false,
    read: read_frames,
    seal: seal::frames,
};

fn frame_samples() -> Samples {
    let mut stream = Vec::new();
    frame::encode(FrameKind::Hello, 0, b"who", &mut stream);
    frame::encode(FrameKind::Request, 7, &[0xa5; 300], &mut stream);
    frame::encode(FrameKind::Response, 7, &[0x5a; 17], &mut stream);
    vec![("three", stream)]
}

fn read_frames(bytes: &[u8]) -> bool {
    // In pieces, as a connection gives them.
    let mut decoder = FrameDecoder::new();
    let mut frames = 0;
    for piece in bytes.chunks(61) {
        decoder.feed(piece);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => {
                    assert!(frame.body.len() <= FRAME_BODY_MAX);
                    frames += 1;
                }
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(decoder.next_frame().err(), Some(error), "it stays broken");
                    return false;
                }
            }
        }
    }
    frames > 0
}

/// The messages between nodes. The first byte says which kind it is to be.
pub(crate) const WIRE: Target = Target {
    name: "wire",
    samples: wire_samples,
    is_fresh: false,
    read: read_wire,
    seal: seal::nothing,
};

const REQUEST: u8 = 0;
const RESPONSE: u8 = 1;
const HELLO: u8 = 2;
const WELCOME: u8 = 3;

fn tagged(tag: u8, bytes: &[u8]) -> Vec<u8> {
    [&[tag], bytes].concat()
}

fn transaction() -> Transaction {
    Transaction {
        id: TransactionId { client: 1, serial: 1 },
        slot: SlotId(3),
        conditions: core::iter::once(nearstate_store::Condition::Absent(KEY)).collect(),
        writes: core::iter::once(Write::put(KEY, Value([7; 8]))).collect(),
    }
}

fn wire_samples() -> Samples {
    let ballot = Ballot { term: 2, node: 1, committed: true };
    let at = |index| Position { term: 2, index };
    let members = Members { configs: vec![vec![1, 2], vec![1, 2, 3]], nodes: vec![1, 2, 3] };
    let entries =
        [EntryBody::Blank, EntryBody::Payload(vec![9; 40]), EntryBody::Members(members.clone())];
    let entries = (5..).zip(entries).map(|(index, body)| LogEntry { at: at(index), body });
    let append =
        Append { ballot, prev: Some(at(4)), entries: entries.collect(), commit: Some(at(4)) };
    let chunk = SnapshotChunk {
        ballot,
        transfer: 1,
        last_log: Some(at(9)),
        members_at: Some(at(1)),
        members,
        total: 100,
        crc: 1,
        offset: 50,
        bytes: vec![3; 50],
    };
    let vote = AskVote {
        ballot: Ballot { committed: false, ..ballot },
        last_log: Some(at(9)),
        transfer: false,
        pre: false,
        orphaned: true,
    };
    let found = vec![Reading::Absent, Reading::NotHere(None), Reading::NotHere(Some(SHARD))];
    let readings = Readings { found, left_ns: 9 };
    let request = |request: Request| tagged(REQUEST, &request.encode().unwrap());
    let response = |response: Response| tagged(RESPONSE, &response.encode().unwrap());
    let hello = Hello { cluster: 1, lineage: 2, from: 3, to: 4, nonce: 5 };
    vec![
        ("append", request(Request::Append(SHARD, append))),
        ("snapshot", request(Request::Snapshot(SHARD, chunk))),
        ("vote", request(Request::Vote(SHARD, vote))),
        ("transactions", request(Request::Transactions(SHARD, vec![transaction(); 3]))),
        ("reads", request(Request::Reads(SHARD, vec![(SlotId(3), KEY); 4]))),
        ("app", request(Request::App(vec![1; 30]))),
        ("voted", response(Response::Vote(Voted { ballot, granted: true, last_log: Some(at(9)) }))),
        ("outcomes", response(Response::Outcomes(vec![Outcome::Committed(LogIndex(5)); 5]))),
        (
            "grant",
            response(Response::ReadLease(Grant {
                path: "/a/region".into(),
                generation: 2,
                left_ns: 3,
            })),
        ),
        ("readings", response(Response::Reads(readings))),
        ("hello", tagged(HELLO, &hello.encode().unwrap())),
        ("welcome", tagged(WELCOME, &Welcome::Accepted(hello).encode().unwrap())),
    ]
}

fn read_wire(bytes: &[u8]) -> bool {
    let Some((tag, body)) = bytes.split_first() else { return false };
    let mut aligned = AlignedVec::with_capacity(body.len());
    aligned.extend_from_slice(body);
    match *tag {
        REQUEST => Request::decode(&aligned).is_ok_and(|request| {
            // What was let in can be sent on, and is the same again.
            let again = request.encode().expect("it was checked");
            Request::decode(&again) == Ok(request)
        }),
        RESPONSE => Response::decode(&aligned).is_ok_and(|response| {
            let again = response.encode().expect("it was checked");
            Response::decode(&again) == Ok(response)
        }),
        HELLO => Hello::decode(&aligned).is_ok(),
        WELCOME => Welcome::decode(&aligned).is_ok(),
        _ => false,
    }
}

/// Control messages. The first byte says whether it is to be an answer.
pub(crate) const CONTROL: Target = Target {
    name: "control",
    samples: control_samples,
    is_fresh: false,
    read: read_control,
    seal: seal::nothing,
};

fn control_samples() -> Samples {
    let request = |request: api::Request| tagged(REQUEST, &request.encode());
    let response = |response: api::Response| tagged(RESPONSE, &response.encode());
    let join = api::Request::Join {
        name: "n1".into(),
        address: ([127, 0, 0, 1], 7001).into(),
        ports: vec!["/a/ring".into()],
        nonce: 1,
        settings: 2,
    };
    let trace = api::Request::Trace {
        side: Side::Inside,
        tenant: TenantId(0),
        frame: vec![5; 60],
        passed_on: false,
    };
    let scan = StoreRequest::Scan { shard: SHARD, from: 0, entries: 9, slot: Some(SlotId(1)) };
    vec![
        ("join", request(join)),
        ("get-map", request(api::Request::GetMap { newer_than: Epoch(1), wait_ms: 10 })),
        ("trace", request(trace)),
        ("scan", request(api::Request::Store(scan))),
        ("get", request(api::Request::Store(StoreRequest::Get(vec![KEY; 3])))),
        ("lines", response(api::Response::Trace(vec!["a line".into(), "another".into()]))),
        ("refused", response(api::Response::Refused { reason: "no".into(), retry: true })),
    ]
}

fn read_control(bytes: &[u8]) -> bool {
    // A map stands for itself too, on disks.
    let _ = Map::decode(bytes);
    match bytes.split_first() {
        Some((&REQUEST, body)) => api::Request::decode(body)
            .is_ok_and(|request| api::Request::decode(&request.encode()) == Ok(request)),
        Some((&RESPONSE, body)) => api::Response::decode(body)
            .is_ok_and(|response| api::Response::decode(&response.encode()) == Ok(response)),
        _ => false,
    }
}
