//! A port over capture files: one file in, up to two files out.
//!
//! Frames come as fast as they are taken; their times are only copied to what leaves. What cannot
//! be carried (cut short by the capture, or longer than a buffer) is counted as a drop here.

use crate::frame::{Burst, FRAME_BYTES, Frame, FramePool};
use crate::packet::parse;
use crate::port::Port;
pub use crate::port::capture::{
    CaptureError, CaptureReader, CaptureWriter, CapturedPacket, LinkType,
};
use crate::verdict::DropReason;
use core::fmt;
use core::net::IpAddr;
use nearstate_placement::{FlowKey, Side};
use nearstate_store::{Address, Doorbell, Endpoint, TenantId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Flows whose first sender is remembered; the packets of later ones all count as from inside.
pub const FLOWS_MAX: usize = 1 << 22;

type Rule = Box<dyn FnMut(&[u8]) -> Side + Send>;

/// Decides which side a frame comes from.
pub struct SideRule(Rule);

impl SideRule {
    /// Any rule.
    #[must_use]
    pub fn new(rule: impl FnMut(&[u8]) -> Side + Send + 'static) -> Self {
        Self(Box::new(rule))
    }

    /// Frames whose source lies in one of these prefixes (address and length) come from inside, and
    /// so does what cannot be parsed.
    #[must_use]
    pub fn inside_prefixes(prefixes: Vec<(IpAddr, u8)>) -> Self {
        let prefixes: Vec<(Address, u32)> = prefixes
            .into_iter()
            .map(|(address, bits)| {
                let shift = if address.is_ipv4() { 96 } else { 0 };
                (Address::from(address), u32::from(bits) + shift)
            })
            .collect();
        Self::new(move |frame| match parse(frame) {
            Ok(parsed) => {
                let source = parsed.tuple.source.address;
                let inside = prefixes.iter().any(|(prefix, bits)| contains(prefix, *bits, &source));
                if inside { Side::Inside } else { Side::Outside }
            }
            Err(_) => Side::Inside,
        })
    }

    /// The first sender of a flow is inside, and so is what cannot be parsed.
    #[must_use]
    pub fn first_sender() -> Self {
        let mut first: BTreeMap<FlowKey, Endpoint> = BTreeMap::new();
        Self::new(move |frame| {
            let Ok(parsed) = parse(frame) else { return Side::Inside };
            let key = FlowKey::canonical(TenantId(0), &parsed.tuple);
            let source = parsed.tuple.source;
            let inside = match first.get(&key) {
                Some(known) => *known == source,
                None => {
                    if first.len() < FLOWS_MAX {
                        first.insert(key, source);
                    }
                    true
                }
            };
            if inside { Side::Inside } else { Side::Outside }
        })
    }

    /// Where this frame comes from.
    pub fn side_of(&mut self, frame: &[u8]) -> Side {
        (self.0)(frame)
    }
}

impl fmt::Debug for SideRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SideRule")
    }
}

/// Whether the first `bits` bits of both addresses are equal.
fn contains(prefix: &Address, bits: u32, address: &Address) -> bool {
    let differing = prefix.bits() ^ address.bits();
    differing.leading_zeros() >= bits.min(128)
}

/// Where frames are written when they leave.
#[derive(Debug, Default)]
pub struct Outputs {
    /// What leaves to the inside.
    pub inside: Option<CaptureWriter>,
    /// What leaves to the outside.
    pub outside: Option<CaptureWriter>,
}

/// See the module's text. The tag of a frame is its number in the capture, from 0 on.
#[derive(Debug)]
pub struct PcapPort {
    reader: CaptureReader,
    outputs: Outputs,
    rule: SideRule,
    next_tag: u64,
    /// Capture time of the frame that came last: what leaves gets it.
    time_ns: u64,
    exhausted: bool,
    error: Option<CaptureError>,
    drops: [u64; DropReason::ALL.len()],
}

impl PcapPort {
    /// A port that reads from `reader` and writes to `outputs`.
    #[must_use]
    pub fn new(reader: CaptureReader, outputs: Outputs, rule: SideRule) -> Self {
        Self {
            reader,
            outputs,
            rule,
            next_tag: 0,
            time_ns: 0,
            exhausted: false,
            error: None,
            drops: [0; DropReason::ALL.len()],
        }
    }

    /// How many frames were dropped, for each reason that occurred.
    pub fn drops(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        let counted = |reason: &DropReason| (*reason, self.drops[*reason as usize]);
        DropReason::ALL.iter().map(counted).filter(|(_, count)| *count > 0)
    }

    /// Packets taken from the capture so far.
    #[must_use]
    pub const fn packets(&self) -> u64 {
        self.next_tag
    }

    /// Closes the output files.
    ///
    /// # Errors
    /// The first thing that went wrong: reading the capture, or writing an output.
    pub fn finish(self) -> Result<(), CaptureError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        let Outputs { inside, outside } = self.outputs;
        inside.map_or(Ok(()), CaptureWriter::finish)?;
        outside.map_or(Ok(()), CaptureWriter::finish)
    }

    /// Remembers the first error; nothing more is read then.
    fn stop(&mut self, error: CaptureError) {
        self.exhausted = true;
        self.error.get_or_insert(error);
    }

    /// Moves one packet into a frame; the reason if it cannot be carried.
    fn fill(&mut self, packet: &CapturedPacket, frame: &mut Frame) -> Result<(), DropReason> {
        if packet.is_cut_short() {
            return Err(DropReason::CutShort);
        }
        frame.copy_from(&packet.bytes).map_err(|_| DropReason::FrameTooLong)?;
        frame.side = self.rule.side_of(&packet.bytes);
        Ok(())
    }
}

impl Port for PcapPort {
    fn can_wait(&self) -> bool {
        true
    }

    fn receive(&mut self, pool: &mut FramePool, burst: &mut Burst) -> usize {
        let before = burst.len();
        while !burst.is_full() && !self.exhausted {
            let Some(mut frame) = pool.take() else { break };
            let packet = match self.reader.next() {
                Some(Ok(packet)) => packet,
                Some(Err(error)) => {
                    self.stop(error);
                    pool.give(frame);
                    break;
                }
                None => {
                    self.exhausted = true;
                    pool.give(frame);
                    break;
                }
            };
            frame.tag = self.next_tag;
            self.next_tag += 1;
            self.time_ns = packet.time_ns;
            match self.fill(&packet, &mut frame) {
                Ok(()) => burst.push(frame),
                Err(reason) => {
                    self.report_drop(frame.tag, reason);
                    pool.give(frame);
                }
            }
        }
        burst.len() - before
    }

    fn send(&mut self, frame: Frame, pool: &mut FramePool) -> Result<(), Frame> {
        let output = match frame.side {
            Side::Inside => &mut self.outputs.inside,
            Side::Outside => &mut self.outputs.outside,
        };
        if let Some(writer) = output
            && let Err(error) = writer.write(self.time_ns, frame.as_slice())
        {
            self.stop(error);
        }
        pool.give(frame);
        Ok(())
    }

    fn flush(&mut self) {}

    fn report_drop(&mut self, _tag: u64, reason: DropReason) {
        self.drops[reason as usize] += 1;
    }

    fn bell(&self) -> Option<Arc<Doorbell>> {
        None
    }

    fn exhausted(&self) -> bool {
        self.exhausted
    }
}

const _: () = assert!(FRAME_BYTES <= crate::port::capture::CAPTURED_BYTES_MAX);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::PacketBuilder;
    use std::path::Path;

    fn ends() -> (Endpoint, Endpoint) {
        (Endpoint::v4([10, 0, 0, 1], 4000), Endpoint::v4([192, 0, 2, 1], 80))
    }

    fn capture(path: &Path, frames: &[Vec<u8>]) {
        let mut writer = CaptureWriter::create(path).unwrap();
        for (index, frame) in frames.iter().enumerate() {
            writer.write(index as u64 * 1_000_000, frame).unwrap();
        }
        writer.finish().unwrap();
    }

    #[test]
    fn a_capture_goes_through_to_two_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let (a, b) = ends();
        let frames = [
            PacketBuilder::tcp(a, b).build(),
            PacketBuilder::tcp(b, a).build(),
            vec![0; FRAME_BYTES + 1],
            PacketBuilder::tcp(a, b).payload(b"x").build(),
        ];
        capture(&path("in"), &frames);
        let outputs = Outputs {
            inside: Some(CaptureWriter::create(&path("to-inside")).unwrap()),
            outside: Some(CaptureWriter::create(&path("to-outside")).unwrap()),
        };
        let reader = CaptureReader::open(&path("in")).unwrap();
        let mut port = PcapPort::new(reader, outputs, SideRule::first_sender());
        let (mut pool, mut burst) = (FramePool::new(8), Burst::new());
        assert_eq!(port.receive(&mut pool, &mut burst), 3);
        assert!(port.exhausted());
        let tags: Vec<u64> = burst.iter().map(|frame| frame.tag).collect();
        assert_eq!(tags, [0, 1, 3]);
        for mut frame in burst.drain(..) {
            frame.side = frame.side.opposite();
            port.send(frame, &mut pool).unwrap();
        }
        assert_eq!(port.drops().collect::<Vec<_>>(), [(DropReason::FrameTooLong, 1)]);
        assert_eq!((port.packets(), pool.free()), (4, 8));
        port.finish().unwrap();
        let count = |name| CaptureReader::open(&path(name)).unwrap().count();
        assert_eq!((count("to-inside"), count("to-outside")), (1, 2));
    }

    #[test]
    fn a_cut_off_capture_ends_with_its_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("in");
        let (a, b) = ends();
        capture(&path, &[PacketBuilder::tcp(a, b).build(), PacketBuilder::udp(a, b).build()]);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        let reader = CaptureReader::open(&path).unwrap();
        let mut port = PcapPort::new(reader, Outputs::default(), SideRule::first_sender());
        let (mut pool, mut burst) = (FramePool::new(8), Burst::new());
        assert_eq!(port.receive(&mut pool, &mut burst), 1);
        assert!(port.exhausted());
        assert!(matches!(port.finish(), Err(CaptureError::CutOff { packets: 1, .. })));
    }

    #[test]
    fn sides_by_prefix() {
        let prefixes = vec![("10.0.0.0".parse().unwrap(), 8), ("2001:db8::".parse().unwrap(), 32)];
        let mut rule = SideRule::inside_prefixes(prefixes);
        let (a, b) = ends();
        let six = |text: &str| Endpoint::new(text.parse().unwrap(), 1);
        let cases = [
            (PacketBuilder::udp(a, b).build(), Side::Inside),
            (PacketBuilder::udp(b, a).build(), Side::Outside),
            (PacketBuilder::udp(six("2001:db8:1::1"), six("2001:db9::1")).build(), Side::Inside),
            (PacketBuilder::udp(six("2001:db9::1"), six("2001:db8:1::1")).build(), Side::Outside),
            (vec![1, 2, 3], Side::Inside),
        ];
        for (frame, side) in cases {
            assert_eq!(rule.side_of(&frame), side);
        }
    }
}
