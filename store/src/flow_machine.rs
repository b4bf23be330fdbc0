//! The machine of a flow shard: applies batches of transactions to a table and to pools.
//!
//! Each transaction is planned first, against the state and its own earlier writes; only a plan
//! that is whole is carried out, so a transaction happens all or not at all. Nothing but the log
//! decides: time is the batch's (and never falls), randomness comes from transaction ids, fullness
//! is counted in entries and does not depend on where a replica's table put them.
//!
//! A mutation is one change of one entry; the entry's version is the shard's count of mutations.
//!
//! A transaction that is refused here, or of which a condition fails, changes no entry; but its
//! outcome is remembered like any other, so that a retry gets the same answer exactly once decided.
//! The memory is state: replicated, in snapshots and in [`Machine::state_hash`], on purpose, for
//! replicas that remembered different things would answer retries differently. What is refused
//! *before* the log (a bad frame, message, request, term or payload) changes nothing at all.

use crate::Entry;
use crate::batch::{BatchReader, check_batch, empty_transaction};
use crate::block_journal::{BlockJournal, BlockRecord};
use crate::cell::VERSION_MAX;
use crate::flow_moves::Moving;
use crate::flow_upkeep::Keeping;
use crate::key::{Key, Value};
use crate::layout::Hasher;
use crate::lifetimes::Life;
use crate::limits::POOLS_MAX;
use crate::machine::{Machine, PayloadError, Reply, SnapshotError};
use crate::move_board::MoveBoard;
use crate::outcome_memory::{OutcomeMemory, Recall};
use crate::plan::{Plan, Planned};
use crate::pool::{PoolCounts, SlotPool};
use crate::pool_check::{PoolLeak, PoolReport};
use crate::pool_spec::PoolSpec;
use crate::pool_use::PoolUsage;
use crate::slot_move::{self, MoveEntry, TakeOut, TakenOut};
use crate::slot_set::SlotSet;
use crate::snapshot::{self, Meta};
use crate::table::Table;
use crate::table_reader::TableReader;
use crate::table_stats::TableStats;
use crate::transaction::{Condition, Outcome, Refusal, Transaction, WRITES_MAX, keys_of};
use crate::types::{LogIndex, PoolId, SlotId, Time, Version};
use crate::upkeep::{EntryTimer, Upkeep, UpkeepClock};
use arrayvec::ArrayVec;
use core::net::Ipv4Addr;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// The hash key of [`Machine::state_hash`]: the same on all replicas.
const STATE_HASH_KEY: u64 = 0x6e65_6172_7374_6174;

/// Transactions of a batch that are read before the one that is decided.
const AHEAD: usize = 16;
/// Those of them whose tags have come near, so that their places can be drawn near as well.
const NEAR: usize = 8;

/// What a flow machine is made of.
#[derive(Debug)]
pub struct FlowMachineConfig {
    /// An empty table.
    pub table: Table,
    /// The slots that the shard holds, of all slots of the cluster.
    pub slots: SlotSet,
    /// The pools, each with an id of its own, made for the same number of slots.
    pub pools: Vec<PoolSpec>,
}

/// What a machine has decided since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowMachineStats {
    /// Transactions that took effect.
    pub committed: u64,
    /// Transactions of which a condition did not hold.
    pub condition_failed: u64,
    /// Transactions refused.
    pub refused: u64,
    /// Retries answered from memory.
    pub repeated: u64,
    /// Transactions that took effect because an entry had expired.
    pub expired: u64,
    /// Notes of entries that were seen.
    pub seen_notes: u64,
    /// Transactions held up because their slot is on its way to another shard.
    pub moving: u64,
}

impl FlowMachineStats {
    /// The figures with their names.
    #[must_use]
    pub const fn named(&self) -> [(&'static str, u64); 7] {
        [
            ("committed", self.committed),
            ("condition-failed", self.condition_failed),
            ("refused", self.refused),
            ("repeated", self.repeated),
            ("expired", self.expired),
            ("seen-notes", self.seen_notes),
            ("moving", self.moving),
        ]
    }
}

/// See the module's text.
#[derive(Debug)]
pub struct FlowMachine {
    pub(crate) table: Table,
    pub(crate) slots: SlotSet,
    pub(crate) specs: Vec<PoolSpec>,
    /// Pools of slots that have given out ports, by place in `specs` and slot.
    pub(crate) pools: BTreeMap<(u8, SlotId), SlotPool>,
    /// For each of `specs`: when a returned port of which slot becomes free, in that order.
    pub(crate) resting: Vec<VecDeque<(u64, SlotId)>>,
    pub(crate) memory: OutcomeMemory,
    pub(crate) mutations: u64,
    pub(crate) time_ms: u64,
    pub(crate) moving: Moving,
    /// No state.
    pub(crate) moves: Arc<MoveBoard>,
    pub(crate) stats: FlowMachineStats,
    /// No state: what is to be logged of it.
    pub(crate) journal: BlockJournal,
    pub(crate) keeping: Keeping,
    /// Room for transactions that are read ahead. No state.
    ahead: Vec<Transaction>,
}

impl FlowMachine {
    /// A machine with nothing in it.
    ///
    /// # Panics
    /// If the configuration contradicts itself; configuration files are checked before.
    #[must_use]
    pub fn new(config: FlowMachineConfig) -> Self {
        let FlowMachineConfig { table, slots, mut pools } = config;
        assert!(table.is_empty(), "a machine starts with an empty table");
        assert!(pools.len() <= POOLS_MAX, "at most {POOLS_MAX} pools");
        pools.sort_by_key(PoolSpec::id);
        assert!(pools.windows(2).all(|pair| pair[0].id() < pair[1].id()), "a pool id stands twice");
        table.hold_only(&slots);
        Self {
            table,
            slots,
            resting: pools.iter().map(|_| VecDeque::new()).collect(),
            specs: pools,
            pools: BTreeMap::new(),
            memory: OutcomeMemory::default(),
            mutations: 0,
            moving: Moving::default(),
            moves: Arc::default(),
            time_ms: 0,
            stats: FlowMachineStats::default(),
            journal: BlockJournal::default(),
            keeping: Keeping::default(),
            ahead: Vec::new(),
        }
    }

    /// A reader of the table, for pipes.
    #[must_use]
    pub fn reader(&self) -> TableReader {
        self.table.reader()
    }

    /// Says whose the table's content is; see [`Table::set_generation`].
    pub fn set_generation(&self, generation: u64) {
        self.table.set_generation(generation);
    }

    /// What it has decided.
    #[must_use]
    pub const fn stats(&self) -> FlowMachineStats {
        self.stats
    }

    /// How its table is filled. Scans the table.
    #[must_use]
    pub fn table_stats(&self) -> TableStats {
        self.table.stats()
    }

    /// How the ports of its slots are used, of those slots that have given out some. Scans the
    /// pools.
    #[must_use]
    pub fn pool_counts(&self) -> BTreeMap<(PoolId, SlotId), PoolCounts> {
        let id = |at: u8| self.specs[usize::from(at)].id();
        self.pools
            .iter()
            .map(|((at, slot), pool)| ((id(*at), *slot), pool.counts()))
            .filter(|(_, counts)| counts.blocks_held > 0)
            .collect()
    }

    /// Decides one transaction without a log, for a machine that has no replicas.
    pub fn apply_one(
        &mut self,
        index: LogIndex,
        time_ms: u64,
        transaction: &Transaction,
    ) -> Outcome {
        self.pass_time(time_ms);
        self.transact(index, transaction)
    }

    /// Time passes: ports that have rested long enough are free.
    fn pass_time(&mut self, time_ms: u64) {
        self.time_ms = self.time_ms.max(time_ms);
        let now_ms = self.time_ms;
        for at in 0..self.resting.len() {
            while let Some((_, slot)) = self.resting[at].pop_front_if(|(until, _)| *until <= now_ms)
            {
                let mut freed = Vec::new();
                let tell = &mut |block, holder| freed.push((block, holder));
                self.slot_pool(at as u8, slot).1.wake_and_tell(now_ms, tell);
                freed.into_iter().for_each(|block| self.note_block(at as u8, slot, block, false));
            }
        }
    }

    /// Notes for the log that a block has changed hands.
    fn note_block(
        &mut self,
        at: u8,
        slot: SlotId,
        (block, holder): (u32, [u8; 16]),
        is_given: bool,
    ) {
        let spec = &self.specs[usize::from(at)];
        let (pool, first, time_ms) = (spec.id(), spec.block_start(block), self.time_ms);
        self.journal.push(BlockRecord { time_ms, pool, slot, first, holder, is_given });
    }

    /// Notes the blocks that the ports of a plan were the first of.
    fn note_taken(&mut self, slot: SlotId, plan: &Plan) {
        let mut noted: ArrayVec<u32, WRITES_MAX> = ArrayVec::new();
        for (at, protocol, endpoint) in &plan.taken {
            let spec = &self.specs[usize::from(*at)];
            let block_of = |[a, b, c, d, high, low]: [u8; 6]| {
                spec.block_of(Ipv4Addr::new(a, b, c, d), u16::from_be_bytes([high, low]))
            };
            let mine = block_of(*endpoint);
            let same = plan.taken.iter().filter(|(pool, _, e)| pool == at && block_of(*e) == mine);
            let taken = same.count() as u32;
            let Some(pool) = self.pools.get(&(*at, slot)) else { continue };
            let Some(fresh) = pool.fresh_block(spec, (*protocol, *endpoint), taken) else {
                continue;
            };
            if !noted.contains(&fresh.0) {
                noted.push(fresh.0);
                self.note_block(*at, slot, fresh, true);
            }
        }
    }

    fn transact(&mut self, index: LogIndex, transaction: &Transaction) -> Outcome {
        if transaction.id.serial == 0 {
            self.stats.refused += 1;
            return Outcome::Refused(Refusal::Malformed);
        }
        match self.memory.recall(transaction.id) {
            Recall::Known(outcome) => {
                self.stats.repeated += 1;
                return outcome;
            }
            Recall::Forgotten => {
                self.stats.refused += 1;
                return Outcome::Refused(Refusal::IdForgotten);
            }
            Recall::New => {}
        }
        let outcome = self.decide(index, transaction);
        match outcome {
            Outcome::Committed(_) => {
                let is_expiry = |condition| matches!(condition, &Condition::Expired(..));
                self.stats.expired += u64::from(transaction.conditions.iter().any(is_expiry));
                self.stats.committed += 1;
            }
            Outcome::ConditionFailed(_) => self.stats.condition_failed += 1,
            Outcome::Refused(_) => self.stats.refused += 1,
            Outcome::Elsewhere(_) => self.stats.moving += 1,
        }
        // A slot may come to this shard later: that answer is not for ever.
        if !matches!(outcome, Outcome::Refused(Refusal::NotThisSlot) | Outcome::Elsewhere(_)) {
            self.memory.remember(transaction.id, transaction.slot, outcome);
            self.moving.note_outcome(transaction, outcome);
        }
        outcome
    }

    fn decide(&mut self, index: LogIndex, transaction: &Transaction) -> Outcome {
        if let Some(to) = self.moving.whither(transaction.slot) {
            return Outcome::Elsewhere(to);
        }
        if !self.slots.contains(transaction.slot) {
            return Outcome::Refused(Refusal::NotThisSlot);
        }
        for (number, condition) in (0..).zip(&transaction.conditions) {
            let holds = match condition {
                Condition::Absent(key) => self.table.get(key).is_none(),
                Condition::Present(key) => self.table.get(key).is_some(),
                Condition::Version(key, version) => {
                    self.table.get(key).is_some_and(|entry| entry.version == *version)
                }
                Condition::Expired(key, version) => {
                    self.table.get_living(key).is_some_and(|(entry, life)| {
                        entry.version == *version && life.is_over(self.time_ms)
                    })
                }
            };
            if !holds {
                return Outcome::ConditionFailed(number);
            }
        }
        match self.plan(transaction) {
            Ok(plan) => {
                self.carry_out(transaction.slot, &plan);
                Outcome::Committed(index)
            }
            Err(refusal) => Outcome::Refused(refusal),
        }
    }

    /// A slot's pool, by the pool's place in `specs`.
    pub(crate) fn slot_pool(&mut self, at: u8, slot: SlotId) -> (&PoolSpec, &mut SlotPool) {
        let spec = &self.specs[usize::from(at)];
        let pool = self.pools.entry((at, slot)).or_insert_with(|| SlotPool::new(spec, slot));
        (spec, pool)
    }

    /// Does what was planned; that cannot fail.
    fn carry_out(&mut self, slot: SlotId, plan: &Plan) {
        if !plan.taken.is_empty() {
            self.note_taken(slot, plan);
        }
        plan.entries.iter().for_each(|(key, _)| self.moving.note_change(slot, key));
        let removed = plan.entries.iter().filter(|(_, planned)| planned.is_none());
        for (key, _) in removed {
            self.mutations += u64::from(self.table.remove(key).is_some());
        }
        for (key, planned) in &plan.entries {
            let Some(Planned { mut value, ttl_s }) = *planned else { continue };
            self.mutations += 1;
            self.keep_tally(key, &mut value);
            let entry = Entry { value, version: Version(self.mutations), slot };
            // Room was counted. A table that cannot place an entry all the same (its overflow area
            // has more than ten times the room that chance asks for) must stop its replica: going
            // on without the entry would make it differ from the others.
            self.table
                .put_living(key, entry, ttl_s, self.time_ms)
                .expect("a table has a place for every entry of its capacity");
        }
        for (at, protocol, endpoint) in &plan.returned {
            let now_ms = self.time_ms;
            let (spec, pool) = self.slot_pool(*at, slot);
            // Not in use: returned before. Nothing is lost by that.
            if let Some(until_ms) = pool.give_back(spec, *protocol, *endpoint, now_ms) {
                self.resting[usize::from(*at)].push_back((until_ms, slot));
            }
        }
    }

    fn meta(&self) -> Meta {
        Meta { mutations: self.mutations, time_ms: self.time_ms, slots: self.slots.clone() }
    }

    fn pools_section(&self) -> Vec<u8> {
        let used = self.pools.iter().filter(|(_, pool)| pool.counts().blocks_held > 0);
        let mut out = (used.clone().count() as u32).to_le_bytes().to_vec();
        for ((at, slot), pool) in used {
            let id = self.specs[usize::from(*at)].id();
            snapshot::write_pool(&mut out, id.0, *slot, pool);
        }
        out
    }

    /// The resting ports of all pools, in the order of their time.
    pub(crate) fn resting_of_pools(&self) -> Vec<VecDeque<(u64, SlotId)>> {
        let mut all: Vec<Vec<(u64, SlotId)>> = vec![vec![]; self.specs.len()];
        for ((at, slot), pool) in &self.pools {
            let (_, resting) = pool.parts();
            all[usize::from(*at)].extend(resting.iter().map(|port| (port.until_ms, *slot)));
        }
        all.iter_mut().for_each(|resting| resting.sort_unstable());
        all.into_iter().map(VecDeque::from).collect()
    }

    fn read_pools(
        &self,
        mut source: snapshot::Source<'_>,
        may_have: impl Fn(SlotId) -> bool,
    ) -> Result<BTreeMap<(u8, SlotId), SlotPool>, SnapshotError> {
        let mut pools = BTreeMap::new();
        for _ in 0..source.u32()? {
            let (id, slot, blocks, resting) = snapshot::read_pool(&mut source)?;
            let at = self.specs.iter().position(|spec| spec.id() == PoolId(id));
            let at = at.ok_or(SnapshotError::Damaged("a pool that this node does not have"))?;
            if !may_have(slot) {
                return Err(SnapshotError::Damaged("a pool of a slot that is not held"));
            }
            let pool = SlotPool::new(&self.specs[at], slot).with_parts(blocks, resting);
            let pool = pool.ok_or(SnapshotError::Damaged("a pool that contradicts itself"))?;
            if pools.insert((at as u8, slot), pool).is_some() {
                return Err(SnapshotError::Damaged("a pool stands in it twice"));
            }
        }
        source.end()?;
        Ok(pools)
    }
}

/// Whether all entries could have been written by a machine with this meta.
fn check_entries(
    entries: impl Iterator<Item = (Key, Entry, Option<Life>)>,
    (meta, moving): (&Meta, &Moving),
    capacity: u32,
) -> Result<(), SnapshotError> {
    let hasher = Hasher::new(STATE_HASH_KEY);
    let mut hashes = Vec::new();
    for (key, entry, life) in entries {
        if life.is_none_or(|life| life.seen_ms() > meta.time_ms) {
            return Err(SnapshotError::Damaged("a life that cannot be"));
        }
        let may_lie = meta.slots.contains(entry.slot) || moving.is_between(entry.slot);
        if key.kind() == 0 || entry.version.0 > meta.mutations || !may_lie {
            return Err(SnapshotError::Damaged("an entry that cannot be"));
        }
        hashes.push(hasher.hash(&key));
    }
    if hashes.len() as u64 > u64::from(capacity) {
        let (entries, capacity) = (hashes.len() as u64, u64::from(capacity));
        return Err(SnapshotError::TooLarge { entries, capacity });
    }
    hashes.sort_unstable();
    if hashes.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(SnapshotError::Damaged("a key stands in it twice"));
    }
    Ok(())
}

impl Machine for FlowMachine {
    fn check(payload: &[u8]) -> Result<(), PayloadError> {
        if slot_move::is_move(payload) {
            return MoveEntry::decode(payload).map(drop);
        }
        check_batch(payload)
    }

    fn apply(&mut self, index: LogIndex, payload: &[u8]) -> Reply {
        if slot_move::is_move(payload) {
            let entry = MoveEntry::decode(payload).expect("the payload was checked");
            self.pass_time(entry.time_ms);
            let reply = self.move_step(entry);
            self.show_moves();
            return Reply::System(reply.encode());
        }
        let mut reader = BatchReader::new(payload).expect("the payload was checked");
        self.pass_time(reader.time_ms());
        while let Some(note) = reader.read_note().expect("the payload was checked") {
            self.note_seen(note);
        }
        let mut outcomes = Vec::with_capacity(reader.left());
        // Read some way ahead, so that the memory each transaction needs is on its way meanwhile.
        let mut ahead = core::mem::take(&mut self.ahead);
        ahead.resize_with(AHEAD, empty_transaction);
        let (mut read, mut near) = (0, 0);
        loop {
            while read - outcomes.len() < AHEAD {
                let place = &mut ahead[read % AHEAD];
                if !reader.read_into(place).expect("the payload was checked") {
                    break;
                }
                keys_of(place).for_each(|key| self.table.prefetch_tags(key));
                read += 1;
            }
            if read == outcomes.len() {
                break;
            }
            let near_to = read.min(outcomes.len() + NEAR);
            for next in near..near_to {
                keys_of(&ahead[next % AHEAD]).for_each(|key| self.table.prefetch_place(key));
            }
            near = near_to;
            outcomes.push(self.transact(index, &ahead[outcomes.len() % AHEAD]));
        }
        self.ahead = ahead;
        Reply::Outcomes(outcomes.into())
    }

    fn time_ms(&self) -> u64 {
        self.time_ms
    }

    fn snapshot(&self) -> Vec<u8> {
        snapshot::assemble([
            snapshot::write_meta(&self.meta()),
            snapshot::write_entries(self.table.len(), self.table.iter_living()),
            self.pools_section(),
            snapshot::write_memory(self.memory.iter()),
            snapshot::write_moves(&self.moving),
        ])
    }

    fn install(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        let [meta, entries, pools, memory, moves] = snapshot::take_apart(bytes)?;
        let meta = snapshot::read_meta(meta)?;
        if meta.slots.slot_count() != self.slots.slot_count() || meta.mutations > VERSION_MAX {
            return Err(SnapshotError::Damaged("made for another number of slots"));
        }
        let moving = snapshot::read_moves(moves, &meta.slots)?;
        let entries = snapshot::read_entries(entries)?;
        check_entries(entries.clone(), (&meta, &moving), self.table.capacity())?;
        let may_have = |slot| meta.slots.contains(slot) || moving.whither(slot).is_some();
        let pools = self.read_pools(pools, may_have)?;
        let remembered = snapshot::read_memory(memory)?;
        // All of it is good: from here on nothing fails.
        self.table.end_scan();
        self.table.clear();
        let (mut far, mut near) = (entries.clone().skip(AHEAD), entries.clone().skip(NEAR));
        for (key, entry, life) in entries {
            if let Some((next, ..)) = far.next() {
                self.table.prefetch_tags(&next);
            }
            if let Some((next, ..)) = near.next() {
                self.table.prefetch_place(&next);
            }
            let life = life.expect("lives were checked");
            self.table
                .put_living(&key, entry, Some(life.ttl_s()), life.seen_ms())
                .expect("a table has a place for every entry of its capacity");
        }
        (self.pools, self.memory, self.slots) = (pools, remembered, meta.slots);
        self.resting = self.resting_of_pools();
        (self.mutations, self.time_ms) = (meta.mutations, meta.time_ms);
        self.moving = moving;
        self.moves_installed();
        Ok(())
    }

    fn take_out(&mut self, ask: TakeOut) -> TakenOut {
        self.give_out(ask)
    }

    fn moves(&self) -> Arc<MoveBoard> {
        self.moves.clone()
    }

    fn upkeep(&mut self, clock: &UpkeepClock, work: &mut Upkeep) {
        self.keep(clock, work);
    }

    fn check_pools(&self) -> Option<Result<PoolReport, PoolLeak>> {
        Some(self.pool_check())
    }

    fn pool_usage(&self, holders_max: usize) -> PoolUsage {
        self.count_pools(holders_max)
    }

    fn entry_timers(&self, keys: &[Key], now: Time) -> Vec<Option<EntryTimer>> {
        keys.iter().map(|key| self.entry_timer(key, now)).collect()
    }

    fn decisions(&self) -> Option<FlowMachineStats> {
        Some(self.stats)
    }

    fn outcomes_remembered(&self) -> u64 {
        self.memory.iter().count() as u64
    }

    /// By a scan: the sum of the entries' hashes, whatever their order, and the rest of the state
    /// in its snapshot form.
    fn state_hash(&self) -> u64 {
        let hasher = Hasher::new(STATE_HASH_KEY);
        let mut sum = 0_u64;
        for (key, entry, life) in self.table.iter_living() {
            let Entry { value: Value(v), version, slot } = entry;
            let meta = version.0 << 16 | u64::from(slot.0);
            let first = hasher.hash(&Key([v[0], v[1], v[2], v[3], meta]));
            let second = hasher.hash(&Key([v[4], v[5], v[6], v[7], first]));
            let third = hasher.hash(&Key([life.to_word(), second, 0, 0, 0]));
            sum = sum.wrapping_add(hasher.hash(&key) ^ third.rotate_left(1));
        }
        let rest = [
            snapshot::write_meta(&self.meta()),
            self.pools_section(),
            snapshot::write_memory(self.memory.iter()),
            snapshot::write_moves(&self.moving),
        ];
        for bytes in rest {
            sum = hasher.hash(&Key([sum, u64::from(crc32fast::hash(&bytes)), 0, 0, 0]));
        }
        sum
    }
}

#[cfg(test)]
#[path = "flow_machine_tests.rs"]
mod tests;
