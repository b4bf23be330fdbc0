//! A set of slots, as bits.

use crate::types::SlotId;
use thiserror::Error;

/// A number of slots that no cluster can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error(
    "{0} slots cannot be: a cluster has a power of two of them, 1 to {max} (1024 is usual)",
    max = SlotSet::SLOTS_MAX
)]
pub struct BadSlotCount(pub u32);

/// Which of a cluster's slots something holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotSet {
    slot_count: u32,
    words: Vec<u64>,
}

impl SlotSet {
    /// The most slots that a cluster may have.
    pub const SLOTS_MAX: u32 = 1 << 16;

    /// Whether a cluster can have so many slots.
    ///
    /// # Errors
    /// If it is no power of two, or more than [`SlotSet::SLOTS_MAX`].
    pub const fn check_count(slot_count: u32) -> Result<(), BadSlotCount> {
        if slot_count.is_power_of_two() && slot_count <= Self::SLOTS_MAX {
            return Ok(());
        }
        Err(BadSlotCount(slot_count))
    }

    /// No slot of `slot_count`.
    ///
    /// # Panics
    /// If there are more slots than [`SlotSet::SLOTS_MAX`].
    #[must_use]
    pub fn none(slot_count: u32) -> Self {
        assert!(slot_count <= Self::SLOTS_MAX, "slot numbers have 16 bits");
        Self { slot_count, words: vec![0; slot_count.div_ceil(64) as usize] }
    }

    /// All slots of `slot_count`.
    #[must_use]
    pub fn all(slot_count: u32) -> Self {
        let mut set = Self::none(slot_count);
        (0..slot_count).for_each(|slot| set.insert(SlotId(slot as u16)));
        set
    }

    /// Adds a slot.
    ///
    /// # Panics
    /// If the cluster has no such slot.
    pub fn insert(&mut self, slot: SlotId) {
        assert!(u32::from(slot.0) < self.slot_count, "{slot} is beyond {} slots", self.slot_count);
        self.words[usize::from(slot.0) / 64] |= 1 << (slot.0 % 64);
    }

    /// Takes a slot out.
    pub fn remove(&mut self, slot: SlotId) {
        if let Some(word) = self.words.get_mut(usize::from(slot.0) / 64) {
            *word &= !(1 << (slot.0 % 64));
        }
    }

    /// Whether it holds a slot.
    #[must_use]
    pub fn contains(&self, slot: SlotId) -> bool {
        let word = self.words.get(usize::from(slot.0) / 64);
        word.is_some_and(|word| word >> (slot.0 % 64) & 1 == 1)
    }

    /// Slots of the cluster, held or not.
    #[must_use]
    pub const fn slot_count(&self) -> u32 {
        self.slot_count
    }

    /// The slots it holds, rising.
    pub fn iter(&self) -> impl Iterator<Item = SlotId> + '_ {
        (0..self.slot_count).map(|slot| SlotId(slot as u16)).filter(|slot| self.contains(*slot))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_holds_what_was_put_in() {
        let mut set = SlotSet::none(1000);
        for slot in [0, 63, 64, 999] {
            set.insert(SlotId(slot));
        }
        set.remove(SlotId(63));
        set.remove(SlotId(5000));
        assert_eq!(set.iter().collect::<Vec<_>>(), [SlotId(0), SlotId(64), SlotId(999)]);
        assert!(!set.contains(SlotId(1000)) && !set.contains(SlotId(u16::MAX)));
        assert_eq!(SlotSet::all(65_536).iter().count(), 65_536);
    }
}
