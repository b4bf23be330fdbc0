//! The Internet checksum (RFC 1071): over bytes, over pseudo headers, and by difference (RFC 1624).
//!
//! A one's complement sum does not mind the order of bytes as long as all words are read alike, nor
//! how wide the words are as long as the carry goes round (RFC 1071 section 2 (B), (C)). So bytes
//! are summed eight at a time, as little-endian words, and only the folded result is put into
//! network order.

use crate::packet::word::get_u16;

/// A one's complement sum in the making, of 64 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    /// Nothing added yet.
    pub const ZERO: Self = Self(0);

    /// The sum of these bytes.
    #[inline]
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self::ZERO.bytes(bytes)
    }

    /// Adds a little-endian word, and the carry at the other end.
    #[inline(always)]
    const fn add(self, word: u64) -> Self {
        let (sum, carry) = self.0.overflowing_add(word);
        Self(sum.wrapping_add(carry as u64))
    }

    /// Adds bytes. An odd last byte is padded with zero, so only the last piece may be odd.
    #[inline]
    #[must_use]
    pub fn bytes(self, bytes: &[u8]) -> Self {
        let (words, rest) = bytes.as_chunks::<8>();
        let total = words.iter().fold(self, |sum, word| sum.add(u64::from_le_bytes(*word)));
        match (rest.len(), bytes.last_chunk::<8>()) {
            (0, _) => total,
            // Most of the last eight bytes are in the sum already: they are shifted out.
            (left, Some(last)) => total.add(u64::from_le_bytes(*last) >> (64 - 8 * left)),
            (_, None) => {
                total.add(rest.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)))
            }
        }
    }

    /// Adds one 16-bit word, given as a number.
    #[inline]
    #[must_use]
    pub const fn word(self, word: u16) -> Self {
        self.add(word.swap_bytes() as u64)
    }

    /// Adds another sum.
    #[inline]
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        self.add(other.0)
    }

    /// Adds the difference that it makes when `old` becomes `new`: `~m + m'` of RFC 1624.
    #[inline]
    #[must_use]
    pub fn change<const N: usize>(self, old: &[u8; N], new: &[u8; N]) -> Self {
        const { assert!(N.is_multiple_of(4), "addresses are whole words of four bytes") };
        let ((old, old_rest), (new, new_rest)) = (old.as_chunks::<8>(), new.as_chunks::<8>());
        let words = old.iter().zip(new).fold(self, |sum, (old, new)| {
            sum.add(!u64::from_le_bytes(*old)).add(u64::from_le_bytes(*new))
        });
        match (old_rest.first_chunk(), new_rest.first_chunk()) {
            (Some(old), Some(new)) => {
                let (old, new) = (u32::from_le_bytes(*old), u32::from_le_bytes(*new));
                words.add(u64::from(!old)).add(u64::from(new))
            }
            _ => words,
        }
    }

    /// [`Sum::change`] for one word, given as numbers.
    #[inline]
    #[must_use]
    pub const fn change_word(self, old: u16, new: u16) -> Self {
        self.word(!old).word(new)
    }

    /// The sum folded to 16 bits, as a number.
    #[inline]
    #[must_use]
    pub const fn fold(self) -> u16 {
        // Each step adds the upper half to the lower, and the carry of that.
        let (half, carry) = (self.0 as u32).overflowing_add((self.0 >> 32) as u32);
        let half = half.wrapping_add(carry as u32);
        let (sum, carry) = (half as u16).overflowing_add((half >> 16) as u16);
        sum.wrapping_add(carry as u16).swap_bytes()
    }

    /// The checksum that makes the sum right: its complement.
    #[inline]
    #[must_use]
    pub const fn checksum(self) -> u16 {
        !self.fold()
    }

    /// Whether bytes that hold their checksum add up.
    #[inline]
    #[must_use]
    pub const fn is_valid(self) -> bool {
        self.fold() == 0xffff
    }

    /// The checksum after the difference that this sum holds: RFC 1624 equation 3,
    /// `HC' = ~(~HC + ~m + m')`.
    #[inline]
    #[must_use]
    pub const fn updated(self, checksum: u16) -> u16 {
        self.word(!checksum).checksum()
    }
}

/// The pseudo header that TCP, UDP and ICMPv6 checksums cover (RFC 9293 section 3.1, RFC 8200
/// section 8.1). Addresses are both 4 or both 16 bytes.
#[inline]
#[must_use]
pub fn pseudo_header(source: &[u8], destination: &[u8], protocol: u8, length: usize) -> Sum {
    Sum::of(source).bytes(destination).plus(pseudo_tail(protocol, length))
}

/// What of a pseudo header is no address.
#[inline]
pub(crate) const fn pseudo_tail(protocol: u8, length: usize) -> Sum {
    Sum::ZERO.word(protocol as u16).word((length >> 16) as u16).word(length as u16)
}

/// Adds a difference to the checksum at `at`.
#[inline]
pub(crate) fn update_at(bytes: &mut [u8], at: usize, difference: Sum) {
    let updated = difference.updated(get_u16(bytes, at));
    bytes[at..at + 2].copy_from_slice(&updated.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 word by word, without any trick.
    fn reference(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn the_example_of_rfc_1071_section_3() {
        let sum = Sum::of(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.fold(), 0xddf2);
        assert_eq!(sum.checksum(), !0xddf2);
    }

    #[test]
    fn the_example_of_rfc_1624_section_4() {
        // HC = 0xdd2f, m = 0x5555, m' = 0x3285: equation 3 gives 0x0000, not 0xffff.
        assert_eq!(Sum::ZERO.change_word(0x5555, 0x3285).updated(0xdd2f), 0x0000);
    }

    proptest! {
        #[test]
        fn wide_sums_equal_the_plain_one(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            prop_assert_eq!(Sum::of(&bytes).fold(), reference(&bytes));
        }

        #[test]
        fn pieces_of_even_length_add_up(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            cut in 0usize..100,
        ) {
            let cut = (cut * 2).min(bytes.len() & !1);
            let (left, right) = bytes.split_at(cut);
            prop_assert_eq!(Sum::of(left).plus(Sum::of(right)).fold(), reference(&bytes));
        }

        #[test]
        fn a_difference_equals_a_full_sum(
            mut bytes in proptest::collection::vec(any::<u8>(), 20..60),
            new in any::<[u8; 4]>(),
            at in 0usize..8,
        ) {
            bytes[0] |= 1; // A header is never all zero: then ~HC is never -0.
            let at = 2 + at * 2;
            let before = Sum::of(&bytes).checksum();
            let difference = Sum::ZERO.change(bytes[at..].first_chunk().unwrap(), &new);
            bytes[at..at + 4].copy_from_slice(&new);
            prop_assert_eq!(difference.updated(before), Sum::of(&bytes).checksum());
        }
    }
}
