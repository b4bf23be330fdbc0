//! What time it is in a shard, as its owner says it: the time that entries of the log carry.
//!
//! It only rises, and it runs at the rate of the owner's clock that counts suspended time. Where it
//! begins is a matter of the log: a new owner goes on from what it saw applied, and adds the time
//! that passed here since it saw it, by its own clock. So neither an election nor an idle shard
//! stops it, and no wall clock moves it. The wall clock is asked in two cases only. A shard that
//! never had a time begins with it. An owner that has the state from a snapshot, and has seen
//! nothing applied since, cannot know how old that state is: there the wall clock may add as much
//! as it shows, but never more than [`UNSEEN_MS_MAX`].
//!
//! Pure: the clocks' readings are arguments.

use crate::transport::lock;
use crate::types::{Term, Time};
use std::sync::Mutex;

/// Milliseconds that a wall clock may add to the time of a state that came as a snapshot.
pub(crate) const UNSEEN_MS_MAX: u64 = 10_000;

/// A shard's time, and this node's clock at that time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Anchor {
    time_ms: u64,
    at: Time,
}

impl Anchor {
    fn time_ms(self, now: Time) -> u64 {
        self.time_ms.saturating_add(now.since_ns(self.at) / 1_000_000)
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Known {
    /// The machine's time.
    time_ms: u64,
    /// When this node saw it reached; `None` if it came in a snapshot.
    seen: Option<Time>,
    /// Where the time of this node's present term began.
    began: Option<(Term, Anchor)>,
}

/// See the module's text. One for each replica.
#[derive(Debug, Default)]
pub(crate) struct ShardTime(Mutex<Known>);

impl ShardTime {
    /// An entry was applied; the machine's time after it.
    pub(crate) fn applied(&self, time_ms: u64, now: Time) {
        let mut known = lock(&self.0);
        if time_ms > known.time_ms {
            (known.time_ms, known.seen) = (time_ms, Some(now));
        }
    }

    /// A snapshot was installed; the machine's time in it.
    pub(crate) fn installed(&self, time_ms: u64) {
        let mut known = lock(&self.0);
        if time_ms > known.time_ms {
            (known.time_ms, known.seen) = (time_ms, None);
        }
    }

    /// The time of an entry that the owner makes now.
    pub(crate) fn stamp(&self, term: Term, now: Time, wall_ms: u64) -> u64 {
        let mut known = lock(&self.0);
        let seen = match known.seen {
            Some(at) => Anchor { time_ms: known.time_ms, at },
            None if known.time_ms == 0 => Anchor { time_ms: wall_ms, at: now },
            None => {
                let unseen = wall_ms.saturating_sub(known.time_ms).min(UNSEEN_MS_MAX);
                Anchor { time_ms: known.time_ms.saturating_add(unseen), at: now }
            }
        };
        let began = match known.began {
            // Its own entries are applied a little later than they were made: counting from there
            // would lose that much with each.
            Some((since, began)) if since == term => began,
            _ => seen,
        };
        known.began = Some((term, began));
        // Entries of other owners may have been applied only after the first stamp of this term.
        began.time_ms(now).max(known.time_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: u64 = 3_600_000;
    /// The wall clock of whoever is right.
    const WALL_MS: u64 = 1_800_000_000_000;

    enum Step {
        Applied {
            time_ms: u64,
            at_ms: u64,
        },
        Installed {
            time_ms: u64,
        },
        /// Term, clock, wall clock, and what the time must be.
        Stamp(u64, u64, u64, u64),
    }

    fn run(what: &str, steps: &[Step]) {
        let time = ShardTime::default();
        let mut last = 0;
        for step in steps {
            match *step {
                Step::Applied { time_ms, at_ms } => time.applied(time_ms, Time::from_ms(at_ms)),
                Step::Installed { time_ms } => time.installed(time_ms),
                Step::Stamp(term, now_ms, wall_ms, expected) => {
                    let stamp = time.stamp(Term(term), Time::from_ms(now_ms), wall_ms);
                    assert_eq!(stamp, expected, "{what}");
                    assert!(stamp >= last, "{what}: it fell");
                    last = stamp;
                }
            }
        }
    }

    #[test]
    fn the_time_of_a_shard_is_its_owners_elapsed_time_whatever_wall_clocks_say() {
        use Step::{Applied, Stamp};
        let w = WALL_MS;
        run(
            "a new shard begins with the wall clock and ignores its jumps",
            &[Stamp(1, 500, w, w), Stamp(1, 600, w + HOUR_MS, w + 100), Stamp(1, 700, 0, w + 200)],
        );
        run(
            "its own entries, applied late, do not slow it down",
            &[
                Stamp(1, 500, w, w),
                Applied { time_ms: w, at_ms: 540 },
                Stamp(1, 600, w, w + 100),
                Applied { time_ms: w + 100, at_ms: 650 },
                Stamp(1, 700, w, w + 200),
            ],
        );
        run(
            "a new owner whose wall clock is an hour ahead",
            &[
                Applied { time_ms: w, at_ms: 9_000 },
                Stamp(2, 9_300, w + HOUR_MS, w + 300),
                Stamp(2, 9_400, w + HOUR_MS, w + 400),
            ],
        );
        run(
            "a new owner whose wall clock is an hour behind",
            &[Applied { time_ms: w, at_ms: 9_000 }, Stamp(2, 9_300, w - HOUR_MS, w + 300)],
        );
        run(
            "a shard that was idle for an hour under another owner",
            &[Applied { time_ms: w, at_ms: 9_000 }, Stamp(2, 9_000 + HOUR_MS, w, w + HOUR_MS)],
        );
        run(
            "the first owner's clock was an hour ahead: that stays, and nothing jumps",
            &[
                Applied { time_ms: w + HOUR_MS, at_ms: 9_000 },
                Stamp(2, 9_300, w, w + HOUR_MS + 300),
            ],
        );
    }

    #[test]
    fn the_time_of_a_snapshot_is_brought_up_within_bounds_and_news_of_the_log_counts() {
        use Step::{Applied, Installed, Stamp};
        let w = WALL_MS;
        run(
            "a snapshot of unknown age, and a right wall clock",
            &[
                Installed { time_ms: w },
                Stamp(2, 50, w + 7_000, w + 7_000),
                Stamp(2, 60, w + 7_000, w + 7_010),
            ],
        );
        run(
            "a snapshot of unknown age, and a wall clock an hour ahead",
            &[
                Installed { time_ms: w },
                Stamp(2, 50, w + HOUR_MS, w + UNSEEN_MS_MAX),
                Stamp(2, 60, w + HOUR_MS, w + UNSEEN_MS_MAX + 10),
            ],
        );
        run(
            "a snapshot of unknown age, and a wall clock behind",
            &[Installed { time_ms: w }, Stamp(2, 50, 0, w), Stamp(2, 60, 0, w + 10)],
        );
        run(
            "a snapshot, then entries: they say how old it is",
            &[
                Installed { time_ms: w },
                Applied { time_ms: w + 5, at_ms: 100 },
                Stamp(2, 200, w + HOUR_MS, w + 105),
            ],
        );
        run(
            "an entry of the owner before, applied after the first stamp",
            &[
                Applied { time_ms: w, at_ms: 100 },
                Stamp(2, 150, w, w + 50),
                Applied { time_ms: w + 90, at_ms: 160 },
                Stamp(2, 170, w, w + 90),
                Stamp(2, 200, w, w + 100),
            ],
        );
        run(
            "owner, then another, then owner again",
            &[
                Stamp(1, 0, w, w),
                Applied { time_ms: w, at_ms: 1 },
                Applied { time_ms: w + 4_000, at_ms: 4_010 },
                Stamp(3, 4_110, w, w + 4_100),
            ],
        );
        run(
            "an old entry applied again, and an old snapshot, change nothing",
            &[
                Applied { time_ms: w, at_ms: 100 },
                Applied { time_ms: w, at_ms: 900 },
                Installed { time_ms: w - 5 },
                Stamp(1, 1_000, w, w + 900),
            ],
        );
    }
}
