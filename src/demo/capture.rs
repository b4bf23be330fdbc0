//! Captures in and out: the demo's packets from a file, and what left into files.

use super::DemoError;
use super::frames::Frames;
use super::outcome::{Outcome, Outcomes};
use super::script::Script;
use super::story::Story;
use nearstate_nf_node::port::capture::{CaptureError, CaptureReader, CaptureWriter};
use nearstate_placement::Side;
use std::path::{Path, PathBuf};

/// Packets that the demo takes from a capture.
const PACKETS_MAX: usize = 20_000_000;

/// All packets of a capture. One that ends in the middle of a record counts up to there.
pub(crate) fn load(path: &Path, story: &Story) -> Result<Frames, DemoError> {
    let mut frames = Frames::default();
    for packet in CaptureReader::open(path)? {
        match packet {
            Ok(packet) => {
                frames.push(&packet.bytes, packet.original_len, packet.time_ns / 1_000);
            }
            Err(error @ CaptureError::CutOff { .. }) => story.tell(&format!("{error}")),
            Err(error) => return Err(error.into()),
        }
        if frames.len() > PACKETS_MAX {
            return Err(DemoError::CaptureTooLarge { most: PACKETS_MAX });
        }
    }
    if frames.len() == 0 {
        return Err(DemoError::NoPackets(path.to_owned()));
    }
    Ok(frames)
}

/// One packet of a capture, counted from 1.
pub(crate) fn load_one(path: &Path, number: u64) -> Result<Vec<u8>, DemoError> {
    let mut reader = CaptureReader::open(path)?;
    let mut packets = 0;
    for packet in reader.by_ref() {
        packets += 1;
        let packet = packet?;
        if packets == number {
            return Ok(packet.bytes);
        }
    }
    Err(DemoError::NoSuchPacket { path: path.to_owned(), number, packets })
}

/// Writes what left, a capture a side, with the times at which the packets went in.
pub(crate) fn save(
    directory: &Path,
    script: &Script,
    outcomes: &Outcomes,
) -> Result<(), CaptureError> {
    let writer = |name: &str| CaptureWriter::create(&directory.join(name));
    let (mut inside, mut outside) = (writer("inside.pcap")?, writer("outside.pcap")?);
    for number in 0..script.len() as u32 {
        let Outcome::Left { side, frame } = outcomes.get(number) else { continue };
        let at_ns = script.at_us(number).saturating_mul(1_000);
        match side {
            Side::Inside => inside.write(at_ns, frame)?,
            Side::Outside => outside.write(at_ns, frame)?,
        }
    }
    inside.finish()?;
    outside.finish()
}

/// Makes a directory for results, if it is not there.
pub(crate) fn make_directory(path: &Path) -> Result<(), DemoError> {
    std::fs::create_dir_all(path).map_err(|source| DemoError::Write { path: path.into(), source })
}

/// Whether a file can be written, before anything is done that would be lost.
pub(crate) fn check_writable(path: &Path) -> Result<(), DemoError> {
    let file = std::fs::OpenOptions::new().append(true).create(true).open(path);
    file.map(drop).map_err(|source| DemoError::Write { path: path.to_owned(), source })
}

/// Writes a text file of results.
pub(crate) fn write_text(path: PathBuf, text: &str) -> Result<(), DemoError> {
    std::fs::write(&path, text).map_err(|source| DemoError::Write { path, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::script::Scene;
    use nearstate_nf_node::DropReason;
    use nearstate_nf_node::packet::PacketBuilder;
    use nearstate_store::Endpoint;

    #[test]
    fn what_left_is_read_back_from_the_file_of_its_side() {
        let directory = tempfile::tempdir().unwrap();
        let mut frames = Frames::default();
        for port in 1..=3 {
            let source = Endpoint::v4([10, 0, 0, 1], port);
            let frame = PacketBuilder::udp(source, Endpoint::v4([192, 0, 2, 1], 53)).build();
            frames.push(&frame, frame.len() as u32, u64::from(port));
        }
        let script = Script::new(frames, &Scene::inside_calls());
        let mut outcomes = Outcomes::new(3);
        outcomes.left(0, Side::Outside, script.frame(0));
        outcomes.dropped(1, DropReason::NoState);
        outcomes.left(2, Side::Inside, script.frame(2));
        save(directory.path(), &script, &outcomes).unwrap();
        let story = Story::begin(true);
        let read = |name: &str| load(&directory.path().join(name), &story).unwrap();
        let (inside, outside) = (read("inside.pcap"), read("outside.pcap"));
        assert_eq!((inside.len(), inside.frame(0)), (1, script.frame(2)));
        assert_eq!((outside.len(), outside.frame(0)), (1, script.frame(0)));
        assert_eq!(outside.at_us(0), 1);
        let path = directory.path().join("inside.pcap");
        assert_eq!(load_one(&path, 1).unwrap(), script.frame(2));
        let error = load_one(&path, 2).unwrap_err().to_string();
        assert!(error.contains("has 1 packets"), "{error}");
    }

    #[test]
    fn a_capture_without_packets_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("none.pcap");
        CaptureWriter::create(&path).unwrap().finish().unwrap();
        let error = load(&path, &Story::begin(true)).unwrap_err().to_string();
        assert!(error.contains("no packet"), "{error}");
    }
}
