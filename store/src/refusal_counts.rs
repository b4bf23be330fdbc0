//! How often this node refused something, by reason: connections, frames, messages, requests.
//!
//! The idea: whoever sends what nobody meant gets an answer or a closed connection, and people see
//! that it happened and why. A refusal changes no shard's state. Counted since the process began,
//! never reset, and nothing is decided by it.

use crate::frame::FrameError;
use crate::hello::Refused;
use crate::wire::{NotServed, Response};
use core::sync::atomic::{AtomicU64, Ordering};

/// Why something was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RefusalReason {
    /// A connection of another cluster.
    Cluster,
    /// A connection of another cluster of the same name.
    Lineage,
    /// A connection that was meant for another node.
    WrongNode,
    /// A connection that the other end should not have made.
    Direction,
    /// A connection of an id that was used in another life.
    Reincarnated,
    /// A connection of an id that was removed.
    Retired,
    /// A connection for which there is no room.
    NoRoom,
    /// A connection on which no hello came in time.
    Silent,
    /// A frame of another wire version.
    Version,
    /// A frame that says that it is longer than any may be.
    Oversize,
    /// Bytes that are no frame: a checksum, a kind or a length that cannot be.
    Garbage,
    /// A frame that holds no message, or one with a number out of bounds.
    Message,
    /// A request that clients may not make.
    ClientMayNot,
    /// A request in which a node speaks for another one.
    ForeignVoice,
    /// A request of an earlier term than the shard is in.
    StaleTerm,
    /// A request for a shard that is owned elsewhere.
    NotOwner,
    /// A request too many.
    Busy,
    /// A request of which nobody knows what became.
    Unknown,
    /// A request for a shard that is not here.
    NoSuchShard,
    /// A request that makes no sense to the shard.
    Malformed,
    /// A request to a shard that has stopped.
    Stopped,
    /// A request for which the disk has no room.
    DiskFull,
    /// A request of this node's own that its connection had no room for.
    QueueFull,
}

impl RefusalReason {
    /// All of them, in the order in which they are shown.
    pub const ALL: [Self; 23] = [
        Self::Cluster,
        Self::Lineage,
        Self::WrongNode,
        Self::Direction,
        Self::Reincarnated,
        Self::Retired,
        Self::NoRoom,
        Self::Silent,
        Self::Version,
        Self::Oversize,
        Self::Garbage,
        Self::Message,
        Self::ClientMayNot,
        Self::ForeignVoice,
        Self::StaleTerm,
        Self::NotOwner,
        Self::Busy,
        Self::Unknown,
        Self::NoSuchShard,
        Self::Malformed,
        Self::Stopped,
        Self::DiskFull,
        Self::QueueFull,
    ];

    /// Its name, as commands show it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::Lineage => "lineage",
            Self::WrongNode => "wrong-node",
            Self::Direction => "direction",
            Self::Reincarnated => "reincarnated",
            Self::Retired => "retired",
            Self::NoRoom => "no-room",
            Self::Silent => "silent",
            Self::Version => "version",
            Self::Oversize => "oversize",
            Self::Garbage => "garbage",
            Self::Message => "message",
            Self::ClientMayNot => "client-may-not",
            Self::ForeignVoice => "foreign-voice",
            Self::StaleTerm => "stale-term",
            Self::NotOwner => "not-owner",
            Self::Busy => "busy",
            Self::Unknown => "unknown",
            Self::NoSuchShard => "no-such-shard",
            Self::Malformed => "malformed",
            Self::Stopped => "stopped",
            Self::DiskFull => "disk-full",
            Self::QueueFull => "queue-full",
        }
    }
}

impl From<Refused> for RefusalReason {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Cluster(_) => Self::Cluster,
            Refused::Lineage(_) => Self::Lineage,
            Refused::WrongNode(_) => Self::WrongNode,
            Refused::Reincarnated => Self::Reincarnated,
            Refused::Retired => Self::Retired,
            Refused::Direction => Self::Direction,
            Refused::Full => Self::NoRoom,
        }
    }
}

impl From<FrameError> for RefusalReason {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Version { .. } => Self::Version,
            FrameError::TooLong(_) => Self::Oversize,
            FrameError::Empty | FrameError::Header | FrameError::Checksum => Self::Garbage,
        }
    }
}

impl From<NotServed> for RefusalReason {
    fn from(refused: NotServed) -> Self {
        match refused {
            NotServed::NotOwner(_) => Self::NotOwner,
            NotServed::Busy => Self::Busy,
            NotServed::Unknown => Self::Unknown,
            NotServed::NoSuchShard => Self::NoSuchShard,
            NotServed::Malformed => Self::Malformed,
            NotServed::Stopped => Self::Stopped,
            NotServed::DiskFull => Self::DiskFull,
        }
    }
}

/// See the module's text.
#[derive(Debug, Default)]
pub struct RefusalCounts([AtomicU64; RefusalReason::ALL.len()]);

impl RefusalCounts {
    /// How often for this reason.
    #[must_use]
    pub fn of(&self, reason: RefusalReason) -> u64 {
        self.0[reason as usize].load(Ordering::Relaxed)
    }

    /// All counts, with their names.
    #[must_use]
    pub fn named(&self) -> [(&'static str, u64); RefusalReason::ALL.len()] {
        RefusalReason::ALL.map(|reason| (reason.name(), self.of(reason)))
    }

    pub(crate) fn count(&self, reason: impl Into<RefusalReason>) {
        self.0[reason.into() as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts an answer that is a refusal.
    pub(crate) fn count_answer(&self, response: &Response) {
        if let Response::NotServed(reason) = response {
            self.count(*reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_reason_has_a_count_and_a_name_of_its_own() {
        let counts = RefusalCounts::default();
        for (place, reason) in RefusalReason::ALL.into_iter().enumerate() {
            for _ in 0..=place {
                counts.count(reason);
            }
        }
        let named = counts.named();
        assert_eq!(named.map(|(_, count)| count), core::array::from_fn(|place| place as u64 + 1));
        assert_eq!(named.iter().map(|(name, _)| name).collect::<BTreeSet<_>>().len(), named.len());
    }

    #[test]
    fn every_refusal_of_a_connection_a_frame_or_a_request_has_its_reason() {
        let mut reasons = BTreeSet::new();
        let refused = [
            Refused::Cluster(1),
            Refused::Lineage(1),
            Refused::WrongNode(1),
            Refused::Reincarnated,
            Refused::Retired,
            Refused::Direction,
            Refused::Full,
        ];
        let not_served = [
            NotServed::NotOwner(1),
            NotServed::Busy,
            NotServed::Unknown,
            NotServed::NoSuchShard,
            NotServed::Malformed,
            NotServed::Stopped,
            NotServed::DiskFull,
        ];
        let frames = [FrameError::Version { found: 1 }, FrameError::TooLong(1), FrameError::Empty];
        reasons.extend(refused.map(|one| RefusalReason::from(one).name()));
        reasons.extend(not_served.map(|one| RefusalReason::from(one).name()));
        reasons.extend(frames.map(|one| RefusalReason::from(one).name()));
        assert_eq!(reasons.len(), 17);
    }
}
