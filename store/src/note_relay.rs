//! How the owner of a shard learns what the packets of other nodes have seen there.
//!
//! A packet thread leaves a note in a bounded queue, once in a while for each flow; full is counted
//! and costs a flow a little of its life. A task sends what has collected, every now and then, to
//! the owners, which mark it in their tables as if they had seen it themselves. A note that does
//! not get through is sent again, with its age, as long as it is young enough to matter.
//!
//! The edge: it sleeps and reads the clock. Packets never wait for it.

#![expect(clippy::disallowed_methods, reason = "sends every now and then")]

use crate::clock::boot_now;
use crate::key::Key;
use crate::limits::SEEN_NOTES_MAX;
use crate::link::LinkContext;
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

/// Notes on their way from a packet thread.
#[derive(Debug)]
pub(crate) struct NoteQueue {
    notes: ArrayQueue<(ShardId, Key, Time)>,
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

    fn push(&self, shard: ShardId, key: Key, at: Time) {
        if self.notes.push((shard, key, at)).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The packet thread's side: which flows were noted just now.
#[derive(Debug)]
pub(crate) struct Noted(Box<[(u64, u64)]>);

impl Noted {
    pub(crate) fn new() -> Self {
        Self(vec![(0, 0); REMEMBERED].into_boxed_slice())
    }

    /// Notes a flow, unless it was noted just now.
    pub(crate) fn note(&mut self, queue: &NoteQueue, shard: ShardId, key: &Key, now: Time) {
        let hash = key.0.iter().fold(u64::from(shard.0), |hash, word| {
            let wide = u128::from(hash ^ word) * 0x9e37_79b9_7f4a_7c15_u128;
            (wide >> 64) as u64 ^ wide as u64
        });
        let fresh = (hash, (now.0 >> TICK_BITS) + 1);
        let place = &mut self.0[hash as usize % REMEMBERED];
        if *place != fresh {
            *place = fresh;
            queue.push(shard, *key, now);
        }
    }
}

/// The store's side, until the thread's side is gone.
pub(crate) async fn run_relay(context: LinkContext, queue: Arc<NoteQueue>) {
    while Arc::strong_count(&queue) > 1 || !queue.notes.is_empty() {
        sleep(EVERY).await;
        let mut groups: BTreeMap<ShardId, Vec<(Key, Time)>> = BTreeMap::new();
        let waiting = core::iter::from_fn(|| queue.notes.pop());
        for (shard, key, at) in waiting.take(SEEN_NOTES_MAX) {
            groups.entry(shard).or_default().push((key, at));
        }
        let sent = groups.into_iter().map(|(shard, notes)| send(&context, shard, notes));
        let now = boot_now();
        for (shard, notes) in join_all(sent).await {
            let (young, old): (Vec<_>, Vec<_>) =
                notes.into_iter().partition(|(_, at)| now.since_ns(*at) < AGE_NS_MAX);
            queue.lost.fetch_add(old.len() as u64, Ordering::Relaxed);
            young.into_iter().for_each(|(key, at)| queue.push(shard, key, at));
        }
    }
}

/// Sends the notes of one shard; gives back what did not get through.
async fn send(
    context: &LinkContext,
    shard: ShardId,
    notes: Vec<(Key, Time)>,
) -> (ShardId, Vec<(Key, Time)>) {
    let now = boot_now();
    let note = |(key, at): &(Key, Time)| SeenNote {
        key: *key,
        age_ms: u32::try_from(now.since_ns(*at) / 1_000_000).unwrap_or(u32::MAX),
    };
    let seen: Vec<SeenNote> = notes.iter().map(note).collect();
    let Some(group) = context.shards.get(&shard) else { return (shard, notes) };
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
    (shard, if got_through { Vec::new() } else { notes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_flow_is_noted_once_in_a_while_and_a_full_queue_counts_what_it_loses() {
        let (queue, mut noted) = (NoteQueue::new(), Noted::new());
        let key = |number| Key([1, number, 0, 0, 0]);
        let mut note = |number, ms| noted.note(&queue, ShardId(1), &key(number), Time::from_ms(ms));
        (1_000..1_070).for_each(|ms| note(7, ms));
        assert_eq!(queue.notes.len(), 1);
        note(7, 2_000);
        note(8, 2_000);
        assert_eq!((queue.notes.len(), queue.lost()), (3, 0));
        assert_eq!(queue.notes.pop(), Some((ShardId(1), key(7), Time::from_ms(1_000))));
        (100..100 + SEEN_NOTES_MAX as u64 + 3).for_each(|number| note(number, 3_000));
        assert_eq!((queue.notes.len(), queue.lost()), (SEEN_NOTES_MAX, 5));
    }
}
