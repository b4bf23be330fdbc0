//! Bad inputs by their numbers (docs/bad-inputs.md), each a frame at a whole pipe that has flows
//! already. Of each is checked: how it ends and which counters moved; that no state was made or
//! moved; that nothing leaves but the packet itself, on the other side and no longer than it came;
//! and behind each table, that the flows go on as before.

mod network;
mod other;
mod state;
mod tcp;

use super::nat::{Ends, NOW, pipe_of, send};
use crate::baseline::Baseline;
use crate::counters::{CounterSnapshot, Event};
use crate::packet::ipv4::Ipv4Packet;
use crate::packet::tcp::flags::{ACK, SYN};
use crate::packet::{PacketBuilder, parse};
use crate::pipe::Pipe;
use crate::verdict::DropReason;
use nearstate_placement::Side;
use nearstate_store::{Endpoint, Machine as _};
use std::collections::BTreeSet;

const IN: Side = Side::Outside;
const OUT: Side = Side::Inside;

/// Where headers begin in frames of IPv4 without options.
const IP: usize = 14;
const L4: usize = 34;

/// A NAT; one with a firewall before it; one that lets in whom it has sent to; one that knows what
/// is inside.
const NAT: &str = "functions = [\"nat\"]\n[nat]\naddresses = [\"198.19.0.0/28\"]";
const FIREWALL: &str =
    "functions = [\"firewall\", \"nat\"]\n[nat]\naddresses = [\"198.19.0.0/28\"]";
const STRICT: &str = "functions = [\"nat\"]\n[nat]\naddresses = [\"198.19.0.0/28\"]\n\
                      filtering = \"address-and-port-dependent\"";
const GUARDED: &str = "functions = [\"nat\"]\ninside = [\"10.0.0.0/8\", \"2001:db8::/32\"]\n\
                       [nat]\naddresses = [\"198.19.0.0/28\"]\n[[nat.static]]\n\
                       external = \"203.0.113.9\"\ninside = \"10.0.0.9\"";

const HOST: Endpoint = Endpoint::v4([10, 0, 0, 1], 1000);
const PING: Endpoint = Endpoint::v4([10, 0, 0, 1], 77);
const WEB: Endpoint = Endpoint::v4([192, 0, 2, 1], 80);
const DNS: Endpoint = Endpoint::v4([192, 0, 2, 2], 53);
/// Nobody has sent there, and it has sent to nobody.
const STRANGER: Endpoint = Endpoint::v4([198, 51, 100, 9], 443);
/// An end of the pool that nobody has: ports below 1024 are not given out.
const NOBODY: Endpoint = Endpoint::v4([198, 19, 0, 5], 100);
const ROUTER: Endpoint = Endpoint::v4([203, 0, 113, 1], 0);

/// How a bad input ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Dropped, with this reason counted.
    Drop(DropReason),
    /// It passes, and changes nothing.
    Pass,
}
use End::{Drop, Pass};

/// A bad input: its number, what is wrong with it, where it comes in, and how it ends.
type Row = (u8, &'static str, Side, Vec<u8>, End);

/// A pipe in which a host has an established connection to `WEB`, has asked `DNS` and has sent an
/// echo; and the external ends of these.
struct Rig {
    pipe: Pipe<Baseline>,
    tcp: Endpoint,
    udp: Endpoint,
    echo: Endpoint,
}

/// What must not change.
type Picture = (u32, u64, u64);

impl Rig {
    fn new(chain: &str) -> Self {
        let mut pipe = pipe_of(chain, 64);
        let mut leaves = |frame: Vec<u8>| {
            let ends = send(&mut pipe, &[(OUT, frame)]);
            ends.left.first().expect("the flow is opened").2.tuple.source
        };
        let tcp = leaves(PacketBuilder::tcp(HOST, WEB).flags(SYN).seq(999).build());
        let udp = leaves(PacketBuilder::udp(HOST, DNS).payload(b"asks").build());
        let echo = leaves(PacketBuilder::echo_request(PING, WEB).build());
        let mut rig = Self { pipe, tcp, udp, echo };
        let answer = PacketBuilder::tcp(WEB, tcp).flags(SYN | ACK).seq(4999).ack(1000);
        assert_eq!(rig.send(IN, answer.build()).left.len(), 1);
        assert_eq!(rig.send(OUT, rig.segment(OUT).build()).left.len(), 1);
        rig.goes_on();
        rig
    }

    fn send(&mut self, side: Side, frame: Vec<u8>) -> Ends {
        send(&mut self.pipe, &[(side, frame)])
    }

    /// The next segment of the connection from one of its ends.
    fn segment(&self, side: Side) -> PacketBuilder {
        match side {
            OUT => PacketBuilder::tcp(HOST, WEB).seq(1000).ack(5000),
            IN => PacketBuilder::tcp(WEB, self.tcp).seq(5000).ack(1000),
        }
    }

    /// Another question, or its answer.
    fn datagram(&self, side: Side) -> PacketBuilder {
        match side {
            OUT => PacketBuilder::udp(HOST, DNS).payload(b"asks again"),
            IN => PacketBuilder::udp(DNS, self.udp).payload(b"answers"),
        }
    }

    fn counts(&self) -> CounterSnapshot {
        self.pipe.counters().snapshot()
    }

    /// Entries, ports in use, and a hash of all hard state.
    fn picture(&mut self) -> Picture {
        let machine = self.pipe.access_mut().machine();
        let live = machine.pool_check().expect("every port is of one entry").live;
        (machine.table_stats().entries, live, machine.state_hash())
    }

    /// The flows that the host has opened work, both ways, as the ends that they were.
    fn goes_on(&mut self) {
        let (tcp, udp, echo) = (self.tcp, self.udp, self.echo);
        let question = PacketBuilder::echo_request(PING, WEB).build();
        let out = [self.segment(OUT).build(), self.datagram(OUT).build(), question];
        for (frame, external) in out.into_iter().zip([tcp, udp, echo]) {
            let ends = self.send(OUT, frame);
            assert_eq!(ends.left.first().map(|left| left.2.tuple.source), Some(external));
        }
        let reply = PacketBuilder::echo_reply(Endpoint { port: echo.port, ..WEB }, echo).build();
        let back = [self.segment(IN).build(), self.datagram(IN).build(), reply];
        for (frame, inside) in back.into_iter().zip([HOST, HOST, PING]) {
            let ends = self.send(IN, frame);
            assert_eq!(ends.left.first().map(|left| left.2.tuple.destination), Some(inside));
        }
    }

    /// Sends all of them, each on its own. Gives their numbers.
    fn check(&mut self, rows: &[Row]) -> BTreeSet<u8> {
        for (number, what, side, frame, end) in rows {
            let place = format!("bad input {number}, {what}, {side:?}");
            let (picture, counts) = (self.picture(), self.counts());
            let ends = self.send(*side, frame.clone());
            let now = self.counts();
            assert_eq!(self.picture(), picture, "{place}: state has changed");
            let moved = |event| now.event(event) - counts.event(event);
            assert_eq!(moved(Event::PacketsIn), 1, "{place}");
            assert_eq!(moved(Event::Commits), 0, "{place}");
            assert_eq!(self.pipe.parked(), 0, "{place}");
            match end {
                Drop(reason) => {
                    assert_eq!(ends.dropped, [(0, *reason)], "{place}");
                    assert!(ends.left.is_empty(), "{place}: something left");
                    assert_eq!(now.drops(*reason) - counts.drops(*reason), 1, "{place}");
                    assert_eq!(now.drops_total() - counts.drops_total(), 1, "{place}");
                    assert_eq!(moved(Event::PacketsOut), 0, "{place}");
                }
                Pass => {
                    assert!(ends.dropped.is_empty(), "{place}: {:?}", ends.dropped);
                    assert_eq!(moved(Event::PacketsOut), 1, "{place}");
                    let [(_, left_on, _)] = ends.left[..] else { panic!("{place}: one leaves") };
                    assert_eq!(left_on, side.opposite(), "{place}: no answer");
                    assert!(ends.frames[0].len() <= frame.len(), "{place}: it has grown");
                }
            }
        }
        self.goes_on();
        rows.iter().map(|row| row.0).collect()
    }
}

/// A chain, and what to send to it.
type Table<'a> = (&'a str, fn(&Rig) -> Vec<Row>);

/// Checks tables of several chains, and that they hold these numbers.
fn check(numbers: impl IntoIterator<Item = u8>, tables: &[Table<'_>]) {
    let mut found = BTreeSet::new();
    for (chain, table) in tables {
        let mut rig = Rig::new(chain);
        let rows = table(&rig);
        found.extend(rig.check(&rows));
    }
    assert_eq!(found, numbers.into_iter().collect());
}

/// A frame with other bytes; checksums are left as they are.
fn edited(mut frame: Vec<u8>, edits: &[(usize, u8)]) -> Vec<u8> {
    for (at, value) in edits {
        frame[*at] = *value;
    }
    frame
}

/// The same with a right checksum of the IPv4 header.
fn header_edited(frame: Vec<u8>, edits: &[(usize, u8)]) -> Vec<u8> {
    let mut frame = edited(frame, edits);
    Ipv4Packet::new_unchecked(&mut frame[IP..]).fill_checksum();
    frame
}

/// The same with other addresses and ports: an endpoint as the source of what was built.
fn from(builder: fn(Endpoint, Endpoint) -> PacketBuilder, ends: (Endpoint, Endpoint)) -> Vec<u8> {
    builder(ends.0, ends.1).build()
}
