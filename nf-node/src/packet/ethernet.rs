//! Ethernet II frames with up to two VLAN tags (IEEE 802.1Q, 802.1ad).
//!
//! Tags are looked through, never changed: a frame leaves with the tags that it came with.

use crate::packet::word::{get_array, get_u16, set_u16};
use crate::verdict::DropReason;
use core::fmt;

/// Bytes of the header without tags.
pub const HEADER_BYTES: usize = 14;
/// Bytes of one VLAN tag.
pub const TAG_BYTES: usize = 4;
/// VLAN tags that are looked through.
pub const VLAN_TAGS_MAX: usize = 2;

/// EtherType of IPv4.
pub const TYPE_IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub const TYPE_IPV6: u16 = 0x86dd;
/// EtherType of a VLAN tag.
pub const TYPE_VLAN: u16 = 0x8100;
/// EtherType of a service (outer) VLAN tag.
pub const TYPE_SERVICE_VLAN: u16 = 0x88a8;

mod field {
    use core::ops::Range;
    pub(super) const DESTINATION: Range<usize> = 0..6;
    pub(super) const SOURCE: Range<usize> = 6..12;
    pub(super) const TYPE: usize = 12;
}

/// A hardware address.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct MacAddress(pub [u8; 6]);

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Whether this EtherType announces a tag.
#[inline]
const fn is_tag(ether_type: u16) -> bool {
    matches!(ether_type, TYPE_VLAN | TYPE_SERVICE_VLAN)
}

/// EtherType behind the tags, and where what it announces begins.
///
/// # Errors
/// [`DropReason::ShortEthernet`], or [`DropReason::BadVlan`] for a cut-off or a third tag.
#[inline]
pub fn network_header(frame: &[u8]) -> Result<(u16, usize), DropReason> {
    let header = frame.first_chunk::<HEADER_BYTES>().ok_or(DropReason::ShortEthernet)?;
    let ether_type = get_u16(header, field::TYPE);
    if is_tag(ether_type) { behind_tags(frame) } else { Ok((ether_type, HEADER_BYTES)) }
}

fn behind_tags(frame: &[u8]) -> Result<(u16, usize), DropReason> {
    let mut at = HEADER_BYTES;
    for _ in 0..VLAN_TAGS_MAX {
        let tag = frame.get(at..at + TAG_BYTES).ok_or(DropReason::BadVlan)?;
        let ether_type = get_u16(tag, 2);
        at += TAG_BYTES;
        if !is_tag(ether_type) {
            return Ok((ether_type, at));
        }
    }
    Err(DropReason::BadVlan)
}

/// A view of a frame's Ethernet header.
#[derive(Clone, Copy, Debug)]
pub struct EthernetFrame<T>(T);

impl<T: AsRef<[u8]>> EthernetFrame<T> {
    /// A view without any check; getters panic if the bytes are too short.
    #[inline]
    pub const fn new_unchecked(bytes: T) -> Self {
        Self(bytes)
    }

    /// A view of a frame whose header and tags are all there.
    ///
    /// # Errors
    /// As [`network_header`].
    pub fn new_checked(bytes: T) -> Result<Self, DropReason> {
        network_header(bytes.as_ref())?;
        Ok(Self(bytes))
    }

    /// Who it is for.
    pub fn destination(&self) -> MacAddress {
        MacAddress(get_array(self.0.as_ref(), field::DESTINATION.start))
    }

    /// Who sent it.
    pub fn source(&self) -> MacAddress {
        MacAddress(get_array(self.0.as_ref(), field::SOURCE.start))
    }

    /// The EtherType field: a tag's if there are tags.
    pub fn ether_type(&self) -> u16 {
        get_u16(self.0.as_ref(), field::TYPE)
    }

    /// The outermost VLAN id, if there is a tag.
    pub fn vlan(&self) -> Option<u16> {
        let tag = self.0.as_ref().get(HEADER_BYTES..HEADER_BYTES + TAG_BYTES)?;
        is_tag(self.ether_type()).then(|| get_u16(tag, 0) & 0x0fff)
    }
}

impl<T: AsRef<[u8]> + AsMut<[u8]>> EthernetFrame<T> {
    /// Sets who it is for.
    pub fn set_destination(&mut self, address: MacAddress) {
        self.0.as_mut()[field::DESTINATION].copy_from_slice(&address.0);
    }

    /// Sets who sent it.
    pub fn set_source(&mut self, address: MacAddress) {
        self.0.as_mut()[field::SOURCE].copy_from_slice(&address.0);
    }

    /// Sets the EtherType field.
    pub fn set_ether_type(&mut self, ether_type: u16) {
        set_u16(self.0.as_mut(), field::TYPE, ether_type);
    }
}

impl<T: AsRef<[u8]>> fmt::Display for EthernetFrame<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} > {}, ethertype 0x{:04x}",
            self.source(),
            self.destination(),
            self.ether_type()
        )?;
        match self.vlan() {
            Some(vlan) => write!(f, ", vlan {vlan}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME_BYTES: [u8; 18] =
        [0x02, 0, 0, 0, 0, 2, 0x02, 0, 0, 0, 0, 1, 0x81, 0x00, 0x20, 0x05, 0x08, 0x00];

    #[test]
    fn takes_apart() {
        let frame = EthernetFrame::new_checked(&FRAME_BYTES).unwrap();
        assert_eq!(frame.destination(), MacAddress([2, 0, 0, 0, 0, 2]));
        assert_eq!(frame.source(), MacAddress([2, 0, 0, 0, 0, 1]));
        assert_eq!(frame.vlan(), Some(5));
        assert_eq!(network_header(&FRAME_BYTES), Ok((TYPE_IPV4, 18)));
        assert_eq!(
            frame.to_string(),
            "02:00:00:00:00:01 > 02:00:00:00:00:02, ethertype 0x8100, vlan 5"
        );
    }

    #[test]
    fn builds() {
        let mut bytes = FRAME_BYTES;
        bytes[..14].fill(0xee);
        let mut frame = EthernetFrame::new_unchecked(&mut bytes);
        frame.set_destination(MacAddress([2, 0, 0, 0, 0, 2]));
        frame.set_source(MacAddress([2, 0, 0, 0, 0, 1]));
        frame.set_ether_type(TYPE_VLAN);
        assert_eq!(bytes, FRAME_BYTES);
    }

    #[test]
    fn tags_are_looked_through_up_to_the_limit() {
        let mut bytes = vec![0; 12];
        let cases = [
            (vec![0x0800], Ok((TYPE_IPV4, 14))),
            (vec![0x88a8, 1, 0x8100, 2, 0x86dd], Ok((TYPE_IPV6, 22))),
            (vec![0x8100, 1, 0x8100, 2, 0x8100, 3, 0x0800], Err(DropReason::BadVlan)),
            (vec![0x8100], Err(DropReason::BadVlan)),
            (vec![0x8100, 1], Err(DropReason::BadVlan)),
            (vec![0x8100, 1, 0x8100, 2], Err(DropReason::BadVlan)),
            (vec![], Err(DropReason::ShortEthernet)),
        ];
        for (words, expected) in cases {
            bytes.truncate(12);
            bytes.extend(words.iter().flat_map(|word: &u16| word.to_be_bytes()));
            assert_eq!(network_header(&bytes), expected, "{words:04x?}");
        }
    }
}
