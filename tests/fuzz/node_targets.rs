//! What a node keeps in files, what its system shard is told, and the memory that it shares with
//! whoever drives its port.

use crate::engine::Target;
use crate::seal;
use nearstate_nf_node::Port;
use nearstate_nf_node::frame::{Burst, FramePool};
use nearstate_nf_node::port::shm::{ShmPeer, ShmPort};
use nearstate_nf_node::service::life::Life;
use nearstate_nf_node::service::mark;
use nearstate_placement::moves::MovePhase;
use nearstate_placement::system::{SystemCommand, SystemMachine, SystemRefusal, SystemReply};
use nearstate_placement::{Member, MemberState, Side};
use nearstate_store::slot_move::{MoveReply, Obstacle};
use nearstate_store::{Epoch, LogIndex, Machine, NodeId, Region, ShardId, Term};
use std::sync::Arc;

type Samples = Vec<(&'static str, Vec<u8>)>;

/// What the system shard is asked and answers, and what a shard answers to the step of a move. The
/// first byte says which it is to be.
pub(crate) const SYSTEM: Target = Target {
    name: "system",
    samples: system_samples,
    is_fresh: false,
    read: read_system,
    seal: seal::nothing,
};

const COMMAND: u8 = 0;
const REPLY: u8 = 1;
const MOVE_REPLY: u8 = 2;

fn member(name: &str) -> Member {
    let (address, ports) = (([127, 0, 0, 1], 7001).into(), vec!["/a/ring".to_owned()]);
    Member { id: NodeId(0), name: name.to_owned(), address, ports, state: MemberState::Alive }
}

fn form() -> SystemCommand {
    let members = vec![member("n1")];
    SystemCommand::Form { members, slots: 8, shards: 2, replicas: 3, lineage: 9 }
}

fn join() -> SystemCommand {
    let Member { name, address, ports, .. } = member("n2");
    SystemCommand::Join { name, address, ports, nonce: 7 }
}

/// A cluster of two with a move under way.
fn machine() -> SystemMachine {
    let mut machine = SystemMachine::new(Arc::new(drop));
    let commands = [form(), join(), SystemCommand::MoveSlots { slots: vec![0, 2], to: ShardId(2) }];
    for (index, command) in (1..).map(LogIndex).zip(commands) {
        machine.apply(index, &command.encode());
    }
    machine
}

fn system_samples() -> Samples {
    let command = |command: SystemCommand| [&[COMMAND], &command.encode()[..]].concat();
    let reply = |reply: SystemReply| [&[REPLY], &reply.encode()[..]].concat();
    let moved = |reply: MoveReply| [&[MOVE_REPLY], &reply.encode()[..]].concat();
    let machine = machine();
    let mut map = machine.map().clone();
    let expected = map.epoch;
    map.epoch.0 += 1;
    let (node, shard, number) = (NodeId(2), ShardId(1), machine.map().moves[0].number);
    let advance = SystemCommand::AdvanceMove {
        number,
        from: MovePhase::Copying,
        to: Some(MovePhase::Switching),
    };
    vec![
        ("form", command(form())),
        ("join", command(join())),
        ("owner", command(SystemCommand::ReportOwner { shard, node, term: Term(4) })),
        ("member", command(SystemCommand::SetMember { id: node, state: MemberState::Suspected })),
        ("map", command(SystemCommand::SetMap { expected, map })),
        ("move", command(SystemCommand::MoveSlots { slots: vec![1, 3], to: ShardId(2) })),
        ("advance", command(advance)),
        ("cancel", command(SystemCommand::CancelMoves)),
        ("done", reply(SystemReply::Done(Epoch(5)))),
        ("joined", reply(SystemReply::Joined(node, Epoch(5)))),
        ("refused", reply(SystemReply::Refused(SystemRefusal::BadMap("a rule".into())))),
        ("move-over", moved(MoveReply::Over { holds: true })),
        ("move-impossible", moved(MoveReply::Impossible(Obstacle::NotHeld))),
    ]
}

fn read_system(bytes: &[u8]) -> bool {
    match bytes.split_first() {
        Some((&COMMAND, body)) => {
            let command = SystemCommand::decode(body);
            assert_eq!(SystemMachine::check(body).is_ok(), command.is_ok());
            let Ok(command) = command else { return false };
            assert_eq!(SystemCommand::decode(&command.encode()), Ok(command));
            // Whatever a log may hold, machines go on, and their snapshots install.
            for mut machine in [SystemMachine::new(Arc::new(drop)), machine()] {
                machine.apply(LogIndex(9), body);
                let mut other = SystemMachine::new(Arc::new(drop));
                other.install(&machine.snapshot()).expect("its own snapshot");
                assert_eq!(other.state_hash(), machine.state_hash());
            }
            true
        }
        Some((&REPLY, body)) => SystemReply::decode(body)
            .is_ok_and(|reply| SystemReply::decode(&reply.encode()) == Ok(reply)),
        Some((&MOVE_REPLY, body)) => {
            MoveReply::decode(body).is_some_and(|reply| *reply.encode() == *body)
        }
        _ => false,
    }
}

/// The system shard's snapshot, from another node or from a disk.
pub(crate) const SYSTEM_SNAPSHOTS: Target = Target {
    name: "system-snapshots",
    samples: system_snapshot_samples,
    is_fresh: false,
    read: read_system_snapshot,
    seal: seal::system_snapshot,
};

fn system_snapshot_samples() -> Samples {
    let empty = SystemMachine::new(Arc::new(drop)).snapshot();
    vec![("unformed", empty), ("two", machine().snapshot())]
}

fn read_system_snapshot(bytes: &[u8]) -> bool {
    let mut machine = machine();
    let before = machine.state_hash();
    if machine.install(bytes).is_err() {
        assert_eq!(machine.state_hash(), before, "a refused snapshot changes nothing");
        return false;
    }
    let installed = machine.state_hash();
    let again = machine.snapshot();
    machine.install(&again).expect("its own snapshot");
    assert_eq!(machine.state_hash(), installed, "its own snapshot is its state");
    for (index, command) in (9..).map(LogIndex).zip([join(), SystemCommand::CancelMoves]) {
        machine.apply(index, &command.encode());
    }
    true
}

/// The file that says who a durable node is.
pub(crate) const IDENTITIES: Target = Target {
    name: "identities",
    samples: identity_samples,
    is_fresh: false,
    read: |bytes| {
        Life::decode(bytes).is_some_and(|life| Life::decode(&life.encode()) == Some(life))
    },
    seal: seal::identity,
};

fn identity_samples() -> Samples {
    let life = Life {
        node: NodeId(3),
        nonce: u64::MAX,
        lineage: 17,
        listen: ([127, 0, 0, 1], 7001).into(),
        ports: vec!["/a/ring".into(), "another".into()],
        slots: 64,
        shards: 2,
        starts: 7,
        forming: false,
    };
    let v6 = Life { listen: ([0; 8], 1).into(), ports: Vec::new(), forming: true, ..life.clone() };
    vec![("third", life.encode()), ("founder", v6.encode())]
}

/// The marks of nodes that have formed a cluster or joined one.
pub(crate) const MARKS: Target = Target {
    name: "marks",
    samples: || vec![("mark", mark::encode(0x00c0_ffee).into_bytes())],
    is_fresh: false,
    read: |bytes| {
        mark::decode(bytes).is_ok_and(|lineage| {
            assert!(lineage != 0, "0 is no lineage");
            mark::decode(mark::encode(lineage).as_bytes()) == Ok(lineage)
        })
    },
    seal: seal::nothing,
};

/// The memory of a packet port, as the other end has left it.
pub(crate) const RINGS: Target = Target {
    name: "rings",
    samples: ring_samples,
    is_fresh: false,
    read: read_ring,
    seal: seal::nothing,
};

fn ring_samples() -> Samples {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("ring");
    let mut port = ShmPort::create(&path, 2).unwrap();
    let empty = std::fs::read(&path).unwrap();
    let mut peer = ShmPeer::open(&path).unwrap();
    let (mut pool, mut burst) = (FramePool::new(4), Burst::new());
    peer.push(Side::Outside, 1, &[0x11; 60]).unwrap();
    peer.flush();
    assert_eq!(port.receive(&mut pool, &mut burst), 1);
    let frame = burst.drain(..).next().unwrap();
    port.send(frame, &mut pool).unwrap();
    port.report_drop(7, nearstate_nf_node::DropReason::ALL[0]);
    port.flush();
    vec![("empty", empty), ("busy", std::fs::read(&path).unwrap())]
}

fn read_ring(bytes: &[u8]) -> bool {
    let whole = bytes.len() / 8 * 8;
    let Ok(region) = Region::anonymous(whole) else { return false };
    region.copy_in(0, &bytes[..whole]);
    let Ok(mut peer) = ShmPeer::over(Arc::new(region)) else { return false };
    for tag in 0..4 {
        let _ = peer.push(Side::Inside, tag, &[0x22; 100]);
    }
    peer.flush();
    // Nobody writes meanwhile: a ring gives what it holds, and then nothing.
    let most = nearstate_nf_node::port::shm::SLOTS_MAX;
    let mut popped = 0;
    while peer.pop().is_some() {
        popped += 1;
        assert!(popped <= most, "more than there are slots");
    }
    true
}
