//! Remembers in which cell of another process's table a key lay, so that the next read of a flow
//! looks at one entry and nothing else.
//!
//! A place is a hint and never believed: the cell says itself whose it is, in the same read that
//! gives the value. A key that is not there any more (moved, removed, another generation) is looked
//! up the ordinary way. So nothing has to be told to a cache when a table changes. It has a fixed
//! number of places and forgets by overwriting.

use crate::lookup::NOWHERE;

#[derive(Clone, Copy)]
struct Place {
    /// Bits of the hash that do not choose the place.
    check: u32,
    cell: u32,
}

/// Where keys of one table lay. See the module's text.
pub struct LocationCache {
    places: Box<[Place]>,
    shift: u32,
}

impl LocationCache {
    /// The most places that a cache has.
    pub const PLACES_MAX: usize = 1 << 24;

    /// An empty cache of at least `places` places, 8 bytes each, up to [`Self::PLACES_MAX`].
    #[must_use]
    pub fn new(places: usize) -> Self {
        let count = places.clamp(2, Self::PLACES_MAX).next_power_of_two();
        let places = vec![Place { check: 0, cell: NOWHERE }; count].into_boxed_slice();
        Self { places, shift: 64 - count.trailing_zeros() }
    }

    /// The place of a hash. The table's own home comes from the high bits too, so hashes are mixed
    /// first: otherwise all keys of one neighbourhood would want one place.
    #[inline]
    fn index(&self, hash: u64) -> (usize, u32) {
        let mixed = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        ((mixed >> self.shift) as usize, mixed as u32)
    }

    /// The cell in which the key of a hash lay, or [`NOWHERE`].
    #[inline]
    pub(crate) fn recall(&self, hash: u64) -> u32 {
        let (index, check) = self.index(hash);
        let place = self.places[index];
        if place.check == check { place.cell } else { NOWHERE }
    }

    /// Remembers where the key of a hash lies.
    #[inline]
    pub(crate) fn remember(&mut self, hash: u64, cell: u32) {
        let (index, check) = self.index(hash);
        self.places[index] = Place { check, cell };
    }
}

impl core::fmt::Debug for LocationCache {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "LocationCache of {} places", self.places.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_gives_back_what_it_was_told_last_and_stays_as_large_as_it_was() {
        let mut cache = LocationCache::new(100);
        assert_eq!(cache.places.len(), 128);
        let hash = |number: u64| number.wrapping_mul(0xd134_2543_de82_ef95);
        let mut kept = 0;
        for number in 0..10_000 {
            assert_eq!(cache.recall(hash(number)), NOWHERE, "never told");
            cache.remember(hash(number), number as u32);
            assert_eq!(cache.recall(hash(number)), number as u32);
        }
        for number in 0..10_000 {
            let cell = cache.recall(hash(number));
            assert!(cell == NOWHERE || cell == number as u32);
            kept += usize::from(cell != NOWHERE);
        }
        assert!((64..=128).contains(&kept), "{kept}");
        assert_eq!(LocationCache::new(usize::MAX).places.len(), LocationCache::PLACES_MAX);
    }
}
