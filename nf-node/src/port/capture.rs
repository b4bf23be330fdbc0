//! Capture files: reads pcap and pcapng, writes classic pcap; Ethernet only.
//!
//! A file is outside input: lengths are checked before they are believed, a damaged record ends the
//! reading with an error that says where, and nothing is read after it.

use core::fmt;
use core::time::Duration;
use pcap_file::pcap::{PcapPacket, PcapReader, PcapWriter, RawPcapPacket};
use pcap_file::pcapng::blocks::interface_description::InterfaceDescriptionOption;
use pcap_file::pcapng::{Block, PcapNgReader};
use pcap_file::{DataLink, PcapError, TsResolution};
use std::fs::File;
use std::io::{self, BufWriter, Cursor, Read, Write};
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Bytes of one captured packet that are believed: as much as capture programs ever keep.
pub const CAPTURED_BYTES_MAX: usize = 256 << 10;

const PCAP_MAGICS: [[u8; 4]; 4] = [
    [0xa1, 0xb2, 0xc3, 0xd4],
    [0xd4, 0xc3, 0xb2, 0xa1],
    [0xa1, 0xb2, 0x3c, 0x4d],
    [0x4d, 0x3c, 0xb2, 0xa1],
];
const PCAPNG_MAGIC: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];

/// What is wrong with a capture.
#[derive(Debug, Error)]
pub enum CaptureError {
    /// It is not there.
    #[error("the capture {0} does not exist: check the path")]
    Missing(PathBuf),
    /// The system refused.
    #[error("cannot {action} the capture {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Not one byte.
    #[error("the capture {0} is empty: it has not even a file header")]
    Empty(PathBuf),
    /// Something else.
    #[error("{0} is not a capture: neither a pcap nor a pcapng header is at its start")]
    NotACapture(PathBuf),
    /// Frames of another kind.
    #[error(
        "the capture {path} holds {link} frames: only Ethernet is read, \
         convert it or capture on an Ethernet interface"
    )]
    LinkType {
        /// Which file.
        path: PathBuf,
        /// What it holds.
        link: LinkType,
    },
    /// It ends in the middle of a record.
    #[error("the capture {path} is cut off behind packet {packets}: what was before it was read")]
    CutOff {
        /// Which file.
        path: PathBuf,
        /// Packets that were read.
        packets: u64,
    },
    /// A record that cannot be.
    #[error("the capture {path} is damaged behind packet {packets}: {what}")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Packets that were read.
        packets: u64,
        /// What cannot be.
        what: String,
    },
}

/// A link type that is not read, by name where it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkType(pub u32);

impl fmt::Display for LinkType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.0 {
            0 | 108 => "BSD loopback",
            9 => "PPP",
            12 | 101 | 228 | 229 => "raw IP",
            105 | 127 => "802.11 (wireless)",
            113 | 276 => "Linux cooked",
            _ => return write!(f, "link type {}", self.0),
        };
        write!(f, "{name} (link type {})", self.0)
    }
}

/// One packet of a capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CapturedPacket {
    /// When, in nanoseconds since 1970.
    pub time_ns: u64,
    /// Its length on the wire.
    pub original_len: u32,
    /// What was kept of it.
    pub bytes: Vec<u8>,
}

impl CapturedPacket {
    /// Whether less was kept than was on the wire.
    #[must_use]
    pub fn is_cut_short(&self) -> bool {
        self.bytes.len() < self.original_len as usize
    }
}

type Source = Box<dyn Read + Send>;

enum Format {
    Pcap(PcapReader<Source>),
    PcapNg(PcapNgReader<Source>),
}

/// Reads a capture, packet by packet. After an error it ends.
pub struct CaptureReader {
    format: Format,
    path: PathBuf,
    packets: u64,
    finished: bool,
}

impl fmt::Debug for CaptureReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CaptureReader({}, {} packets read)", self.path.display(), self.packets)
    }
}

impl CaptureReader {
    /// Opens a capture file.
    ///
    /// # Errors
    /// If it is missing, empty, no capture, or not of Ethernet.
    pub fn open(path: &Path) -> Result<Self, CaptureError> {
        let file = File::open(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => CaptureError::Missing(path.to_owned()),
            _ => CaptureError::Io { action: "open", path: path.to_owned(), source },
        })?;
        Self::from_source(path, file)
    }

    /// Reads a capture from anywhere; `name` stands for it in errors.
    ///
    /// # Errors
    /// As [`CaptureReader::open`].
    pub fn from_source(
        name: &Path,
        mut source: impl Read + Send + 'static,
    ) -> Result<Self, CaptureError> {
        let mut magic = Vec::with_capacity(4);
        source.by_ref().take(4).read_to_end(&mut magic).map_err(|source| CaptureError::Io {
            action: "read",
            path: name.to_owned(),
            source,
        })?;
        if magic.is_empty() {
            return Err(CaptureError::Empty(name.to_owned()));
        }
        let is_pcap = PCAP_MAGICS.iter().any(|known| *known == magic[..]);
        let is_pcapng = magic == PCAPNG_MAGIC;
        let whole: Source = Box::new(Cursor::new(magic).chain(source));
        let format = if is_pcap {
            PcapReader::new(whole).map(Format::Pcap)
        } else if is_pcapng {
            PcapNgReader::new(whole).map(Format::PcapNg)
        } else {
            return Err(CaptureError::NotACapture(name.to_owned()));
        };
        let path = name.to_owned();
        let format = format.map_err(|error| refine(error, &path, 0))?;
        if let Format::Pcap(reader) = &format {
            check_link(reader.header().datalink, &path)?;
        }
        Ok(Self { format, path, packets: 0, finished: false })
    }

    /// How many packets were read so far.
    #[must_use]
    pub const fn packets(&self) -> u64 {
        self.packets
    }

    fn read(&mut self) -> Option<Result<CapturedPacket, CaptureError>> {
        let (path, packets) = (&self.path, self.packets);
        match &mut self.format {
            Format::Pcap(reader) => {
                let resolution = reader.header().ts_resolution;
                // Raw: what the checked form refuses, such as packets longer than the capture's
                // limit, is legal in a file.
                let record = match reader.next_raw_packet()? {
                    Ok(record) => record,
                    Err(error) => return Some(Err(refine(error, path, packets))),
                };
                Some(from_pcap(&record, resolution).map_err(|what| damaged(what, path, packets)))
            }
            Format::PcapNg(reader) => loop {
                let record = match reader.next_block()? {
                    Ok(block) => NgRecord::from_block(block),
                    Err(error) => return Some(Err(refine(error, path, packets))),
                };
                if let Some(record) = record {
                    return Some(record.finish(reader, path, packets));
                }
            },
        }
    }
}

impl Iterator for CaptureReader {
    type Item = Result<CapturedPacket, CaptureError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.finished {
            return None;
        }
        let next = self.read();
        match &next {
            Some(Ok(_)) => self.packets += 1,
            Some(Err(_)) | None => self.finished = true,
        }
        next
    }
}

fn damaged(what: String, path: &Path, packets: u64) -> CaptureError {
    CaptureError::Damaged { path: path.to_owned(), packets, what }
}

/// The reader's error in our words.
fn refine(error: PcapError, path: &Path, packets: u64) -> CaptureError {
    let path = path.to_owned();
    match error {
        PcapError::IoError(source) if source.kind() == io::ErrorKind::UnexpectedEof => {
            CaptureError::CutOff { path, packets }
        }
        PcapError::IncompleteBuffer => CaptureError::CutOff { path, packets },
        PcapError::IoError(source) => CaptureError::Io { action: "read", path, source },
        other => CaptureError::Damaged { path, packets, what: other.to_string() },
    }
}

fn check_link(link: DataLink, path: &Path) -> Result<(), CaptureError> {
    if link == DataLink::ETHERNET {
        return Ok(());
    }
    Err(CaptureError::LinkType { path: path.to_owned(), link: LinkType(link.into()) })
}

fn check_len(len: usize) -> Result<(), String> {
    if len > CAPTURED_BYTES_MAX {
        return Err(format!("a record of {len} bytes, at most {CAPTURED_BYTES_MAX} are believed"));
    }
    Ok(())
}

fn from_pcap(
    record: &RawPcapPacket<'_>,
    resolution: TsResolution,
) -> Result<CapturedPacket, String> {
    check_len(record.data.len())?;
    let unit = match resolution {
        TsResolution::MicroSecond => 1_000,
        TsResolution::NanoSecond => 1,
    };
    let time_ns = u64::from(record.ts_sec) * 1_000_000_000 + u64::from(record.ts_frac) * unit;
    Ok(CapturedPacket { time_ns, original_len: record.orig_len, bytes: record.data.to_vec() })
}

/// A packet of a pcapng file before its interface was looked at.
struct NgRecord {
    interface: usize,
    /// In the interface's units.
    time: u64,
    original_len: u32,
    bytes: Vec<u8>,
}

impl NgRecord {
    /// `None` for blocks that hold no packet.
    fn from_block(block: Block<'_>) -> Option<Self> {
        match block {
            Block::EnhancedPacket(packet) => Some(Self {
                interface: packet.interface_id as usize,
                // The reader hands the raw count over as if it were nanoseconds.
                time: packet.timestamp.as_nanos() as u64,
                original_len: packet.original_len,
                bytes: packet.data.into_owned(),
            }),
            Block::SimplePacket(packet) => {
                let mut bytes = packet.data.into_owned();
                // The block does not say how much padding it has: what is beyond the packet's
                // length is.
                bytes.truncate(packet.original_len as usize);
                Some(Self { interface: 0, time: 0, original_len: packet.original_len, bytes })
            }
            Block::Packet(packet) => Some(Self {
                interface: usize::from(packet.interface_id),
                time: packet.timestamp,
                original_len: packet.original_len,
                bytes: packet.data.into_owned(),
            }),
            _ => None,
        }
    }

    fn finish(
        self,
        reader: &PcapNgReader<Source>,
        path: &Path,
        packets: u64,
    ) -> Result<CapturedPacket, CaptureError> {
        check_len(self.bytes.len()).map_err(|what| damaged(what, path, packets))?;
        let Some(interface) = reader.interfaces().get(self.interface) else {
            let what = format!("a packet of interface {}, which is not described", self.interface);
            return Err(damaged(what, path, packets));
        };
        check_link(interface.linktype, path)?;
        let resolution = interface.options.iter().find_map(|option| match option {
            InterfaceDescriptionOption::IfTsResol(resolution) => Some(*resolution),
            _ => None,
        });
        Ok(CapturedPacket {
            time_ns: to_ns(self.time, resolution.unwrap_or(6)),
            original_len: self.original_len,
            bytes: self.bytes,
        })
    }
}

/// A count of units as nanoseconds. The unit is 10^-n seconds, or 2^-n with the top bit set.
fn to_ns(count: u64, resolution: u8) -> u64 {
    let exponent = u32::from(resolution & 0x7f);
    let wide = u128::from(count) * 1_000_000_000;
    let ns = if resolution & 0x80 != 0 {
        wide.checked_shr(exponent).unwrap_or(0)
    } else {
        10u128.checked_pow(exponent).map_or(0, |units| wide / units)
    };
    u64::try_from(ns).unwrap_or(u64::MAX)
}

/// Writes a classic pcap file of Ethernet frames, with microseconds.
pub struct CaptureWriter {
    writer: PcapWriter<Box<dyn Write + Send>>,
    path: PathBuf,
}

impl fmt::Debug for CaptureWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CaptureWriter({})", self.path.display())
    }
}

impl CaptureWriter {
    /// Makes the file, or empties it.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn create(path: &Path) -> Result<Self, CaptureError> {
        let file = File::create(path).map_err(|source| CaptureError::Io {
            action: "create",
            path: path.to_owned(),
            source,
        })?;
        Self::to_sink(path, BufWriter::new(file))
    }

    /// Writes a capture to anywhere; `name` stands for it in errors.
    ///
    /// # Errors
    /// If the file header cannot be written.
    pub fn to_sink(name: &Path, sink: impl Write + Send + 'static) -> Result<Self, CaptureError> {
        let path = name.to_owned();
        let sink: Box<dyn Write + Send> = Box::new(sink);
        let writer = PcapWriter::new(sink).map_err(|error| write_error(error, &path))?;
        Ok(Self { writer, path })
    }

    /// Writes one whole frame.
    ///
    /// # Errors
    /// If the system does not take it, or the time or length has no place in the format.
    pub fn write(&mut self, time_ns: u64, bytes: &[u8]) -> Result<(), CaptureError> {
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let packet = PcapPacket::new(Duration::from_nanos(time_ns), len, bytes);
        self.writer.write_packet(&packet).map_err(|error| write_error(error, &self.path))?;
        Ok(())
    }

    /// Writes out what is buffered, and ends.
    ///
    /// # Errors
    /// If the system does not take it.
    pub fn finish(self) -> Result<(), CaptureError> {
        let mut sink = self.writer.into_writer();
        sink.flush().map_err(|source| CaptureError::Io { action: "write", path: self.path, source })
    }
}

fn write_error(error: PcapError, path: &Path) -> CaptureError {
    let source = match error {
        PcapError::IoError(source) => source,
        other => io::Error::other(other),
    };
    CaptureError::Io { action: "write", path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn block(kind: u32, body: &[u8]) -> Vec<u8> {
        let len = 12 + body.len() as u32;
        [&kind.to_le_bytes(), &len.to_le_bytes(), body, &len.to_le_bytes()].concat()
    }

    fn section() -> Vec<u8> {
        let body = [&0x1a2b_3c4du32.to_le_bytes()[..], &[1, 0, 0, 0], &[0xff; 8]].concat();
        block(0x0a0d_0d0a, &body)
    }

    fn interface(link: u8, options: &[u8]) -> Vec<u8> {
        block(1, &[&[link, 0, 0, 0, 0, 0, 4, 0][..], options].concat())
    }

    fn enhanced(interface: u32, time: u64, original_len: u32, data: &[u8]) -> Vec<u8> {
        let mut body = Vec::new();
        for word in [interface, (time >> 32) as u32, time as u32, data.len() as u32, original_len] {
            body.extend(word.to_le_bytes());
        }
        body.extend(data);
        body.resize(body.len().next_multiple_of(4), 0);
        block(6, &body)
    }

    fn read(bytes: Vec<u8>) -> Result<Vec<CapturedPacket>, CaptureError> {
        CaptureReader::from_source(Path::new("test"), Cursor::new(bytes))?.collect()
    }

    fn message(bytes: Vec<u8>) -> String {
        read(bytes).unwrap_err().to_string()
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.pcap");
        let mut writer = CaptureWriter::create(&path).unwrap();
        writer.write(1_000_000_007_000, &[1, 2, 3]).unwrap();
        writer.write(1_000_000_008_000, &[]).unwrap();
        writer.finish().unwrap();
        let packets: Result<Vec<_>, _> = CaptureReader::open(&path).unwrap().collect();
        let packet = |time_ns, bytes: &[u8]| CapturedPacket {
            time_ns,
            original_len: bytes.len() as u32,
            bytes: bytes.to_vec(),
        };
        assert_eq!(
            packets.unwrap(),
            [packet(1_000_000_007_000, &[1, 2, 3]), packet(1_000_000_008_000, &[])]
        );
    }

    #[test]
    fn pcapng_is_read_with_its_interfaces_units() {
        let nanoseconds = [9, 0, 1, 0, 9, 0, 0, 0, 0, 0, 0, 0];
        let bytes = [
            section(),
            interface(1, &[]),
            interface(1, &nanoseconds),
            enhanced(0, 5, 3, &[1, 2, 3]),
            block(0xbad, &[0; 4]),
            enhanced(1, 5, 60, &[4]),
        ]
        .concat();
        let packets = read(bytes).unwrap();
        assert_eq!(packets.len(), 2);
        assert_eq!((packets[0].time_ns, &packets[0].bytes[..]), (5_000, &[1, 2, 3][..]));
        assert_eq!((packets[1].time_ns, packets[1].is_cut_short()), (5, true));
    }

    #[test]
    fn times_of_any_unit() {
        assert_eq!(to_ns(3, 6), 3_000);
        assert_eq!(to_ns(3, 9), 3);
        assert_eq!(to_ns(3, 0x80 | 1), 1_500_000_000);
        assert_eq!(to_ns(u64::MAX, 0), u64::MAX);
        assert_eq!((to_ns(3, 0x7f), to_ns(3, 0xff)), (0, 0));
    }

    #[test]
    fn bad_files_get_clear_errors() {
        let dir = tempfile::tempdir().unwrap();
        let missing = CaptureReader::open(&dir.path().join("none")).unwrap_err();
        assert!(matches!(missing, CaptureError::Missing(_)));
        let empty = dir.path().join("empty");
        fs::write(&empty, []).unwrap();
        assert!(matches!(CaptureReader::open(&empty), Err(CaptureError::Empty(_))));
        assert!(matches!(CaptureReader::open(dir.path()), Err(CaptureError::Io { .. })));
        assert!(message(b"#!/bin/sh\n".to_vec()).contains("not a capture"));
        assert!(message(b"\xd4".to_vec()).contains("not a capture"));
        assert!(message(PCAP_MAGICS[1].to_vec()).contains("cut off"));
        let wireless = [section(), interface(105, &[]), enhanced(0, 0, 1, &[1])].concat();
        assert!(message(wireless).contains("802.11"));
        let unknown = [section(), enhanced(3, 0, 1, &[1])].concat();
        assert!(message(unknown).contains("interface 3"));
    }

    fn pcap(link: u32, records: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0];
        for word in [0, 0, 96, link] {
            bytes.extend(u32::to_le_bytes(word));
        }
        bytes.extend(records);
        bytes
    }

    #[test]
    fn classic_files_are_read_to_the_damage() {
        assert_eq!(read(pcap(1, &[])).unwrap(), []);
        assert!(message(pcap(113, &[])).contains("Linux cooked"));
        assert!(message(pcap(200, &[])).contains("link type 200"));
        let mut record = Vec::new();
        // Longer on the wire than the capture's limit of 96: legal.
        for word in [1u32, 2, 3, 1500] {
            record.extend(word.to_le_bytes());
        }
        record.extend([7, 8, 9]);
        let two = [record.clone(), record.clone()].concat();
        let packets = read(pcap(1, &two)).unwrap();
        assert_eq!((packets.len(), packets[0].time_ns), (2, 1_000_002_000));
        assert!(packets[1].is_cut_short());
        for cut in 1..record.len() {
            let bytes = pcap(1, &two[..record.len() + cut]);
            let mut reader =
                CaptureReader::from_source(Path::new("t"), Cursor::new(bytes)).unwrap();
            assert!(reader.next().unwrap().is_ok());
            let error = reader.next().unwrap().unwrap_err();
            assert!(matches!(error, CaptureError::CutOff { packets: 1, .. }), "cut {cut}: {error}");
            assert!(reader.next().is_none());
        }
        let mut huge = Vec::new();
        for word in [1u32, 2, 300 << 10, 300 << 10] {
            huge.extend(word.to_le_bytes());
        }
        huge.resize(16 + (300 << 10), 0);
        assert!(message(pcap(1, &huge)).contains("at most"));
    }
}
