//! Words in network order at an offset: what every view reads and writes with.
//!
//! Offsets are checked by the slice; a view's constructor has made sure that they lie inside.

/// The 16-bit word at `at`.
#[inline]
pub(crate) fn get_u16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(get_array(bytes, at))
}

/// The 32-bit word at `at`.
#[inline]
pub(crate) fn get_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(get_array(bytes, at))
}

/// The `N` bytes at `at`.
#[inline]
pub(crate) fn get_array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    match bytes[at..].first_chunk() {
        Some(array) => *array,
        None => panic!("offset {at} is behind the end"),
    }
}

/// Writes the 16-bit word at `at`.
#[inline]
pub(crate) fn set_u16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// Writes the 32-bit word at `at`.
#[inline]
pub(crate) fn set_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
}
