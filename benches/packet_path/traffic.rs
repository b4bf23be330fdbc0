//! Frames in memory, in the order in which they come: what a port would have received.

use nearstate_nf_node::frame::Frame;
use nearstate_placement::Side;

/// Frames of this length are copied without a call, as all of the uniform rows have it.
pub(crate) const SHORT: usize = 64;

/// Where one frame lies.
#[derive(Clone, Copy, Debug)]
struct Place {
    at: u32,
    len: u16,
    side: Side,
}

/// Frames one behind the other, so that they are read as a port's ring is: in a row.
#[derive(Clone, Debug, Default)]
pub(crate) struct Traffic {
    bytes: Vec<u8>,
    places: Vec<Place>,
}

impl Traffic {
    /// Room for so many frames of [`SHORT`] bytes.
    pub(crate) fn with_capacity(frames: usize) -> Self {
        Self { bytes: Vec::with_capacity(frames * SHORT), places: Vec::with_capacity(frames) }
    }

    /// Appends a frame that comes from this side.
    pub(crate) fn push(&mut self, side: Side, frame: &[u8]) {
        let at = u32::try_from(self.bytes.len()).expect("less than 4 GiB of frames");
        let len = u16::try_from(frame.len()).expect("a frame");
        self.bytes.extend_from_slice(frame);
        self.places.push(Place { at, len, side });
    }

    /// How many frames there are.
    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    /// The bytes of a frame, and where it comes from.
    #[inline]
    pub(crate) fn frame(&self, number: usize) -> (Side, &[u8]) {
        let Place { at, len, side } = self.places[number];
        (side, &self.bytes[at as usize..][..usize::from(len)])
    }

    /// Copies a frame in.
    #[inline]
    pub(crate) fn fill(&self, number: usize, frame: &mut Frame) {
        let (side, bytes) = self.frame(number);
        match <&[u8; SHORT]>::try_from(bytes) {
            Ok(short) => frame.bytes[..SHORT].copy_from_slice(short),
            Err(_) => frame.bytes[..bytes.len()].copy_from_slice(bytes),
        }
        (frame.len, frame.side) = (bytes.len() as u16, side);
    }
}

/// The numbers below this one, each once, in an order that is random but always the same.
pub(crate) fn shuffled(count: u32) -> Vec<u32> {
    let mut numbers: Vec<u32> = (0..count).collect();
    let mut dice = 0x9e37_79b9_7f4a_7c15_u64;
    for at in (1..numbers.len()).rev() {
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        numbers.swap(at, (dice % (at as u64 + 1)) as usize);
    }
    numbers
}
