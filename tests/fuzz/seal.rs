//! Makes the checksums of changed bytes fit, as somebody would who means harm, or a bug.
//!
//! Written from the pictures of the formats, not with their code. What is too broken to have
//! checksums is left as it is.
#![expect(clippy::ptr_arg, reason = "all have the form of a target's seal, some change lengths")]

fn u32_at(bytes: &[u8], at: usize) -> Option<usize> {
    let four = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(four.try_into().ok()?) as usize)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<usize> {
    let eight = bytes.get(at..at.checked_add(8)?)?;
    usize::try_from(u64::from_le_bytes(eight.try_into().ok()?)).ok()
}

fn put(bytes: &mut [u8], at: usize, crc: u32) -> Option<()> {
    bytes.get_mut(at..at.checked_add(4)?)?.copy_from_slice(&crc.to_le_bytes());
    Some(())
}

/// Has none.
pub(crate) fn nothing(_: &mut Vec<u8>) {}

/// A packet of IPv4 without tags, and what an ICMP error in it quotes: the header's checksum.
pub(crate) fn ip_headers(bytes: &mut Vec<u8>) {
    if bytes.get(12..14) != Some(&[8, 0]) {
        return;
    }
    let Some(behind) = ip_header(bytes, 14) else { return };
    let is_error = bytes[23] == 1 && matches!(bytes.get(behind), Some(3 | 11 | 12));
    if is_error {
        ip_header(bytes, behind + 8);
    }
}

/// Makes the checksum of the header at `at` fit; gives where it ends.
fn ip_header(bytes: &mut [u8], at: usize) -> Option<usize> {
    let length = usize::from(*bytes.get(at)? & 15) * 4;
    let header = bytes.get_mut(at..at + length).filter(|header| header.len() >= 20)?;
    header[10..12].fill(0);
    let words = header.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let sum = words.sum::<u32>();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    header[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    Some(at + length)
}

/// Frames: length 4, checksum 4 of all that follows, 12 more of head, body.
pub(crate) fn frames(bytes: &mut Vec<u8>) {
    let mut at = 0;
    while let Some(length) = u32_at(bytes, at) {
        let Some(end) = at.checked_add(20 + length).filter(|end| *end <= bytes.len()) else {
            return;
        };
        let crc = crc32fast::hash(&bytes[at + 8..end]);
        put(bytes, at + 4, crc);
        at = end;
    }
}

/// A machine's snapshot: head 16, then sections of number 4, length 8, content, checksum 4.
pub(crate) fn snapshot(bytes: &mut Vec<u8>) {
    let _ = sections(bytes, 16);
}

fn sections(bytes: &mut [u8], mut at: usize) -> Option<()> {
    loop {
        let end = u64_at(bytes, at + 4)?.checked_add(at + 12)?;
        let crc = crc32fast::hash(bytes.get(at..end)?);
        put(bytes, end, crc)?;
        at = end + 4;
    }
}

/// The system shard's snapshot: magic 4, version 4, checksum 4 of the rest.
pub(crate) fn system_snapshot(bytes: &mut Vec<u8>) {
    if let Some(rest) = bytes.get(12..) {
        let crc = crc32fast::hash(rest);
        put(bytes, 8, crc);
    }
}

/// Who a node is: a word, the FNV-1a of all lines but the first in 16 digits, end of line, lines.
pub(crate) fn identity(bytes: &mut Vec<u8>) {
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else { return };
    let sum = bytes[end + 1..].iter().fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    if let Some(digits) = end.checked_sub(16).and_then(|at| bytes.get_mut(at..end)) {
        digits.copy_from_slice(format!("{sum:016x}").as_bytes());
    }
}

/// A log segment: head 72 with its checksum at 68; records of length 4, checksum 4, 17 more of
/// head, body, zeros to a multiple of 8. Their checksum begins with that of the whole head.
pub(crate) fn segment(bytes: &mut Vec<u8>) {
    let Some(head) = bytes.get(..68) else { return };
    let crc = crc32fast::hash(head);
    put(bytes, 68, crc);
    let Some(head) = bytes.get(..72) else { return };
    let seed = crc32fast::hash(head);
    let mut at = 72;
    while let Some(body) = u32_at(bytes, at) {
        let end = at + (25 + body).next_multiple_of(8);
        if end > bytes.len() || body == 0 && bytes[at..end].iter().all(|byte| *byte == 0) {
            return;
        }
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&seed.to_le_bytes());
        hasher.update(&bytes[at..at + 4]);
        hasher.update(&bytes[at + 8..end]);
        put(bytes, at + 4, hasher.finalize());
        at = end;
    }
}

/// A snapshot's file: head 56, length of the group 4, the group, length of the content 8, checksum
/// of all before 4; content, its checksum 4.
pub(crate) fn snapshot_file(bytes: &mut Vec<u8>) {
    let _ = file(bytes);
}

fn file(bytes: &mut [u8]) -> Option<()> {
    let content = u32_at(bytes, 56)?.checked_add(68)?;
    let crc = crc32fast::hash(bytes.get(..content)?);
    let length = u64_at(bytes, content - 8)?;
    put(bytes, content, crc)?;
    let end = length.checked_add(content + 4)?;
    let crc = crc32fast::hash(bytes.get(content + 4..end)?);
    put(bytes, end, crc)
}
