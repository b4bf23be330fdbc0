//! How the owner of a shard learns what the packets of other nodes have seen there.
//!
//! A packet thread leaves a note in a bounded queue, once in a while for each flow, with what was
//! counted of it since; full is counted, and costs a flow a little of its life. A task sends what
//! has collected, every now and then, to the owners, which mark it in their tables as if they had
//! seen it themselves. A note that does not get through is sent again, with its age, as long as it
//! is young enough to matter.
//!
//! The edge: it sleeps and reads the clock. Packets never wait for it.

#![expect(clippy::disallowed_methods, reason = "sends every now and then")]

use crate::clock::boot_now;
use crate::key::Key;
use crate::limits::SEEN_NOTES_MAX;
use crate::link::LinkContext;
use crate::tally::Tally;
use crate::transaction::SeenNote;
use crate::types::{ShardId, Time};
use crate::wire::{Request, Response};
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use crossbeam::queue::ArrayQueue;
use futures::future::join_all;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::time::sleep;

/// Between two messages: far less than what an owner adds to each deadline.
const EVERY: Duration = Duration::from_millis(250);
/// Patience with one message.
const PATIENCE: Duration = Duration::from_millis(500);
/// Notes that are older are not sent again.
const AGE_NS_MAX: u64 = 5_000_000_000;
/// Flows whose last note is remembered, so that a busy flow is not noted at each packet.
const REMEMBERED: usize = 4096;
/// How long it is remembered: 2^28 ns, about 268 ms.
const TICK_BITS: u32 = 28;

const _: () = assert!(EVERY.as_millis() as u64 * 2 < crate::upkeep::SOFT_STATE_MS);

/// What packets saw of an entry, the last of them at a time of this node's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sighting {
    key: Key,
    at: Time,
    tally: Tally,
}

/// Notes on their way from a packet thread.
#[derive(Debug)]
pub(crate) struct NoteQueue {
    notes: ArrayQueue<(ShardId, Sighting)>,
    lost: AtomicU64,
}

impl NoteQueue {
    pub(crate) fn new() -> Self {
        Self { notes: ArrayQueue::new(SEEN_NOTES_MAX), lost: AtomicU64::new(0) }
    }

    /// Notes that found no room, or no owner in time.
    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    fn push(&self, shard: ShardId, sighting: Sighting) {
        if self.notes.push((shard, sighting)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A flow that was noted lately.
#[derive(Clone, Copy, Debug)]
struct Recent {
    hash: u64,
    /// The tick of its last note; 0 is none.
    tick: u64,
    shard: ShardId,
    /// What was seen since that note.
    since: Sighting,
}

/// The packet thread's side: which flows were noted just now, and what was counted since.
#[derive(Debug)]
pub(crate) struct Noted {
    places: Box<[Recent]>,
    /// The place that is looked at next for what was left behind.
    hand: usize,
}

impl Noted {
    pub(crate) fn new() -> Self {
        let since = Sighting { key: Key([0; 5]), at: Time(0), tally: Tally::ZERO };
        let none = Recent { hash: 0, tick: 0, shard: ShardId(0), since };
        Self { places: vec![none; REMEMBERED].into_boxed_slice(), hand: 0 }
    }

    /// Notes a flow; if it was noted just now, what is counted waits for its next note.
    pub(crate) fn note(&mut self, queue: &NoteQueue, shard: ShardId, seen: (&Key, Time, Tally)) {
        let (key, now, tally) = seen;
        let hash = key.0.iter().fold(u64::from(shard.0), |hash, word| {
            let wide = u128::from(hash ^ word) * 0x9e37_79b9_7f4a_7c15_u128;
            (wide >> 64) as u64 ^ wide as u64
        });
        let tick = (now.0 >> TICK_BITS) + 1;
        self.sweep(queue, tick);
        let place = &mut self.places[hash as usize % REMEMBERED];
        if place.hash != hash {
            Self::push_left(queue, place);
            (place.hash, place.tick, place.shard, place.since.key) = (hash, 0, shard, *key);
        }
        place.since.at = now;
        place.since.tally = place.since.tally.plus(tally);
        if place.tick != tick || place.since.tally.is_large() {
            place.tick = tick;
            queue.push(shard, place.since);
            place.since.tally = Tally::ZERO;
        }
    }

    /// Looks at one place after the other, so that what was counted of a flow that has ended is
    /// told as well, as long as others go on.
    fn sweep(&mut self, queue: &NoteQueue, tick: u64) {
        self.hand = (self.hand + 1) % REMEMBERED;
        let place = &mut self.places[self.hand];
        if place.tick != tick {
            Self::push_left(queue, place);
        }
    }

    fn push_left(queue: &NoteQueue, place: &mut Recent) {
        if !place.since.tally.is_zero() {
            queue.push(place.shard, place.since);
            place.since.tally = Tally::ZERO;
        }
    }
}

/// The store's side, until the thread's side is gone.
pub(crate) async fn run_relay(context: LinkContext, queue: Arc<NoteQueue>) {
    while Arc::strong_count(&queue) > 1 || !queue.notes.is_empty() {
        sleep(EVERY).await;
        let mut groups: BTreeMap<ShardId, Vec<Sighting>> = BTreeMap::new();
        let waiting = core::iter::from_fn(|| queue.notes.pop());
        for (shard, sighting) in waiting.take(SEEN_NOTES_MAX) {
            groups.entry(shard).or_default().push(sighting);
        }
        let sent = groups.into_iter().map(|(shard, seen)| send(&context, shard, seen));
        let now = boot_now();
        for (shard, seen) in join_all(sent).await {
            let (young, old): (Vec<_>, Vec<_>) =
                seen.into_iter().partition(|sighting| now.since_ns(sighting.at) < AGE_NS_MAX);
            queue.lost.fetch_add(old.len() as u64, Ordering::Relaxed);
            young.into_iter().for_each(|sighting| queue.push(shard, sighting));
        }
    }
}

/// Sends what was seen of one shard; gives back what did not get through.
async fn send(
    context: &LinkContext,
    shard: ShardId,
    sightings: Vec<Sighting>,
) -> (ShardId, Vec<Sighting>) {
    let now = boot_now();
    let note = |&Sighting { key, at, tally }: &Sighting| {
        let age_ms = u32::try_from(now.since_ns(at) / 1_000_000).unwrap_or(u32::MAX);
        SeenNote { key, age_ms, tally }
    };
    let seen: Vec<SeenNote> = sightings.iter().map(note).collect();
    let Some(group) = context.shards.get(&shard) else { return (shard, sightings) };
    let got_through = match context.target(group) {
        None => false,
        Some(owner) if owner == context.node => {
            matches!(group.note_seen(&seen), Response::Noted)
        }
        Some(owner) => {
            let request = Request::Seen(shard, seen);
            let answer = context.transport.call(owner, &request, PATIENCE).await;
            group.view.learn(owner, answer.as_ref());
            matches!(answer, Ok(Response::Noted))
        }
    };
    (shard, if got_through { Vec::new() } else { sightings })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_flow_is_noted_once_in_a_while_and_a_full_queue_counts_what_it_loses() {
        let (queue, mut noted) = (NoteQueue::new(), Noted::new());
        let key = |number| Key([1, number, 0, 0, 0]);
        let mut note = |number, ms| {
            let seen = (&key(number), Time::from_ms(ms), Tally::ZERO);
            noted.note(&queue, ShardId(1), seen);
        };
        (1_000..1_070).for_each(|ms| note(7, ms));
        assert_eq!(queue.notes.len(), 1);
        note(7, 2_000);
        note(8, 2_000);
        assert_eq!((queue.notes.len(), queue.lost()), (3, 0));
        let first = Sighting { key: key(7), at: Time::from_ms(1_000), tally: Tally::ZERO };
        assert_eq!(queue.notes.pop(), Some((ShardId(1), first)));
        (100..100 + SEEN_NOTES_MAX as u64 + 3).for_each(|number| note(number, 3_000));
        assert_eq!((queue.notes.len(), queue.lost()), (SEEN_NOTES_MAX, 5));
    }

    /// Every packet is counted once, whichever flows share a place and however long they pause.
    #[test]
    fn all_that_was_counted_is_told_once_others_go_on() {
        let (queue, mut noted) = (NoteQueue::new(), Noted::new());
        let key = |number| Key([1, number, 0, 0, 0]);
        let (mut counted, mut told) = (Tally::ZERO, Tally::ZERO);
        let mut sum = || {
            while let Some((_, sighting)) = queue.notes.pop() {
                told = told.plus(sighting.tally);
            }
            told
        };
        for at in 0..20_000_u64 {
            let tally = Tally::packet((at % 1400) as u16);
            counted = counted.plus(tally);
            noted.note(&queue, ShardId(2), (&key(at * at % 5_003), Time::from_ms(at / 20), tally));
            sum();
        }
        assert!(sum().packets() < 20_000, "some wait for their flow's next note");
        for at in 0..REMEMBERED as u64 {
            noted.note(&queue, ShardId(2), (&key(1), Time::from_ms(9_000 + at), Tally::ZERO));
        }
        assert_eq!((sum(), queue.lost()), (counted, 0));
    }
}
