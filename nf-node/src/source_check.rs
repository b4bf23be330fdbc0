//! Which sources a packet may show on the side that it comes from (RFC 2827, RFC 3704).
//!
//! From outside nobody comes with an external end of the chain's own: what goes from one inside
//! host to another by external ends turns round here and never arrives. Where the configuration
//! says which addresses are inside, an inside host shows one of those, so it makes no state in
//! another's name, and nobody outside does. A router in the middle that sends an ICMP error is
//! looked at as well as the end that the error is about.
//!
//! Looked at once, when a packet arrives; what turns round is not looked at again. Never looks at
//! state. Where no prefix is configured, an own end as a source from inside is left to the NAT,
//! which has to look for it anyway.

use crate::nf::rules::Prefix;
use crate::packet::parsed::{IpVersion, Parsed, Transport};
use crate::verdict::DropReason;
use nearstate_placement::Side;
use nearstate_store::{Address, Endpoint};

/// Prefixes of inside hosts that may be configured.
pub const INSIDE_PREFIXES_MAX: usize = 64;

/// See the module's text.
#[derive(Clone, Debug)]
pub struct SourceCheck {
    /// The last 64 bits of the chain's own addresses, the lowest, and how far it is to the highest:
    /// most sources lie elsewhere, and are looked at no further.
    own_from: u64,
    own_span: u64,
    /// Whose hosts are inside; none: nobody is refused for that.
    inside: Vec<Prefix>,
}

const fn last_bits(address: &Address) -> u64 {
    address.bits() as u64
}

impl SourceCheck {
    /// A check with these prefixes inside, for a chain that has these addresses.
    #[must_use]
    pub fn new(inside: Vec<Prefix>, own: &[Address]) -> Self {
        let lowest = own.iter().map(last_bits).min();
        let highest = own.iter().map(last_bits).max();
        // Without any, one that no address of IPv4 is.
        let (own_from, highest) = lowest.zip(highest).unwrap_or((u64::MAX, u64::MAX));
        Self { own_from, own_span: highest - own_from, inside }
    }

    /// Whether there is nothing to look at: so it is for nearly all packets.
    #[inline]
    #[must_use]
    pub fn is_clear(&self, side: Side, parsed: &Parsed) -> bool {
        let is_error = matches!(parsed.transport, Transport::IcmpError { .. });
        let source = last_bits(&parsed.tuple.source.address);
        let may_be_own = is_error || source.wrapping_sub(self.own_from) <= self.own_span;
        self.inside.is_empty() && (side == Side::Inside || !may_be_own)
    }

    /// Why a packet must not come from where it says, if it must not. `is_own`: whether an end of a
    /// protocol is one of the chain's.
    #[cold]
    pub fn judge(
        &self,
        side: Side,
        (frame, parsed): (&[u8], &Parsed),
        is_own: impl Fn(u8, &Endpoint) -> bool,
    ) -> Option<DropReason> {
        let tuple = &parsed.tuple;
        let router = match parsed.transport {
            Transport::IcmpError { .. } => outer_source(frame, parsed),
            _ => None,
        };
        for source in [Some(tuple.source), router].into_iter().flatten() {
            if is_own(tuple.protocol, &source) {
                return Some(DropReason::NatSource);
            }
            if self.is_on_the_wrong_side(side, &source.address) {
                return Some(DropReason::SpoofedSource);
            }
        }
        None
    }

    /// Whether an address belongs to the other side. A family of which no prefix is given is not
    /// judged.
    fn is_on_the_wrong_side(&self, side: Side, address: &Address) -> bool {
        let is_v4 = address.ipv4().is_some();
        let mut family = self.inside.iter().filter(|prefix| prefix.is_ipv4() == is_v4).peekable();
        if family.peek().is_none() {
            return false;
        }
        let is_inside = family.any(|prefix| prefix.holds(address));
        is_inside != (side == Side::Inside)
    }
}

/// Who sent a packet, by its IP header, whatever it quotes; port 0.
fn outer_source(frame: &[u8], parsed: &Parsed) -> Option<Endpoint> {
    let header = frame.get(usize::from(parsed.ip)..)?;
    let address = match parsed.version {
        IpVersion::V4 => Address::v4(*header.get(12..)?.first_chunk()?),
        IpVersion::V6 => Address::from_octets(*header.get(8..)?.first_chunk()?),
    };
    Some(Endpoint { address, port: 0 })
}
