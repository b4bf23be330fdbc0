//! One packet's way through a chain as typed records, and how they read in words.
//!
//! What `nearstate trace` prints. It runs the production parser, steering, functions and rewriting
//! on one frame with reads that its caller answers; it changes nothing, neither the frame nor any
//! state. Where a packet would wait for a commit, the commit is imagined, so that the trace also
//! says what leaves then.

mod imagined;

use crate::chain::Chain;
use crate::frame::Frame;
use crate::nf::fragments::{self, Decision, FragmentNames, Joining};
use crate::nf::state_key::words as key_words;
use crate::nf::{Changes, NetworkFunction};
use crate::packet;
use crate::packet::fragment::{Datagram, Fragment, Piece, UNIT_BYTES};
use crate::packet::parsed::{Parsed, Transport};
use crate::state_access::Access;
use crate::verdict::{DropReason, Verdict};
use core::fmt;
use imagined::Imagined;
use nearstate_placement::{FlowTuple, Side, Steering};
use nearstate_store::{Address, Condition, Endpoint, Entry, Key, ShardId, SlotId, Time, Write};

/// What reading a key gave, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The entry, if there is one.
    pub entry: Option<Entry>,
    /// The shard that was asked.
    pub shard: ShardId,
    /// How it was asked; `None` if there is no state that could be: nothing is ever found then.
    pub access: Option<Access>,
}

/// A packet as it leaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Departure {
    /// On this side.
    pub side: Side,
    /// Bytes of the frame.
    pub bytes: usize,
    /// What the rewritten frame is when it is parsed again; `None` if it could not be.
    pub packet: Option<(Transport, FlowTuple)>,
    /// Its flow as it came in.
    pub before: FlowTuple,
    /// It leaves only after a commit, for which this endpoint stands in if one is taken.
    pub after_commit: Option<Option<Endpoint>>,
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
    },
    /// The slot that its state lies in.
    Steered {
        /// The slot.
        slot: SlotId,
    },
    /// A function has its turn.
    Step {
        /// Which one, from 1.
        number: usize,
        /// Of how many.
        of: usize,
        /// The function.
        function: &'static str,
    },
    /// A function's look at the state.
    Read {
        /// Its key for this packet.
        key: Key,
        /// What was found; `None` if nobody could be asked.
        found: Option<Found>,
        /// What that means, in the function's words.
        meaning: String,
    },
    /// A function has spoken.
    Spoken {
        /// What it said.
        verdict: Verdict,
        /// It asks for changes of state.
        changes: bool,
        /// The flow before and after it, if it translated.
        translated: Option<(FlowTuple, FlowTuple)>,
    },
    /// A condition of the transaction that it asks for.
    Requires(Condition),
    /// A write of the transaction that it asks for.
    Writes(Write),
    /// It waits for its transaction, then is processed again from the start.
    Commits,
    /// It goes to an end of the NAT's own, and is taken in again as from outside; what follows is
    /// that.
    TurnsRound,
    /// It is a fragment: what is known of its datagram lies there.
    Fragment {
        /// Its datagram.
        datagram: Datagram,
        /// Its bytes.
        piece: Piece,
        /// The slot.
        slot: SlotId,
    },
    /// Its first fragment has to pass before it.
    WaitsForFirst,
    /// It leaves.
    Leaves(Departure),
    /// It waits for a store that does not answer.
    Waits,
    /// It ends here.
    Dropped(DropReason),
}

/// How a look at the state is answered; `None` if nobody can be asked.
type Read<'a> = &'a mut dyn FnMut(SlotId, &Key) -> Option<Found>;

/// Takes a frame through a chain. `read` answers where the state lies; `None` ends the trace there.
pub fn trace_packet(
    chain: &Chain,
    steering: &Steering,
    now: Time,
    (side, frame): (Side, &[u8]),
    read: Read<'_>,
) -> Vec<TraceRecord> {
    if let Ok((parsed, _)) = parse(frame)
        && let Some(reason) = chain.refuses_source(side, frame, &parsed)
    {
        let Parsed { transport, tuple, .. } = parsed;
        let came = TraceRecord::Parsed { side, bytes: frame.len(), transport, tuple };
        return vec![came, TraceRecord::Dropped(reason)];
    }
    trace_arrived(chain, steering, now, (side, frame), read)
}

/// A packet or a fragment, and what it is a fragment of.
fn parse(frame: &[u8]) -> Result<(Parsed, Option<Fragment>), DropReason> {
    match packet::parse(frame) {
        Err(DropReason::Fragment) => packet::parse_fragment(frame).map(|f| (f.parsed, Some(f))),
        parsed => parsed.map(|parsed| (parsed, None)),
    }
}

/// The same for a frame whose source was looked at: what turns round is not looked at again.
fn trace_arrived(
    chain: &Chain,
    steering: &Steering,
    now: Time,
    (side, frame): (Side, &[u8]),
    read: Read<'_>,
) -> Vec<TraceRecord> {
    let bytes = frame.len();
    let (parsed, fragment) = match parse(frame) {
        Ok(found) => found,
        Err(reason) => {
            return vec![TraceRecord::Unreadable { side, bytes }, TraceRecord::Dropped(reason)];
        }
    };
    let (transport, tuple) = (parsed.transport, parsed.tuple);
    let slot = steering.slot(chain.tenant(), side, &tuple);
    let mut records =
        vec![TraceRecord::Parsed { side, bytes, transport, tuple }, TraceRecord::Steered { slot }];
    let way = Way { chain, now, slot, side, frame, parsed: &parsed };
    if let Some(Fragment { datagram, piece, .. }) = fragment {
        let slot = steering.slot(chain.tenant(), side, &datagram.tuple);
        records.push(TraceRecord::Fragment { datagram, piece, slot });
        if !piece.is_first() {
            way.follow(steering, (&datagram, &piece, slot), read, &mut records);
            return records;
        }
    }
    let mut changes = Changes::default();
    let Some(mut tuple) = way.walk(&mut changes, read, &mut records) else { return records };
    let mut after_commit = None;
    if !changes.is_empty() {
        let imagined = Imagined::commit(chain, slot, &changes);
        records.extend(changes.conditions.into_iter().map(TraceRecord::Requires));
        records.extend(changes.writes.into_iter().map(TraceRecord::Writes));
        records.push(TraceRecord::Commits);
        let Some(again) = way.once_more(&imagined, read) else { return records };
        (tuple, after_commit) = (again, Some(imagined.taken()));
    }
    match way.rewritten(tuple) {
        Err(reason) => records.push(TraceRecord::Dropped(reason)),
        Ok(frame) if chain.turns_round(side, &tuple) => {
            records.push(TraceRecord::TurnsRound);
            let turned = (side.opposite(), frame.as_slice());
            records.extend(trace_arrived(chain, steering, now, turned, read));
        }
        Ok(frame) => records.push(TraceRecord::Leaves(way.departure(&frame, after_commit))),
    }
    records
}

/// One packet and what it passes.
struct Way<'a> {
    chain: &'a Chain,
    now: Time,
    slot: SlotId,
    side: Side,
    frame: &'a [u8],
    parsed: &'a Parsed,
}

impl Way<'_> {
    /// Through all functions. Gives the flow that leaves, if it is neither dropped nor stuck.
    fn walk(
        &self,
        changes: &mut Changes,
        read: Read<'_>,
        records: &mut Vec<TraceRecord>,
    ) -> Option<FlowTuple> {
        let mut translation = None;
        let mut packet = self.chain.packet(self.side, self.frame, self.parsed, &mut translation);
        let of = self.chain.len();
        for stage in 0..of {
            let function = self.chain.function(self.side, stage)?;
            records.push(TraceRecord::Step { number: stage + 1, of, function: function.name() });
            let mut entry = None;
            if let Some(key) = function.key(&packet) {
                let found = read(self.slot, &key);
                entry = found.and_then(|found| found.entry);
                let meaning = function.describe(&key, entry.as_ref());
                records.push(TraceRecord::Read { key, found, meaning });
                if found.is_none() {
                    records.push(TraceRecord::Waits);
                    return None;
                }
            }
            let (before, asked) = (*packet.tuple(), changes.writes.len());
            let verdict = function.process(self.now, &mut packet, entry.as_ref(), changes);
            let after = *packet.tuple();
            let translated = (after != before).then_some((before, after));
            let asks = changes.writes.len() > asked;
            records.push(TraceRecord::Spoken { verdict, changes: asks, translated });
            match verdict {
                Verdict::Forward => {}
                Verdict::Commit => break,
                Verdict::Drop(reason) => {
                    records.push(TraceRecord::Dropped(reason));
                    return None;
                }
            }
        }
        Some(*packet.tuple())
    }

    /// Through the chain again, over what the commit would have made.
    fn once_more(&self, imagined: &Imagined, read: Read<'_>) -> Option<FlowTuple> {
        let mut over = |slot, key: &Key| {
            let found = read(slot, key)?;
            Some(Found { entry: imagined.entry(key, found.entry), ..found })
        };
        let mut changes = Changes::default();
        let tuple = self.walk(&mut changes, &mut over, &mut Vec::new())?;
        // Processing is a fixed point, unless the imagined port is one that the function refuses.
        changes.is_empty().then_some(tuple)
    }

    /// A later fragment follows its first one.
    fn follow(
        &self,
        steering: &Steering,
        (datagram, piece, slot): (&Datagram, &Piece, SlotId),
        read: Read<'_>,
        records: &mut Vec<TraceRecord>,
    ) {
        let tenant = self.chain.tenant();
        let name = FragmentNames::new(steering.seed()).name(tenant, self.side, datagram);
        let key = fragments::record_key(tenant, name.name);
        let found = read(slot, &key);
        let entry = found.and_then(|found| found.entry);
        let meaning = entry.and_then(|entry| fragments::describe(&key, &entry.value));
        let meaning = meaning.unwrap_or_else(|| "no datagram that is on its way".to_owned());
        records.push(TraceRecord::Read { key, found, meaning });
        if found.is_none() {
            return records.push(TraceRecord::Waits);
        }
        let joining = Joining { datagram, piece, opening: None, joined: None };
        let (departs, after_commit) = match fragments::decide(&joining, entry.as_ref()) {
            Decision::Leave(departs) => (departs, None),
            Decision::Put { joins: Some(departs), .. } => {
                records.push(TraceRecord::Commits);
                (departs, Some(None))
            }
            Decision::Put { joins: None, .. } => {
                return records.push(TraceRecord::Dropped(DropReason::FragmentOverlap));
            }
            Decision::Early => return records.push(TraceRecord::WaitsForFirst),
            Decision::Drop(reason) => return records.push(TraceRecord::Dropped(reason)),
        };
        let frame = match self.rewritten(departs.tuple) {
            Ok(frame) => frame,
            Err(reason) => return records.push(TraceRecord::Dropped(reason)),
        };
        let mut departure = self.departure(&frame, after_commit);
        if departs.is_turned {
            departure.side = self.side;
        }
        records.push(TraceRecord::Leaves(departure));
    }

    fn rewritten(&self, tuple: FlowTuple) -> Result<Frame, DropReason> {
        let mut frame = Frame::new();
        frame.copy_from(self.frame).map_err(|_| DropReason::FrameTooLong)?;
        self.chain.rewrite(&mut frame, self.parsed, &tuple)?;
        Ok(frame)
    }

    /// The frame as it would leave, parsed again.
    fn departure(&self, frame: &Frame, after_commit: Option<Option<Endpoint>>) -> Departure {
        let frame = frame.as_slice();
        let parsed = match packet::parse(frame) {
            Err(DropReason::Fragment) => packet::parse_fragment(frame).map(|f| f.parsed),
            parsed => parsed,
        };
        let packet = parsed.ok().map(|parsed| (parsed.transport, parsed.tuple));
        let (side, before) = (self.side.opposite(), self.parsed.tuple);
        Departure { side, bytes: frame.len(), packet, before, after_commit }
    }
}

const fn side_name(side: Side) -> &'static str {
    match side {
        Side::Inside => "inside",
        Side::Outside => "outside",
    }
}

/// Where a key was read. Whose memory the local one is, the line before the steps says.
const fn access_name(access: Option<Access>) -> &'static str {
    match access {
        None => "of which there is none here",
        Some(Access::Local) => "in that node's memory",
        Some(Access::RemoteShm) => "in the owner's memory, mapped",
        Some(Access::RemoteTcp) => "at the owner, over TCP",
        Some(Access::RemoteRdma) => "in the owner's memory, by RDMA",
    }
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
        Transport::LaterFragment => "a later fragment".to_owned(),
    }
}

fn condition_words(condition: &Condition) -> String {
    match condition {
        Condition::Absent(key) => format!("{} is not there", key_words(key)),
        Condition::Present(key) => format!("{} is there", key_words(key)),
        Condition::Version(key, version) => {
            format!("{} still has version {}", key_words(key), version.0)
        }
        Condition::Expired(key, version) => {
            format!("{} still has version {} and nobody has seen it", key_words(key), version.0)
        }
    }
}

fn write_words(write: &Write) -> String {
    match write {
        Write::Put { key, fill, .. } if fill.key_at.is_some() || fill.value_at.is_some() => {
            format!("put {}, with the port that is taken", key_words(key))
        }
        Write::Put { key, .. } => format!("put {}", key_words(key)),
        Write::Delete(key) => format!("delete {}", key_words(key)),
        Write::Touch(key) => format!("touch {}", key_words(key)),
        Write::Add { key, amount, .. } => format!("add {amount} to {}", key_words(key)),
        Write::Take(take) => {
            let holder = Address::from_octets(take.holder).ip();
            format!("take a port of {} for {holder}", take.pool)
        }
        Write::Return { pool, endpoint: [a, b, c, d, high, low], .. } => {
            let port = u16::from_be_bytes([*high, *low]);
            format!("give {a}.{b}.{c}.{d}:{port} back to {pool}")
        }
    }
}

impl fmt::Display for Departure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { side, bytes, packet, before, after_commit } = self;
        let when = if after_commit.is_some() { "then " } else { "" };
        write!(f, "leaves    {when}{bytes} bytes to {}: ", side_name(*side))?;
        let Some((transport, tuple)) = packet else {
            return f.write_str("a packet that does not parse any more; that is a fault of ours");
        };
        write!(f, "{}, {tuple}", transport_words(*transport))?;
        let changed = [
            ("source", before.source, tuple.source),
            ("destination", before.destination, tuple.destination),
        ];
        let changed = changed.into_iter().filter(|(_, before, after)| before != after);
        let changed: Vec<String> =
            changed.map(|(what, before, after)| format!("{what} {before} -> {after}")).collect();
        match changed.is_empty() {
            true => f.write_str("\n          as it came in")?,
            false => write!(f, "\n          rewritten: {}", changed.join(", "))?,
        }
        match after_commit {
            Some(Some(taken)) => {
                write!(f, "\n          ({taken} stands for the port that is taken then)")
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for TraceRecord {
    /// One line or more.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Parsed { side, bytes, transport, tuple } => {
                let (what, side) = (transport_words(*transport), side_name(*side));
                write!(f, "packet    {bytes} bytes from {side}: {what}, {tuple}")
            }
            Self::Unreadable { side, bytes } => {
                let side = side_name(*side);
                write!(f, "packet    {bytes} bytes from {side} that cannot be followed")
            }
            Self::Steered { slot } => write!(f, "state     in {slot}"),
            Self::Step { number, of, function } => write!(f, "step {number}/{of}  {function}"),
            Self::Read { key, found: None, .. } => {
                write!(f, "  wants   {}\n  finds   no owner that answers", key_words(key))
            }
            Self::Read { key, found: Some(found), meaning } => {
                let at = access_name(found.access);
                writeln!(f, "  reads   {}, {at}", key_words(key))?;
                match found.entry {
                    Some(entry) => write!(f, "  finds   version {}: {meaning}", entry.version.0),
                    None => write!(f, "  finds   nothing: {meaning}"),
                }
            }
            Self::Spoken { verdict, changes, translated } => {
                match (verdict, changes) {
                    (Verdict::Forward, false) => f.write_str("  says    pass")?,
                    (Verdict::Forward, true) => f.write_str("  says    pass, once it is noted")?,
                    (Verdict::Commit, _) => f.write_str("  says    wait for a change of state")?,
                    (Verdict::Drop(reason), _) => {
                        write!(f, "  says    drop, {reason}: {}", reason.meaning())?;
                    }
                }
                match translated {
                    Some((before, after)) => write!(f, "\n  makes   {after}\n  of      {before}"),
                    None => Ok(()),
                }
            }
            Self::Requires(condition) => write!(f, "commit    if {}", condition_words(condition)),
            Self::Writes(write) => write!(f, "commit    {}", write_words(write)),
            Self::Commits => f.write_str(
                "waits     until most replicas have that, then goes through the chain once more",
            ),
            Self::TurnsRound => f.write_str(
                "turns     round: it goes to an end of the NAT's own, and is taken in from outside",
            ),
            Self::Fragment { datagram, piece, slot } => {
                let (from, bytes) = (usize::from(piece.from) * UNIT_BYTES, piece.bytes);
                write!(
                    f,
                    "fragment  of datagram {}: {bytes} bytes from byte {from} on",
                    datagram.ident
                )?;
                if piece.is_last {
                    f.write_str(", the last")?;
                }
                write!(f, "\n          what is known of that lies in {slot}")
            }
            Self::WaitsForFirst => f.write_str("waits     until its first fragment has passed"),
            Self::Leaves(departure) => departure.fmt(f),
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
    fn a_packet_to_an_end_of_the_nat_turns_round_and_is_followed() {
        let chain = chain(
            "functions = [\"nat\"]\n[nat]\naddresses = [\"198.19.0.0/28\"]\n\
             [[nat.static]]\nexternal = \"198.19.0.1:53\"\ninside = \"10.0.0.9:5353\"\n\
             protocol = \"udp\"",
        );
        let nothing = Found { entry: None, shard: ShardId(1), access: Some(Access::Local) };
        let frame = udp(INSIDE, ([198, 19, 0, 1], 53));
        let packet = (Side::Inside, &frame[..]);
        let records =
            trace_packet(&chain, &chain.steering(7), Time(5), packet, &mut |_, _| Some(nothing));
        let text = words(&records);
        assert!(records.contains(&TraceRecord::TurnsRound), "{text}");
        let Some(TraceRecord::Leaves(departure)) = records.last() else { panic!("{text}") };
        assert_eq!(departure.side, Side::Inside);
        let (_, tuple) = departure.packet.unwrap();
        assert_eq!(tuple.destination, Endpoint::v4([10, 0, 0, 9], 5353), "{text}");
        assert!(chain.pools()[0].holds(tuple.source.ipv4().unwrap()), "{text}");
    }

    #[test]
    fn a_new_flow_through_firewall_and_nat_asks_for_one_transaction() {
        let chain = chain(
            "functions = [\"firewall\", \"nat\"]\n[firewall]\n\
             [nat]\naddresses = [\"198.19.0.0/28\"]",
        );
        let steering = chain.steering(7);
        let frame = udp(INSIDE, OUTSIDE);
        let nothing = Found { entry: None, shard: ShardId(1), access: Some(Access::Local) };
        let mut asked = vec![];
        let now = Time::from_ms(5);
        let records = trace_packet(&chain, &steering, now, (Side::Inside, &frame), &mut |s, k| {
            asked.push((s, *k));
            Some(nothing)
        });
        let text = words(&records);
        assert!(records.contains(&TraceRecord::Commits), "{text}");
        assert_eq!(asked.len(), 4, "one read a function, before and after the commit\n{text}");
        assert!(text.contains("from inside: UDP, udp 10.0.0.7:4000 -> 192.0.2.1:53"), "{text}");
        let Some(TraceRecord::Leaves(departure)) = records.last() else { panic!("{text}") };
        let Some((Transport::Udp, leaves)) = departure.packet else { panic!("{text}") };
        assert_eq!(Some(Some(leaves.source)), departure.after_commit, "the port that is taken");
        let pool = &chain.pools()[0];
        let external = (leaves.source.ipv4().unwrap(), leaves.source.port);
        assert_eq!(leaves.destination, Endpoint::v4(OUTSIDE.0, OUTSIDE.1));
        let flow = "  reads   the flow udp 10.0.0.7:4000 <-> 192.0.2.1:53";
        assert!(text.contains(&format!("step 1/2  firewall\n{flow}")), "{text}");
        assert!(text.contains("commit    take a port of pool-0 for 10.0.0.7"), "{text}");
        assert!(text.contains("rewritten: source 10.0.0.7:4000 -> "), "{text}");
        assert!(!text.contains("kind"), "{text}");
        let slot =
            steering.slot(chain.tenant(), Side::Inside, &packet::parse(&frame).unwrap().tuple);
        assert!(asked.iter().all(|(asked, _)| *asked == slot));
        assert_eq!(pool.slot_of(external.0, external.1), Some(slot), "a port of this slot");
    }

    #[test]
    fn a_packet_through_a_nat64_leaves_over_ipv4_in_words() {
        let chain = chain(
            "functions = [\"nat64\"]\n[nat64]\nprefix = \"2001:db8:64::/96\"\n\
             addresses = [\"198.19.0.0/28\"]",
        );
        let end = |text: &str, port| Endpoint::new(text.parse().unwrap(), port);
        let (host, web) = (end("2001:db8::5", 4000), end("2001:db8:64::192.0.2.1", 53));
        let frame = PacketBuilder::udp(host, web).payload(b"question").build();
        let nothing = Found { entry: None, shard: ShardId(1), access: Some(Access::Local) };
        let packet = (Side::Inside, &frame[..]);
        let steering = chain.steering(7);
        let records = trace_packet(&chain, &steering, Time(5), packet, &mut |_, _| Some(nothing));
        let text = words(&records);
        let Some(TraceRecord::Leaves(departure)) = records.last() else { panic!("{text}") };
        assert_eq!(departure.bytes, frame.len() - 20, "{text}");
        let (_, tuple) = departure.packet.unwrap();
        assert_eq!(tuple.destination, Endpoint::v4([192, 0, 2, 1], 53), "{text}");
        assert!(text.contains("the mapping of inside endpoint udp [2001:db8::5]:4000"), "{text}");
        assert!(text.contains("rewritten: source [2001:db8::5]:4000 -> 198.19.0."), "{text}");
        assert!(text.contains("take a port of pool-1 for 2001:db8::5"), "{text}");
        // What cannot cross ends there.
        let long = PacketBuilder::udp(end("192.0.2.1", 53), end("10.0.0.7", 9));
        let long = long.payload(&[0; 1990]).build();
        let parsed = packet::parse(&long).unwrap();
        let tuple = FlowTuple { source: web, destination: host, ..parsed.tuple };
        let slot = steering.slot(chain.tenant(), Side::Outside, &parsed.tuple);
        let (side, now, frame) = (Side::Outside, Time(5), &long[..]);
        let way = Way { chain: &chain, now, slot, side, frame, parsed: &parsed };
        assert_eq!(way.rewritten(tuple).err(), Some(DropReason::FrameTooLong));
    }

    #[test]
    fn a_packet_from_outside_without_state_is_dropped_in_words() {
        let chain = chain("functions = [\"firewall\"]\n[firewall]");
        let steering = chain.steering(7);
        let frame = udp(OUTSIDE, INSIDE);
        let found = Found { entry: None, shard: ShardId(2), access: Some(Access::RemoteShm) };
        let now = Time::from_ms(5);
        let records =
            trace_packet(&chain, &steering, now, (Side::Outside, &frame), &mut |_, _| Some(found));
        let text = words(&records);
        let Some(TraceRecord::Dropped(reason)) = records.last() else { panic!("{text}") };
        assert!(text.ends_with(&format!("dropped   {reason}\n")), "{text}");
        assert!(
            text.contains("in the owner's memory, mapped\n  finds   nothing: no flow"),
            "{text}"
        );
        assert!(text.contains(&format!("drop, {reason}: {}", reason.meaning())), "{text}");
    }

    #[test]
    fn a_frame_that_is_no_packet_and_a_store_that_is_away_end_the_trace() {
        let chain = chain("functions = [\"firewall\"]\n[firewall]");
        let steering = chain.steering(7);
        let now = Time::from_ms(5);
        let short = (Side::Inside, &[0u8; 5][..]);
        let records = trace_packet(&chain, &steering, now, short, &mut |_, _| unreachable!());
        let expected = "packet    5 bytes from inside that cannot be followed\n\
                        dropped   short-ethernet\n";
        assert_eq!(words(&records), expected);
        let frame = udp(INSIDE, OUTSIDE);
        let records =
            trace_packet(&chain, &steering, now, (Side::Inside, &frame), &mut |_, _| None);
        assert_eq!(records.last(), Some(&TraceRecord::Waits));
        assert!(words(&records).contains("no owner that answers"));
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
            (TraceRecord::Requires(Condition::Version(key, Version(9))), "still has version 9"),
            (TraceRecord::Requires(Condition::Present(key)), "is there"),
            (TraceRecord::Writes(put), "put the flow tcp 10.0.0.7:1 <->"),
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
