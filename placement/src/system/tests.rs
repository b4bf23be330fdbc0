//! The system machine: ids, names, epochs, snapshots, and equal machines from equal logs.

use super::*;
use proptest::prelude::*;
use std::sync::Mutex;

fn address(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn founder(name: &str) -> Member {
    let state = MemberState::Alive;
    Member { id: NodeId(0), name: name.into(), address: address(1), ports: vec![], state }
}

fn machine() -> SystemMachine {
    SystemMachine::new(Arc::new(|_| {}))
}

fn run(machine: &mut SystemMachine, command: &SystemCommand) -> SystemReply {
    let payload = command.encode();
    SystemMachine::check(&payload).unwrap();
    match machine.apply(LogIndex(1), &payload) {
        Reply::System(bytes) => SystemReply::decode(&bytes).unwrap(),
        other => panic!("not a system reply: {other:?}"),
    }
}

fn form() -> SystemCommand {
    form_of(vec![founder("n1")], 16, 3)
}

fn form_of(members: Vec<Member>, slots: u32, shards: u16) -> SystemCommand {
    SystemCommand::Form { members, slots, shards, replicas: 3, lineage: 0x1e }
}

fn join(name: &str, nonce: u64) -> SystemCommand {
    SystemCommand::Join { name: name.into(), address: address(2), ports: vec![], nonce }
}

fn set(id: u64, state: MemberState) -> SystemCommand {
    SystemCommand::SetMember { id: NodeId(id), state }
}

fn refusal(reply: SystemReply) -> SystemRefusal {
    match reply {
        SystemReply::Refused(refusal) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn a_formed_cluster_has_every_slot_in_a_flow_shard() {
    let mut m = machine();
    assert_eq!(refusal(run(&mut m, &join("n2", 1))), SystemRefusal::NotFormed);
    assert_eq!(run(&mut m, &form()), SystemReply::Done(Epoch(1)));
    assert_eq!(check::check_map(m.map()), vec![]);
    assert_eq!(m.map().shards.len(), 4);
    assert_eq!(refusal(run(&mut m, &form())), SystemRefusal::AlreadyFormed);
}

#[test]
fn a_cluster_without_founder_shards_or_power_of_two_is_refused() {
    let shapes = [(vec![], 16, 1), (vec![founder("a")], 16, 0), (vec![founder("a")], 12, 1)];
    for (members, slots, shards) in shapes {
        let command = form_of(members, slots, shards);
        assert_eq!(refusal(run(&mut machine(), &command)), SystemRefusal::BadShape);
    }
}

#[test]
fn a_cluster_keeps_the_lineage_that_it_was_formed_with() {
    let mut m = machine();
    let SystemCommand::Form { members, slots, shards, replicas, .. } = form() else { panic!() };
    let nameless = SystemCommand::Form { members, slots, shards, replicas, lineage: 0 };
    assert!(matches!(refusal(run(&mut m, &nameless)), SystemRefusal::BadMap(_)));
    run(&mut m, &form());
    assert_eq!(m.map().lineage, 0x1e);
    run(&mut m, &join("n2", 1));
    let mut map = m.map().clone();
    assert_eq!(map.lineage, 0x1e);
    (map.epoch, map.lineage) = (Epoch(3), 0x1f);
    let other = refusal(run(&mut m, &SystemCommand::SetMap { expected: Epoch(2), map }));
    assert!(other.to_string().contains("another cluster's of the same name"), "{other}");
    let mut late = machine();
    late.install(&m.snapshot()).unwrap();
    assert_eq!(late.map().lineage, 0x1e);
}

#[test]
fn commands_and_replies_of_another_version_are_refused_by_name() {
    let command = form().encode();
    assert_eq!(SystemCommand::decode(&command), Ok(form()));
    let reply = SystemReply::Done(Epoch(3)).encode();
    assert_eq!(SystemReply::decode(&reply), Ok(SystemReply::Done(Epoch(3))));
    for version in [0, FORMAT + 1, u8::MAX] {
        let error = DecodeError::Version { found: version, expected: FORMAT };
        let other = |bytes: &[u8]| [&[version], &bytes[1..]].concat();
        assert_eq!(SystemCommand::decode(&other(&command)), Err(error.clone()));
        assert_eq!(SystemReply::decode(&other(&reply)), Err(error));
        let refused = PayloadError::Version { found: version, expected: FORMAT };
        assert_eq!(SystemMachine::check(&other(&command)), Err(refused.clone()));
        assert!(refused.to_string().contains("all nodes must be of one version"), "{refused}");
    }
    assert!(SystemCommand::decode(&[]).is_err() && SystemReply::decode(&[FORMAT]).is_err());
}

#[test]
fn a_retried_join_gets_the_same_id_and_a_new_life_another() {
    let mut m = machine();
    run(&mut m, &form());
    assert_eq!(run(&mut m, &join("n2", 7)), SystemReply::Joined(NodeId(2), Epoch(2)));
    assert_eq!(run(&mut m, &join("n2", 7)), SystemReply::Joined(NodeId(2), Epoch(2)));
    assert_eq!(refusal(run(&mut m, &join("n2", 8))), SystemRefusal::NameTaken(NodeId(2)));
    run(&mut m, &set(2, MemberState::Suspected));
    assert_eq!(run(&mut m, &join("n2", 8)), SystemReply::Joined(NodeId(3), Epoch(4)));
    assert_eq!(m.map().state_of(NodeId(2)), MemberState::Dead);
    let back = refusal(run(&mut m, &set(2, MemberState::Alive)));
    assert!(matches!(back, SystemRefusal::BadMap(_)), "{back}");
}

#[test]
fn only_a_later_term_changes_the_owner() {
    let mut m = machine();
    run(&mut m, &form());
    run(&mut m, &join("n2", 1));
    let report = |node, term| SystemCommand::ReportOwner {
        shard: ShardId(1),
        node: NodeId(node),
        term: Term(term),
    };
    assert_eq!(run(&mut m, &report(1, 3)), SystemReply::Done(Epoch(3)));
    assert_eq!(run(&mut m, &report(1, 3)), SystemReply::Done(Epoch(3)), "no news, no epoch");
    assert_eq!(refusal(run(&mut m, &report(2, 3))), SystemRefusal::OldTerm(Term(3)));
    assert_eq!(run(&mut m, &report(2, 4)), SystemReply::Done(Epoch(4)));
    assert_eq!(refusal(run(&mut m, &report(9, 5))), SystemRefusal::UnknownNode(NodeId(9)));
    let nowhere = SystemCommand::ReportOwner { shard: ShardId(4), node: NodeId(1), term: Term(9) };
    assert_eq!(refusal(run(&mut m, &nowhere)), SystemRefusal::UnknownShard(ShardId(4)));
}

#[test]
fn a_map_is_set_only_from_the_epoch_it_was_planned_at_and_only_within_the_rules() {
    let mut m = machine();
    run(&mut m, &form());
    run(&mut m, &join("n2", 1));
    let mut map = m.map().clone();
    map.shards[1].replicas.push(NodeId(2));
    map.epoch = Epoch(3);
    let set_map = |expected, map: &Map| SystemCommand::SetMap { expected, map: map.clone() };
    assert_eq!(refusal(run(&mut m, &set_map(Epoch(1), &map))), SystemRefusal::EpochMoved(Epoch(2)));
    assert_eq!(run(&mut m, &set_map(Epoch(2), &map)), SystemReply::Done(Epoch(3)));
    assert_eq!(m.map(), &map);
    map.epoch = Epoch(4);
    map.shards[1].preferred = NodeId(9);
    let bad = refusal(run(&mut m, &set_map(Epoch(3), &map)));
    assert!(matches!(bad, SystemRefusal::BadMap(_)), "{bad}");
}

#[test]
fn watchers_see_every_epoch_once_and_in_order() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&seen);
    let publish = Arc::new(move |map: Arc<Map>| sink.lock().unwrap().push(map.epoch.0));
    let mut m = SystemMachine::new(publish);
    run(&mut m, &form());
    run(&mut m, &form());
    run(&mut m, &join("n2", 1));
    run(&mut m, &set(2, MemberState::Suspected));
    run(&mut m, &set(2, MemberState::Suspected));
    run(&mut m, &join("n2", 2));
    assert_eq!(*seen.lock().unwrap(), [1, 2, 3, 4]);
}

#[test]
fn damaged_snapshots_are_refused_and_change_nothing() {
    let mut m = machine();
    run(&mut m, &form());
    run(&mut m, &join("n2", 1));
    let good = m.snapshot();
    let mut other = machine();
    let empty = other.state_hash();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        assert!(other.install(&bad).is_err(), "byte {at}");
        assert!(other.install(&good[..at]).is_err(), "cut at {at}");
    }
    assert_eq!(other.state_hash(), empty);
    other.install(&good).unwrap();
    assert_eq!(other.state_hash(), m.state_hash());
    assert_eq!(run(&mut other, &join("n2", 1)), SystemReply::Joined(NodeId(2), Epoch(2)));
    assert_eq!(run(&mut other, &join("n3", 5)), SystemReply::Joined(NodeId(3), Epoch(3)));
}

#[test]
fn old_retired_members_are_forgotten_so_that_a_cluster_can_live_for_ever() {
    let mut m = machine();
    run(&mut m, &form());
    for life in 0..1_000_u64 {
        let reply = run(&mut m, &join("n2", life));
        assert_eq!(reply, SystemReply::Joined(NodeId(life + 2), m.map().epoch));
        run(&mut m, &set(life + 2, MemberState::Dead));
        run(&mut m, &set(life + 2, MemberState::Retired));
    }
    assert!(m.map().members.len() <= limits::RETIRED_KEPT_MAX + 3);
}

fn any_command() -> impl Strategy<Value = SystemCommand> {
    let states =
        [MemberState::Alive, MemberState::Suspected, MemberState::Dead, MemberState::Retired];
    prop_oneof![
        Just(form()),
        (0_u8..4, 0_u64..6).prop_map(|(name, nonce)| join(&format!("n{name}"), nonce)),
        (0_u16..5, 0_u64..6, 0_u64..6).prop_map(|(shard, node, term)| {
            SystemCommand::ReportOwner {
                shard: ShardId(shard),
                node: NodeId(node),
                term: Term(term),
            }
        }),
        (0_u64..6, proptest::sample::select(states.to_vec()))
            .prop_map(|(id, state)| set(id, state)),
    ]
}

proptest! {
    #[test]
    fn equal_logs_make_equal_machines_and_every_step_keeps_the_rules(
        commands in proptest::collection::vec(any_command(), 1..60),
        cut in 0_usize..60,
    ) {
        let (mut a, mut b) = (machine(), machine());
        for (at, command) in commands.iter().enumerate() {
            if at == cut {
                let mut late = machine();
                late.install(&b.snapshot()).unwrap();
                b = late;
            }
            let before = a.map().clone();
            prop_assert_eq!(run(&mut a, command), run(&mut b, command));
            prop_assert_eq!(a.state_hash(), b.state_hash());
            if a.map().epoch != before.epoch {
                let broken = check::check_step(&before, a.map());
                let late_planner = |v: &check::Violation| {
                    matches!(v, check::Violation::PreferredDead(..))
                };
                prop_assert!(broken.iter().all(late_planner), "{:?}", broken);
            }
        }
    }
}

#[test]
fn a_name_is_free_once_its_holder_has_left() {
    let mut m = machine();
    run(&mut m, &form());
    run(&mut m, &join("n2", 1));
    run(&mut m, &set(2, MemberState::Leaving));
    let taken = refusal(run(&mut m, &join("n2", 2)));
    assert_eq!(taken, SystemRefusal::NameTaken(NodeId(2)), "it may still own something");
    run(&mut m, &set(2, MemberState::Left));
    run(&mut m, &join("n2", 3));
    assert_eq!(m.map().state_of(NodeId(2)), MemberState::Left);
    assert_eq!(m.map().live_member_named("n2").map(|member| member.id), Some(NodeId(3)));
    let back = refusal(run(&mut m, &set(2, MemberState::Alive)));
    assert!(matches!(back, SystemRefusal::BadMap(_)), "{back:?}");
}
