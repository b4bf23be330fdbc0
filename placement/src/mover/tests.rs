//! The driver of moves against shards that fail, with real commands to a system machine.

use super::*;
use crate::map::Map;
use crate::map::tests::sample;
use crate::reconcile::GroupStatus;
use crate::service::Wake;
use crate::system::SystemMachine;
use futures::executor::block_on;
use nearstate_store::machine::Machine;
use nearstate_store::slot_move::Obstacle;
use nearstate_store::{LogIndex, NodeId, SlotId, Term, Time};
use proptest::prelude::*;
use std::sync::{Arc, Mutex};

/// What the two shards of the slot know.
#[derive(Clone, Copy, Debug, Default)]
struct Shards {
    sealed: bool,
    adopted: bool,
    gave_up: bool,
    dropped: bool,
    /// The target has no room.
    full: bool,
}

struct World {
    machine: SystemMachine,
    shards: Shards,
    /// One answer for each call: whether it fails, and whether it is done all the same.
    failures: Vec<(bool, bool)>,
    /// Whether this node owns the source.
    owns: bool,
}

struct Node(Mutex<World>);

impl World {
    fn new(failures: Vec<(bool, bool)>) -> Self {
        let mut machine = SystemMachine::new(Arc::new(|_| {}));
        let member = sample().members[0].clone();
        let form = SystemCommand::Form {
            members: vec![member],
            slots: 8,
            shards: 2,
            replicas: 1,
            lineage: 7,
        };
        machine.apply(LogIndex(1), &form.encode());
        Self { machine, shards: Shards::default(), failures, owns: true }
    }

    fn apply(&mut self, command: &SystemCommand) -> SystemReply {
        match self.machine.apply(LogIndex(2), &command.encode()) {
            Reply::System(bytes) => SystemReply::decode(&bytes).unwrap(),
            other => panic!("{other:?}"),
        }
    }
}

impl Node {
    /// Does something at a shard, or fails before it, or after it.
    fn call<T>(&self, act: impl FnOnce(&mut Shards) -> T) -> Result<T, MoveError> {
        let mut world = self.0.lock().unwrap();
        match world.failures.pop().unwrap_or_default() {
            (true, false) => Err(MoveError::Again("it did not come there".into())),
            (true, true) => {
                act(&mut world.shards);
                Err(MoveError::Again("its answer was lost".into()))
            }
            (false, _) => Ok(act(&mut world.shards)),
        }
    }
}

impl SlotMover for Node {
    fn copy(&self, _: SlotOrder) -> BoxFuture<'_, Result<Copied, MoveError>> {
        // A stage that was done before; what it gives is the store's business.
        Box::pin(async move {
            Err(match self.call(|shards| shards.full)? {
                true => MoveError::Impossible(Obstacle::TableFull),
                false => MoveError::Again("it is still copied".into()),
            })
        })
    }

    fn switch(&self, _: SlotOrder, _: Option<Copied>) -> BoxFuture<'_, Result<(), MoveError>> {
        Box::pin(async move {
            self.call(|shards| {
                if shards.adopted {
                    return Ok(());
                }
                if shards.gave_up {
                    return Err(MoveError::GivenUp);
                }
                shards.sealed = true;
                if shards.full {
                    return Err(MoveError::Impossible(Obstacle::TableFull));
                }
                shards.adopted = true;
                Ok(())
            })?
        })
    }

    fn drop_rest(&self, _: SlotOrder) -> BoxFuture<'_, Result<(), MoveError>> {
        Box::pin(async move {
            self.call(|shards| {
                assert!(shards.adopted, "nothing is dropped that nobody else has");
                shards.dropped = true;
            })
        })
    }

    fn give_up_target(&self, _: SlotOrder) -> BoxFuture<'_, Result<bool, MoveError>> {
        Box::pin(async move {
            self.call(|shards| {
                shards.gave_up |= !shards.adopted;
                shards.gave_up
            })
        })
    }

    fn unseal(&self, _: SlotOrder) -> BoxFuture<'_, Result<(), MoveError>> {
        Box::pin(async move {
            self.call(|shards| {
                assert!(!shards.adopted, "two shards would serve the slot");
                shards.sealed = false;
            })
        })
    }
}

impl ClusterControl for Node {
    fn me(&self) -> NodeId {
        NodeId(1)
    }

    fn now(&self) -> Time {
        Time(0)
    }

    fn map(&self) -> Arc<Map> {
        Arc::new(self.0.lock().unwrap().machine.map().clone())
    }

    fn status(&self, shard: ShardId) -> Option<GroupStatus> {
        Some(GroupStatus {
            shard,
            me: NodeId(1),
            term: Term(1),
            leader: Some(NodeId(1)),
            is_owner: self.0.lock().unwrap().owns,
            voters: vec![NodeId(1)],
            learners: vec![],
            matched: vec![],
            last: LogIndex(1),
            is_changing: false,
        })
    }

    fn peer_contacts(&self) -> Vec<(NodeId, Time)> {
        vec![]
    }

    fn propose(
        &self,
        shard: ShardId,
        payload: Vec<u8>,
    ) -> BoxFuture<'_, Result<Reply, ControlError>> {
        assert_eq!(shard, ShardId::SYSTEM);
        let mut world = self.0.lock().unwrap();
        let lost = world.failures.pop().unwrap_or_default();
        let reply = match lost {
            (true, false) => Err(ControlError("it did not come there".into())),
            (true, true) => {
                world.machine.apply(LogIndex(3), &payload);
                Err(ControlError("its answer was lost".into()))
            }
            (false, _) => Ok(world.machine.apply(LogIndex(3), &payload)),
        };
        Box::pin(core::future::ready(reply))
    }

    fn add_learner(&self, _: ShardId, _: NodeId) -> BoxFuture<'_, Result<(), ControlError>> {
        panic!("nobody asks")
    }

    fn change_voters(&self, _: ShardId, _: Vec<NodeId>) -> BoxFuture<'_, Result<(), ControlError>> {
        panic!("nobody asks")
    }

    fn remove_learner(&self, _: ShardId, _: NodeId) -> BoxFuture<'_, Result<(), ControlError>> {
        panic!("nobody asks")
    }

    fn transfer_leader(&self, _: ShardId, _: NodeId) -> BoxFuture<'_, Result<(), ControlError>> {
        panic!("nobody asks")
    }

    fn mover(&self) -> Option<&dyn SlotMover> {
        Some(self)
    }

    fn changes(&self) -> u64 {
        0
    }

    fn wait(&self, _: u64, _: u64) -> BoxFuture<'_, Wake> {
        Box::pin(core::future::ready(Wake::Tick))
    }
}

/// A slot of shard 1 is ordered to shard 2.
fn ordered(failures: Vec<(bool, bool)>) -> Node {
    let mut world = World::new(failures);
    let order = SystemCommand::MoveSlots { slots: vec![0], to: ShardId(2) };
    assert!(matches!(world.apply(&order), SystemReply::Done(_)));
    Node(Mutex::new(world))
}

/// As if the copy had come to its end.
fn switching(node: &Node) {
    let command = SystemCommand::AdvanceMove {
        number: 1,
        from: MovePhase::Copying,
        to: Some(MovePhase::Switching),
    };
    assert!(matches!(node.0.lock().unwrap().apply(&command), SystemReply::Done(_)));
}

fn shard_of_0(node: &Node) -> Option<ShardId> {
    node.map().shard_of(SlotId(0))
}

#[test]
fn only_the_owner_of_the_source_drives() {
    let node = ordered(vec![]);
    switching(&node);
    node.0.lock().unwrap().owns = false;
    block_on(mover_turn(&node));
    assert_eq!(node.map().moves[0].phase, MovePhase::Switching);
    node.0.lock().unwrap().owns = true;
    block_on(mover_turn(&node));
    assert!(node.map().moves.is_empty());
    assert_eq!(shard_of_0(&node), Some(ShardId(2)));
    assert!(node.0.lock().unwrap().shards.dropped);
}

#[test]
fn a_target_without_room_gives_the_slot_back_to_its_source() {
    let node = ordered(vec![]);
    node.0.lock().unwrap().shards.full = true;
    block_on(mover_turn(&node));
    assert!(node.map().moves.is_empty(), "it was cancelled while it was copied");
    assert_eq!(shard_of_0(&node), Some(ShardId(1)));
}

proptest! {
    /// Calls fail before or after they were done, in any order; the map and the shards agree in the
    /// end, and one shard serves the slot.
    #[test]
    fn a_move_comes_to_its_end_whatever_fails(
        failures in proptest::collection::vec(any::<(bool, bool)>(), 0..24), full in any::<bool>(),
    ) {
        let node = ordered(failures);
        switching(&node);
        node.0.lock().unwrap().shards.full = full;
        for _ in 0..30 {
            block_on(mover_turn(&node));
        }
        let map = node.map();
        prop_assert!(map.moves.is_empty());
        let shards = node.0.lock().unwrap().shards;
        prop_assert_eq!(shards.adopted, !full);
        prop_assert_eq!(shard_of_0(&node), Some(ShardId(if full { 1 } else { 2 })));
        if full {
            prop_assert!(!shards.sealed && shards.gave_up, "the source serves again");
        }
    }
}
