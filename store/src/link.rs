//! How a packet thread talks to the store: bounded queues both ways, and words it can look at.
//!
//! The thread's side ([`PipeLink`]) never waits, locks or allocates, except that it takes a lock
//! and a new path when a shard's read lease comes from a new owner. The store's side (`run_link`)
//! takes everything that is queued at once: transactions of a shard go into one message (or
//! straight into the group commit if this node owns the shard), reads into another. What one shard
//! sends on to another goes apart from the rest, because it may have to wait there. What fails
//! because an owner is unknown, changed or gone is tried again under the same id until its
//! deadline; then its completion says that nothing is known. Exactly one completion follows what
//! was taken, and its place in the queue is reserved when it is taken.

use crate::clock::boot_now;
use crate::committer::{Ask, Route};
use crate::connection::Pending;
use crate::consensus::CallError;
use crate::doorbell::Doorbell;
pub use crate::grant_board::ReadGrant;
use crate::note_relay::{NoteQueue, Noted};
use crate::shard::{Shard, ShardView};
use crate::slot_map::SlotMap;
use crate::tally::Tally;
use crate::transaction::{Outcome, Refusal, Transaction};
use crate::transport::{Transport, lock};
use crate::types::{NodeId, ShardId, SlotId, Time};
use crate::wire::{KEYS_MAX, Reading, Request, Response, TRANSACTIONS_MAX};
use crate::{Entry, Key};
use core::sync::atomic::Ordering;
use core::time::Duration;
use crossbeam::queue::ArrayQueue;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use thiserror::Error;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep_until};

/// Requests of one link that may be under way.
pub const LINK_CAPACITY: usize = 1024;

// A retry is recognised as long as the machine remembers its first try: no transaction is taken
// while one that is so much older is under way.
const _: () = assert!(LINK_CAPACITY <= crate::limits::OUTCOMES_PER_CLIENT);

/// Between two tries.
const RETRY: Duration = Duration::from_millis(2);
/// The same for what is held up by the move of its slot, which takes little longer.
const HELD_RETRY: Duration = Duration::from_micros(500);
/// Patience with one try.
const TRY_NS: u64 = 500_000_000;

/// No room for another request now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("too many requests are under way")]
pub struct LinkFull;

/// Something that was asked for has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkCompletion {
    /// A read. `None`: not answered before its deadline.
    Read {
        /// Who asked.
        token: u64,
        /// What was found, and until when it may be used.
        answer: Option<(Option<Entry>, Time)>,
    },
    /// A transaction. `None`: no answer before its deadline, so whether it took effect is unknown.
    Transaction {
        /// Who asked.
        token: u64,
        /// What came of it.
        outcome: Option<Outcome>,
    },
}

struct Submit {
    token: u64,
    serial: u64,
    shard: ShardId,
    /// The shard before it said so.
    sent_on: bool,
    deadline: Time,
    transaction: Transaction,
}

struct Read {
    token: u64,
    shard: ShardId,
    /// The shard before it said so.
    sent_on: bool,
    slot: SlotId,
    deadline: Time,
    key: Key,
}

pub(crate) struct Queues {
    submits: ArrayQueue<Submit>,
    reads: ArrayQueue<Read>,
    /// With the serial of a transaction.
    completions: ArrayQueue<(u64, LinkCompletion)>,
    wake: Notify,
}

/// The thread's side; see the module's text.
pub struct PipeLink {
    queues: Arc<Queues>,
    views: Vec<(ShardId, Arc<ShardView>)>,
    grants: Vec<(u64, Option<Arc<ReadGrant>>)>,
    /// Taken and not yet polled.
    under_way: usize,
    notes: Arc<NoteQueue>,
    noted: Noted,
    /// The serials of transactions under way, each at its place modulo the length; 0 is none.
    serials: Box<[u64]>,
    /// No older serial is under way.
    oldest: u64,
}

impl core::fmt::Debug for PipeLink {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("PipeLink").field("under_way", &self.under_way).finish_non_exhaustive()
    }
}

impl PipeLink {
    pub(crate) fn new(
        shards: &BTreeMap<ShardId, Arc<Shard>>,
    ) -> (Self, Arc<Queues>, Arc<NoteQueue>) {
        let queues = Arc::new(Queues {
            submits: ArrayQueue::new(LINK_CAPACITY),
            reads: ArrayQueue::new(LINK_CAPACITY),
            completions: ArrayQueue::new(LINK_CAPACITY),
            wake: Notify::new(),
        });
        let views: Vec<_> = shards.values().map(|shard| (shard.id, shard.view.clone())).collect();
        let grants = views.iter().map(|_| (0, None)).collect();
        let notes = Arc::new(NoteQueue::new());
        let serials = vec![0; LINK_CAPACITY].into_boxed_slice();
        let link = Self {
            queues: queues.clone(),
            views,
            grants,
            under_way: 0,
            notes: notes.clone(),
            noted: Noted::new(),
            serials,
            oldest: 1,
        };
        (link, queues, notes)
    }

    /// Sends a transaction to the owner of its shard.
    ///
    /// # Errors
    /// If too much is under way, or a transaction of this link that is [`LINK_CAPACITY`] serials
    /// older; then nothing follows.
    pub fn submit(
        &mut self,
        token: u64,
        shard: ShardId,
        transaction: &Transaction,
        deadline: Time,
    ) -> Result<(), LinkFull> {
        if self.under_way >= LINK_CAPACITY {
            return Err(LinkFull);
        }
        let serial = transaction.id.serial;
        if !self.is_in_window(serial) {
            return Err(LinkFull);
        }
        let (transaction, sent_on) = (transaction.clone(), false);
        let submit = Submit { token, serial, shard, sent_on, deadline, transaction };
        self.queues.submits.push(submit).map_err(|_| LinkFull)?;
        self.serials[serial as usize % LINK_CAPACITY] = serial;
        self.under_way += 1;
        self.queues.wake.notify_one();
        Ok(())
    }

    /// Whether the machine will still remember every transaction under way when it has seen this
    /// one.
    fn is_in_window(&mut self, serial: u64) -> bool {
        if serial.saturating_sub(self.oldest) >= 2 * LINK_CAPACITY as u64 {
            // Far behind: what is left of it can be seen at its place.
            self.oldest = self.serials.iter().copied().filter(|s| *s != 0).min().unwrap_or(serial);
        }
        while self.oldest < serial
            && self.serials[self.oldest as usize % LINK_CAPACITY] != self.oldest
        {
            self.oldest += 1;
        }
        serial.saturating_sub(self.oldest) < LINK_CAPACITY as u64
    }

    /// Asks the owner of a shard for an entry of one of its slots.
    ///
    /// # Errors
    /// If too much is under way; then nothing follows.
    pub fn post_read(
        &mut self,
        token: u64,
        (shard, slot): (ShardId, SlotId),
        key: &Key,
        deadline: Time,
    ) -> Result<(), LinkFull> {
        if self.under_way >= LINK_CAPACITY {
            return Err(LinkFull);
        }
        let read = Read { token, shard, sent_on: false, slot, deadline, key: *key };
        self.queues.reads.push(read).map_err(|_| LinkFull)?;
        self.under_way += 1;
        self.queues.wake.notify_one();
        Ok(())
    }

    /// Tells the owner of a shard, when there is time, that a packet has seen an entry of it that
    /// was read elsewhere than in this node's memory, and what to count. Nothing follows.
    pub fn note_seen(&mut self, shard: ShardId, key: &Key, (now, tally): (Time, Tally)) {
        self.noted.note(&self.notes, shard, (key, now, tally));
    }

    /// Notes that found no room, or no owner in time.
    #[must_use]
    pub fn notes_lost(&self) -> u64 {
        self.notes.lost()
    }

    /// The next completion, if one has come.
    pub fn poll(&mut self) -> Option<LinkCompletion> {
        let (serial, completion) = self.queues.completions.pop()?;
        self.under_way -= 1;
        if serial != 0 {
            self.serials[serial as usize % LINK_CAPACITY] = 0;
        }
        Some(completion)
    }

    /// The newest read lease of a shard that another node owns; it may be over. It is renewed as
    /// long as somebody asks.
    pub fn grant(&mut self, shard: ShardId) -> Option<Arc<ReadGrant>> {
        let place = self.views.binary_search_by_key(&shard, |(id, _)| *id).ok()?;
        let board = &self.views[place].1.grants;
        board.want();
        let (seen, grant) = &mut self.grants[place];
        let version = board.version.load(Ordering::SeqCst);
        if *seen != version {
            grant.clone_from(&lock(&board.current));
            *seen = version;
        }
        grant.clone()
    }

    /// Who leads a shard, as far as is known here.
    #[must_use]
    pub fn leader(&self, shard: ShardId) -> Option<NodeId> {
        let place = self.views.binary_search_by_key(&shard, |(id, _)| *id).ok()?;
        self.views[place].1.leader()
    }
}

impl Drop for PipeLink {
    fn drop(&mut self) {
        // The store's side sees that it is alone.
        self.queues.wake.notify_one();
    }
}

/// What came of one try of a group.
enum Tried {
    Transactions(Vec<Submit>, Option<Vec<Outcome>>),
    Reads(Vec<Read>, Option<(Vec<Reading>, Time)>),
}

/// What the store's side of links needs.
#[derive(Clone)]
pub(crate) struct LinkContext {
    pub(crate) node: NodeId,
    pub(crate) shards: Arc<BTreeMap<ShardId, Arc<Shard>>>,
    pub(crate) transport: Arc<Transport>,
    /// Where slots are, once somebody says so.
    pub(crate) slots: Arc<OnceLock<SlotMap>>,
}

/// Requests of one link, by kind.
#[derive(Default)]
struct Requests {
    submits: Vec<Submit>,
    reads: Vec<Read>,
    /// Some of them wait only until their slot has moved.
    held: bool,
}

impl Requests {
    fn is_empty(&self) -> bool {
        self.submits.is_empty() && self.reads.is_empty()
    }

    fn append(&mut self, other: &mut Self) {
        self.submits.append(&mut other.submits);
        self.reads.append(&mut other.reads);
        other.held = false;
    }
}

/// The store's side, until the thread's side is gone and nothing is under way.
pub(crate) async fn run_link(context: LinkContext, queues: Arc<Queues>, bell: Arc<Doorbell>) {
    let mut flying: FuturesUnordered<BoxFuture<'static, Tried>> = FuturesUnordered::new();
    let mut fresh = Requests::default();
    let mut again = Requests::default();
    let mut again_at = Instant::now();
    loop {
        let had_failures = !again.is_empty();
        tokio::select! {
            () = queues.wake.notified() => {}
            Some(tried) = flying.next(), if !flying.is_empty() => {
                let slots = context.slots.get();
                finish(tried, &queues, slots, (&mut fresh, &mut again));
                while let Some(Some(tried)) = flying.next().now_or_never() {
                    finish(tried, &queues, slots, (&mut fresh, &mut again));
                }
                bell.ring();
            }
            () = sleep_until(again_at), if had_failures => fresh.append(&mut again),
            () = context.slots_changed(), if had_failures => fresh.append(&mut again),
        }
        if !had_failures {
            again_at = Instant::now() + if again.held { HELD_RETRY } else { RETRY };
        }
        fresh.submits.extend(core::iter::from_fn(|| queues.submits.pop()));
        fresh.reads.extend(core::iter::from_fn(|| queues.reads.pop()));
        if expire(&mut fresh, &queues) {
            bell.ring();
        }
        context.send(&mut fresh, &flying);
        if Arc::strong_count(&queues) == 1 && flying.is_empty() && again.is_empty() {
            return;
        }
    }
}

fn complete(queues: &Queues, serial: u64, completion: LinkCompletion) {
    let pushed = queues.completions.push((serial, completion));
    assert!(pushed.is_ok(), "a completion's place is reserved when its request is taken");
}

/// Completes what was answered; the rest is to be tried again: at once what has another shard now,
/// and a little later what failed, or is asked of a shard that its slot has not come to yet.
fn finish(
    tried: Tried,
    queues: &Queues,
    slots: Option<&SlotMap>,
    (fresh, again): (&mut Requests, &mut Requests),
) {
    match tried {
        Tried::Transactions(group, Some(outcomes)) if outcomes.len() == group.len() => {
            for (mut submit, outcome) in group.into_iter().zip(outcomes) {
                let slot = submit.transaction.slot;
                match (outcome, slots) {
                    (Outcome::Elsewhere(to), _) => {
                        (submit.shard, submit.sent_on) = (to, true);
                        fresh.submits.push(submit);
                    }
                    (Outcome::Refused(Refusal::NotThisSlot), Some(slots)) => {
                        (submit.shard, submit.sent_on) = (slots.shard_of(slot), false);
                        again.submits.push(submit);
                        again.held = true;
                    }
                    (outcome, _) => {
                        let (token, outcome) = (submit.token, Some(outcome));
                        let done = LinkCompletion::Transaction { token, outcome };
                        complete(queues, submit.serial, done);
                    }
                }
            }
        }
        Tried::Transactions(group, _) => again.submits.extend(group),
        Tried::Reads(group, Some((found, until))) if found.len() == group.len() => {
            for (mut read, found) in group.into_iter().zip(found) {
                let entry = match found {
                    Reading::Absent => None,
                    Reading::Found(found) => Some(Entry::from(found)),
                    Reading::NotHere(Some(to)) => {
                        (read.shard, read.sent_on) = (to, true);
                        fresh.reads.push(read);
                        continue;
                    }
                    Reading::NotHere(None) => {
                        read.shard = slots.map_or(read.shard, |slots| slots.shard_of(read.slot));
                        read.sent_on = false;
                        again.reads.push(read);
                        again.held = true;
                        continue;
                    }
                };
                let (token, answer) = (read.token, Some((entry, until)));
                complete(queues, 0, LinkCompletion::Read { token, answer });
            }
        }
        Tried::Reads(group, _) => again.reads.extend(group),
    }
}

/// Completes what is past its deadline.
fn expire(requests: &mut Requests, queues: &Queues) -> bool {
    if requests.is_empty() {
        return false;
    }
    let now = boot_now();
    let late_submits = requests.submits.extract_if(.., |submit| submit.deadline <= now);
    let late_reads = requests.reads.extract_if(.., |read| read.deadline <= now);
    let submits = late_submits.map(|Submit { token, serial, .. }| {
        (serial, LinkCompletion::Transaction { token, outcome: None })
    });
    let reads =
        late_reads.map(|read| (0, LinkCompletion::Read { token: read.token, answer: None }));
    let mut any = false;
    for (serial, completion) in submits.chain(reads) {
        complete(queues, serial, completion);
        any = true;
    }
    any
}

/// Takes requests that go the same way out of a list, at most `limit` of them.
fn take_group<T, W: PartialEq>(
    list: &mut Vec<T>,
    way_of: impl Fn(&T) -> W,
    limit: usize,
) -> Vec<T> {
    let Some(way) = list.first().map(&way_of) else { return Vec::new() };
    if list.len() <= limit && list.iter().all(|item| way_of(item) == way) {
        return core::mem::take(list);
    }
    let mut left = limit;
    list.extract_if(.., |item| {
        let take = left > 0 && way_of(item) == way;
        left -= usize::from(take);
        take
    })
    .collect()
}

impl LinkContext {
    /// Resolves when a slot has moved; never if nobody says where slots are.
    async fn slots_changed(&self) {
        match self.slots.get() {
            Some(slots) => slots.changed().await,
            None => core::future::pending().await,
        }
    }

    fn send(&self, requests: &mut Requests, flying: &FuturesUnordered<BoxFuture<'static, Tried>>) {
        let Requests { submits, reads, .. } = requests;
        while !submits.is_empty() {
            let way_of = |submit: &Submit| (submit.shard, submit.sent_on);
            let group = take_group(submits, way_of, TRANSACTIONS_MAX);
            flying.push(self.send_transactions(group));
        }
        while !reads.is_empty() {
            let group = take_group(reads, |read| (read.shard, read.sent_on), KEYS_MAX);
            flying.push(self.send_reads(group));
        }
    }

    fn send_transactions(&self, group: Vec<Submit>) -> BoxFuture<'static, Tried> {
        let Some(shard) = group.first().and_then(|submit| self.shards.get(&submit.shard)) else {
            return Box::pin(async { Tried::Transactions(group, None) });
        };
        let patience = patience(group.iter().map(|submit| submit.deadline));
        let transactions = group.iter().map(|submit| &submit.transaction);
        let target = self.target(shard);
        if target == Some(self.node) {
            let (sender, receiver) = oneshot::channel();
            let ask = Ask::new(transactions, Route::Local(sender));
            let waiting = match shard.held_up(group.iter().map(|submit| submit.transaction.slot)) {
                None => {
                    shard.ask(ask);
                    None
                }
                Some(wait) => Some((wait, shard.clone(), ask)),
            };
            return Box::pin(async move {
                if let Some((wait, shard, ask)) = waiting {
                    wait.await;
                    shard.ask(ask);
                }
                let answer = tokio::time::timeout(patience, receiver).await;
                let outcomes = answer.ok().and_then(Result::ok).and_then(Result::ok);
                Tried::Transactions(group, outcomes)
            });
        }
        let begun = target.map(|target| {
            let request = Request::Transactions(shard.id, transactions.cloned().collect());
            self.transport.begin(target, &request)
        });
        let view = shard.view.clone();
        Box::pin(async move {
            let outcomes = match answer(target, begun, patience, &view).await {
                Some(Response::Outcomes(outcomes)) => Some(outcomes),
                _ => None,
            };
            Tried::Transactions(group, outcomes)
        })
    }

    fn send_reads(&self, group: Vec<Read>) -> BoxFuture<'static, Tried> {
        let Some(shard) = group.first().and_then(|read| self.shards.get(&read.shard)) else {
            return Box::pin(async { Tried::Reads(group, None) });
        };
        let patience = patience(group.iter().map(|read| read.deadline));
        let target = self.target(shard);
        if target == Some(self.node) {
            return match shard.held_up(group.iter().map(|read| read.slot)) {
                None => {
                    let answer = read_group(shard, &group);
                    Box::pin(async move { Tried::Reads(group, answer) })
                }
                Some(wait) => {
                    let shard = shard.clone();
                    Box::pin(async move {
                        wait.await;
                        let answer = read_group(&shard, &group);
                        Tried::Reads(group, answer)
                    })
                }
            };
        }
        // The reader counts from here: before the question is sent.
        let asked = boot_now();
        let begun = target.map(|target| {
            let keys = group.iter().map(|read| (read.slot, read.key)).collect();
            self.transport.begin(target, &Request::Reads(shard.id, keys))
        });
        let view = shard.view.clone();
        Box::pin(async move {
            let found = match answer(target, begun, patience, &view).await {
                Some(Response::Reads(readings)) => {
                    let until = crate::lease::read_lease_end(asked, readings.left_ns);
                    Some((readings.found, until))
                }
                _ => None,
            };
            Tried::Reads(group, found)
        })
    }

    /// Whom to ask. A node without a vote in the group may not know its leader: then who was named
    /// last, or anybody, who will name another.
    pub(crate) fn target(&self, shard: &Shard) -> Option<NodeId> {
        shard.view.named(self.node).or_else(|| {
            let peers = self.transport.contacts();
            let turn = shard.view.next_guess() as usize;
            (!peers.is_empty()).then(|| peers[turn % peers.len()].0)
        })
    }
}

/// Reads in this node's own memory; `None` if the lease is over.
fn read_group(shard: &Shard, group: &[Read]) -> Option<(Vec<Reading>, Time)> {
    let keys = group.iter().map(|read| shard.read_here(read.slot, &read.key));
    let found = keys.collect::<Option<Vec<(Reading, Time)>>>()?;
    let until = found.iter().map(|(_, until)| *until).min().unwrap_or_default();
    Some((found.into_iter().map(|(found, _)| found).collect(), until))
}

fn patience(deadlines: impl Iterator<Item = Time>) -> Duration {
    let first = deadlines.min().unwrap_or_default();
    Duration::from_nanos(first.since_ns(boot_now()).min(TRY_NS))
}

/// Waits for the answer of a node, and learns from it who owns the shard.
async fn answer(
    asked: Option<NodeId>,
    begun: Option<Result<Pending, CallError>>,
    patience: Duration,
    view: &ShardView,
) -> Option<Response> {
    let answer = match begun? {
        Ok(pending) => pending.within(patience).await,
        Err(error) => Err(error),
    };
    view.learn(asked?, answer.as_ref());
    answer.ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{LogIndex, SlotId};
    use crate::{Transaction, TransactionId};

    fn submit(link: &mut PipeLink, serial: u64) -> Result<(), LinkFull> {
        let transaction = Transaction {
            id: TransactionId { client: 1, serial },
            slot: SlotId(0),
            conditions: Default::default(),
            writes: Default::default(),
        };
        link.submit(serial, ShardId(1), &transaction, Time(1))
    }

    /// The store's side answers one, and the thread takes it.
    fn answer(link: &mut PipeLink, queues: &Queues, serial: u64) {
        let outcome = Some(Outcome::Committed(LogIndex(1)));
        complete(queues, serial, LinkCompletion::Transaction { token: serial, outcome });
        assert!(link.poll().is_some());
    }

    #[test]
    fn no_transaction_is_taken_that_would_make_the_machine_forget_one_under_way() {
        let (mut link, queues, _) = PipeLink::new(&BTreeMap::new());
        for serial in 1..=3000 {
            submit(&mut link, serial).unwrap();
            assert!(queues.submits.pop().is_some());
            answer(&mut link, &queues, serial);
        }
        // One stays away, because it is tried again and again.
        let late = 3001;
        submit(&mut link, late).unwrap();
        let capacity = LINK_CAPACITY as u64;
        for serial in late + 1..late + capacity {
            assert!(queues.submits.pop().is_some());
            submit(&mut link, serial).unwrap();
            answer(&mut link, &queues, serial);
        }
        assert_eq!(submit(&mut link, late + capacity), Err(LinkFull));
        assert_eq!(submit(&mut link, late + capacity + 1), Err(LinkFull), "the next neither");
        answer(&mut link, &queues, late);
        submit(&mut link, late + capacity).unwrap();
    }
}
