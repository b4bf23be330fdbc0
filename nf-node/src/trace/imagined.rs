//! What a transaction would make, without a store: for a trace that goes on behind a commit.
//!
//! Conditions are taken to hold, since they are made from what was just read. A port that is taken
//! is one that the slot could give out; which one it will be, only the owner can say. It never
//! touches a table or a pool.

use crate::chain::Chain;
use crate::nf::Changes;
use nearstate_store::key::{ENDPOINT_V4, KEY_BYTES, VALUE_BYTES};
use nearstate_store::pool::SlotPool;
use nearstate_store::{Endpoint, Entry, Fill, Key, SlotId, Take, Value, Version, Write};

/// Seeds the choice of the port that stands for the one taken.
const SEED: u64 = 0;

/// The outcome of an imagined commit.
pub(super) struct Imagined {
    slot: SlotId,
    taken: Option<[u8; 6]>,
    /// Later writes of a key stand behind earlier ones; `None` is a deletion.
    writes: Vec<(Key, Option<Value>)>,
}

impl Imagined {
    /// Imagines that these changes are committed.
    pub(super) fn commit(chain: &Chain, slot: SlotId, changes: &Changes) -> Self {
        let mut imagined = Self { slot, taken: None, writes: Vec::new() };
        for write in &changes.writes {
            match write {
                Write::Take(take) => imagined.taken = some_port(chain, slot, take),
                Write::Put { key, value, fill, .. } => imagined.put(*key, *value, *fill),
                Write::Delete(key) => imagined.writes.push((*key, None)),
                // They change no meaning that a function goes by.
                Write::Touch(_) | Write::Add { .. } | Write::Return { .. } => {}
            }
        }
        imagined
    }

    fn put(&mut self, key: Key, value: Value, fill: Fill) {
        let (mut key, mut value) = (key.to_bytes(), value.to_bytes());
        if let Some(taken) = self.taken {
            fill_in::<KEY_BYTES>(&mut key, fill.key_at, taken);
            fill_in::<VALUE_BYTES>(&mut value, fill.value_at, taken);
        }
        self.writes.push((Key::from_bytes(&key), Some(Value::from_bytes(&value))));
    }

    /// The endpoint that stands for the one taken, if one is.
    pub(super) fn taken(&self) -> Option<Endpoint> {
        let mut bytes = Endpoint::v4([0; 4], 0).to_bytes();
        bytes[ENDPOINT_V4..].copy_from_slice(&self.taken?);
        Some(Endpoint::from_bytes(&bytes))
    }

    /// The entry of a key after the commit, where `before` was its entry.
    pub(super) fn entry(&self, key: &Key, before: Option<Entry>) -> Option<Entry> {
        match self.writes.iter().rev().find(|(written, _)| written == key) {
            Some((_, value)) => {
                let version = Version(before.map_or(1, |entry| entry.version.0 + 1));
                value.map(|value| Entry { value, version, slot: self.slot })
            }
            None => before,
        }
    }
}

fn fill_in<const N: usize>(bytes: &mut [u8; N], at: Option<u8>, taken: [u8; 6]) {
    let place = at.and_then(|at| bytes.get_mut(usize::from(at)..usize::from(at) + 6));
    if let Some(place) = place {
        place.copy_from_slice(&taken);
    }
}

fn some_port(chain: &Chain, slot: SlotId, take: &Take) -> Option<[u8; 6]> {
    let spec = chain.pools().iter().find(|spec| spec.id() == take.pool)?;
    SlotPool::new(spec, slot).take(spec, take, 0, SEED).ok()
}
