//! Which subscriber had which block of ports, and when: one record when a block is given to a
//! holder, one when it is free again (RFC 6888 REQ-14; RFC 7422 has the same end in view). That is
//! all that an operator needs to find the subscriber behind an external endpoint, and no
//! destination is ever in it (REQ-12).
//!
//! Every replica that applies the log writes the same records, with the shard's own time; the owner
//! hands them out, to be logged. One that becomes owner hands out those of the last
//! [`OVERLAP_MS`] as well, which the owner before may or may not have logged: a record may be
//! logged twice then, word by word the same, and none is lost. A record is no replicated state: a
//! replica that was made from a snapshot has those from then on.
//!
//! ```text
//! block=198.19.0.7:1088-1151 holder=10.0.0.9 pool=0 slot=17 time_ms=1763900000123 given
//! block=198.19.0.7:1088-1151 holder=10.0.0.9 pool=0 slot=17 time_ms=1763903600456 free
//! ```

use crate::key::Address;
use crate::pool_spec::BLOCK_PORTS;
use crate::types::{PoolId, SlotId, Term};
use core::fmt;
use core::net::Ipv4Addr;
use std::collections::VecDeque;

/// Records that a replica keeps until somebody takes them; the oldest make room.
pub const BLOCK_RECORDS_MAX: usize = 8192;
/// Records that are handed out at once.
pub const BLOCK_RECORDS_AT_ONCE: usize = 1024;
/// From so long before its tenure on an owner hands out records.
pub const OVERLAP_MS: u64 = 10_000;

/// A block of ports has changed hands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRecord {
    /// The shard's time.
    pub time_ms: u64,
    /// The pool that it is of.
    pub pool: PoolId,
    /// The slot that gives it out.
    pub slot: SlotId,
    /// Its address and first port.
    pub first: (Ipv4Addr, u16),
    /// The subscriber's address, IPv4-mapped.
    pub holder: [u8; 16],
    /// It was given to the holder, else it is free again.
    pub is_given: bool,
}

impl fmt::Display for BlockRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { time_ms, pool, slot, first: (address, port), holder, is_given } = *self;
        let (last, holder) = (port + (BLOCK_PORTS - 1), Address::from_octets(holder).ip());
        let what = if is_given { "given" } else { "free" };
        write!(
            f,
            "block={address}:{port}-{last} holder={holder} pool={} slot={} \
             time_ms={time_ms} {what}",
            pool.0, slot.0
        )
    }
}

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct BlockJournal {
    records: VecDeque<BlockRecord>,
    /// The term that records were last handed out in.
    term: Option<Term>,
}

impl BlockJournal {
    /// Keeps a record.
    pub(crate) fn push(&mut self, record: BlockRecord) {
        if self.records.len() == BLOCK_RECORDS_MAX {
            self.records.pop_front();
        }
        self.records.push_back(record);
    }

    /// Hands out records to the owner of this term, whose tenure began at `since_ms`, as far as
    /// there is room; whether there are more.
    pub(crate) fn hand_out(
        &mut self,
        (term, since_ms): (Term, u64),
        out: &mut Vec<BlockRecord>,
    ) -> bool {
        if self.term != Some(term) {
            self.term = Some(term);
            let oldest_ms = since_ms.saturating_sub(OVERLAP_MS);
            self.records.retain(|record| record.time_ms >= oldest_ms);
        }
        let room = BLOCK_RECORDS_AT_ONCE.saturating_sub(out.len());
        let count = room.min(self.records.len());
        out.extend(self.records.drain(..count));
        !self.records.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(time_ms: u64) -> BlockRecord {
        BlockRecord {
            time_ms,
            pool: PoolId(1),
            slot: SlotId(17),
            first: (Ipv4Addr::new(198, 19, 0, 7), 1088),
            holder: Address::v4([10, 0, 0, 9]).octets(),
            is_given: true,
        }
    }

    #[test]
    fn a_record_reads_as_documented() {
        let given = record(5);
        let said = "block=198.19.0.7:1088-1151 holder=10.0.0.9 pool=1 slot=17 time_ms=5 given";
        assert_eq!(given.to_string(), said);
        let free = BlockRecord { is_given: false, ..given };
        assert_eq!(free.to_string(), said.replace("given", "free"));
        let last = BlockRecord { first: (given.first.0, 65_472), ..given };
        assert!(last.to_string().contains(":65472-65535 "));
    }

    #[test]
    fn an_owner_gets_each_record_once_and_a_new_one_those_of_the_last_moments() {
        let mut journal = BlockJournal::default();
        let mut out = Vec::new();
        (1..=3).for_each(|number| journal.push(record(number * 10_000)));
        assert!(!journal.hand_out((Term(1), 32_000), &mut out), "there are no more");
        let times = |out: &Vec<BlockRecord>| out.iter().map(|r| r.time_ms).collect::<Vec<_>>();
        assert_eq!(times(&out), [30_000], "what is older is the business of the owner before");
        out.clear();
        journal.push(record(33_000));
        journal.push(record(34_000));
        assert!(!journal.hand_out((Term(1), 32_000), &mut out));
        assert_eq!(times(&out), [33_000, 34_000]);
        out.clear();
        assert!(!journal.hand_out((Term(1), 32_000), &mut out) && out.is_empty(), "once");
    }

    #[test]
    fn what_nobody_takes_is_bounded_and_so_is_what_is_taken_at_once() {
        let mut journal = BlockJournal::default();
        (0..BLOCK_RECORDS_MAX as u64 + 5).for_each(|number| journal.push(record(number)));
        assert_eq!(journal.records.len(), BLOCK_RECORDS_MAX);
        let mut out = Vec::new();
        assert!(journal.hand_out((Term(1), 0), &mut out));
        assert_eq!((out.len(), out[0].time_ms), (BLOCK_RECORDS_AT_ONCE, 5));
        assert!(journal.hand_out((Term(1), 0), &mut out), "no room, and there are more");
        assert_eq!(out.len(), BLOCK_RECORDS_AT_ONCE);
    }
}
