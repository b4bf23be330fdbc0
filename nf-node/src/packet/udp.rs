//! UDP headers (RFC 768).

use crate::packet::word::{get_u16, set_u16};
use crate::verdict::DropReason;
use core::fmt;

/// Bytes of the header.
pub const HEADER_BYTES: usize = 8;
/// Protocol number.
pub const PROTOCOL: u8 = 17;

pub(crate) mod field {
    pub(crate) const SOURCE_PORT: usize = 0;
    pub(crate) const DESTINATION_PORT: usize = 2;
    pub(crate) const LENGTH: usize = 4;
    pub(crate) const CHECKSUM: usize = 6;
}

/// A view of a UDP datagram.
#[derive(Clone, Copy, Debug)]
pub struct UdpDatagram<T>(T);

impl<T: AsRef<[u8]>> UdpDatagram<T> {
    /// A view without any check; getters panic if the bytes are too short.
    #[inline]
    pub const fn new_unchecked(bytes: T) -> Self {
        Self(bytes)
    }

    /// A view of a datagram that lies inside the bytes.
    ///
    /// # Errors
    /// [`DropReason::BadUdpHeader`].
    #[inline]
    pub fn new_checked(bytes: T) -> Result<Self, DropReason> {
        let datagram = Self(bytes);
        let available = datagram.0.as_ref().len();
        let fits = available >= HEADER_BYTES
            && datagram.length() >= HEADER_BYTES
            && datagram.length() <= available;
        if fits { Ok(datagram) } else { Err(DropReason::BadUdpHeader) }
    }

    /// The sender's port.
    #[inline]
    pub fn source_port(&self) -> u16 {
        get_u16(self.0.as_ref(), field::SOURCE_PORT)
    }

    /// The receiver's port.
    #[inline]
    pub fn destination_port(&self) -> u16 {
        get_u16(self.0.as_ref(), field::DESTINATION_PORT)
    }

    /// Bytes of the datagram, header included.
    #[inline]
    pub fn length(&self) -> usize {
        usize::from(get_u16(self.0.as_ref(), field::LENGTH))
    }

    /// The checksum; 0 if the sender made none.
    #[inline]
    pub fn checksum(&self) -> u16 {
        get_u16(self.0.as_ref(), field::CHECKSUM)
    }

    /// The data.
    pub fn payload(&self) -> &[u8] {
        &self.0.as_ref()[HEADER_BYTES..self.length()]
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> UdpDatagram<T> {
    /// Sets the sender's port.
    pub fn set_source_port(&mut self, port: u16) {
        set_u16(self.0.as_mut(), field::SOURCE_PORT, port);
    }

    /// Sets the receiver's port.
    pub fn set_destination_port(&mut self, port: u16) {
        set_u16(self.0.as_mut(), field::DESTINATION_PORT, port);
    }

    /// Sets the datagram's length.
    pub fn set_length(&mut self, bytes: u16) {
        set_u16(self.0.as_mut(), field::LENGTH, bytes);
    }

    /// Sets the checksum.
    pub fn set_checksum(&mut self, checksum: u16) {
        set_u16(self.0.as_mut(), field::CHECKSUM, checksum);
    }
}

impl<T: AsRef<[u8]>> fmt::Display for UdpDatagram<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} > {}: UDP, length {}",
            self.source_port(),
            self.destination_port(),
            self.length().saturating_sub(HEADER_BYTES)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATAGRAM_BYTES: [u8; 12] =
        [0xbf, 0x00, 0x00, 0x35, 0x00, 0x0c, 0x12, 0x4d, 0xaa, 0x00, 0x00, 0xff];

    #[test]
    fn takes_apart() {
        let datagram = UdpDatagram::new_checked(&DATAGRAM_BYTES).unwrap();
        assert_eq!((datagram.source_port(), datagram.destination_port()), (48896, 53));
        assert_eq!((datagram.length(), datagram.checksum()), (12, 0x124d));
        assert_eq!(datagram.payload(), [0xaa, 0, 0, 0xff]);
        assert_eq!(datagram.to_string(), "48896 > 53: UDP, length 4");
    }

    #[test]
    fn builds() {
        let mut bytes = DATAGRAM_BYTES;
        bytes[..8].fill(0xee);
        let mut datagram = UdpDatagram::new_unchecked(&mut bytes);
        datagram.set_source_port(48896);
        datagram.set_destination_port(53);
        datagram.set_length(12);
        datagram.set_checksum(0x124d);
        assert_eq!(bytes, DATAGRAM_BYTES);
    }

    #[test]
    fn lengths_are_checked() {
        for cut in 0..DATAGRAM_BYTES.len() {
            let cut_off = UdpDatagram::new_checked(&DATAGRAM_BYTES[..cut]);
            assert_eq!(cut_off.err(), Some(DropReason::BadUdpHeader), "cut at {cut}");
        }
        for length in [0, 7, 13, 255] {
            let mut bytes = DATAGRAM_BYTES;
            bytes[5] = length;
            assert!(UdpDatagram::new_checked(&bytes).is_err(), "length {length}");
        }
    }
}
