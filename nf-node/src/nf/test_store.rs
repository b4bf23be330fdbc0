//! For tests: a store in one map that commits what functions ask for, and checks what every
//! function promises: that processing is a fixed point, and that a refused packet changes nothing.

use crate::chain::Chain;
use crate::nf::Changes;
use crate::nf::entry_rules::FunctionRules;
use crate::packet::parsed::{IpVersion, Parsed, Transport};
use crate::verdict::{DropReason, Verdict};
use core::net::{IpAddr, SocketAddr};
use nearstate_placement::{FlowTuple, Side, Steering};
use nearstate_store::upkeep::{Ending, EntryRules};
use nearstate_store::{
    Condition, Endpoint, Entry, Fill, Key, PoolSpec, SlotId, Take, Time, Value, Version, Write,
};
use std::collections::{BTreeMap, BTreeSet};

pub(crate) const SYN: u8 = 0x02;
pub(crate) const SYN_ACK: u8 = 0x12;
pub(crate) const ACK: u8 = 0x10;
pub(crate) const FIN: u8 = 0x11;
pub(crate) const RST: u8 = 0x04;

/// `10.0.0.1:80` or `[2001:db8::1]:80`.
pub(crate) fn end(text: &str) -> Endpoint {
    let socket: SocketAddr = text.parse().unwrap_or_else(|_| panic!("not an endpoint: {text}"));
    Endpoint::new(socket.ip(), socket.port())
}

pub(crate) fn tuple(protocol: u8, source: &str, destination: &str) -> FlowTuple {
    FlowTuple { protocol, source: end(source), destination: end(destination) }
}

/// A packet, as the parser would have seen it.
pub(crate) fn parsed(transport: Transport, tuple: FlowTuple) -> Parsed {
    let version = match tuple.source.ip() {
        IpAddr::V4(_) => IpVersion::V4,
        IpAddr::V6(_) => IpVersion::V6,
    };
    Parsed { version, ip: 14, transport_at: 34, end: 60, transport, tuple }
}

pub(crate) fn tcp(flags: u8, source: &str, destination: &str) -> Parsed {
    parsed(Transport::Tcp { flags }, tuple(6, source, destination))
}

pub(crate) fn udp(source: &str, destination: &str) -> Parsed {
    parsed(Transport::Udp, tuple(17, source, destination))
}

/// An echo of IPv4 or IPv6: both ports are the identifier.
pub(crate) fn echo(request: bool, source: &str, destination: &str) -> Parsed {
    let tuple = tuple(1, source, destination);
    assert_eq!(tuple.source.port, tuple.destination.port, "an echo has one identifier");
    let protocol = if tuple.source.ipv4().is_some() { 1 } else { 58 };
    parsed(Transport::Echo { request }, FlowTuple { protocol, ..tuple })
}

/// An error about a packet of which the given tuple is an answer's.
pub(crate) fn error(inner_protocol: u8, source: &str, destination: &str) -> Parsed {
    let transport = Transport::IcmpError { inner_ip: 42, inner_transport: 62, inner_protocol };
    parsed(transport, tuple(inner_protocol, source, destination))
}

/// The store.
pub(crate) struct TestStore {
    pub(crate) entries: BTreeMap<Key, Entry>,
    /// The seconds that each was put for.
    pub(crate) lifetimes: BTreeMap<Key, u32>,
    /// Ports that have a holder.
    pub(crate) taken: BTreeSet<(u8, Endpoint)>,
    steering: Steering,
    version: u64,
}

impl TestStore {
    pub(crate) fn new(chain: &Chain) -> Self {
        let steering = chain.steering(7);
        Self {
            entries: BTreeMap::new(),
            lifetimes: BTreeMap::new(),
            taken: BTreeSet::new(),
            steering,
            version: 0,
        }
    }

    /// Takes a packet through the chain until it is decided, and then once more: the same packet
    /// again has the same fate and asks for nothing.
    pub(crate) fn send(
        &mut self,
        chain: &Chain,
        side: Side,
        packet: &Parsed,
    ) -> (Result<FlowTuple, DropReason>, Changes) {
        let first = self.pass(chain, side, packet);
        let before = self.entries.clone();
        let (again, no_changes) = split(self.pass(chain, side, packet));
        let (first, changes) = split(first);
        assert_eq!(first, again, "the same packet again fared differently");
        assert!(no_changes.is_empty(), "the same packet again asked for {no_changes:?}");
        assert_eq!(before, self.entries, "the same packet again changed something");
        (first, changes)
    }

    fn pass(
        &mut self,
        chain: &Chain,
        side: Side,
        parsed: &Parsed,
    ) -> Result<(FlowTuple, Changes), DropReason> {
        let slot = self.steering.slot(chain.tenant(), side, &parsed.tuple);
        let mut asked = Changes::default();
        for round in 0..3 {
            let mut changes = Changes::default();
            let entries = &self.entries;
            let mut read = |key: &Key| {
                let entry = entries.get(key).copied();
                assert!(entry.is_none_or(|entry| entry.slot == slot), "read across slots: {key:?}");
                entry
            };
            let mut translated = None;
            let packet = chain.packet(side, &[], parsed, &mut translated);
            match chain.run(Time(0), packet, &mut read, &mut changes) {
                (Verdict::Forward, tuple) => {
                    assert!(changes.is_empty(), "forwarded before its changes were committed");
                    return Ok((tuple, asked));
                }
                (Verdict::Drop(reason), _) => {
                    assert!(changes.is_empty(), "a dropped packet asked for a change");
                    assert_eq!(round, 0, "dropped with {reason} after its changes were committed");
                    return Err(reason);
                }
                (Verdict::Commit, _) => {
                    assert_eq!(round, 0, "asked for more after its changes were committed");
                    assert!(!changes.is_empty() && !changes.conditions.is_empty());
                    self.commit(slot, &changes)?;
                    asked = changes;
                }
            }
        }
        unreachable!("each round either returns or commits, and only the first commits")
    }

    fn commit(&mut self, slot: SlotId, changes: &Changes) -> Result<(), DropReason> {
        for condition in &changes.conditions {
            let holds = match condition {
                Condition::Absent(key) => !self.entries.contains_key(key),
                Condition::Present(key) => self.entries.contains_key(key),
                Condition::Version(key, version) => {
                    self.entries.get(key).is_some_and(|entry| entry.version == *version)
                }
                Condition::Expired(..) => panic!("no packet asks for an expiry"),
            };
            assert!(holds, "nobody else writes, so {condition:?} holds");
        }
        let mut filling = None;
        for write in &changes.writes {
            match write {
                Write::Take(take) => filling = Some(self.take(slot, take)?),
                Write::Put { key, value, fill, ttl_s } => {
                    let (key, value) = filled(*key, *value, *fill, filling);
                    self.lifetimes.insert(key, *ttl_s);
                    self.version += 1;
                    let version = Version(self.version);
                    self.entries.insert(key, Entry { value, version, slot });
                }
                Write::Delete(key) => {
                    self.entries.remove(key);
                }
                other => panic!("no function asks for {other:?}"),
            }
        }
        Ok(())
    }

    /// Ends everything that has a lifetime, as the store does when nobody uses it any more.
    pub(crate) fn idle_out(&mut self) {
        let mortal = |key: &&Key| self.lifetimes.get(key).is_some_and(|ttl_s| *ttl_s > 0);
        let ends: Vec<Key> = self.entries.keys().filter(mortal).copied().collect();
        for key in ends {
            let Some(entry) = self.entries.get(&key).copied() else { continue };
            let mut ending = Ending::default();
            FunctionRules.end(&key, &entry, &mut ending);
            for write in ending.writes {
                match write {
                    Write::Delete(key) => {
                        self.entries.remove(&key).expect("it ends once");
                    }
                    Write::Return { protocol, endpoint: [a, b, c, d, high, low], .. } => {
                        let end = Endpoint::v4([a, b, c, d], u16::from_be_bytes([high, low]));
                        assert!(self.taken.remove(&(protocol, end)), "{end} was nobody's");
                    }
                    other => panic!("no end asks for {other:?}"),
                }
            }
        }
    }

    /// The first free port of the slot: the smallest thing that keeps N1 and the steering.
    fn take(&mut self, slot: SlotId, take: &Take) -> Result<[u8; 6], DropReason> {
        let pools = self.steering.pools();
        let pool: &PoolSpec = pools.iter().find(|pool| pool.id() == take.pool).unwrap();
        let ports = pool.blocks_of(slot).flat_map(|block| {
            let (address, port) = pool.block_start(block);
            (port..port + 63).map(move |port| Endpoint::v4(address.octets(), port))
        });
        let mut free = ports.filter(|end| !self.taken.contains(&(take.protocol, *end)));
        let end = free.next().ok_or(DropReason::PortsExhausted)?;
        self.taken.insert((take.protocol, end));
        let bytes = end.to_bytes();
        Ok([bytes[12], bytes[13], bytes[14], bytes[15], bytes[16], bytes[17]])
    }
}

fn split(
    passed: Result<(FlowTuple, Changes), DropReason>,
) -> (Result<FlowTuple, DropReason>, Changes) {
    match passed {
        Ok((tuple, changes)) => (Ok(tuple), changes),
        Err(reason) => (Err(reason), Changes::default()),
    }
}

fn filled(key: Key, value: Value, fill: Fill, taken: Option<[u8; 6]>) -> (Key, Value) {
    let (mut key, mut value) = (key.to_bytes(), value.to_bytes());
    for (at, bytes) in [(fill.key_at, &mut key[..]), (fill.value_at, &mut value[..])] {
        if let Some(at) = at {
            let taken = taken.expect("a fill follows a take");
            bytes[usize::from(at)..usize::from(at) + 6].copy_from_slice(&taken);
        }
    }
    (Key::from_bytes(&key), Value::from_bytes(&value))
}
