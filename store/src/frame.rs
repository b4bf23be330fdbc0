//! Frames: how messages are cut out of a byte stream.
//!
//! ```text
//! byte  0        4        8         9      10..12  12..20       20..
//!       length   crc32    version   kind   zero    request id   body (length bytes)
//! ```
//!
//! Numbers are little-endian. The checksum covers everything behind it. The length is bounded
//! before anything is allocated for it; a stream that broke the format once is never read again,
//! because where the next frame would begin is unknown. No sockets here.

use rkyv::util::AlignedVec;
use thiserror::Error;

/// Version of frames and of the messages in them. Both ends must have the same.
pub const WIRE_VERSION: u8 = 5;
/// Longest body. Snapshots go in chunks that fit.
pub const FRAME_BODY_MAX: usize = 1 << 20;
/// Bytes before the body.
pub const FRAME_HEADER: usize = 20;

const CHECKED_FROM: usize = 8;

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// The first frame of each side: who am I.
    Hello,
    /// Asks something.
    Request,
    /// Answers the request of the same id.
    Response,
}

impl FrameKind {
    const fn to_byte(self) -> u8 {
        match self {
            Self::Hello => 1,
            Self::Request => 2,
            Self::Response => 3,
        }
    }

    const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Hello),
            2 => Some(Self::Request),
            3 => Some(Self::Response),
            _ => None,
        }
    }
}

/// One message as it lay in the stream; the body is aligned so that an archive can be read in
/// place.
#[derive(Clone, Debug)]
pub struct Frame {
    /// What it is for.
    pub kind: FrameKind,
    /// Joins a response to its request.
    pub id: u64,
    /// An archive of [`crate::wire`], not looked at yet.
    pub body: AlignedVec,
}

/// Why a stream cannot be read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FrameError {
    /// The length is out of bounds.
    #[error("a frame of {0} bytes is longer than the limit of {FRAME_BODY_MAX}")]
    TooLong(u32),
    /// An empty body: no message is empty.
    #[error("a frame without a body")]
    Empty,
    /// Another version of this program.
    #[error("the other end speaks wire version {found}, this build speaks {WIRE_VERSION}")]
    Version {
        /// What it speaks.
        found: u8,
    },
    /// A kind that does not exist, or bytes that must be zero are not.
    #[error("a frame header that this version does not know")]
    Header,
    /// Damaged on the way, or not our protocol at all.
    #[error("a frame's checksum does not fit")]
    Checksum,
}

/// Appends a frame to `out`.
///
/// # Panics
/// If the body is empty or too long: senders bound what they put into a message.
pub fn encode(kind: FrameKind, id: u64, body: &[u8], out: &mut Vec<u8>) {
    assert!(!body.is_empty() && body.len() <= FRAME_BODY_MAX, "a body of {} bytes", body.len());
    let start = out.len();
    out.extend_from_slice(&(body.len() as u32).to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&[WIRE_VERSION, kind.to_byte(), 0, 0]);
    out.extend_from_slice(&id.to_le_bytes());
    out.extend_from_slice(body);
    let crc = crc32fast::hash(&out[start + CHECKED_FROM..]);
    out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
}

/// Cuts frames out of bytes that come in pieces of any size.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    bytes: Vec<u8>,
    /// Bytes before it are decoded.
    start: usize,
    broken: Option<FrameError>,
}

impl FrameDecoder {
    /// A decoder that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes as they come. Call [`FrameDecoder::next_frame`] until it gives `None` before
    /// feeding more, so that no more than one unfinished frame is ever kept.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole frame, if there is one.
    ///
    /// # Errors
    /// If the stream is not what it should be; from then on it always is an error.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        if let Some(error) = self.broken {
            return Err(error);
        }
        let result = self.cut();
        if let Err(error) = result {
            self.broken = Some(error);
            self.bytes = Vec::new();
            self.start = 0;
        }
        result
    }

    fn cut(&mut self) -> Result<Option<Frame>, FrameError> {
        let rest = &self.bytes[self.start..];
        let Some((header, after)) = rest.split_first_chunk::<FRAME_HEADER>() else {
            return Ok(None);
        };
        let [l0, l1, l2, l3, c0, c1, c2, c3, version, kind, z0, z1, id @ ..] = *header;
        // The version comes first: in another version the rest may mean something else.
        if version != WIRE_VERSION {
            return Err(FrameError::Version { found: version });
        }
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        if length as usize > FRAME_BODY_MAX {
            return Err(FrameError::TooLong(length));
        }
        if length == 0 {
            return Err(FrameError::Empty);
        }
        let kind = FrameKind::from_byte(kind).ok_or(FrameError::Header)?;
        if [z0, z1] != [0, 0] {
            return Err(FrameError::Header);
        }
        let Some(body) = after.get(..length as usize) else {
            return Ok(None);
        };
        let checked = &rest[CHECKED_FROM..FRAME_HEADER + body.len()];
        if crc32fast::hash(checked) != u32::from_le_bytes([c0, c1, c2, c3]) {
            return Err(FrameError::Checksum);
        }
        let mut aligned = AlignedVec::with_capacity(body.len());
        aligned.extend_from_slice(body);
        self.start += FRAME_HEADER + body.len();
        Ok(Some(Frame { kind, id: u64::from_le_bytes(id), body: aligned }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn three() -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(FrameKind::Hello, 0, b"hello", &mut bytes);
        encode(FrameKind::Request, 7, &[9; 300], &mut bytes);
        encode(FrameKind::Response, u64::MAX, &[1], &mut bytes);
        bytes
    }

    fn read_all(bytes: &[u8], piece: usize) -> Result<Vec<(FrameKind, u64, Vec<u8>)>, FrameError> {
        let mut decoder = FrameDecoder::new();
        let mut out = Vec::new();
        for piece in bytes.chunks(piece) {
            decoder.feed(piece);
            while let Some(frame) = decoder.next_frame()? {
                out.push((frame.kind, frame.id, frame.body.to_vec()));
            }
        }
        Ok(out)
    }

    #[test]
    fn frames_come_out_as_they_went_in_whatever_the_pieces() {
        let expected = vec![
            (FrameKind::Hello, 0, b"hello".to_vec()),
            (FrameKind::Request, 7, vec![9; 300]),
            (FrameKind::Response, u64::MAX, vec![1]),
        ];
        let bytes = three();
        for piece in [1, 2, 3, 19, 20, 21, 100, bytes.len()] {
            assert_eq!(read_all(&bytes, piece).unwrap(), expected, "pieces of {piece}");
        }
    }

    #[test]
    fn every_flipped_byte_is_noticed_or_leaves_the_decoder_waiting() {
        let mut bytes = Vec::new();
        encode(FrameKind::Request, 7, &[9; 40], &mut bytes);
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut bad = bytes.clone();
                bad[at] ^= 1 << bit;
                let read = read_all(&bad, bad.len());
                // A length made longer waits for bytes that do not come; all else is an error.
                assert!(read.is_err() || read == Ok(vec![]), "byte {at} bit {bit}: {read:?}");
            }
        }
    }

    #[test]
    fn lengths_out_of_bounds_are_refused_before_their_bytes_come() {
        let mut bytes = Vec::new();
        encode(FrameKind::Request, 7, &[9; 40], &mut bytes);
        for (length, error) in [
            (0, FrameError::Empty),
            (FRAME_BODY_MAX as u32 + 1, FrameError::TooLong(FRAME_BODY_MAX as u32 + 1)),
            (u32::MAX, FrameError::TooLong(u32::MAX)),
        ] {
            let mut bad = bytes[..FRAME_HEADER].to_vec();
            bad[..4].copy_from_slice(&length.to_le_bytes());
            assert_eq!(read_all(&bad, 64), Err(error));
        }
    }

    #[test]
    fn another_version_is_named_and_a_broken_stream_stays_broken() {
        let mut bytes = three();
        bytes[8] = 9;
        let mut decoder = FrameDecoder::new();
        decoder.feed(&bytes);
        let error = Err(FrameError::Version { found: 9 });
        assert_eq!(decoder.next_frame().map(|_| ()), error);
        decoder.feed(&three());
        assert_eq!(decoder.next_frame().map(|_| ()), error);
    }

    #[test]
    fn the_longest_body_passes() {
        let mut bytes = Vec::new();
        encode(FrameKind::Response, 1, &vec![3; FRAME_BODY_MAX], &mut bytes);
        assert_eq!(read_all(&bytes, 1 << 16).unwrap().len(), 1);
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = read_all(&bytes, 7);
        }
    }
}
