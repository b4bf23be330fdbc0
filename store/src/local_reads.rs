//! What a shard's table is to the store around it: a trait for reads in place, and where others map
//! it. A trait, so that tests bring machines without a table.

use crate::table_reader::TableReader;
use crate::tally::Tally;
use crate::types::{ShardId, SlotId, Time};
use crate::wire::Reading;
use crate::{Entry, Key};
use std::path::PathBuf;

/// Where other processes of this host find a shard's table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionAddress {
    /// The file to map.
    pub path: PathBuf,
}

/// Reads of a shard's table in this node's memory. Whether they are current, the lease says.
pub trait LocalReads: Send + Sync {
    /// The entry of this key.
    fn get(&self, key: &Key) -> Option<Entry>;

    /// Whether the shard holds a slot: asked after a read, it says whether the answer counts.
    fn holds(&self, slot: SlotId) -> bool {
        let _ = slot;
        true
    }

    /// The shard that a slot is on its way to, while it is.
    fn whither(&self, slot: SlotId) -> Option<ShardId> {
        let _ = slot;
        None
    }

    /// Packets of another node saw the entry of this key, the last of them then.
    fn note_seen(&self, key: &Key, at: Time, tally: Tally) {
        let (_, _, _) = (key, at, tally);
    }
}

impl LocalReads for TableReader {
    fn get(&self, key: &Key) -> Option<Entry> {
        self.get(key)
    }

    fn holds(&self, slot: SlotId) -> bool {
        self.holds(slot)
    }

    fn whither(&self, slot: SlotId) -> Option<ShardId> {
        self.whither(slot)
    }

    fn note_seen(&self, key: &Key, at: Time, tally: Tally) {
        // Whether there is such an entry is not asked here.
        let mut entry = Entry::BLANK;
        let _ = self.get_seen(key, self.hash(key), (at, tally), &mut entry);
    }
}

/// One read, and whether it counts: the slot is looked at after the value is in hand.
pub(crate) fn reading(reads: &dyn LocalReads, slot: SlotId, key: &Key) -> Reading {
    let entry = reads.get(key);
    if reads.holds(slot) { Reading::from(entry) } else { Reading::NotHere(reads.whither(slot)) }
}
