//! One generated conversation: who says what, turn by turn, and the frames that it makes.

use super::random::Random;
use nearstate_nf_node::packet::PacketBuilder;
use nearstate_nf_node::packet::tcp::flags::{ACK, FIN, PSH, RST, SYN};
use nearstate_store::Endpoint;

/// Who tells of packets that do not get through.
const ROUTER: Endpoint = Endpoint::v4([203, 0, 127, 1], 0);
/// Bytes that an ICMP error quotes at most.
const QUOTE_MAX: usize = 128;
/// ICMP destination unreachable, and two of its codes.
const UNREACHABLE: u8 = 3;
const PORT_UNREACHABLE: u8 = 3;
const FRAGMENTATION_NEEDED: u8 = 4;
/// ICMP time exceeded.
const TIME_EXCEEDED: u8 = 11;

/// How two ends talk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    /// A connection.
    Tcp,
    /// Questions and answers.
    Udp,
    /// Pings.
    Echo,
}

impl Transport {
    /// The IP protocol number.
    pub(crate) const fn protocol(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Echo => 1,
        }
    }
}

/// What one turn says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    /// A TCP segment.
    Segment {
        /// The flag byte.
        flags: u8,
        /// Sequence number.
        sequence: u32,
        /// Acknowledgement number.
        acknowledges: u32,
    },
    /// A UDP datagram, or an echo request or reply with this sequence number.
    Message {
        /// Only echo shows it.
        sequence: u16,
    },
    /// An ICMP error about an earlier turn: type, code.
    Error {
        /// ICMP type.
        kind: u8,
        /// ICMP code.
        code: u8,
        /// The turn that it quotes.
        about: u32,
    },
}

/// One packet of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Turn {
    /// Whether the inside host sends it.
    pub(crate) from_inside: bool,
    /// What it says.
    pub(crate) said: Said,
    /// Bytes of payload.
    pub(crate) payload: u16,
}

/// A conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Talk {
    /// How.
    pub(crate) transport: Transport,
    /// Who begins.
    pub(crate) inside: Endpoint,
    /// Who answers.
    pub(crate) outside: Endpoint,
    /// All turns, in order.
    pub(crate) turns: Vec<Turn>,
}

/// Fills a conversation with about `packets` turns.
pub(crate) fn converse(mut talk: Talk, packets: u32, random: &mut Random) -> Talk {
    talk.turns = match talk.transport {
        Transport::Tcp => connection(packets, random),
        Transport::Udp => questions(packets, random),
        Transport::Echo => pings(packets, random),
    };
    assert!(!talk.turns.is_empty(), "somebody begins");
    talk
}

/// Both ends of a TCP connection.
struct Connection {
    turns: Vec<Turn>,
    /// Next sequence numbers, inside and outside.
    next: [u32; 2],
}

impl Connection {
    fn say(&mut self, from_inside: bool, flags: u8, payload: u16) {
        let (me, other) = if from_inside { (0, 1) } else { (1, 0) };
        let acknowledges = if flags & ACK == 0 { 0 } else { self.next[other] };
        let said = Said::Segment { flags, sequence: self.next[me], acknowledges };
        self.turns.push(Turn { from_inside, said, payload });
        let counted = u32::from(payload) + u32::from(flags & (SYN | FIN) != 0);
        self.next[me] = self.next[me].wrapping_add(counted);
    }
}

fn connection(packets: u32, random: &mut Random) -> Vec<Turn> {
    let next = [random.next() as u32, random.next() as u32];
    let mut tcp = Connection { turns: Vec::new(), next };
    tcp.say(true, SYN, 0);
    match packets {
        1 => return tcp.turns,
        2 => {
            tcp.say(false, RST | ACK, 0);
            return tcp.turns;
        }
        _ => {}
    }
    tcp.say(false, SYN | ACK, 0);
    tcp.say(true, ACK, 0);
    let by_fin = packets >= 6 && random.percent(85);
    let closing = if by_fin { 3 } else { 1 };
    let mut told_to_shrink = !random.percent(2);
    while tcp.turns.len() as u32 + closing < packets {
        let from_inside = tcp.turns.len() == 3 || random.percent(35);
        let payload = if random.percent(30) { 0 } else { payload(from_inside, random) };
        tcp.say(from_inside, if payload == 0 { ACK } else { PSH | ACK }, payload);
        if from_inside && payload > 0 && !told_to_shrink {
            told_to_shrink = true;
            let about = tcp.turns.len() as u32 - 1;
            let said = Said::Error { kind: UNREACHABLE, code: FRAGMENTATION_NEEDED, about };
            tcp.turns.push(Turn { from_inside: false, said, payload: 0 });
        }
    }
    if by_fin {
        let inside_first = random.percent(60);
        tcp.say(inside_first, FIN | ACK, 0);
        tcp.say(!inside_first, FIN | ACK, 0);
        tcp.say(inside_first, ACK, 0);
    } else {
        tcp.say(random.percent(50), RST | ACK, 0);
    }
    tcp.turns
}

/// Bytes of a segment: answers are larger than questions.
fn payload(from_inside: bool, random: &mut Random) -> u16 {
    let full = random.percent(if from_inside { 8 } else { 35 });
    if full { 1_448 } else { 1 + random.below(400) as u16 }
}

fn questions(packets: u32, random: &mut Random) -> Vec<Turn> {
    let refused = packets >= 2 && random.percent(4);
    let said = Said::Message { sequence: 0 };
    let mut turns: Vec<Turn> = (0..packets)
        .map(|turn| {
            let from_inside = turn % 2 == 0;
            Turn { from_inside, said, payload: 20 + random.below(500) as u16 }
        })
        .collect();
    if refused {
        // Port unreachable, about the last question.
        let last_answer = (turns.len() - 1) / 2 * 2 + 1;
        turns.truncate(last_answer);
        let about = last_answer as u32 - 1;
        let said = Said::Error { kind: UNREACHABLE, code: PORT_UNREACHABLE, about };
        turns.push(Turn { from_inside: false, said, payload: 0 });
    }
    turns
}

fn pings(packets: u32, random: &mut Random) -> Vec<Turn> {
    let mut turns: Vec<Turn> = (0..packets)
        .map(|turn| Turn {
            from_inside: turn % 2 == 0,
            said: Said::Message { sequence: (turn / 2) as u16 },
            payload: 56,
        })
        .collect();
    if packets >= 2 && packets.is_multiple_of(2) && random.percent(10) {
        // The last one finds no way: time exceeded.
        let said = Said::Error { kind: TIME_EXCEEDED, code: 0, about: packets - 2 };
        turns[packets as usize - 1] = Turn { from_inside: false, said, payload: 0 };
    }
    turns
}

/// The frame of one turn.
pub(crate) fn frame(talk: &Talk, turn: usize) -> Vec<u8> {
    let Turn { from_inside, said, payload } = talk.turns[turn];
    let (source, destination) =
        if from_inside { (talk.inside, talk.outside) } else { (talk.outside, talk.inside) };
    let packet = match (said, talk.transport) {
        (Said::Segment { flags, sequence, acknowledges }, _) => {
            PacketBuilder::tcp(source, destination).flags(flags).seq(sequence).ack(acknowledges)
        }
        (Said::Message { sequence }, Transport::Echo) if from_inside => {
            PacketBuilder::echo_request(source, destination).echo_seq(sequence)
        }
        (Said::Message { sequence }, Transport::Echo) => {
            PacketBuilder::echo_reply(source, destination).echo_seq(sequence)
        }
        (Said::Message { .. }, _) => PacketBuilder::udp(source, destination),
        (Said::Error { kind, code, about }, _) => {
            let teller = if code == PORT_UNREACHABLE { talk.outside } else { ROUTER };
            let quoted = frame(talk, about as usize);
            return PacketBuilder::icmp_error(teller, (kind, code), &quoted)
                .quote_limit(QUOTE_MAX)
                .build();
        }
    };
    // Bytes that tell the turns apart, so that two packets are never mistaken for each other.
    let bytes: Vec<u8> = (0..usize::from(payload)).map(|at| (at + turn * 7) as u8).collect();
    packet.ident(turn as u16).payload(&bytes).build()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nearstate_nf_node::packet::{Transport as Parsed, parse};

    fn talk(transport: Transport) -> Talk {
        Talk {
            transport,
            inside: Endpoint::v4([10, 0, 0, 1], 4000),
            outside: Endpoint::v4(
                [203, 0, 112, 1],
                if transport == Transport::Echo { 4000 } else { 53 },
            ),
            turns: Vec::new(),
        }
    }

    #[test]
    fn a_connection_counts_every_byte_and_flag() {
        for packets in 1..60 {
            let talk = converse(talk(Transport::Tcp), packets, &mut Random::new(packets.into(), 0));
            let mut next = [None, None];
            for turn in &talk.turns {
                let Said::Segment { flags, sequence, acknowledges } = turn.said else { continue };
                let (me, other) = if turn.from_inside { (0, 1) } else { (1, 0) };
                assert!(next[me].is_none_or(|next| next == sequence), "{packets}: {turn:?}");
                if flags & ACK != 0 {
                    assert_eq!(Some(acknowledges), next[other].or(Some(acknowledges)));
                }
                let counted = u32::from(turn.payload) + u32::from(flags & (SYN | FIN) != 0);
                next[me] = Some(sequence.wrapping_add(counted));
            }
            assert!(talk.turns.len().abs_diff(packets as usize) <= 1, "{packets}");
        }
    }

    #[test]
    fn every_turn_is_a_packet_of_its_flow_that_parses() {
        for transport in [Transport::Tcp, Transport::Udp, Transport::Echo] {
            let mut errors = 0;
            for seed in 0..60 {
                let talk = converse(talk(transport), 12, &mut Random::new(seed, 0));
                for turn in 0..talk.turns.len() {
                    let parsed = parse(&frame(&talk, turn)).unwrap();
                    let from_inside = parsed.tuple.source == talk.inside;
                    assert_eq!(parsed.tuple.protocol, transport.protocol());
                    assert_eq!(from_inside, talk.turns[turn].from_inside, "{seed} {turn}");
                    errors += u32::from(matches!(parsed.transport, Parsed::IcmpError { .. }));
                }
            }
            assert!(errors > 0, "{transport:?} has no ICMP error in 60 conversations");
        }
    }
}
