//! What a flow machine does in the move of a slot, as source and as target.
//!
//! *Source.* A sealed slot is neither read nor written, but still lies in the table, until its
//! entries are dropped or the move is given up. *Target.*
//! What is imported lies in the table under a slot that the shard does not hold, so nobody is
//! served it; to adopt is then to say that the slot is held. Entries keep their versions, and the
//! target's count of mutations is raised to the source's: versions of a key only rise. Their lives
//! begin again at the target, whose time is another; what rests in a pool rests for as long as was
//! left. Outcomes are remembered at the target as they come, so a retry is known there.
//!
//! *Too late.* Numbers of moves rise and one move is under way at a time, so one number says which
//! moves are over in a shard; steps of those change nothing, however long they were on the way. A
//! shard has a part in one move at a time: a step that would begin a second part comes too early.
//!
//! Beside that, and no part of the state, a replica may note what changes in a slot while it is
//! copied ([`Watch`]).

use crate::flow_machine::FlowMachine;
use crate::key::Key;
use crate::limits::JOURNAL_MAX;
use crate::pool::SlotPool;
use crate::slot_move::{
    GIVE_UP_MAX, MoveEntry, MoveReply, MovedEntry, Obstacle, PIECE_KEYS_MAX, PIECE_OUTCOMES_MAX,
    POOLS_BYTES_MAX, Piece, Step, TakeOut, TakenOut, entry_of,
};
use crate::snapshot::{self, Source};
use crate::transaction::{Outcome, Transaction, TransactionId};
use crate::types::{PoolId, ShardId, SlotId, Version};
use std::collections::{BTreeMap, BTreeSet};

/// Cells that are looked at between two entries of the log, which wait meanwhile.
const SCAN_AT_ONCE: u32 = 1 << 12;

/// A slot that goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outgoing {
    pub(crate) number: u64,
    pub(crate) slot: SlotId,
    pub(crate) to: ShardId,
}

/// A slot that comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Incoming {
    pub(crate) number: u64,
    pub(crate) attempt: u64,
    pub(crate) slot: SlotId,
    /// Pieces that have come.
    pub(crate) pieces: u32,
    /// Bytes of its pools so far.
    pub(crate) pools: Vec<u8>,
    /// Its entries in the table. Follows from the table.
    pub(crate) keys: BTreeSet<Key>,
}

/// Changes of a slot since it is watched.
#[derive(Debug)]
struct Watch {
    slot: SlotId,
    /// Keys whose entries changed, came or went.
    changed: BTreeSet<Key>,
    outcomes: Vec<(TransactionId, Outcome)>,
    /// Whether more changed than is noted.
    is_lost: bool,
    /// What was found and does not make a piece yet.
    found: Vec<MovedEntry>,
}

/// The moves that a machine has a part in.
#[derive(Debug, Default)]
pub(crate) struct Moving {
    /// Moves up to this number are over here.
    pub(crate) over: u64,
    pub(crate) out: Option<Outgoing>,
    pub(crate) coming: Option<Incoming>,
    /// No state.
    watch: Option<Watch>,
    /// When slots were adopted, in the shard's time: nobody here knows what was seen before. No
    /// state: whoever becomes owner later knows even less.
    pub(crate) adopted: BTreeMap<SlotId, u64>,
}

impl Moving {
    /// Where transactions of a slot have to go, if it is on its way out.
    #[inline]
    pub(crate) fn whither(&self, slot: SlotId) -> Option<ShardId> {
        self.out.filter(|out| out.slot == slot).map(|out| out.to)
    }

    /// As it stands in a snapshot.
    pub(crate) fn of(over: u64) -> Self {
        Self { over, ..Self::default() }
    }

    /// Whether entries of a slot that is not held may lie in the table.
    pub(crate) fn is_between(&self, slot: SlotId) -> bool {
        self.whither(slot).is_some()
            || self.coming.as_ref().is_some_and(|coming| coming.slot == slot)
    }

    /// Whether changes of some slot are noted.
    pub(crate) const fn is_watched(&self) -> bool {
        self.watch.is_some()
    }

    /// The entry of a key was changed by a transaction of a slot.
    #[inline]
    pub(crate) fn note_change(&mut self, slot: SlotId, key: &Key) {
        if let Some(watch) = self.watch.as_mut().filter(|watch| watch.slot == slot) {
            watch.changed.insert(*key);
            watch.is_lost |= watch.changed.len() > JOURNAL_MAX;
        }
    }

    /// A transaction of a slot was decided.
    #[inline]
    pub(crate) fn note_outcome(&mut self, transaction: &Transaction, outcome: Outcome) {
        if let Some(watch) = self.watch.as_mut().filter(|watch| watch.slot == transaction.slot) {
            watch.outcomes.push((transaction.id, outcome));
            watch.is_lost |= watch.outcomes.len() > JOURNAL_MAX;
        }
    }
}

impl FlowMachine {
    /// Applies a step of a move.
    pub(crate) fn move_step(&mut self, entry: MoveEntry) -> MoveReply {
        let reply = self.decide_step(entry);
        self.show_moves();
        reply
    }

    fn decide_step(&mut self, entry: MoveEntry) -> MoveReply {
        let MoveEntry { number, step, .. } = entry;
        if number <= self.moving.over {
            let slot = match step {
                Step::Begin { slot, .. }
                | Step::GiveUp { slot }
                | Step::Seal { slot, .. }
                | Step::Unseal { slot } => Some(slot),
                _ => None,
            };
            let holds = slot.is_some_and(|slot| self.slots.contains(slot));
            return MoveReply::Over { holds };
        }
        match step {
            Step::Begin { attempt, slot } => self.begin_import(number, attempt, slot),
            Step::Piece { attempt, place, piece } => self.import(number, (attempt, place), &piece),
            Step::Adopt { attempt, pieces, last } => self.adopt(number, (attempt, pieces), &last),
            Step::GiveUp { .. } => self.give_up(number),
            Step::Seal { slot, to } => self.seal(number, slot, to),
            Step::Unseal { .. } => self.unseal(number),
            Step::Drop { keys, is_last } => self.drop_moved(number, &keys, is_last),
        }
    }

    fn begin_import(&mut self, number: u64, attempt: u64, slot: SlotId) -> MoveReply {
        if self.slots.contains(slot) || u32::from(slot.0) >= self.slots.slot_count() {
            return MoveReply::Impossible(Obstacle::Contradiction);
        }
        if self.moving.out.is_some() {
            return MoveReply::OutOfTurn;
        }
        match self.moving.coming.take() {
            Some(coming) if coming.number == number && coming.attempt == attempt => {
                self.moving.coming = Some(coming);
                return MoveReply::Done;
            }
            Some(later) if later.number > number => {
                self.moving.coming = Some(later);
                return MoveReply::OutOfTurn;
            }
            Some(before) => before.keys.iter().for_each(|key| {
                self.table.remove(key);
            }),
            None => {}
        }
        let (pools, keys) = (Vec::new(), BTreeSet::new());
        self.moving.coming = Some(Incoming { number, attempt, slot, pieces: 0, pools, keys });
        MoveReply::Done
    }

    fn import(&mut self, number: u64, (attempt, place): (u64, u32), piece: &Piece) -> MoveReply {
        let Some(mut coming) = self.moving.coming.take() else { return MoveReply::OtherAttempt };
        let reply = if coming.number != number || coming.attempt != attempt || place > coming.pieces
        {
            MoveReply::OtherAttempt
        } else if place < coming.pieces {
            // It came before.
            MoveReply::Done
        } else {
            self.take_in(&mut coming, piece)
        };
        self.moving.coming = Some(coming);
        reply
    }

    /// All of a piece, or nothing.
    fn take_in(&mut self, coming: &mut Incoming, piece: &Piece) -> MoveReply {
        let is_new = |moved: &&MovedEntry| !coming.keys.contains(&moved.key);
        let new: BTreeSet<&Key> =
            piece.entries.iter().filter(is_new).map(|moved| &moved.key).collect();
        if new.iter().any(|key| self.table.get(key).is_some()) {
            return MoveReply::Impossible(Obstacle::KeyElsewhere);
        }
        if self.table.len() as usize + new.len() > self.table.capacity() as usize {
            return MoveReply::Impossible(Obstacle::TableFull);
        }
        if coming.pools.len() + piece.pools.len() > POOLS_BYTES_MAX {
            return MoveReply::Impossible(Obstacle::Contradiction);
        }
        for moved in &piece.entries {
            let entry = entry_of(moved, coming.slot);
            self.table
                .put_living(&moved.key, entry, Some(moved.ttl_s), self.time_ms)
                .expect("a table has a place for every entry of its capacity");
            coming.keys.insert(moved.key);
        }
        for key in &piece.removed {
            if coming.keys.remove(key) {
                self.table.remove(key);
            }
        }
        for (id, outcome) in &piece.outcomes {
            self.memory.remember_late(*id, coming.slot, *outcome);
        }
        coming.pools.extend_from_slice(&piece.pools);
        coming.pieces += 1;
        self.mutations = self.mutations.max(piece.mutations);
        MoveReply::Done
    }

    fn adopt(&mut self, number: u64, (attempt, pieces): (u64, u32), last: &Piece) -> MoveReply {
        let fits = |coming: &mut Incoming| {
            (coming.number, coming.attempt, coming.pieces) == (number, attempt, pieces)
        };
        let Some(mut coming) = self.moving.coming.take_if(fits) else {
            return MoveReply::OtherAttempt;
        };
        let taken = self.take_in(&mut coming, last);
        let (slot, pools) = (coming.slot, self.pools_of_moved(&coming.pools, coming.slot));
        self.moving.coming = Some(coming);
        let pools = match (taken, pools) {
            (MoveReply::Done, Some(pools)) => pools,
            (MoveReply::Done, None) => return MoveReply::Impossible(Obstacle::Contradiction),
            (other, _) => return other,
        };
        self.pools.retain(|(_, other), _| *other != slot);
        self.pools.extend(pools);
        self.resting = self.resting_of_pools();
        self.moving.coming = None;
        self.moving.over = number;
        self.moving.adopted.insert(slot, self.time_ms);
        self.hold(slot, true);
        MoveReply::Done
    }

    /// The pools that a source has written, their times in this shard's time.
    fn pools_of_moved(
        &self,
        bytes: &[u8],
        slot: SlotId,
    ) -> Option<BTreeMap<(u8, SlotId), SlotPool>> {
        let mut pools = BTreeMap::new();
        let mut source = Source::new(bytes);
        let (time_ms, count) = (source.u64().ok()?, source.u32().ok()?);
        for _ in 0..count {
            let (id, of, blocks, mut resting) = snapshot::read_pool(&mut source).ok()?;
            for port in &mut resting {
                port.until_ms = self.time_ms.saturating_add(port.until_ms.saturating_sub(time_ms));
            }
            let at = self.specs.iter().position(|spec| spec.id() == PoolId(id))?;
            let pool = SlotPool::new(&self.specs[at], slot).with_parts(blocks, resting)?;
            if of != slot || pools.insert((at as u8, slot), pool).is_some() {
                return None;
            }
        }
        source.end().ok()?;
        Some(pools)
    }

    fn give_up(&mut self, number: u64) -> MoveReply {
        if self.moving.out.is_some_and(|out| out.number <= number) {
            return MoveReply::OutOfTurn;
        }
        if let Some(coming) = &mut self.moving.coming {
            if coming.number > number {
                return MoveReply::OutOfTurn;
            }
            for _ in 0..GIVE_UP_MAX {
                let Some(key) = coming.keys.pop_first() else { break };
                self.table.remove(&key);
            }
            if !coming.keys.is_empty() {
                // No piece of it fits any more.
                coming.attempt = 0;
                return MoveReply::More;
            }
        }
        self.moving.coming = None;
        self.moving.over = number;
        MoveReply::Done
    }

    fn seal(&mut self, number: u64, slot: SlotId, to: ShardId) -> MoveReply {
        match self.moving.out {
            Some(out) if out.number == number && out.slot == slot => MoveReply::Done,
            Some(_) => MoveReply::OutOfTurn,
            None if self.moving.coming.is_some() => MoveReply::OutOfTurn,
            None if !self.slots.contains(slot) => MoveReply::Impossible(Obstacle::NotHeld),
            None => {
                self.moving.out = Some(Outgoing { number, slot, to });
                // A reader that finds the slot not held is told whither.
                self.table.set_leaving(Some((slot, to)));
                self.hold(slot, false);
                MoveReply::Done
            }
        }
    }

    fn unseal(&mut self, number: u64) -> MoveReply {
        match self.moving.out {
            Some(out) if out.number != number => return MoveReply::OutOfTurn,
            Some(out) => self.hold(out.slot, true),
            None if self.moving.coming.as_ref().is_some_and(|coming| coming.number <= number) => {
                return MoveReply::OutOfTurn;
            }
            None => {}
        }
        self.end_outgoing(number);
        MoveReply::Done
    }

    fn drop_moved(&mut self, number: u64, keys: &[Key], is_last: bool) -> MoveReply {
        let ours = |out: &Outgoing| out.number == number;
        let Some(out) = self.moving.out.filter(ours) else { return MoveReply::OutOfTurn };
        for key in keys {
            if self.table.get(key).is_some_and(|entry| entry.slot == out.slot) {
                self.table.remove(key);
            }
        }
        // Whoever drops finds out that something was left out.
        if !is_last || self.table.entries_of(out.slot) > 0 {
            return MoveReply::More;
        }
        self.pools.retain(|(_, slot), _| *slot != out.slot);
        for resting in &mut self.resting {
            resting.retain(|(_, slot)| *slot != out.slot);
        }
        self.end_outgoing(number);
        MoveReply::Done
    }

    fn end_outgoing(&mut self, number: u64) {
        self.moving.out = None;
        self.moving.over = number;
        self.table.set_leaving(None);
    }

    fn hold(&mut self, slot: SlotId, holds: bool) {
        if holds {
            self.slots.insert(slot);
        } else {
            self.slots.remove(slot);
        }
        self.table.set_held(slot, holds);
    }

    /// After a snapshot: what follows from the state.
    pub(crate) fn moves_installed(&mut self) {
        (self.moving.watch, self.moving.adopted) = (None, BTreeMap::new());
        self.table.end_scan();
        if let Some(coming) = &mut self.moving.coming {
            let slot = coming.slot;
            let of_slot = self.table.iter().filter(|(_, entry)| entry.slot == slot);
            coming.keys = of_slot.map(|(key, _)| key).collect();
        }
        let leaving = self.moving.out.map(|out| (out.slot, out.to));
        self.table.set_leaving(leaving);
        self.table.hold_only(&self.slots);
        self.show_moves();
    }

    /// Once the table shows the same.
    pub(crate) fn show_moves(&self) {
        let coming = self.moving.coming.as_ref().map(|coming| coming.slot);
        self.moves.show(coming, self.moving.out.map(|out| out.number));
    }

    /// See [`crate::machine::Machine::take_out`].
    pub(crate) fn give_out(&mut self, ask: TakeOut) -> TakenOut {
        match ask {
            TakeOut::Watch(slot) => {
                let outcomes = self.memory.of_slot(slot).collect();
                let (changed, is_lost, found) = (BTreeSet::new(), false, Vec::new());
                self.moving.watch = Some(Watch { slot, changed, outcomes, is_lost, found });
                self.table.begin_scan(slot);
                TakenOut::Watching
            }
            TakeOut::Next => self.next_piece(),
            TakeOut::Pools { number } => match self.moving.out {
                Some(out) if out.number == number => TakenOut::Pools(self.pools_to_move(out.slot)),
                _ => TakenOut::NotYet,
            },
            TakeOut::Forget => {
                self.moving.watch = None;
                self.table.end_scan();
                TakenOut::Watching
            }
        }
    }

    fn next_piece(&mut self) -> TakenOut {
        let Some(watch) = self.moving.watch.as_mut().filter(|watch| !watch.is_lost) else {
            return TakenOut::Lost;
        };
        let slot = watch.slot;
        let mut piece = Piece { mutations: self.mutations, ..Piece::default() };
        let moved = |key, entry: crate::Entry, ttl_s| {
            let crate::Entry { value, version: Version(version), .. } = entry;
            MovedEntry { key, value, version: Version(version), ttl_s }
        };
        // Entries that were put elsewhere in the table behind the scan's back count as changed.
        let mut displaced = Vec::new();
        let room = PIECE_KEYS_MAX - watch.found.len();
        let is_scanned = self.table.scan_on(SCAN_AT_ONCE, room, &mut displaced, |k, e, l| {
            watch.found.push(moved(k, e, l.ttl_s()));
        });
        watch.changed.extend(displaced);
        if !is_scanned && watch.found.len() < PIECE_KEYS_MAX {
            return TakenOut::Piece(Box::new(piece), false);
        }
        piece.entries = core::mem::take(&mut watch.found);
        if is_scanned {
            while piece.entries.len() + piece.removed.len() < PIECE_KEYS_MAX
                && let Some(key) = watch.changed.pop_first()
            {
                match self.table.get_living(&key).filter(|(entry, _)| entry.slot == slot) {
                    Some((entry, life)) => piece.entries.push(moved(key, entry, life.ttl_s())),
                    None => piece.removed.push(key),
                }
            }
        }
        let outcomes = watch.outcomes.len().min(PIECE_OUTCOMES_MAX);
        piece.outcomes.extend(watch.outcomes.drain(..outcomes));
        let is_all = is_scanned && watch.changed.is_empty() && watch.outcomes.is_empty();
        TakenOut::Piece(Box::new(piece), is_all)
    }

    fn pools_to_move(&self, slot: SlotId) -> Vec<u8> {
        let used = self.pools.iter().filter(|((_, of), _)| *of == slot);
        let used = used.filter(|(_, pool)| pool.counts().blocks_held > 0);
        let mut out = self.time_ms.to_le_bytes().to_vec();
        out.extend_from_slice(&(used.clone().count() as u32).to_le_bytes());
        for ((at, _), pool) in used {
            snapshot::write_pool(&mut out, self.specs[usize::from(*at)].id().0, slot, pool);
        }
        out
    }
}

#[cfg(test)]
#[path = "flow_moves_tests.rs"]
mod tests;
