//! The shape that ICMP and ICMPv6 messages share: a view over the bytes. What differs, the types
//! and what the checksum covers, is in [`super::icmp`] and [`super::icmpv6`].

use crate::packet::word::{get_u16, set_u16, set_u32};
use crate::verdict::DropReason;
use core::marker::PhantomData;

/// Bytes of the header, the four that depend on the type included.
pub const HEADER_BYTES: usize = 8;

pub(crate) mod field {
    pub(crate) const TYPE: usize = 0;
    pub(crate) const CODE: usize = 1;
    pub(crate) const CHECKSUM: usize = 2;
    pub(crate) const IDENT: usize = 4;
    pub(crate) const SEQUENCE: usize = 6;
}

/// A view of a message of one of the two protocols.
#[derive(Clone, Copy, Debug)]
pub struct Message<T, Protocol>(T, PhantomData<Protocol>);

impl<T: AsRef<[u8]>, P> Message<T, P> {
    /// A view without any check; getters panic if the bytes are too short.
    #[inline]
    pub const fn new_unchecked(bytes: T) -> Self {
        Self(bytes, PhantomData)
    }

    /// A view of a message whose header lies inside the bytes.
    ///
    /// # Errors
    /// [`DropReason::BadIcmpHeader`].
    #[inline]
    pub fn new_checked(bytes: T) -> Result<Self, DropReason> {
        let fits = bytes.as_ref().len() >= HEADER_BYTES;
        if fits { Ok(Self::new_unchecked(bytes)) } else { Err(DropReason::BadIcmpHeader) }
    }

    /// All of the message.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        self.0.as_ref()
    }

    /// The type.
    #[inline]
    pub fn kind(&self) -> u8 {
        self.0.as_ref()[field::TYPE]
    }

    /// The code.
    pub fn code(&self) -> u8 {
        self.0.as_ref()[field::CODE]
    }

    /// The checksum.
    pub fn checksum(&self) -> u16 {
        get_u16(self.0.as_ref(), field::CHECKSUM)
    }

    /// The identifier of an echo.
    #[inline]
    pub fn ident(&self) -> u16 {
        get_u16(self.0.as_ref(), field::IDENT)
    }

    /// The sequence number of an echo.
    pub fn sequence(&self) -> u16 {
        get_u16(self.0.as_ref(), field::SEQUENCE)
    }

    /// The data of an echo, or what an error quotes.
    pub fn payload(&self) -> &[u8] {
        &self.0.as_ref()[HEADER_BYTES..]
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>, P> Message<T, P> {
    /// Sets type and code.
    pub fn set_kind(&mut self, kind: u8, code: u8) {
        let bytes = self.0.as_mut();
        bytes[field::TYPE] = kind;
        bytes[field::CODE] = code;
    }

    /// Sets the four bytes that depend on the type.
    pub fn set_rest(&mut self, word: u32) {
        set_u32(self.0.as_mut(), field::IDENT, word);
    }

    /// Sets the identifier of an echo.
    pub fn set_ident(&mut self, ident: u16) {
        set_u16(self.0.as_mut(), field::IDENT, ident);
    }

    /// Sets the sequence number of an echo.
    pub fn set_sequence(&mut self, sequence: u16) {
        set_u16(self.0.as_mut(), field::SEQUENCE, sequence);
    }

    /// Sets the checksum.
    pub fn set_checksum(&mut self, checksum: u16) {
        set_u16(self.0.as_mut(), field::CHECKSUM, checksum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_checked() {
        let bytes = [0; HEADER_BYTES];
        for cut in 0..HEADER_BYTES {
            let cut_off = Message::<_, ()>::new_checked(&bytes[..cut]);
            assert_eq!(cut_off.err(), Some(DropReason::BadIcmpHeader), "cut at {cut}");
        }
        assert!(Message::<_, ()>::new_checked(&bytes).is_ok());
    }
}
