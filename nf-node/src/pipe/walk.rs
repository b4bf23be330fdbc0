//! One packet's way through the functions of a chain, with reads from wherever they come.
//!
//! Never sends, parks or counts.

use crate::nf::{Changes, NetworkFunction, Packet};
use crate::pipe::{STAGES_MAX, Stages};
use crate::verdict::{DropReason, Verdict};
use nearstate_store::{Entry, Key, Tally, Time};

/// How far a packet came.
#[derive(Debug)]
pub(super) enum Way {
    /// To its end, and nothing was asked for. It may leave, as the flow that it now shows, until a
    /// lease ends.
    Decided {
        /// Whether it is to leave.
        verdict: Result<(), DropReason>,
        /// When the first right to use one of its reads ends.
        valid_until: Time,
    },
    /// It asks for changes, which stand beside.
    Changes,
    /// A read stopped it.
    Stopped(Stop),
}

/// Why a read stops a packet.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stop {
    /// An earlier packet has claimed this key.
    Behind(Key),
    /// The answer comes later.
    Asked(Key),
    /// It cannot be asked for now.
    Unavailable,
}

/// What an entry is read for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Use {
    /// How many functions come before.
    stage: usize,
    /// Whether the packet keeps the entry alive.
    pub(super) keeps_alive: bool,
}

/// At which functions a packet has been counted: wherever it is processed again, it counts once.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counted(u8);

const _: () = assert!(STAGES_MAX <= u8::BITS as usize);

impl Counted {
    /// What the packet, a frame of so many bytes, counts for.
    #[inline]
    pub(super) fn tally(self, of: Use, frame: &[u8]) -> Tally {
        let bytes = u16::try_from(frame.len()).unwrap_or(u16::MAX);
        if self.0 >> of.stage & 1 == 0 { Tally::packet(bytes) } else { Tally::ZERO }
    }

    /// It found the entry, and was counted.
    #[inline]
    pub(super) const fn note(&mut self, of: Use) {
        self.0 |= 1 << of.stage;
    }
}

/// Sends a packet through the chain. `first` is the key of the first function, found already.
/// `read` is told what for, and where to put the entry; it says whether there is one.
#[inline(always)]
pub(super) fn walk<C: Stages>(
    chain: &C,
    now: Time,
    (packet, first): (&mut Packet<'_>, Option<&Key>),
    changes: &mut Changes,
    mut read: impl FnMut(&Key, Use, &mut Entry) -> Result<(bool, Time), Stop>,
) -> Way {
    changes.clear();
    let (mut valid_until, mut entry) = (Time(u64::MAX), Entry::BLANK);
    for stage in 0..STAGES_MAX {
        let Some(function) = chain.function(packet.side, stage) else { break };
        let later;
        let key = if stage == 0 {
            first
        } else {
            later = function.key(packet);
            later.as_ref()
        };
        let is_there = match key {
            None => false,
            Some(key) => {
                let keeps_alive = packet.keeps_alive(key);
                match read(key, Use { stage, keeps_alive }, &mut entry) {
                    Ok((found, until)) => {
                        valid_until = valid_until.min(until);
                        found
                    }
                    Err(stop) => return Way::Stopped(stop),
                }
            }
        };
        match function.process(now, packet, is_there.then_some(&entry), changes) {
            Verdict::Forward => {}
            Verdict::Commit if changes.is_empty() => {
                debug_assert!(false, "a commit is of something");
                return Way::Decided { verdict: Err(DropReason::StoreRefused), valid_until };
            }
            Verdict::Commit => break,
            Verdict::Drop(reason) => {
                return Way::Decided { verdict: Err(reason), valid_until };
            }
        }
    }
    if changes.is_empty() { Way::Decided { verdict: Ok(()), valid_until } } else { Way::Changes }
}
