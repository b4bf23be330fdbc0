//! Orders to move slots from shard to shard, and how far each has come.
//!
//! The orders stand in the map, in the order in which they were given; the first one is under way,
//! the others wait. Its phase says what may be done next, and changes only by a command that names
//! the phase before: so any number of nodes may drive a move, and one that dies leaves nothing but
//! a phase to go on from.
//!
//! ```text
//! copying ----> switching ----> dropping ----> (over)
//!    |              |
//!    +--------------+---------> cancelling --> (over)
//! ```
//!
//! The target may adopt the slot only while the move is switching, and once it is cancelling it
//! cannot any more: from copying nobody has asked it to, and from switching only who has the
//! target's word that it gave up. Nothing here acts.

use crate::map::Map;
use core::fmt;
use nearstate_store::slot_mover::SlotOrder;
use nearstate_store::{ShardId, SlotId};
use rkyv::{Archive, Deserialize, Serialize};
use std::collections::BTreeSet;

/// How far a move has come.
#[derive(
    Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash,
)]
pub enum MovePhase {
    /// Its entries are copied, or wait for that; the source serves as ever.
    Copying,
    /// Writes are held up until the target has the slot.
    Switching,
    /// The target serves; the source drops what it has left.
    Dropping,
    /// The source serves again; the target drops what it was given.
    Cancelling,
}

impl MovePhase {
    /// The word for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Copying => "copying",
            Self::Switching => "switching",
            Self::Dropping => "dropping",
            Self::Cancelling => "cancelling",
        }
    }

    /// Whether a move may go from this phase to another, or be over.
    #[must_use]
    pub const fn may_become(self, next: Option<Self>) -> bool {
        matches!(
            (self, next),
            (Self::Copying, Some(Self::Switching | Self::Cancelling))
                | (Self::Switching, Some(Self::Dropping | Self::Cancelling))
                | (Self::Dropping | Self::Cancelling, None)
        )
    }
}

impl fmt::Display for MovePhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An order to move a slot.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotMove {
    /// Counts all moves that were ever ordered, from 1.
    pub number: u64,
    /// Which slot.
    pub slot: SlotId,
    /// The shard that has it when the move begins.
    pub from: ShardId,
    /// The shard that gets it.
    pub to: ShardId,
    /// How far it has come.
    pub phase: MovePhase,
}

impl SlotMove {
    /// As the store takes it.
    #[must_use]
    pub const fn order(&self) -> SlotOrder {
        let Self { number, slot, from, to, .. } = *self;
        SlotOrder { number, slot, from, to }
    }
}

impl Map {
    /// Adds orders to move slots, numbered from `next`; gives the number after them. Slots that are
    /// there already, or have been ordered there, are left out.
    ///
    /// # Errors
    /// Names the first slot that cannot be ordered there.
    pub(crate) fn order_moves(
        &mut self,
        next: u64,
        slots: &[u16],
        to: ShardId,
    ) -> Result<u64, SlotId> {
        let mut next = next;
        let mut ordered = Vec::new();
        let under_way: BTreeSet<(SlotId, ShardId)> =
            self.moves.iter().map(|order| (order.slot, order.to)).collect();
        let busy: BTreeSet<SlotId> = self.moves.iter().map(|order| order.slot).collect();
        for slot in slots.iter().copied().collect::<BTreeSet<u16>>().into_iter().map(SlotId) {
            let from = self.shard_of(slot).ok_or(slot)?;
            if under_way.contains(&(slot, to)) || (from == to && !busy.contains(&slot)) {
                continue;
            }
            if busy.contains(&slot) {
                return Err(slot);
            }
            ordered.push(SlotMove { number: next, slot, from, to, phase: MovePhase::Copying });
            next += 1;
        }
        self.moves.append(&mut ordered);
        Ok(next)
    }

    /// Brings the first move from one phase to the next. Whether it was there and in that phase.
    pub(crate) fn advance_move(
        &mut self,
        number: u64,
        from: MovePhase,
        to: Option<MovePhase>,
    ) -> bool {
        let Some(first) = self.moves.first_mut() else { return false };
        if (first.number, first.phase) != (number, from) || !from.may_become(to) {
            return false;
        }
        match to {
            Some(phase) => {
                first.phase = phase;
                let (slot, shard) = (first.slot, first.to);
                if phase == MovePhase::Dropping {
                    self.slot_to_shard[usize::from(slot.0)] = shard.0;
                }
            }
            None => drop(self.moves.remove(0)),
        }
        true
    }

    /// Takes back the orders that wait, and cancels the one that is copied; one that has come
    /// further goes to its end. Whether anything has changed.
    pub(crate) fn cancel_moves(&mut self) -> bool {
        let before = self.moves.len();
        self.moves.truncate(1);
        let mut changed = self.moves.len() != before;
        if let Some(first) = self.moves.first_mut().filter(|m| m.phase == MovePhase::Copying) {
            first.phase = MovePhase::Cancelling;
            changed = true;
        }
        changed
    }

    /// How many slots each shard has, by shard number.
    #[must_use]
    pub fn slot_counts(&self) -> Vec<u32> {
        let mut counts = vec![0; self.shards.len()];
        for shard in &self.slot_to_shard {
            if let Some(count) = counts.get_mut(usize::from(*shard)) {
                *count += 1;
            }
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{check_map, check_step};
    use crate::map::tests::sample;

    #[test]
    fn orders_are_numbered_and_none_is_given_twice() {
        let mut map = sample();
        assert_eq!(map.order_moves(7, &[0, 2, 1, 0], ShardId(2)), Ok(9));
        let orders: Vec<_> = map.moves.iter().map(|m| (m.number, m.slot.0, m.from.0)).collect();
        assert_eq!(orders, [(7, 0, 1), (8, 2, 1)], "slot 1 is there already");
        assert_eq!(map.order_moves(9, &[2, 4], ShardId(2)), Ok(10));
        assert_eq!(map.order_moves(10, &[0], ShardId(1)), Err(SlotId(0)), "it is on its way");
        assert_eq!(map.order_moves(10, &[8], ShardId(1)), Err(SlotId(8)), "there is none");
        assert_eq!(check_map(&map), vec![]);
    }

    #[test]
    fn a_move_goes_through_its_phases_and_every_step_keeps_the_rules() {
        use MovePhase as P;
        let mut map = sample();
        map.order_moves(1, &[0, 2], ShardId(2)).unwrap();
        let mut advance = |number, from, to| {
            let old = map.clone();
            let advanced = map.advance_move(number, from, to);
            map.epoch.0 += 1;
            assert_eq!(check_step(&old, &map), vec![]);
            (advanced, map.shard_of(SlotId(0)), map.shard_of(SlotId(2)))
        };
        let (one, two) = (Some(ShardId(1)), Some(ShardId(2)));
        assert_eq!(advance(2, P::Copying, Some(P::Switching)), (false, one, one), "it waits");
        assert_eq!(advance(1, P::Switching, Some(P::Dropping)), (false, one, one));
        assert_eq!(advance(1, P::Copying, Some(P::Dropping)), (false, one, one));
        assert_eq!(advance(1, P::Copying, Some(P::Switching)), (true, one, one));
        assert_eq!(advance(1, P::Switching, None), (false, one, one));
        assert_eq!(advance(1, P::Switching, Some(P::Dropping)), (true, two, one));
        assert_eq!(advance(1, P::Dropping, Some(P::Cancelling)), (false, two, one));
        assert_eq!(advance(1, P::Dropping, None), (true, two, one));
        assert_eq!(advance(2, P::Copying, Some(P::Cancelling)), (true, two, one));
        assert_eq!(advance(2, P::Cancelling, None), (true, two, one));
        assert!(map.moves.is_empty());
    }

    #[test]
    fn cancelling_takes_back_what_has_not_begun_to_switch() {
        let mut map = sample();
        assert!(!map.cancel_moves());
        map.order_moves(1, &[0, 2, 4], ShardId(2)).unwrap();
        let mut switching = map.clone();
        assert!(map.cancel_moves());
        assert_eq!(map.moves.len(), 1);
        assert_eq!(map.moves[0].phase, MovePhase::Cancelling);
        assert!(!map.cancel_moves());
        switching.advance_move(1, MovePhase::Copying, Some(MovePhase::Switching));
        assert!(switching.cancel_moves());
        assert_eq!(switching.moves.len(), 1);
        assert_eq!(switching.moves[0].phase, MovePhase::Switching, "it goes to its end");
    }
}
