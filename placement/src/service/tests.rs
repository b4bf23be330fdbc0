//! Whole clusters of loops against modelled groups: no sockets, no threads, time by hand.

use super::*;
use crate::map::MemberState;
use crate::system::SystemMachine;
use crate::{Member, check::check_step};
use futures::executor::block_on;
use nearstate_store::{LogIndex, Machine, Term};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Mutex;

const TURN_MS: u64 = 50;

/// One shard's group. Entries are only counted.
struct Group {
    voters: BTreeSet<NodeId>,
    learners: BTreeSet<NodeId>,
    matched: BTreeMap<NodeId, u64>,
    leader: Option<NodeId>,
    term: u64,
    last: u64,
}

/// Everything that the loops touch.
struct World {
    now: Time,
    machine: SystemMachine,
    groups: Vec<Group>,
    up: BTreeSet<NodeId>,
    nonce: u64,
    waits: u32,
}

struct Control {
    me: NodeId,
    world: Arc<Mutex<World>>,
}

impl World {
    fn apply(&mut self, command: &SystemCommand) -> SystemReply {
        let before = self.machine.map().clone();
        let Reply::System(bytes) = self.machine.apply(LogIndex(1), &command.encode()) else {
            panic!("not a system reply");
        };
        let after = self.machine.map();
        if after.epoch != before.epoch {
            let broken = check_step(&before, after).into_iter();
            let broken = broken.filter(|v| !matches!(v, check::Violation::PreferredDead(..)));
            assert_eq!(broken.collect::<Vec<_>>(), vec![], "after {command:?}");
        }
        SystemReply::decode(&bytes).unwrap()
    }

    fn join(&mut self, name: &str) -> Option<NodeId> {
        self.nonce += 1;
        let address = ([127, 0, 0, 1], 1).into();
        let command =
            SystemCommand::Join { name: name.into(), address, ports: vec![], nonce: self.nonce };
        match self.apply(&command) {
            SystemReply::Joined(id, _) => {
                self.up.insert(id);
                Some(id)
            }
            _ => None,
        }
    }

    /// Logs come nearer, and groups whose leader is gone elect the first living voter, if a
    /// majority lives.
    fn pass(&mut self) {
        self.now = self.now.plus_ms(TURN_MS);
        for group in &mut self.groups {
            let alive: Vec<NodeId> = group.voters.intersection(&self.up).copied().collect();
            let quorum = alive.len() * 2 > group.voters.len();
            if group.leader.is_some_and(|leader| !self.up.contains(&leader)) {
                group.leader = None;
            }
            if group.leader.is_none() && quorum {
                group.leader = alive.first().copied();
                group.term += 1;
            }
            if group.leader.is_some() && quorum {
                group.last += 10;
            }
            for (node, matched) in &mut group.matched {
                if self.up.contains(node) {
                    *matched = (*matched + 200).min(group.last);
                }
            }
        }
    }

    fn owner_names(&self) -> BTreeMap<String, usize> {
        let map = self.machine.map();
        let mut names = BTreeMap::new();
        for (group, shard) in self.groups.iter().zip(&map.shards).skip(1) {
            assert_eq!(group.leader, Some(shard.preferred), "{}", shard.shard);
            assert_eq!(shard.owner, Some((shard.preferred, Term(group.term))));
            let member = map.member(shard.preferred).unwrap();
            *names.entry(member.name.clone()).or_default() += 1;
        }
        names
    }
}

impl Control {
    fn group<T>(
        &self,
        shard: ShardId,
        edit: impl FnOnce(&mut Group) -> T,
    ) -> Result<T, ControlError> {
        let mut world = self.world.lock().unwrap();
        let up = world.up.clone();
        let group = &mut world.groups[usize::from(shard.0)];
        assert_eq!(group.leader, Some(self.me), "only leaders act");
        let alive = group.voters.intersection(&up).count();
        if alive * 2 <= group.voters.len() {
            return Err(ControlError("no quorum".to_owned()));
        }
        Ok(edit(group))
    }
}

impl ClusterControl for Control {
    fn me(&self) -> NodeId {
        self.me
    }

    fn now(&self) -> Time {
        self.world.lock().unwrap().now
    }

    fn map(&self) -> Arc<Map> {
        Arc::new(self.world.lock().unwrap().machine.map().clone())
    }

    fn status(&self, shard: ShardId) -> Option<GroupStatus> {
        let world = self.world.lock().unwrap();
        let group = world.groups.get(usize::from(shard.0))?;
        if !group.voters.contains(&self.me) && !group.learners.contains(&self.me) {
            return None;
        }
        let leads = group.leader == Some(self.me);
        let matched = group.matched.iter().map(|(id, at)| (*id, LogIndex(*at)));
        Some(GroupStatus {
            shard,
            me: self.me,
            term: Term(group.term),
            leader: group.leader,
            is_owner: leads,
            voters: group.voters.iter().copied().collect(),
            learners: group.learners.iter().copied().collect(),
            matched: if leads { matched.collect() } else { vec![] },
            last: LogIndex(group.last),
            is_changing: false,
        })
    }

    fn ask_status(&self, shard: ShardId) -> BoxFuture<'_, Option<GroupStatus>> {
        let leader = self.world.lock().unwrap().groups[usize::from(shard.0)].leader;
        let there = leader.map(|me| Self { me, world: Arc::clone(&self.world) });
        Box::pin(async move { there.and_then(|there| there.status(shard)) })
    }

    fn peer_contacts(&self) -> Vec<(NodeId, Time)> {
        let world = self.world.lock().unwrap();
        world.up.iter().map(|node| (*node, world.now)).collect()
    }

    fn propose(
        &self,
        shard: ShardId,
        payload: Vec<u8>,
    ) -> BoxFuture<'_, Result<Reply, ControlError>> {
        assert_eq!(shard, ShardId::SYSTEM);
        let mut world = self.world.lock().unwrap();
        let answer = if world.groups[0].leader.is_some() {
            let reply = world.apply(&SystemCommand::decode(&payload).unwrap());
            Ok(Reply::System(reply.encode().into_boxed_slice()))
        } else {
            Err(ControlError("the system shard has no leader".to_owned()))
        };
        Box::pin(async { answer })
    }

    fn add_learner(&self, shard: ShardId, node: NodeId) -> BoxFuture<'_, Result<(), ControlError>> {
        let done = self.group(shard, |group| {
            group.learners.insert(node);
            group.matched.insert(node, 0);
        });
        Box::pin(async { done })
    }

    fn change_voters(
        &self,
        shard: ShardId,
        voters: Vec<NodeId>,
    ) -> BoxFuture<'_, Result<(), ControlError>> {
        let done = self.group(shard, |group| {
            group.learners.retain(|node| !voters.contains(node));
            group.voters = voters.into_iter().collect();
            let known: BTreeSet<_> = group.voters.union(&group.learners).copied().collect();
            group.matched.retain(|node, _| known.contains(node));
        });
        Box::pin(async { done })
    }

    fn remove_learner(
        &self,
        shard: ShardId,
        node: NodeId,
    ) -> BoxFuture<'_, Result<(), ControlError>> {
        let done = self.group(shard, |group| {
            group.learners.remove(&node);
        });
        Box::pin(async { done })
    }

    fn transfer_leader(
        &self,
        shard: ShardId,
        node: NodeId,
    ) -> BoxFuture<'_, Result<(), ControlError>> {
        let done = self.group(shard, |group| {
            group.leader = Some(node);
            group.term += 1;
        });
        Box::pin(async { done })
    }

    fn wait(&self, _at_most_ms: u64) -> BoxFuture<'_, Wake> {
        let mut world = self.world.lock().unwrap();
        world.waits += 1;
        let wake = if world.waits > 400 { Wake::Stop } else { Wake::Tick };
        if world.waits.is_multiple_of(8) {
            world.pass();
        }
        // Once pending, so that the other loops have their turn.
        let mut waited = false;
        Box::pin(core::future::poll_fn(move |context| {
            if core::mem::replace(&mut waited, true) {
                return core::task::Poll::Ready(wake);
            }
            context.waker().wake_by_ref();
            core::task::Poll::Pending
        }))
    }
}

struct Cluster {
    world: Arc<Mutex<World>>,
    planners: BTreeMap<NodeId, PlannerLoop>,
}

impl Cluster {
    fn form(shards: u16) -> Self {
        let founder = NodeId(1);
        let lone = |_| Group {
            voters: [founder].into(),
            learners: BTreeSet::new(),
            matched: [(founder, 500)].into(),
            leader: Some(founder),
            term: 1,
            last: 500,
        };
        let mut world = World {
            now: Time::from_ms(1_000),
            machine: SystemMachine::new(Arc::new(|_| {})),
            groups: (0..=shards).map(lone).collect(),
            up: [founder].into(),
            nonce: 0,
            waits: 0,
        };
        let member = Member {
            id: founder,
            name: "n1".into(),
            address: ([127, 0, 0, 1], 1).into(),
            ports: vec![],
            state: MemberState::Alive,
        };
        let form = SystemCommand::Form {
            members: vec![member],
            slots: 16,
            shards,
            replicas: 3,
            lineage: 1,
        };
        assert!(matches!(world.apply(&form), SystemReply::Done(_)));
        Self { world: Arc::new(Mutex::new(world)), planners: BTreeMap::new() }
    }

    fn control(&self, me: NodeId) -> Control {
        Control { me, world: Arc::clone(&self.world) }
    }

    fn turns(&mut self, count: u32) {
        for _ in 0..count {
            self.world.lock().unwrap().pass();
            let up = self.world.lock().unwrap().up.clone();
            let shards = self.world.lock().unwrap().groups.len() as u16;
            for node in up {
                let control = self.control(node);
                (0..shards).for_each(|shard| block_on(group_turn(&control, ShardId(shard))));
                let fresh = || PlannerLoop::new(ServiceConfig::default());
                block_on(self.planners.entry(node).or_insert_with(fresh).turn(&control));
            }
        }
    }

    fn join(&mut self, name: &str) -> NodeId {
        for _ in 0..100 {
            let joined = self.world.lock().unwrap().join(name);
            match joined {
                Some(id) => return id,
                None => self.turns(1),
            }
        }
        panic!("{name} was never let in");
    }

    fn kill(&mut self, name: &str) -> NodeId {
        let id = self.world.lock().unwrap().machine.map().live_member_named(name).unwrap().id;
        self.world.lock().unwrap().up.remove(&id);
        self.planners.remove(&id);
        id
    }

    /// Every shard on three living voters, ownership even, and nothing moves any more.
    fn assert_settled(&mut self, nodes: usize) {
        let before = self.world.lock().unwrap().machine.map().clone();
        self.turns(20);
        let world = self.world.lock().unwrap();
        assert_eq!(*world.machine.map(), before, "it has come to rest");
        for group in &world.groups {
            assert_eq!(group.voters.len(), nodes.min(3));
            assert!(group.voters.is_subset(&world.up) && group.learners.is_empty());
        }
        let owners = world.owner_names();
        let (least, most) = (owners.values().min().unwrap(), owners.values().max().unwrap());
        assert!(owners.len() == nodes && most - least <= 1, "{owners:?}");
    }
}

#[test]
fn three_nodes_share_what_one_began() {
    let mut cluster = Cluster::form(6);
    cluster.join("n2");
    cluster.join("n3");
    cluster.turns(60);
    cluster.assert_settled(3);
}

#[test]
fn a_killed_owner_is_replaced_under_its_name_and_gets_its_share_back() {
    let mut cluster = Cluster::form(3);
    cluster.join("n2");
    cluster.join("n3");
    cluster.turns(60);
    for name in ["n2", "n1", "n3", "n1"] {
        let old = cluster.kill(name);
        let new = cluster.join(name);
        assert!(new > old);
        cluster.turns(100);
        cluster.assert_settled(3);
        let state = cluster.world.lock().unwrap().machine.map().state_of(old);
        assert_eq!(state, MemberState::Retired);
    }
}

#[test]
fn a_node_that_was_only_slow_gets_its_share_back_under_the_same_id() {
    let mut cluster = Cluster::form(3);
    cluster.join("n2");
    cluster.join("n3");
    cluster.turns(60);
    let slow = cluster.kill("n2");
    cluster.turns(12);
    let state = |cluster: &Cluster| cluster.world.lock().unwrap().machine.map().state_of(slow);
    assert_eq!(state(&cluster), MemberState::Suspected);
    assert!(!cluster.world.lock().unwrap().owner_names().contains_key("n2"));
    cluster.world.lock().unwrap().up.insert(slow);
    cluster.turns(60);
    assert_eq!(state(&cluster), MemberState::Alive);
    cluster.assert_settled(3);
}

#[test]
fn the_loops_of_a_node_run_until_they_are_told_to_stop() {
    let cluster = Cluster::form(3);
    let joined = cluster.world.lock().unwrap().join("n2").unwrap();
    block_on(run(&cluster.control(NodeId(1)), ServiceConfig::default()));
    let world = cluster.world.lock().unwrap();
    assert!(world.groups.iter().all(|group| group.voters.contains(&joined)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn any_sequence_of_single_failures_heals(
        shards in 3_u16..8,
        spares in 0_usize..3,
        victims in proptest::collection::vec((0_usize..6, 0_u32..90), 1..5),
    ) {
        let mut cluster = Cluster::form(shards.max(3 + spares as u16));
        let nodes = 3 + spares;
        let names: Vec<String> = (1..=nodes).map(|i| format!("n{i}")).collect();
        for name in &names[1..] {
            cluster.join(name);
        }
        cluster.turns(80);
        for (victim, pause) in victims {
            let name = &names[victim % nodes];
            cluster.kill(name);
            cluster.turns(pause);
            cluster.join(name);
            cluster.turns(140);
            let world = cluster.world.lock().unwrap();
            for group in &world.groups {
                prop_assert!(group.voters.len() == 3 && group.voters.is_subset(&world.up));
            }
            prop_assert!(!world.owner_names().is_empty());
        }
    }
}
