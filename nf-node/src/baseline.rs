//! The same functions without a store: state in a plain local table, as in a traditional appliance.
//!
//! The table, the pools and the rules for transactions are the store's own ([`FlowMachine`]), but
//! no log, no lease and no other node stand between: a transaction is decided when it is submitted.
//! What the store costs is the difference between a pipe over this and a pipe over the cluster.
//!
//! Entries expire by the same rules, and ports rest as long; the pipe's own thread looks after
//! that, a little at a time. Nothing here survives the process.

use crate::nf::entry_rules::FunctionRules;
use crate::state_access::{Access, Completion, QueueFull, ReadAnswer, StateAccess, Token};
use nearstate_store::flow_machine::{FlowMachine, FlowMachineConfig};
use nearstate_store::lifetimes::MARK_NS;
use nearstate_store::slot_set::SlotSet;
use nearstate_store::upkeep::{Upkeep, UpkeepClock};
use nearstate_store::{
    Entry, Key, KeyHash, LogIndex, Machine, PoolSpec, Region, RegionError, RegionIdentity, ShardId,
    SlotId, Table, TableError, TableReader, Tally, Term, Time, Transaction, TransactionId,
};
use std::collections::VecDeque;
use std::sync::Arc;
use thiserror::Error;

/// Pieces of upkeep that are done at a time.
const UPKEEP_PIECES: u32 = 4;
/// The client of the expiries; pipes have other numbers.
const EXPIRY_CLIENT: u64 = u64::MAX;

/// Why there is no baseline.
#[derive(Debug, Error)]
pub enum BaselineError {
    /// No memory for its table.
    #[error("no memory for the baseline's table: {0}")]
    Region(#[from] RegionError),
    /// No table in that memory.
    #[error("the baseline's table: {0}")]
    Table(#[from] TableError),
}

/// How a baseline is set up.
#[derive(Clone, Debug)]
pub struct BaselineConfig {
    /// Entries that its table takes.
    pub capacity: u32,
    /// Slots of the cluster that it stands for: pools are divided among them.
    pub slots: u32,
    /// The chain's pools.
    pub pools: Vec<PoolSpec>,
    /// Keys the table's hash. Choose it at random.
    pub hash_key: u64,
    /// Transactions that may wait to be fetched: what the pipe parks at most.
    pub pending_max: usize,
}

/// A state access of one pipe, with a table of its own.
#[derive(Debug)]
pub struct Baseline {
    machine: FlowMachine,
    reader: TableReader,
    decided: VecDeque<Completion>,
    pending_max: usize,
    transactions: u64,
    upkeep: Upkeep,
    next_upkeep: Time,
    expiries: u64,
}

impl Baseline {
    /// A baseline with an empty table.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn new(config: BaselineConfig) -> Result<Self, BaselineError> {
        let region = Arc::new(Region::anonymous(Table::bytes_for(config.capacity)?)?);
        Self::in_region(region, config)
    }

    /// A baseline whose table lies in this fresh region.
    ///
    /// # Errors
    /// If the region cannot hold it.
    pub fn in_region(region: Arc<Region>, config: BaselineConfig) -> Result<Self, BaselineError> {
        let identity = RegionIdentity { cluster: 0, shard: ShardId(1) };
        let table = Table::format(region, identity, config.capacity, config.hash_key)?;
        let slots = SlotSet::all(config.slots);
        let machine = FlowMachine::new(FlowMachineConfig { table, slots, pools: config.pools })
            .with_rules(Arc::new(FunctionRules));
        Ok(Self {
            reader: machine.reader(),
            machine,
            decided: VecDeque::with_capacity(config.pending_max),
            pending_max: config.pending_max,
            transactions: 0,
            upkeep: Upkeep::new(),
            next_upkeep: Time(0),
            expiries: 0,
        })
    }

    /// The machine with its table and pools.
    #[must_use]
    pub const fn machine(&self) -> &FlowMachine {
        &self.machine
    }

    /// Ends what has expired; the rest of it the next time.
    #[cold]
    fn keep(&mut self, now: Time) {
        let clock = UpkeepClock { time_ms: now.as_ms(), now, term: Term(1) };
        self.next_upkeep = now.plus_ns(MARK_NS);
        for _ in 0..UPKEEP_PIECES {
            self.upkeep.clear();
            self.machine.upkeep(&clock, &mut self.upkeep);
            for expiry in self.upkeep.expiries.drain(..) {
                self.transactions += 1;
                self.expiries += 1;
                let id = TransactionId { client: EXPIRY_CLIENT, serial: self.expiries };
                let transaction = expiry.into_transaction(id);
                let index = LogIndex(self.transactions);
                let _ = self.machine.apply_one(index, now.as_ms(), &transaction);
            }
            if !self.upkeep.is_more {
                return;
            }
        }
        self.next_upkeep = now;
    }
}

impl StateAccess for Baseline {
    #[inline]
    fn prefetch(&self, _: SlotId, key: &Key) -> KeyHash {
        let hash = self.reader.hash(key);
        self.reader.prefetch_tags(hash);
        hash
    }

    #[inline]
    fn prefetch_entry(&self, _: SlotId, hash: KeyHash) -> KeyHash {
        self.reader.prefetch_cell(hash)
    }

    #[inline]
    fn read(
        &mut self,
        _: Time,
        _: (Token, SlotId),
        (key, hash): (&Key, KeyHash),
        into: &mut Entry,
    ) -> ReadAnswer {
        ReadAnswer::Here {
            found: self.reader.get_hashed(key, hash, into),
            access: Access::Local,
            valid_until: Time(u64::MAX),
        }
    }

    #[inline]
    fn read_seen(
        &mut self,
        seen: (Time, Tally),
        _: (Token, SlotId),
        (key, hash): (&Key, KeyHash),
        into: &mut Entry,
    ) -> ReadAnswer {
        ReadAnswer::Here {
            found: self.reader.get_seen(key, hash, seen, into),
            access: Access::Local,
            valid_until: Time(u64::MAX),
        }
    }

    fn submit(
        &mut self,
        now: Time,
        token: Token,
        transaction: &Transaction,
    ) -> Result<(), QueueFull> {
        if self.decided.len() >= self.pending_max {
            return Err(QueueFull);
        }
        self.transactions += 1;
        let index = LogIndex(self.transactions);
        let outcome = Some(self.machine.apply_one(index, now.as_ms(), transaction));
        self.decided.push_back(Completion::Transaction { token, outcome });
        Ok(())
    }

    #[inline]
    fn poll(&mut self, now: Time) -> Option<Completion> {
        if now >= self.next_upkeep {
            self.keep(now);
        }
        self.decided.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::Chain;
    use crate::chain_config::ChainConfig;
    use crate::counters::Event;
    use crate::frame::{Burst, Frame};
    use crate::packet::{self, PacketBuilder};
    use crate::pipe::{Output, Pipe, PipeSettings, SteeredChain};
    use crate::verdict::DropReason;
    use nearstate_placement::{FlowTuple, Side};
    use nearstate_store::Endpoint;

    #[derive(Default)]
    struct Ends {
        left: Vec<(Side, FlowTuple)>,
        dropped: Vec<DropReason>,
    }

    impl Output for Ends {
        fn clock(&mut self) -> Time {
            Time::from_ms(1000)
        }

        fn leave(&mut self, frame: Frame, _: Time) -> Result<(), (Frame, DropReason)> {
            self.left.push((frame.side, packet::parse(frame.as_slice()).unwrap().tuple));
            Ok(())
        }

        fn dropped(&mut self, _: Frame, reason: DropReason) {
            self.dropped.push(reason);
        }
    }

    fn pipe(functions: &[&str]) -> Pipe<Baseline> {
        let chain = Chain::new(&ChainConfig::named(functions).unwrap(), 64).unwrap();
        let baseline = Baseline::new(BaselineConfig {
            capacity: 1000,
            slots: 64,
            pools: chain.pools().to_vec(),
            hash_key: 5,
            pending_max: 16,
        });
        let settings = PipeSettings { client: 1, parked_max: 16, seed: 1 };
        Pipe::new(SteeredChain::new(Arc::new(chain), 9), baseline.unwrap(), settings)
    }

    fn send(pipe: &mut Pipe<Baseline>, side: Side, tuple: &FlowTuple, count: usize) -> Ends {
        send_at(pipe, Time::from_ms(1000), (side, tuple), count)
    }

    fn send_at(
        pipe: &mut Pipe<Baseline>,
        now: Time,
        (side, tuple): (Side, &FlowTuple),
        count: usize,
    ) -> Ends {
        let bytes = PacketBuilder::udp(tuple.source, tuple.destination).build();
        let mut burst = Burst::new();
        for _ in 0..count {
            let mut frame = Frame::new();
            frame.side = side;
            frame.copy_from(&bytes).unwrap();
            burst.push(frame);
        }
        let mut ends = Ends::default();
        pipe.on_burst(now, &mut burst, &mut ends);
        while pipe.on_completions(now, &mut ends) > 0 {}
        assert_eq!(pipe.parked(), 0);
        ends
    }

    #[test]
    fn a_flow_through_firewall_and_nat_and_back() {
        let mut pipe = pipe(&["firewall", "nat"]);
        let inside = Endpoint::v4([10, 0, 0, 7], 4000);
        let outside = Endpoint::v4([192, 0, 2, 1], 53);
        let there = FlowTuple { protocol: 17, source: inside, destination: outside };
        let ends = send(&mut pipe, Side::Inside, &there, 3);
        assert_eq!(ends.left.len(), 3, "{:?}", ends.dropped);
        let (side, translated) = ends.left[0];
        assert_eq!(side, Side::Outside);
        assert_eq!(translated.destination, outside);
        assert_ne!(translated.source, inside);
        assert!(ends.left.iter().all(|left| *left == (side, translated)));
        let ends = send(&mut pipe, Side::Outside, &translated.reversed(), 2);
        assert_eq!(ends.left, vec![(Side::Inside, there.reversed()); 2], "{:?}", ends.dropped);
        let stranger = FlowTuple { source: Endpoint::v4([192, 0, 2, 9], 53), ..translated };
        let stranger = FlowTuple { destination: translated.source, ..stranger };
        let ends = send(&mut pipe, Side::Outside, &stranger, 1);
        assert_eq!(ends.left.len(), 0, "the firewall knows no such flow");
        assert_eq!(ends.dropped.len(), 1);
        let counts = pipe.counters().snapshot();
        assert_eq!(counts.event(Event::PacketsIn), 6);
        assert_eq!(counts.event(Event::PacketsOut), 5);
        assert_eq!(counts.accesses(Access::RemoteShm), 0);
    }

    /// N9, N5: a mapping lives by its outbound packets, a flow by those of both directions; then
    /// both end, and the port rests.
    #[test]
    fn what_nobody_uses_expires_in_its_time_and_the_port_comes_back() {
        let mut pipe = pipe(&["firewall", "nat"]);
        let inside = Endpoint::v4([10, 0, 0, 7], 4000);
        let outside = Endpoint::v4([192, 0, 2, 1], 53);
        let there = FlowTuple { protocol: 17, source: inside, destination: outside };
        let at = |s: u64| Time::from_ms(1000 * s);
        // Entries, ports in use, ports that rest.
        let held = |pipe: &mut Pipe<Baseline>| {
            let machine = pipe.access_mut().machine();
            let report = machine.pool_check().unwrap();
            (machine.reader().entries(), report.live, report.resting)
        };
        let pass = |pipe: &mut Pipe<Baseline>, s| {
            assert_eq!(pipe.on_completions(at(s), &mut Ends::default()), 0);
            held(pipe)
        };
        let (_, translated) = send_at(&mut pipe, at(1), (Side::Inside, &there), 1).left[0];
        send_at(&mut pipe, at(201), (Side::Inside, &there), 1);
        assert_eq!(pass(&mut pipe, 500), (3, 1, 0), "seen 299 s ago");
        let answer = translated.reversed();
        let ends = send_at(&mut pipe, at(500), (Side::Outside, &answer), 1);
        assert_eq!(ends.left.len(), 1);
        assert_eq!(pass(&mut pipe, 503), (1, 0, 1), "an answer keeps the flow, not the mapping");
        assert_eq!(pass(&mut pipe, 799), (1, 0, 1));
        assert_eq!(pass(&mut pipe, 802), (0, 0, 0), "the flow has ended, and the port has rested");
        let expired = pipe.access_mut().machine().stats().expired;
        assert_eq!(expired, 2, "each once");
    }

    #[test]
    fn a_full_queue_of_decisions_says_so_and_a_full_table_too() {
        let mut pipe = pipe(&["firewall"]);
        let mut decided = 0;
        for host in 0..1100u32 {
            let [_, _, high, low] = host.to_be_bytes();
            let source = Endpoint::v4([10, 1, high, low], 4000);
            let destination = Endpoint::v4([192, 0, 2, 1], 53);
            let tuple = FlowTuple { protocol: 17, source, destination };
            let ends = send(&mut pipe, Side::Inside, &tuple, 1);
            assert!(ends.dropped.is_empty() || ends.dropped == [DropReason::TableFull]);
            decided += ends.left.len();
        }
        assert_eq!(decided, 1000, "as many as the table takes");
        assert_eq!(pipe.counters().snapshot().drops(DropReason::TableFull), 100);
    }
}
