//! The words of the store as types that do not mix: nodes, slots, shards, indexes, times.
//!
//! Each is a plain number on the wire and in memory; arithmetic is offered only where it means
//! something.

use core::fmt;
use rkyv::{Archive, Deserialize, Serialize};

macro_rules! newtype {
    ($(#[$doc:meta])* $name:ident($inner:ty), $prefix:literal) => {
        $(#[$doc])*
        #[derive(
            Archive, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq,
            PartialOrd, Ord, Hash,
        )]

        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }
    };
}

newtype!(
    /// A member of the cluster: one life of one node process. A node that comes back without its
    /// memory gets a new one (promise P6), so a `NodeId` is never used twice.
    NodeId(u64), "node-"
);
newtype!(
    /// A fixed part of the key space, `0..slots`; the unit of steering and of rebalancing.
    SlotId(u16), "slot-"
);
newtype!(
    /// A Raft group with its table and log. Shard 0 is the system shard; flow shards begin at 1.
    ShardId(u16), "shard-"
);
newtype!(
    /// Version of the map. Only rises.
    Epoch(u64), "epoch-"
);
newtype!(
    /// A Raft term.
    Term(u64), "term-"
);
newtype!(
    /// A position in a shard's Raft log.
    LogIndex(u64), "index-"
);
newtype!(
    /// Version of an entry: the shard's count of mutations when it was written, so it rises with
    /// every change of any entry of the shard. 48 bits are kept.
    Version(u64), "v"
);
newtype!(
    /// Whose traffic it is.
    TenantId(u16), "tenant-"
);
newtype!(
    /// A pool of units (NAT ports) that slots give out.
    PoolId(u8), "pool-"
);

impl ShardId {
    /// The shard that keeps the map, the members and the policy.
    pub const SYSTEM: Self = Self(0);
}

/// A moment, in nanoseconds. On one host it is read from a clock that counts suspended time
/// (`CLOCK_BOOTTIME`); tests and the simulator make their own.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Archive,
    Serialize,
    Deserialize,
)]
pub struct Time(pub u64);

impl Time {
    /// The moment `ms` milliseconds after the clock's origin.
    #[must_use]
    pub const fn from_ms(ms: u64) -> Self {
        Self(ms * 1_000_000)
    }

    /// Whole milliseconds since the clock's origin.
    #[must_use]
    pub const fn as_ms(self) -> u64 {
        self.0 / 1_000_000
    }

    /// This moment moved by `ms` milliseconds into the future.
    #[must_use]
    pub const fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms * 1_000_000))
    }

    /// This moment moved by `ns` nanoseconds into the future.
    #[must_use]
    pub const fn plus_ns(self, ns: u64) -> Self {
        Self(self.0.saturating_add(ns))
    }

    /// Nanoseconds from `earlier` to this moment, 0 if `earlier` is later.
    #[must_use]
    pub const fn since_ns(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}
