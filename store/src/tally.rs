//! What packets are counted by, one word at a time: so many packets, so many bytes.
//!
//! Packed, so that a packet adds to both with one atomic addition. A tally is what has been counted
//! since somebody took it, never a total: totals are two words of an entry's value, and rise by the
//! log alone ([`crate::flow_upkeep`]). Whoever takes tallies does so long before one can overflow
//! ([`Tally::is_large`]).

use rkyv::{Archive, Deserialize, Serialize};

const BYTES_BITS: u32 = 36;
const BYTES_MAX: u64 = (1 << BYTES_BITS) - 1;
const PACKETS_MAX: u64 = u64::MAX >> BYTES_BITS;

/// Packets (28 bits) and bytes (36 bits). See the module's text.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally(u64);

impl Tally {
    /// Nothing.
    pub const ZERO: Self = Self(0);

    /// So much, or the most that can be counted.
    #[must_use]
    pub const fn new(packets: u64, bytes: u64) -> Self {
        let packets = if packets > PACKETS_MAX { PACKETS_MAX } else { packets };
        let bytes = if bytes > BYTES_MAX { BYTES_MAX } else { bytes };
        Self(packets << BYTES_BITS | bytes)
    }

    /// A packet of so many bytes.
    #[must_use]
    #[inline]
    pub const fn packet(bytes: u16) -> Self {
        Self(1 << BYTES_BITS | bytes as u64)
    }

    /// Packets.
    #[must_use]
    pub const fn packets(self) -> u64 {
        self.0 >> BYTES_BITS
    }

    /// Bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0 & BYTES_MAX
    }

    /// Whether nothing was counted.
    #[must_use]
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// Whether it should be taken soon: half of what it can count.
    #[must_use]
    pub const fn is_large(self) -> bool {
        self.packets() > PACKETS_MAX / 2 || self.bytes() > BYTES_MAX / 2
    }

    /// Both together.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self::new(self.packets() + other.packets(), self.bytes() + other.bytes())
    }

    /// For one atomic addition.
    #[inline]
    pub(crate) const fn to_word(self) -> u64 {
        self.0
    }

    pub(crate) const fn from_word(word: u64) -> Self {
        Self(word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_addition_counts_both_and_nothing_overflows_into_the_other() {
        let two = Tally::from_word(Tally::packet(1500).to_word() + Tally::packet(64).to_word());
        assert_eq!((two.packets(), two.bytes()), (2, 1564));
        assert_eq!(two, Tally::packet(64).plus(Tally::packet(1500)));
        let most = Tally::new(u64::MAX, u64::MAX);
        assert_eq!((most.packets(), most.bytes()), (PACKETS_MAX, BYTES_MAX));
        assert_eq!(most.plus(Tally::packet(9)), most);
        assert!(most.is_large() && !two.is_large() && Tally::ZERO.is_zero());
    }
}
