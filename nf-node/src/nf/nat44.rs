//! NAT44: many inside hosts behind a pool of external IPv4 addresses (RFC 4787, 5382, 5508); and
//! all of it that NAT64 ([`crate::nf::nat64`]) has as well: only how packets of inside hosts look
//! is another matter there ([`Inside`]).
//!
//! The mapping is endpoint-independent (RFC 4787 REQ-1, RFC 5382 REQ-1): an inside endpoint has one
//! external endpoint for each protocol, whatever it talks to. A mapping is two entries that are
//! made in one transaction together with the port they need, so neither exists without the other
//! and no port has two holders (RFC 4787 REQ-3). Whoever knows a mapping may send to it, unless a
//! [`NatFilter`](crate::nf::nat_filter::NatFilter) or a firewall stands behind (REQ-8).
//!
//! What it never does: make, refresh or end a mapping because of an ICMP error (RFC 4787 REQ-12,
//! RFC 5508 REQ-6) or of a packet from outside; pick a port itself (the store's pool does, in the
//! transaction); let an inside address leave untranslated, but to the destinations that are
//! configured so (RFC 6888 REQ-6). IPv6 passes as it is, and so does a packet from outside to an
//! address that is not the NAT's: such addresses are routed, and whether they may be reached is the
//! firewall's business.
//!
//! *Hairpinning* (RFC 4787 REQ-9). A packet from inside to one of the NAT's own external ends is
//! translated as one that leaves, so it carries its external source (REQ-9a); then it is taken in
//! as one from outside, and goes to whoever has that end. The two halves need state of two slots,
//! each reads its own; [`Nat44::is_own`] tells a pipe when to turn a packet round.
//!
//! *Static mappings* are configuration ([`StaticMap`]): they need no state, always are, and let in
//! whoever sends there.
//!
//! A mapping lives as long as its inside endpoint sends ([`crate::nf::timeouts`]). One of TCP is
//! made by a SYN from inside only (RFC 6146 section 3.5.2.2), and its connection says how long it
//! lives ([`crate::nf::mapping_life`], RFC 7857 section 2). Both directions need to know how far
//! that has come, so both entries say it, and both are written when it moves.
//!
//! Both entries have a value of one layout. In `nat-out` the endpoint is the external one, in
//! `nat-in` the inside one; the remote end is the one whose connection is followed:
//!
//! ```text
//! byte  0                 16         18     19     20     24        28         30
//!       address           port       pool   life   zero   remote    its port   zero
//!       16, IPv4-mapped   2, network 1      1      4      4, IPv4   2, network 34
//! ```

#[cfg(test)]
mod tests;

use crate::nf::mapping_life::{self, Life};
use crate::nf::rules::Prefix;
use crate::nf::state_key::{self, KeyKind, NAT_IN_FILL};
use crate::nf::tcp_state::Segment;
use crate::nf::timeouts::Timeouts;
use crate::nf::{Changes, NetworkFunction, Packet};
use crate::packet::parsed::{IpVersion, Transport};
use crate::verdict::{DropReason, Verdict};
use core::net::Ipv4Addr;
use nearstate_placement::{FlowTuple, Side, StaticMap};
use nearstate_store::key::{ENDPOINT_V4, VALUE_BYTES};
use nearstate_store::{
    Address, Condition, Endpoint, Entry, Fill, Key, PoolId, PoolSpec, Take, TenantId, Time, Value,
    Write,
};

/// Where a `nat-out` value takes the external endpoint: the layout begins with an endpoint.
const VALUE_FILL: u8 = ENDPOINT_V4 as u8;

/// What either entry of a mapping says: where to, and from which pool the port is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The endpoint that the key's endpoint is translated to.
    pub to: Endpoint,
    /// The pool that the external port goes back to when the mapping ends.
    pub pool: PoolId,
    /// How far its connections have come.
    pub life: Life,
    /// Whose connection is followed; nobody's but of TCP.
    pub remote: Remote,
}

/// An IPv4 endpoint as it stands in a mapping: the six bytes of its address and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Remote(u64);

impl Remote {
    /// Bits of a word that are it.
    const BITS: u64 = (1 << 48) - 1;

    /// The remote end that is this IPv4 endpoint.
    #[must_use]
    #[inline]
    pub fn of(end: &Endpoint) -> Self {
        let [_, low] = end.address.words();
        Self(low >> 32 | u64::from(end.port.swap_bytes()) << 32)
    }
}

impl Mapping {
    /// The value of an entry.
    #[must_use]
    pub fn encode(self) -> Value {
        let mut bytes = [0; VALUE_BYTES];
        bytes[..18].copy_from_slice(&self.to.to_bytes());
        bytes[18] = self.pool.0;
        bytes[19] = self.life as u8;
        bytes[24..32].copy_from_slice(&self.remote.0.to_le_bytes());
        Value::from_bytes(&bytes)
    }

    /// Reads a value of [`Mapping::encode`].
    #[must_use]
    #[inline]
    pub fn decode(value: &Value) -> Self {
        let [w0, w1, w2, w3, ..] = value.0;
        let [high, low, pool, life, ..] = w2.to_le_bytes();
        let address = Address::from_words([w0, w1]);
        let to = Endpoint { address, port: u16::from_be_bytes([high, low]) };
        let life = Life::from_number(life);
        Self { to, pool: PoolId(pool), life, remote: Remote(w3 & Remote::BITS) }
    }
}

/// What is to be done with a packet before any state is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Its source is to be translated.
    Out,
    /// Its destination is to be translated.
    In,
    /// Its source has this external end, always.
    OutAs(Endpoint),
    /// Its destination belongs to this inside end, always.
    InTo(Endpoint),
    /// It is no business of the NAT.
    Pass,
    /// It goes nowhere.
    Refused(DropReason),
}

/// The hosts inside, as far as a NAT goes by their kind: how their packets show who they are and
/// whom they talk to.
pub trait Inside: Clone + core::fmt::Debug + Sized {
    /// The function's name.
    const NAME: &'static str;

    /// What is to be done with a packet that came in as this flow.
    fn way(nat: &Nat<Self>, packet: &Packet<'_>, tuple: &FlowTuple) -> Way;

    /// The protocol of a mapping, which is that of the external endpoint, of a flow of this one.
    fn external_protocol(protocol: u8) -> u8;

    /// The remote end of a flow from inside.
    fn remote(&self, destination: &Endpoint) -> Remote;

    /// Makes a packet from inside one that comes from an external endpoint.
    fn send_out(&self, packet: &mut Packet<'_>, external: Endpoint);

    /// Makes a packet from outside one that goes to an inside endpoint.
    fn let_in(&self, packet: &mut Packet<'_>, inside: Endpoint);
}

/// Inside hosts of IPv4.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ipv4Inside;

/// NAT44.
pub type Nat44 = Nat<Ipv4Inside>;

/// A NAT of one kind of inside hosts.
#[derive(Clone, Debug)]
pub struct Nat<I> {
    inside: I,
    pool: PoolSpec,
    /// The pool's lowest and highest address. Most packets go to neither side of it, so this spares
    /// them the search.
    lowest: Ipv4Addr,
    highest: Ipv4Addr,
    timeouts: Timeouts,
    static_map: StaticMap,
    /// Destinations that are reached untranslated.
    untranslated: Vec<Prefix>,
}

/// Destinations that a NAT may be told to leave alone.
pub const UNTRANSLATED_MAX: usize = 64;

impl Nat44 {
    /// Most conditions that one packet asks for.
    pub const CONDITIONS_MAX: usize = 1;
    /// Most writes that one packet asks for.
    pub const WRITES_MAX: usize = 3;

    /// A NAT on this pool.
    #[must_use]
    pub fn new(pool: PoolSpec) -> Self {
        Self::of(Ipv4Inside, pool)
    }

    /// Whether a packet from inside goes where the NAT is told to leave packets alone (RFC 6888
    /// REQ-6). Its own ends are never such a place.
    #[inline]
    fn is_untranslated(&self, tuple: &FlowTuple) -> bool {
        let to = &tuple.destination;
        !self.untranslated.is_empty()
            && self.untranslated.iter().any(|prefix| prefix.holds(&to.address))
            && !self.is_own(tuple.protocol, to)
    }
}

impl<I: Inside> Nat<I> {
    /// A NAT of these hosts on this pool.
    #[must_use]
    pub fn of(inside: I, pool: PoolSpec) -> Self {
        // A pool has at least one address: `PoolSpec::new` sees to it.
        let addresses = pool.addresses();
        let (lowest, highest) = (addresses[0], addresses[addresses.len() - 1]);
        let (timeouts, static_map) = (Timeouts::default(), StaticMap::default());
        Self { inside, pool, lowest, highest, timeouts, static_map, untranslated: vec![] }
    }

    /// Who is inside.
    #[must_use]
    pub const fn inside(&self) -> &I {
        &self.inside
    }

    /// The same NAT with these mappings, and with destinations that it leaves alone.
    #[must_use]
    pub fn with_exceptions(self, static_map: StaticMap, untranslated: Vec<Prefix>) -> Self {
        Self { static_map, untranslated, ..self }
    }

    /// The mappings that always are.
    #[must_use]
    pub const fn static_map(&self) -> &StaticMap {
        &self.static_map
    }

    /// Whether a packet to this end, when it has left, comes back to this NAT.
    #[must_use]
    #[inline]
    pub fn is_own(&self, protocol: u8, end: &Endpoint) -> bool {
        end.ipv4().is_some_and(|address| self.in_pool(address))
            || (!self.static_map.is_empty() && self.static_map.inside_of(protocol, end).is_some())
    }

    /// The same NAT with other times.
    #[must_use]
    pub fn with_timeouts(self, timeouts: Timeouts) -> Self {
        Self { timeouts, ..self }
    }

    /// Seconds that a mapping lives (RFC 4787 REQ-5, RFC 5382 REQ-5, RFC 5508 REQ-2).
    const fn ttl_s(&self, protocol: u8, life: Life) -> u32 {
        if life.is_transitory() {
            self.timeouts.tcp_transitory_s
        } else {
            self.timeouts.of_protocol(protocol)
        }
    }

    /// The pool of external addresses.
    #[must_use]
    pub const fn pool(&self) -> &PoolSpec {
        &self.pool
    }

    /// Whether an address is one of the pool's.
    #[inline]
    pub(crate) fn in_pool(&self, address: Ipv4Addr) -> bool {
        (self.lowest..=self.highest).contains(&address) && self.pool.holds(address)
    }

    /// What is to be done with a packet that came in as this flow.
    #[inline(always)]
    pub(crate) fn way(&self, packet: &Packet<'_>, tuple: &FlowTuple) -> Way {
        I::way(self, packet, tuple)
    }

    /// What is to be done with a packet from inside that is to be translated.
    #[inline(always)]
    pub(crate) fn way_out(&self, tuple: &FlowTuple) -> Way {
        if self.static_map.is_empty() {
            return Way::Out;
        }
        if let Some(end) = self.static_map.external_of(tuple.protocol, &tuple.source) {
            return Way::OutAs(end);
        }
        match self.static_map.inside_of(tuple.protocol, &tuple.source) {
            Some(_) => Way::Refused(DropReason::NatSource),
            None => Way::Out,
        }
    }

    /// What is to be done with an IPv4 packet from outside.
    #[inline(always)]
    pub(crate) fn way_in(&self, packet: &Packet<'_>, tuple: &FlowTuple, to: Ipv4Addr) -> Way {
        if !self.static_map.is_empty()
            && let Some(inside) = self.static_map.inside_of(tuple.protocol, &tuple.destination)
        {
            return Way::InTo(inside);
        }
        match packet.parsed.transport {
            _ if !self.in_pool(to) => Way::Pass,
            // Mappings of identifiers are for the queries of inside hosts (RFC 5508 REQ-1): a query
            // from outside has no host behind the NAT that it is meant for.
            Transport::Echo { request: true } => Way::Refused(DropReason::NoMapping),
            _ => Way::In,
        }
    }

    /// Asks for a mapping: the port, and the two entries that it is filled into.
    fn open(&self, packet: &Packet<'_>, changes: &mut Changes) -> Verdict {
        let (tenant, protocol) = (packet.tenant, I::external_protocol(packet.tuple().protocol));
        let inside = packet.tuple().source;
        let out = state_key::nat_out(tenant, protocol, inside);
        let pool = self.pool.id();
        let (life, remote) = match protocol {
            6 => (Life::Opening, self.inside.remote(&packet.tuple().destination)),
            _ => (Life::Plain, Remote::default()),
        };
        let mapping = |to| Mapping { to, pool, life, remote }.encode();
        changes.conditions.push(Condition::Absent(out));
        changes.writes.push(Write::Take(Take {
            pool,
            protocol,
            holder: inside.address.octets(),
            like_port: inside.port,
        }));
        changes.writes.push(Write::Put {
            key: out,
            value: mapping(Endpoint::v4([0; 4], 0)),
            fill: Fill { key_at: None, value_at: Some(VALUE_FILL) },
            ttl_s: self.ttl_s(protocol, life),
        });
        changes.writes.push(Write::Put {
            key: state_key::nat_in_unfilled(tenant, protocol),
            value: mapping(inside),
            fill: Fill { key_at: Some(NAT_IN_FILL), value_at: None },
            // It ends with the other entry.
            ttl_s: 0,
        });
        Verdict::Commit
    }

    /// What a TCP segment from inside makes of its mapping's life.
    #[inline]
    fn follow_inside(
        &self,
        packet: &Packet<'_>,
        (entry, mapping): (&Entry, &Mapping),
        changes: &mut Changes,
    ) {
        let Transport::Tcp { flags } = packet.parsed.transport else { return };
        let to = self.inside.remote(&packet.tuple().destination);
        let turn =
            mapping_life::from_inside(mapping.life, to == mapping.remote, Segment::of(flags));
        let Some(turn) = turn else { return };
        let remote = if turn.is_followed { to } else { mapping.remote };
        let moved = Mapping { life: turn.life, remote, ..*mapping };
        let key = state_key::nat_out(packet.tenant, 6, packet.tuple().source);
        changes.conditions.push(Condition::Version(key, entry.version));
        self.move_on(packet.tenant, (packet.tuple().source, mapping.to), moved, changes);
    }

    /// What a TCP segment from outside makes of it.
    #[inline]
    fn follow_outside(
        &self,
        packet: &Packet<'_>,
        (entry, mapping): (&Entry, &Mapping),
        changes: &mut Changes,
    ) {
        let Transport::Tcp { flags } = packet.parsed.transport else { return };
        let segment = Segment::of(flags);
        let Some(turn) = mapping_life::from_outside(mapping.life, segment) else { return };
        if Remote::of(&packet.tuple().source) != mapping.remote {
            return;
        }
        let moved = Mapping { life: turn.life, ..*mapping };
        let external = packet.tuple().destination;
        let key = state_key::nat_in(packet.tenant, 6, external);
        changes.conditions.push(Condition::Version(key, entry.version));
        self.move_on(packet.tenant, (mapping.to, external), moved, changes);
    }

    /// Asks for both entries of a mapping of TCP to be written.
    fn move_on(
        &self,
        tenant: TenantId,
        (inside, external): (Endpoint, Endpoint),
        mapping: Mapping,
        changes: &mut Changes,
    ) {
        let mut put = |key, to, ttl_s| {
            let value = Mapping { to, ..mapping }.encode();
            changes.writes.push(Write::Put { key, value, fill: Fill::default(), ttl_s });
        };
        put(state_key::nat_out(tenant, 6, inside), external, self.ttl_s(6, mapping.life));
        put(state_key::nat_in(tenant, 6, external), inside, 0);
    }

    /// Decides on a packet that no mapping is known for.
    fn process_without_entry(&self, packet: &mut Packet<'_>, changes: &mut Changes) -> Verdict {
        match self.way(packet, packet.tuple()) {
            Way::Pass => Verdict::Forward,
            Way::Refused(reason) => Verdict::Drop(reason),
            Way::OutAs(external) => {
                self.inside.send_out(packet, external);
                Verdict::Forward
            }
            Way::InTo(inside) => {
                self.inside.let_in(packet, inside);
                Verdict::Forward
            }
            Way::Out => match refuses_to_open(packet.parsed.transport) {
                Some(reason) => Verdict::Drop(reason),
                None => self.open(packet, changes),
            },
            Way::In => Verdict::Drop(match packet.parsed.transport {
                // RFC 5508 REQ-4: dropped silently without a mapping for the quoted packet.
                Transport::IcmpError { .. } => DropReason::IcmpUnrelated,
                _ => DropReason::NoMapping,
            }),
        }
    }
}

impl<I: Inside> NetworkFunction for Nat<I> {
    fn name(&self) -> &'static str {
        I::NAME
    }

    #[inline(always)]
    fn key(&self, packet: &Packet<'_>) -> Option<Key> {
        let (tenant, tuple) = (packet.tenant, packet.tuple());
        match self.way(packet, tuple) {
            Way::Out => {
                let protocol = I::external_protocol(tuple.protocol);
                Some(state_key::nat_out(tenant, protocol, tuple.source))
            }
            Way::In => Some(state_key::nat_in(tenant, tuple.protocol, tuple.destination)),
            Way::OutAs(_) | Way::InTo(_) | Way::Pass | Way::Refused(_) => None,
        }
    }

    #[inline]
    fn process(
        &self,
        _now: Time,
        packet: &mut Packet<'_>,
        state: Option<&Entry>,
        changes: &mut Changes,
    ) -> Verdict {
        if let Some(entry) = state {
            // Only a packet that is to be translated by an entry asks for one: what is to be done
            // with it need not be found out again.
            let mapping = Mapping::decode(&entry.value);
            match packet.side {
                Side::Inside => {
                    self.follow_inside(packet, (entry, &mapping), changes);
                    self.inside.send_out(packet, mapping.to);
                }
                Side::Outside => {
                    self.follow_outside(packet, (entry, &mapping), changes);
                    self.inside.let_in(packet, mapping.to);
                }
            }
            return Verdict::Forward;
        }
        self.process_without_entry(packet, changes)
    }

    fn describe(&self, key: &Key, entry: Option<&Entry>) -> String {
        let (end, _) = key.ends();
        match (KeyKind::of(key), entry.map(|entry| Mapping::decode(&entry.value))) {
            (Some(KeyKind::NatOut), Some(mapping)) => {
                let Mapping { to, pool, life, .. } = mapping;
                format!("inside endpoint {end} is mapped to {to} of {pool}; {}", life.name())
            }
            (Some(KeyKind::NatOut), None) => format!("inside endpoint {end} has no mapping"),
            (Some(KeyKind::NatIn), Some(mapping)) => {
                format!("external endpoint {end} belongs to inside endpoint {}", mapping.to)
            }
            (Some(KeyKind::NatIn), None) => format!("external endpoint {end} belongs to nobody"),
            _ => format!("{key:?} is not an entry of the NAT"),
        }
    }
}

/// Why a packet from inside must not make a mapping, if it must not.
fn refuses_to_open(transport: Transport) -> Option<DropReason> {
    match transport {
        // RFC 5508 REQ-5: an error without a mapping for the packet that it quotes is dropped.
        Transport::IcmpError { .. } => Some(DropReason::IcmpUnrelated),
        // A reply to a query that did not come through a mapping.
        Transport::Echo { request: false } => Some(DropReason::NoMapping),
        // Only a SYN begins a connection (RFC 6146 section 3.5.2.2, state CLOSED): a mapping made
        // for anything else would serve nothing, or one that began elsewhere.
        Transport::Tcp { flags } if Segment::of(flags) != Segment::Syn => {
            Some(DropReason::TcpMidstream)
        }
        // It has no ports, and goes through no function.
        Transport::LaterFragment => Some(DropReason::Fragment),
        Transport::Tcp { .. } | Transport::Udp | Transport::Echo { request: true } => None,
    }
}

impl Inside for Ipv4Inside {
    const NAME: &'static str = "nat";

    #[inline(always)]
    fn way(nat: &Nat44, packet: &Packet<'_>, tuple: &FlowTuple) -> Way {
        if packet.parsed.version != IpVersion::V4 {
            return Way::Pass;
        }
        let (Some(source), Some(destination)) = (tuple.source.ipv4(), tuple.destination.ipv4())
        else {
            return Way::Pass;
        };
        match packet.side {
            // An inside host that uses an address of ours is a forgery or a loop.
            Side::Inside if nat.in_pool(source) => Way::Refused(DropReason::NatSource),
            Side::Inside if nat.is_untranslated(tuple) => Way::Pass,
            Side::Inside => nat.way_out(tuple),
            Side::Outside => nat.way_in(packet, tuple, destination),
        }
    }

    #[inline]
    fn external_protocol(protocol: u8) -> u8 {
        protocol
    }

    #[inline]
    fn remote(&self, destination: &Endpoint) -> Remote {
        Remote::of(destination)
    }

    #[inline]
    fn send_out(&self, packet: &mut Packet<'_>, external: Endpoint) {
        debug_assert!(external.ipv4().is_some(), "a mapping holds an IPv4 endpoint");
        packet.tuple_mut().source = external;
        if is_icmp(packet) {
            packet.tuple_mut().destination.port = external.port;
        }
    }

    #[inline]
    fn let_in(&self, packet: &mut Packet<'_>, inside: Endpoint) {
        debug_assert!(inside.ipv4().is_some(), "a mapping holds an IPv4 endpoint");
        packet.tuple_mut().destination = inside;
        if is_icmp(packet) {
            packet.tuple_mut().source.port = inside.port;
        }
    }
}

/// An echo (or a quoted one) has its one identifier as both ports, before and after translation.
fn is_icmp(packet: &Packet<'_>) -> bool {
    packet.tuple().protocol == 1
}
