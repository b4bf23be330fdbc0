//! `steer_hash` and affinity: the one definition of a packet's slot that nodes, steerers and the
//! demo's driver share. Never the hash of a table, so that knowing one tells nothing of the other.
//!
//! The hash is MurmurHash3 x86-32 over whole 32-bit words with the cluster's seed: small enough
//! for an XDP program, and with published test vectors.

use crate::flow::{FlowKey, FlowTuple, Side};
use crate::static_map::StaticMap;
use nearstate_store::{Address, Endpoint, PoolSpec, SlotId, TenantId};
use serde::{Deserialize, Serialize};

/// Slots a cluster may have.
pub const SLOTS_MAX: u32 = 65_536;

/// Which part of a packet decides its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Affinity {
    /// The canonical five-tuple: both directions of a flow agree.
    FiveTuple,
    /// The host on the inside; from the outside to a NAT address, the port block that it falls in,
    /// or the host that a static mapping gives it to.
    InsideHost,
    /// The endpoint on the outside: what a load balancer needs, whose clients are outside and whose
    /// answers come from a backend that the client never named.
    OutsideEndpoint,
}

/// MurmurHash3 x86-32 of the words, as if they were their little-endian bytes.
#[must_use]
#[inline]
pub fn steer_hash(seed: u32, words: &[u32]) -> u32 {
    let mut hash = seed;
    for word in words {
        let mixed = word.wrapping_mul(0xcc9e_2d51).rotate_left(15).wrapping_mul(0x1b87_3593);
        hash = (hash ^ mixed).rotate_left(13).wrapping_mul(5).wrapping_add(0xe654_6b64);
    }
    hash ^= (words.len() * 4) as u32;
    hash = (hash ^ (hash >> 16)).wrapping_mul(0x85eb_ca6b);
    hash = (hash ^ (hash >> 13)).wrapping_mul(0xc2b2_ae35);
    hash ^ (hash >> 16)
}

/// All that decides a packet's slot; the same on every node and steerer of a cluster.
#[derive(Clone, Debug)]
pub struct Steering {
    seed: u32,
    slots: u32,
    affinity: Affinity,
    pools: Vec<PoolSpec>,
    static_map: StaticMap,
}

impl Steering {
    /// Steering for a cluster of `slots` slots.
    ///
    /// # Panics
    /// If `slots` is not a power of two up to 65,536: configurations are checked before they
    /// come here.
    #[must_use]
    pub fn new(seed: u32, slots: u32, affinity: Affinity, pools: Vec<PoolSpec>) -> Self {
        assert!(slots.is_power_of_two(), "slots are a power of two");
        assert!(slots <= SLOTS_MAX, "a slot number has 16 bits");
        Self { seed, slots, affinity, pools, static_map: StaticMap::default() }
    }

    /// The same steering for a NAT that has these static mappings.
    #[must_use]
    pub fn with_static_map(self, static_map: StaticMap) -> Self {
        Self { static_map, ..self }
    }

    /// Slots of the cluster.
    #[must_use]
    pub const fn slots(&self) -> u32 {
        self.slots
    }

    /// The NAT pools.
    #[must_use]
    pub fn pools(&self) -> &[PoolSpec] {
        &self.pools
    }

    /// The slot of a packet with this tuple that came in on this side.
    #[must_use]
    #[inline]
    pub fn slot(&self, tenant: TenantId, side: Side, tuple: &FlowTuple) -> SlotId {
        match (self.affinity, side) {
            (Affinity::FiveTuple, _) => self.slot_of_flow(&FlowKey::canonical(tenant, tuple)),
            (Affinity::InsideHost, Side::Inside) => {
                self.slot_of_host(tenant, &tuple.source.address)
            }
            (Affinity::InsideHost, Side::Outside) => {
                let destination = &tuple.destination;
                if !self.static_map.is_empty()
                    && let Some(host) = self.static_map.inside_of(tuple.protocol, destination)
                {
                    return self.slot_of_host(tenant, &host.address);
                }
                destination
                    .ipv4()
                    .and_then(|v4| self.pools.iter().find_map(|p| p.slot_of(v4, destination.port)))
                    .unwrap_or_else(|| self.slot_of_host(tenant, &destination.address))
            }
            (Affinity::OutsideEndpoint, Side::Inside) => {
                self.slot_of_endpoint(tenant, tuple.protocol, &tuple.destination)
            }
            (Affinity::OutsideEndpoint, Side::Outside) => {
                self.slot_of_endpoint(tenant, tuple.protocol, &tuple.source)
            }
        }
    }

    #[inline]
    fn slot_of_host(&self, tenant: TenantId, address: &Address) -> SlotId {
        let [a, b, c, d] = words_of(address);
        self.mask(steer_hash(self.seed, &[a, b, c, d, u32::from(tenant.0)]))
    }

    #[inline]
    fn slot_of_endpoint(&self, tenant: TenantId, protocol: u8, end: &Endpoint) -> SlotId {
        let [a, b, c, d] = words_of(&end.address);
        let whose = u32::from(tenant.0) << 8 | u32::from(protocol);
        self.mask(steer_hash(self.seed, &[a, b, c, d, u32::from(end.port), whose]))
    }

    #[inline]
    fn slot_of_flow(&self, key: &FlowKey) -> SlotId {
        let ([a, b, c, d], [e, f, g, h]) =
            (words_of(&key.low.address), words_of(&key.high.address));
        let ports = u32::from(key.low.port) << 16 | u32::from(key.high.port);
        let whose = u32::from(key.tenant.0) << 8 | u32::from(key.protocol);
        self.mask(steer_hash(self.seed, &[a, b, c, d, e, f, g, h, ports, whose]))
    }

    const fn mask(&self, hash: u32) -> SlotId {
        SlotId((hash & (self.slots - 1)) as u16)
    }
}

/// The bytes of an address as little-endian words.
#[inline]
const fn words_of(address: &Address) -> [u32; 4] {
    let [low, high] = address.words();
    [low as u32, (low >> 32) as u32, high as u32, (high >> 32) as u32]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::static_map::StaticMapping;
    use nearstate_store::PoolId;

    #[test]
    fn steer_hash_is_murmur3() {
        // Published vectors of MurmurHash3_x86_32 for whole words.
        assert_eq!(steer_hash(0, &[]), 0);
        assert_eq!(steer_hash(1, &[]), 0x514e_28b7);
        assert_eq!(steer_hash(0, &[0xffff_ffff]), 0x7629_3b50);
        assert_eq!(steer_hash(0, &[0x8765_4321]), 0xf55b_516b);
        assert_eq!(steer_hash(0x5082_edee, &[0x8765_4321]), 0x2362_f9de);
        assert_eq!(steer_hash(0, &[0]), 0x2362_f9de);
    }

    fn tuple() -> FlowTuple {
        FlowTuple {
            protocol: 17,
            source: Endpoint::v4([10, 0, 0, 1], 1000),
            destination: Endpoint::v4([192, 0, 2, 1], 53),
        }
    }

    #[test]
    fn both_directions_agree_on_five_tuple_and_on_the_outside_endpoint() {
        for affinity in [Affinity::FiveTuple, Affinity::OutsideEndpoint] {
            let steering = Steering::new(7, 1024, affinity, vec![]);
            let out = steering.slot(TenantId(0), Side::Inside, &tuple());
            let back = steering.slot(TenantId(0), Side::Outside, &tuple().reversed());
            assert_eq!(out, back, "{affinity:?}");
        }
    }

    #[test]
    fn a_packet_to_a_static_mapping_goes_to_the_slot_of_its_host() {
        let addresses = (0..8).map(|i| [198, 19, 0, i].into()).collect();
        let pool = PoolSpec::new(PoolId(0), addresses, 1024, 4).unwrap();
        let mapping = StaticMapping {
            external: [198, 19, 0, 1].into(),
            inside: [10, 0, 0, 1].into(),
            port: Some((17, 443, 1000)),
        };
        let steering = Steering::new(7, 1024, Affinity::InsideHost, vec![pool])
            .with_static_map(StaticMap::new(&[mapping]).unwrap());
        let inwards = FlowTuple {
            protocol: 17,
            source: tuple().destination,
            destination: Endpoint::v4([198, 19, 0, 1], 443),
        };
        let host = steering.slot(TenantId(0), Side::Inside, &tuple());
        assert_eq!(steering.slot(TenantId(0), Side::Outside, &inwards), host);
        let other = FlowTuple { protocol: 6, ..inwards };
        assert_ne!(steering.slot(TenantId(0), Side::Outside, &other), host);
    }

    #[test]
    fn an_answer_to_a_nat_port_goes_to_the_slot_that_gave_the_port() {
        let addresses = (0..8).map(|i| [198, 19, 0, i].into()).collect();
        let pool = PoolSpec::new(PoolId(0), addresses, 1024, 4).unwrap();
        let steering = Steering::new(7, 1024, Affinity::InsideHost, vec![pool.clone()]);
        let slot = steering.slot(TenantId(0), Side::Inside, &tuple());
        let (address, port) = pool.block_start(pool.blocks_of(slot).start);
        let answer = FlowTuple {
            protocol: 17,
            source: tuple().destination,
            destination: Endpoint::v4(address.octets(), port + 13),
        };
        assert_eq!(steering.slot(TenantId(0), Side::Outside, &answer), slot);
        let untranslated = steering.slot(TenantId(0), Side::Outside, &tuple().reversed());
        assert_eq!(untranslated, slot);
    }
}
