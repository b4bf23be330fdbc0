//! Whether there is memory for a row, and how much one has taken.

use nearstate_store::Table;
use std::error::Error;
use std::fs;

/// What a store takes beside its region, for each byte of that: lives, timers, marks and tallies
/// of its entries, its ports, and two snapshots, of which one is being made.
const BESIDE: f64 = 1.5;

/// Bytes that a store with room for so many entries takes when it is full of them.
pub(crate) fn needed(capacity: u32, packet_bytes: usize) -> Result<u64, Box<dyn Error>> {
    let region = Table::bytes_for(capacity)? as f64;
    Ok((region * (1.0 + BESIDE)) as u64 + packet_bytes as u64)
}

/// Bytes that may be taken without anything being swapped or killed; `None` where the system does
/// not say.
pub(crate) fn available() -> Option<u64> {
    kib(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")
}

/// The most bytes that this process has had in memory, shared ones as well.
pub(crate) fn most() -> Option<u64> {
    kib(&fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

/// The bytes that a line of the system's gives in KiB.
fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
