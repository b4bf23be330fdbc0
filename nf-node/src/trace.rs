//! One packet's way through a chain as typed records, and how they read in words.
//!
//! What `nearstate trace` prints. It runs the production parser, steering and functions on one
//! frame with reads that its caller answers; it changes nothing, neither the frame nor any state.

use crate::chain::Chain;
use crate::nf::{Changes, NetworkFunction};
use crate::packet;
use crate::packet::parsed::Transport;
use crate::state_access::Access;
use crate::verdict::{DropReason, Verdict};
use core::fmt;
use nearstate_placement::{FlowTuple, Side, Steering};
use nearstate_store::{Condition, Entry, Key, ShardId, SlotId, Time, Write};

/// What reading a key gave, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The entry, if there is one.
    pub entry: Option<Entry>,
    /// The shard that was asked.
    pub shard: ShardId,
    /// How it was asked.
    pub access: Access,
}

/// One step of a packet's way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TraceRecord {
    /// It came in and is well-formed.
    Parsed {
        /// Where it came in.
        side: Side,
        /// Bytes of the frame.
        bytes: usize,
        /// What it is.
        transport: Transport,
        /// Its flow.
        tuple: FlowTuple,
    },
    /// It came in and is no packet that can be followed.
    Unreadable {
        /// Where it came in.
        side: Side,
        /// Bytes of the frame.
        bytes: usize,
        /// What is wrong with it.
        reason: DropReason,
    },
    /// The slot that its state lies in.
    Steered {
        /// The slot.
        slot: SlotId,
    },
    /// A function's look at the state.
    Read {
        /// The function.
        function: &'static str,
        /// Its key for this packet.
        key: Key,
        /// What was found; `None` if nobody could be asked.
        found: Option<Found>,
        /// What that means, in the function's words.
        meaning: String,
    },
    /// A function has spoken.
    Spoken {
        /// The function.
        function: &'static str,
        /// What it said.
        verdict: Verdict,
        /// The flow before and after it, if it translated.
        translated: Option<(FlowTuple, FlowTuple)>,
    },
    /// A condition of the transaction that it asks for.
    Requires(Condition),
    /// A write of the transaction that it asks for.
    Writes(Write),
    /// It leaves.
    Leaves {
        /// On this side.
        side: Side,
        /// As this flow.
        tuple: FlowTuple,
        /// Its headers are rewritten to it.
        rewritten: bool,
    },
    /// It waits for its transaction, then is processed again from the start.
    Commits,
    /// It waits for a store that does not answer.
    Waits,
    /// It ends here.
    Dropped(DropReason),
}

/// Takes a frame through a chain. `read` answers where the state lies; `None` ends the trace there.
pub fn trace_packet(
    chain: &Chain,
    steering: &Steering,
    now: Time,
    (side, frame): (Side, &[u8]),
    read: &mut dyn FnMut(SlotId, &Key) -> Option<Found>,
) -> Vec<TraceRecord> {
    let bytes = frame.len();
    let parsed = match packet::parse(frame) {
        Ok(parsed) => parsed,
        Err(reason) => {
            return vec![
                TraceRecord::Unreadable { side, bytes, reason },
                TraceRecord::Dropped(reason),
            ];
        }
    };
    let (transport, tuple) = (parsed.transport, parsed.tuple);
    let slot = steering.slot(chain.tenant(), side, &tuple);
    let mut records =
        vec![TraceRecord::Parsed { side, bytes, transport, tuple }, TraceRecord::Steered { slot }];
    let mut packet = chain.packet(side, frame, &parsed);
    let mut changes = Changes::default();
    for stage in 0..chain.len() {
        let Some(function) = chain.function(side, stage) else { break };
        let name = function.name();
        let key = function.key(&packet);
        let mut entry = None;
        if let Some(key) = key {
            let found = read(slot, &key);
            entry = found.and_then(|found| found.entry);
            let meaning = function.describe(&key, entry.as_ref());
            records.push(TraceRecord::Read { function: name, key, found, meaning });
            if found.is_none() {
                records.push(TraceRecord::Waits);
                return records;
            }
        }
        let before = packet.tuple;
        let verdict = function.process(now, &mut packet, entry.as_ref(), &mut changes);
        let translated = (packet.tuple != before).then_some((before, packet.tuple));
        records.push(TraceRecord::Spoken { function: name, verdict, translated });
        match verdict {
            Verdict::Forward => {}
            Verdict::Commit => break,
            Verdict::Drop(reason) => {
                records.push(TraceRecord::Dropped(reason));
                return records;
            }
        }
    }
    let tuple = packet.tuple;
    end(&mut records, changes, (side.opposite(), tuple, tuple != parsed.tuple));
    records
}

fn end(
    records: &mut Vec<TraceRecord>,
    changes: Changes,
    (side, tuple, rewritten): (Side, FlowTuple, bool),
) {
    if changes.is_empty() {
        records.push(TraceRecord::Leaves { side, tuple, rewritten });
    } else {
        records.extend(changes.conditions.into_iter().map(TraceRecord::Requires));
        records.extend(changes.writes.into_iter().map(TraceRecord::Writes));
        records.push(TraceRecord::Commits);
    }
}

const fn side_name(side: Side) -> &'static str {
    match side {
        Side::Inside => "inside",
        Side::Outside => "outside",
    }
}

const fn access_name(access: Access) -> &'static str {
    match access {
        Access::Local => "in this node's memory",
        Access::RemoteShm => "in the owner's memory, mapped",
        Access::RemoteTcp => "at the owner, over TCP",
        Access::RemoteRdma => "in the owner's memory, by RDMA",
    }
}

/// Kind, protocol and ends of a key, short.
fn key_words(key: &Key) -> String {
    let (a, b) = key.ends();
    format!("[kind {} proto {} {a} {b}]", key.kind(), key.protocol())
}

fn transport_words(transport: Transport) -> String {
    match transport {
        Transport::Tcp { flags } => {
            let names = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];
            let set = names.iter().enumerate().filter(|(bit, _)| flags >> bit & 1 == 1);
            let set: Vec<_> = set.map(|(_, name)| *name).collect();
            format!("TCP {}", set.join("+"))
        }
        Transport::Udp => "UDP".to_owned(),
        Transport::Echo { request: true } => "echo request".to_owned(),
        Transport::Echo { request: false } => "echo reply".to_owned(),
        Transport::IcmpError { .. } => "ICMP error about an earlier packet".to_owned(),
    }
}

fn condition_words(condition: &Condition) -> String {
    match condition {
        Condition::Absent(key) => format!("{} is absent", key_words(key)),
        Condition::Present(key) => format!("{} is there", key_words(key)),
        Condition::Version(key, version) => format!("{} still has {version}", key_words(key)),
        Condition::Expired(key, version) => {
            format!("{} still has {version} and nobody has seen it", key_words(key))
        }
    }
}

fn write_words(write: &Write) -> String {
    match write {
        Write::Put { key, fill, .. } if fill.key_at.is_some() || fill.value_at.is_some() => {
            format!("put {} with the port that was taken", key_words(key))
        }
        Write::Put { key, .. } => format!("put {}", key_words(key)),
        Write::Delete(key) => format!("delete {}", key_words(key)),
        Write::Touch(key) => format!("touch {}", key_words(key)),
        Write::Add { key, amount, .. } => format!("add {amount} to {}", key_words(key)),
        Write::Take(take) => format!("take a port of {} for proto {}", take.pool, take.protocol),
        Write::Return { pool, endpoint: [a, b, c, d, high, low], .. } => {
            let port = u16::from_be_bytes([*high, *low]);
            format!("give {a}.{b}.{c}.{d}:{port} back to {pool}")
        }
    }
}

impl fmt::Display for TraceRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Parsed { side, bytes, transport, tuple } => {
                let (what, side) = (transport_words(*transport), side_name(*side));
                write!(f, "in        {bytes} bytes from {side}: {what}, {tuple}")
            }
            Self::Unreadable { side, bytes, reason } => {
                write!(f, "in        {bytes} bytes from {}: {reason}", side_name(*side))
            }
            Self::Steered { slot } => write!(f, "steered   its state lies in {slot}"),
            Self::Read { function, key, found: None, .. } => {
                write!(f, "{function:<9} wants {}, and no owner answers", key_words(key))
            }
            Self::Read { function, key, found: Some(found), meaning } => {
                let what = match found.entry {
                    Some(entry) => format!("{}", entry.version),
                    None => "nothing".to_owned(),
                };
                let (key, at) = (key_words(key), access_name(found.access));
                let shard = found.shard;
                write!(f, "{function:<9} reads {key} of {shard} {at}: {what}; {meaning}")
            }
            Self::Spoken { function, verdict, translated } => {
                match verdict {
                    Verdict::Forward => write!(f, "{function:<9} lets it pass")?,
                    Verdict::Commit => write!(f, "{function:<9} must change state first")?,
                    Verdict::Drop(reason) => write!(f, "{function:<9} drops it: {reason}")?,
                }
                match translated {
                    Some((before, after)) => write!(f, ", {before} becomes {after}"),
                    None => Ok(()),
                }
            }
            Self::Requires(condition) => write!(f, "requires  {}", condition_words(condition)),
            Self::Writes(write) => write!(f, "writes    {}", write_words(write)),
            Self::Leaves { side, tuple, rewritten } => {
                let how = if *rewritten { "rewritten, as" } else { "as it came," };
                write!(f, "out       leaves {}, {how} {tuple}", side_name(*side))
            }
            Self::Commits => {
                f.write_str("waits     for the commit, then goes through the chain once more")
            }
            Self::Waits => f.write_str("waits     for the store"),
            Self::Dropped(reason) => write!(f, "dropped   {reason}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain_config::ChainConfig;
    use crate::packet::PacketBuilder;
    use nearstate_store::{Endpoint, Value, Version};

    fn chain(text: &str) -> Chain {
        let config: ChainConfig = toml::from_str(text).unwrap();
        Chain::new(&config, 1024).unwrap()
    }

    fn words(records: &[TraceRecord]) -> String {
        records.iter().map(|record| format!("{record}\n")).collect()
    }

    fn udp(from: ([u8; 4], u16), to: ([u8; 4], u16)) -> Vec<u8> {
        PacketBuilder::udp(Endpoint::v4(from.0, from.1), Endpoint::v4(to.0, to.1)).build()
    }

    const INSIDE: ([u8; 4], u16) = ([10, 0, 0, 7], 4000);
    const OUTSIDE: ([u8; 4], u16) = ([192, 0, 2, 1], 53);

    #[test]
    fn a_new_flow_through_firewall_and_nat_asks_for_one_transaction() {
        let chain = chain(
            "functions = [\"firewall\", \"nat\"]\n[firewall]\n\
             [nat]\naddresses = [\"198.19.0.0/28\"]",
        );
        let steering = chain.steering(7);
        let frame = udp(INSIDE, OUTSIDE);
        let nothing = Found { entry: None, shard: ShardId(1), access: Access::Local };
        let mut asked = vec![];
        let now = Time::from_ms(5);
        let records = trace_packet(&chain, &steering, now, (Side::Inside, &frame), &mut |s, k| {
            asked.push((s, *k));
            Some(nothing)
        });
        let text = words(&records);
        assert_eq!(records.last(), Some(&TraceRecord::Commits), "{text}");
        assert_eq!(asked.len(), 2, "one read a function\n{text}");
        assert!(text.contains("from inside: UDP, udp 10.0.0.7:4000 -> 192.0.2.1:53"), "{text}");
        assert!(text.contains("firewall  reads [kind"), "{text}");
        assert!(text.contains("writes    take a port of pool-0 for proto 17"), "{text}");
        let slot =
            steering.slot(chain.tenant(), Side::Inside, &packet::parse(&frame).unwrap().tuple);
        assert!(asked.iter().all(|(asked, _)| *asked == slot));
    }

    #[test]
    fn a_packet_from_outside_without_state_is_dropped_in_words() {
        let chain = chain("functions = [\"firewall\"]\n[firewall]");
        let steering = chain.steering(7);
        let frame = udp(OUTSIDE, INSIDE);
        let found = Found { entry: None, shard: ShardId(2), access: Access::RemoteShm };
        let now = Time::from_ms(5);
        let records =
            trace_packet(&chain, &steering, now, (Side::Outside, &frame), &mut |_, _| Some(found));
        let text = words(&records);
        let Some(TraceRecord::Dropped(reason)) = records.last() else { panic!("{text}") };
        assert!(text.ends_with(&format!("dropped   {reason}\n")), "{text}");
        assert!(text.contains("of shard-2 in the owner's memory, mapped: nothing"), "{text}");
    }

    #[test]
    fn a_frame_that_is_no_packet_and_a_store_that_is_away_end_the_trace() {
        let chain = chain("functions = [\"firewall\"]\n[firewall]");
        let steering = chain.steering(7);
        let now = Time::from_ms(5);
        let short = (Side::Inside, &[0u8; 5][..]);
        let records = trace_packet(&chain, &steering, now, short, &mut |_, _| unreachable!());
        let expected = "in        5 bytes from inside: short-ethernet\n\
                        dropped   short-ethernet\n";
        assert_eq!(words(&records), expected);
        let frame = udp(INSIDE, OUTSIDE);
        let records =
            trace_packet(&chain, &steering, now, (Side::Inside, &frame), &mut |_, _| None);
        assert_eq!(records.last(), Some(&TraceRecord::Waits));
        assert!(words(&records).contains("and no owner answers"));
    }

    #[test]
    fn every_condition_and_write_has_words() {
        let key = Key::new(3, 6, chain("functions = [\"firewall\"]\n[firewall]").tenant(), {
            (Endpoint::v4([10, 0, 0, 7], 1), Endpoint::default())
        });
        let put = Write::Put { key, value: Value::ZERO, fill: Default::default(), ttl_s: 0 };
        let endpoint = [198, 19, 0, 1, 4, 1];
        let pool = nearstate_store::PoolId(0);
        let rows = [
            (TraceRecord::Requires(Condition::Version(key, Version(9))), "still has v9"),
            (TraceRecord::Requires(Condition::Present(key)), "is there"),
            (TraceRecord::Writes(put), "put [kind 3 proto 6 10.0.0.7:1"),
            (TraceRecord::Writes(Write::Add { key, at: 0, amount: -1 }), "add -1 to"),
            (
                TraceRecord::Writes(Write::Return { pool, protocol: 6, endpoint }),
                "give 198.19.0.1:1025 back to pool-0",
            ),
        ];
        for (record, expected) in rows {
            assert!(record.to_string().contains(expected), "{record}");
        }
    }
}
