//! Many frames in one piece of memory, found by number: what a capture holds, and what leaves.
//! Never copies a frame to hand it out.

use core::ops::Range;

/// Where one frame lies, and what the capture says of it.
#[derive(Clone, Debug)]
struct Record {
    place: Range<usize>,
    wire_length: u32,
    at_us: u64,
}

/// Frames by number, in the order in which they were put in.
#[derive(Clone, Debug, Default)]
pub(crate) struct Frames {
    bytes: Vec<u8>,
    records: Vec<Record>,
}

impl Frames {
    /// Appends a frame that was `wire_length` bytes long on the wire, at `at_us` microseconds.
    pub(crate) fn push(&mut self, frame: &[u8], wire_length: u32, at_us: u64) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(frame);
        self.records.push(Record { place: start..self.bytes.len(), wire_length, at_us });
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    /// The bytes of a frame.
    pub(crate) fn frame(&self, number: u32) -> &[u8] {
        &self.bytes[self.records[number as usize].place.clone()]
    }

    /// Puts another frame, of any length, in the place of one.
    pub(crate) fn replace(&mut self, number: u32, frame: &[u8]) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(frame);
        let record = &mut self.records[number as usize];
        record.place = start..self.bytes.len();
        record.wire_length = frame.len() as u32;
    }

    /// The bytes of a frame, to be changed in place.
    pub(crate) fn frame_mut(&mut self, number: u32) -> &mut [u8] {
        &mut self.bytes[self.records[number as usize].place.clone()]
    }

    /// How long the frame was on the wire.
    pub(crate) fn wire_length(&self, number: u32) -> usize {
        self.records[number as usize].wire_length as usize
    }

    /// When it was captured, in microseconds.
    pub(crate) fn at_us(&self, number: u32) -> u64 {
        self.records[number as usize].at_us
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_by_number() {
        let mut frames = Frames::default();
        frames.push(b"first", 5, 10);
        frames.push(b"", 60, 11);
        frames.push(b"third", 5, 12);
        frames.frame_mut(2)[0] = b'T';
        assert_eq!(frames.len(), 3);
        assert_eq!((frames.frame(0), frames.frame(1)), (&b"first"[..], &b""[..]));
        assert_eq!(frames.frame(2), b"Third");
        assert_eq!((frames.wire_length(1), frames.at_us(1)), (60, 11));
        frames.replace(0, b"another");
        assert_eq!((frames.frame(0), frames.frame(2)), (&b"another"[..], &b"Third"[..]));
        assert_eq!((frames.wire_length(0), frames.at_us(0), frames.len()), (7, 10, 3));
    }
}
