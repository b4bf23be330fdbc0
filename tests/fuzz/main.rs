//! Everything that reads bytes from a network, a disk, another process or a wire, on bytes that
//! nobody meant: each decoder gives a value or an error, in bounded memory, and never panics.
//!
//! Good inputs are kept in `corpus/`, one directory a target; what once failed, in `kept/`. They
//! are mutated for a while, from a seed that is printed. `NEARSTATE_FUZZ_MS` says for how long,
//! `NEARSTATE_FUZZ_SEED` from where; `UPDATE_GOLDEN=1` writes the good inputs anew.

mod disk_targets;
mod engine;
mod node_targets;
mod packet_targets;
mod seal;
mod store_targets;
mod wire_targets;

use engine::{Target, fuzz, kept_in_step};

/// A test for each target, so that they run beside each other and one can be named.
macro_rules! targets {
    ($($name:ident: $target:expr;)*) => {
        $(#[test]
        fn $name() {
            fuzz(&$target);
        })*

        const ALL: &[Target] = &[$($target),*];
    };
}

targets! {
    frames: wire_targets::FRAMES;
    wire: wire_targets::WIRE;
    control: wire_targets::CONTROL;
    batches: store_targets::BATCHES;
    snapshots: store_targets::SNAPSHOTS;
    regions: store_targets::REGIONS;
    segments: disk_targets::SEGMENTS;
    snapshot_files: disk_targets::SNAPSHOT_FILES;
    packets: packet_targets::PACKETS;
    system: node_targets::SYSTEM;
    system_snapshots: node_targets::SYSTEM_SNAPSHOTS;
    identities: node_targets::IDENTITIES;
    marks: node_targets::MARKS;
    rings: node_targets::RINGS;
}

#[test]
fn the_corpus_is_what_this_build_writes_and_all_of_it_is_accepted() {
    for target in ALL {
        kept_in_step(target);
    }
}
