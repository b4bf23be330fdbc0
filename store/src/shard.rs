//! One shard on this node: its group, its lease, its group commit.
//!
//! Two tasks, and a third for read leases. One turns what a quorum has acknowledged into the lease
//! and tells the others who leads; the other collects proposals into entries
//! ([`crate::committer`]).
//!
//! **The lease.** A leader's lease counts from the *sending* of what a quorum has answered, for as
//! long as voters refuse other candidates (`lease_ms`), less a margin. It is kept in a clock
//! that goes on while the host sleeps; the consensus library's clock does not, so a jump between
//! the two voids what was acknowledged before it. A new leader has none until an entry of its own
//! term is applied: then its table holds everything that was ever acknowledged.
//!
//! **Handing over.** The library ends the voters' refusal when asked to transfer leadership, and
//! knows nothing of what was promised here. So nothing is promised past the lease's end first
//! ([`crate::tenure`]), reads go on until then, and only then is the leadership given away. From
//! then on the library lets this node neither propose nor send heartbeats in that term: if the
//! other does not take over, the voters elect somebody when they have waited long enough.

#![expect(clippy::disallowed_methods, reason = "keeps time, and compares two clocks")]

use crate::Key;
use crate::batch::stamp;
use crate::clock::{boot_now, wall_ms};
use crate::committer::{ASKS_MAX, Ask};
use crate::consensus::{CallError, ChangeError, ShardStatus, Timing};
use crate::driver::{LocalReads, RegionAddress};
use crate::grant_board::GrantBoard;
use crate::keeper::UpkeepCounters;
use crate::lease::{LeaseCell, LeaseTerms, read_lease_end};
use crate::link::LinkContext;
use crate::local_reads::reading;
use crate::move_board::MoveBoard;
use crate::raft::{Payload, Replica, Watch};
use crate::refusal_counts::RefusalCounts;
use crate::slot_move;
use crate::suspension::Clocks;
use crate::tenure::{Look, Tenure};
use crate::transaction::SeenNote;
use crate::types::{NodeId, ShardId, SlotId, Term, Time};
use crate::wire::{Grant, NotServed, Reading, Readings, Request, Response};
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use core::time::Duration;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::sleep;

/// Transactions that wait when the group is said to be busy.
const BUSY_UNITS: usize = 1024;
/// Until a read lease is asked for again: after a refusal, and if there is nobody to ask.
const GRANT_RETRY: Duration = Duration::from_millis(10);
const GRANT_IDLE: Duration = Duration::from_millis(500);
/// How often a follower's status is published although its role does not change.
const STATUS_EVERY: Duration = Duration::from_millis(100);

/// What threads without a runtime see of a shard.
#[derive(Debug, Default)]
pub(crate) struct ShardView {
    leader: AtomicU64,
    /// Who was named as owner by somebody else, for nodes without a part in the group.
    hint: AtomicU64,
    /// The leader in which a caller was let down. A node that was removed from the group never
    /// hears of a later one.
    doubted: AtomicU64,
    guess: AtomicU64,
    pub(crate) grants: GrantBoard,
}

impl ShardView {
    pub(crate) fn leader(&self) -> Option<NodeId> {
        match self.leader.load(Ordering::SeqCst) {
            0 => None,
            id => Some(NodeId(id)),
        }
    }

    /// Whom to ask, if anybody is known: the leader as this node's own replica knows it, unless it
    /// let a caller down; otherwise who was named last by somebody else. `me` is never named by
    /// others: this node knows best whether it leads.
    pub(crate) fn named(&self, me: NodeId) -> Option<NodeId> {
        let doubted = self.doubted.load(Ordering::Relaxed);
        let hint = NodeId(self.hint.load(Ordering::Relaxed));
        let hint = Some(hint).filter(|hint| hint.0 != 0 && *hint != me);
        self.leader().filter(|leader| *leader == me || leader.0 != doubted).or(hint)
    }

    /// Learns from what came of asking a node for something that only the owner does. Whoever
    /// fails, is unknown, or says that it is not the owner is not asked again before somebody
    /// else names it.
    pub(crate) fn learn(&self, asked: NodeId, answer: Result<&Response, &CallError>) {
        let named = match answer {
            Ok(Response::NotServed(NotServed::NotOwner(owner))) => *owner,
            // It is there, and it may well be the owner.
            Ok(Response::NotServed(NotServed::Busy)) | Err(CallError::Busy) => return,
            Ok(Response::NotServed(_)) => 0,
            Err(
                CallError::Timeout
                | CallError::Broken
                | CallError::Unreachable(_)
                | CallError::Refused(_)
                | CallError::Garbage(_),
            ) => 0,
            Err(CallError::TooLarge(_)) => return,
            Ok(_) => {
                if self.doubted.load(Ordering::Relaxed) == asked.0 {
                    self.doubted.store(0, Ordering::Relaxed);
                }
                if self.hint.load(Ordering::Relaxed) != asked.0 {
                    self.hint.store(asked.0, Ordering::Relaxed);
                }
                return;
            }
        };
        self.doubted.store(asked.0, Ordering::Relaxed);
        self.hint.store(named, Ordering::Relaxed);
    }

    /// The replica's own news of who leads. Whether it is another than before.
    fn set_leader(&self, leader: Option<NodeId>) -> bool {
        let leader = leader.map_or(0, |leader| leader.0);
        let moved = self.leader.swap(leader, Ordering::SeqCst) != leader;
        if moved {
            self.doubted.store(0, Ordering::Relaxed);
        }
        moved
    }

    pub(crate) fn next_guess(&self) -> u64 {
        self.guess.fetch_add(1, Ordering::Relaxed)
    }
}

/// What the edge gives a shard besides its machine.
pub(crate) struct ShardParts {
    pub(crate) reads: Option<Arc<dyn LocalReads>>,
    pub(crate) region: Option<RegionAddress>,
    pub(crate) lease: Arc<LeaseCell>,
    pub(crate) generation: Option<Arc<dyn Fn(u64) + Send + Sync>>,
    pub(crate) moves: Arc<MoveBoard>,
    pub(crate) refusals: Arc<RefusalCounts>,
}

/// See the module's text.
pub(crate) struct Shard {
    pub(crate) id: ShardId,
    pub(crate) node: NodeId,
    pub(crate) replica: Replica,
    pub(crate) view: Arc<ShardView>,
    pub(crate) parts: ShardParts,
    timing: Timing,
    tenure: Tenure,
    /// The last term in which this node owned the shard.
    generation: AtomicU64,
    /// Whether the cluster wants a replica here.
    has_part: AtomicBool,
    status: watch::Sender<ShardStatus>,
    asks: mpsc::Sender<Ask>,
    /// Transactions that wait for an entry.
    pub(crate) backlog: AtomicUsize,
    pub(crate) upkeep: UpkeepCounters,
    /// The leader, the lease or the role changed.
    pub(crate) moved: Arc<Notify>,
}

impl Shard {
    pub(crate) fn new(
        (id, node): (ShardId, NodeId),
        replica: Replica,
        parts: ShardParts,
        timing: Timing,
    ) -> (Arc<Self>, mpsc::Receiver<Ask>) {
        let (asks, asked) = mpsc::channel(ASKS_MAX);
        let status = watch::Sender::new(replica.status(Time(0)));
        let shard = Self {
            id,
            node,
            replica,
            view: Arc::default(),
            tenure: Tenure::new(parts.lease.clone(), terms(timing)),
            parts,
            timing,
            generation: AtomicU64::new(0),
            has_part: AtomicBool::new(true),
            status,
            asks,
            backlog: AtomicUsize::new(0),
            upkeep: UpkeepCounters::default(),
            moved: Arc::default(),
        };
        (Arc::new(shard), asked)
    }

    pub(crate) fn status(&self) -> ShardStatus {
        let mut status = self.replica.status(self.tenure.until());
        let has_part = self.has_part.load(Ordering::SeqCst);
        status.leader = status.leader.filter(|leader| has_part || *leader == self.node);
        status
    }

    pub(crate) fn lease_until(&self) -> Time {
        self.tenure.until()
    }

    /// How long the answer of a node that lives may take.
    pub(crate) const fn patience(&self) -> Duration {
        Duration::from_millis(self.timing.election_min_ms)
    }

    /// For the end, when nothing makes it longer any more.
    pub(crate) fn end_lease(&self) {
        self.tenure.end();
    }

    /// A replica that the group has given up hears no more of it: it would believe in its last
    /// leader for ever, or ask for votes for ever.
    pub(crate) fn set_part(&self, has_part: bool) {
        if self.has_part.swap(has_part, Ordering::SeqCst) != has_part {
            self.replica.campaign(has_part);
            self.publish();
        }
    }

    pub(crate) fn has_part(&self) -> bool {
        self.has_part.load(Ordering::SeqCst)
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<ShardStatus> {
        self.status.subscribe()
    }

    /// Hands transactions to the group commit.
    pub(crate) fn ask(&self, ask: Ask) {
        let leader = self.view.leader();
        if leader != Some(self.node) {
            let not_owner = NotServed::NotOwner(leader.map_or(0, |leader| leader.0));
            ask.refuse(not_owner, &self.parts.refusals);
            return;
        }
        if let Err(refused) = self.asks.try_send(ask) {
            refused.into_inner().refuse(NotServed::Busy, &self.parts.refusals);
        }
    }

    /// Reads for another node, and for how long they may be used; the lease is looked at after the
    /// reads.
    pub(crate) fn read_for_others(&self, keys: &[(SlotId, Key)]) -> Response {
        let Some(reads) = &self.parts.reads else {
            return Response::NotServed(NotServed::Malformed);
        };
        let found = keys.iter().map(|(slot, key)| reading(reads.as_ref(), *slot, key)).collect();
        match self.tenure.grant(boot_now) {
            Some(left_ns) => Response::Reads(Readings { found, left_ns }),
            None => self.not_owner(),
        }
    }

    /// Marks what packets of another node have seen.
    pub(crate) fn note_seen(&self, notes: &[SeenNote]) -> Response {
        let Some(reads) = &self.parts.reads else {
            return Response::NotServed(NotServed::Malformed);
        };
        if self.view.leader() != Some(self.node) {
            return self.not_owner();
        }
        let now = boot_now();
        for note in notes {
            reads.note_seen(&note.key, note.seen_at(now), note.tally);
        }
        Response::Noted
    }

    /// Whether so much waits to be committed that what can wait should.
    pub(crate) fn is_busy(&self) -> bool {
        self.backlog.load(Ordering::Relaxed) > BUSY_UNITS
    }

    /// One read in this node's own memory, under its own lease.
    pub(crate) fn read_here(&self, slot: SlotId, key: &Key) -> Option<(Reading, Time)> {
        let found = reading(self.parts.reads.as_ref()?.as_ref(), slot, key);
        let until = self.parts.lease.until();
        (boot_now() < until).then_some((found, until))
    }

    /// A read lease for another node.
    pub(crate) fn grant(&self) -> Response {
        let path = self.parts.region.as_ref().and_then(|region| region.path.to_str());
        let Some(path) = path else { return Response::NotServed(NotServed::Malformed) };
        let generation = self.generation.load(Ordering::SeqCst);
        match self.tenure.grant(boot_now) {
            Some(left_ns) => Response::ReadLease(Grant { path: path.into(), generation, left_ns }),
            None => self.not_owner(),
        }
    }

    fn not_owner(&self) -> Response {
        let leader = self.view.leader().filter(|leader| *leader != self.node);
        Response::NotServed(NotServed::NotOwner(leader.map_or(0, |leader| leader.0)))
    }

    /// Offers the leadership to another node once everything promised has run out; gives when this
    /// node leads no more in the term in which it was asked.
    pub(crate) async fn transfer(&self, to: NodeId) -> Result<(), ChangeError> {
        let Some(leading) = self.replica.leading() else {
            return Err(ChangeError::NotLeader(self.view.leader()));
        };
        if !self.status().voters.contains(&to) {
            return Err(ChangeError::NotMember(to));
        }
        if to == self.node {
            return Ok(());
        }
        self.tell_all().await;
        self.tenure.offer(leading.term).map_err(|_| ChangeError::InProgress)?;
        let mut offering = Offering { tenure: &self.tenure, term: None };
        loop {
            let left = self.tenure.promised_until().since_ns(boot_now());
            if left == 0 {
                break;
            }
            sleep(Duration::from_nanos(left)).await;
        }
        let mut watch = self.replica.watch();
        // Should this call be given up while it asks, nothing is known: then no term that this
        // node may have led by then has a lease again.
        offering.term = Some(Term(u64::MAX));
        let asked_by = self.replica.transfer(to).await?;
        offering.term = Some(asked_by);
        drop(offering);
        let patience = Duration::from_millis(self.timing.election_max_ms * 4);
        let gone = async {
            while self.replica.leading().is_some_and(|leading| leading.term <= asked_by) {
                if !watch.role_changed().await {
                    break;
                }
            }
        };
        let waited = tokio::time::timeout(patience, gone).await;
        self.moved.notify_waiters();
        waited.map_err(|_| ChangeError::Timeout)
    }

    fn publish(&self) {
        let status = self.status();
        let moved = self.view.set_leader(status.leader);
        self.status.send_if_modified(|old| {
            let changed = *old != status;
            *old = status;
            changed
        });
        if moved {
            self.moved.notify_waiters();
        }
    }

    /// Makes the lease last as long as what is acknowledged allows. `false`: nothing is yet.
    fn renew(&self, look: &Look, clocks: &mut Clocks, announced: &mut Option<Term>) -> bool {
        let end = look.lease_end(clocks.look(), self.tenure.terms());
        let (Some(leading), Some(until)) = (look.leading, end) else { return false };
        if until <= boot_now() {
            return false;
        }
        if *announced != Some(leading.term) {
            *announced = Some(leading.term);
            self.announce(leading.term.0);
        }
        self.tenure.extend(leading.term, until);
        true
    }

    /// Marks the region with the owner's term, which a grant names; 0 when there is no owner here,
    /// so that no grant of a former one reads what a follower applies.
    fn announce(&self, generation: u64) {
        self.generation.store(generation, Ordering::SeqCst);
        if let Some(set) = &self.parts.generation {
            set(generation);
        }
    }

    /// This node does not lead: its lease ends, and with it every grant of its region.
    fn step_down(&self, announced: &mut Option<Term>) {
        self.tenure.end();
        if announced.take().is_some() {
            self.announce(0);
        }
    }

    /// The first task: lease, leader, status.
    pub(crate) async fn watch_loop(self: Arc<Self>) {
        let mut watch: Watch = self.replica.watch();
        let mut clocks = Clocks::new();
        let mut announced = None;
        let tick = Duration::from_millis((self.timing.heartbeat_ms / 4).max(1));
        loop {
            let look = Look::take(boot_now, || self.replica.leading());
            let settled = match look.leading {
                Some(_) => self.renew(&look, &mut clocks, &mut announced),
                None => {
                    self.step_down(&mut announced);
                    true
                }
            };
            self.publish();
            let wait = if look.leading.is_some() { tick } else { STATUS_EVERY };
            let changed = async {
                if settled { watch.role_changed().await } else { watch.anything_changed().await }
            };
            let alive = tokio::select! {
                alive = changed => alive,
                () = sleep(wait) => true,
            };
            if !alive {
                break;
            }
        }
        self.step_down(&mut announced);
        self.publish();
    }

    /// The third task, on nodes that map other processes' tables: keeps a read lease from the
    /// owner while it is used.
    pub(crate) async fn grant_loop(self: Arc<Self>, context: LinkContext) {
        loop {
            let moved = self.moved.notified();
            let owner = context.target(&self).filter(|owner| *owner != self.node);
            let wait = match owner {
                Some(owner) => self.fetch_grant(&context, owner).await,
                None => GRANT_IDLE,
            };
            tokio::select! {
                () = moved => {}
                () = sleep(wait) => {}
            }
            self.view.grants.until_wanted().await;
        }
    }

    /// Asks for a read lease; gives when to ask again.
    async fn fetch_grant(&self, context: &LinkContext, owner: NodeId) -> Duration {
        let patience = self.patience();
        // The reader counts from here: before the question is sent.
        let asked = boot_now();
        let request = Request::ReadLease(self.id);
        let answer = context.transport.call(owner, &request, patience).await;
        self.view.learn(owner, answer.as_ref());
        let Ok(Response::ReadLease(grant)) = answer else { return GRANT_RETRY };
        let path = PathBuf::from(grant.path);
        // A path that does not exist here is another host's.
        if !self.view.grants.knows(&path) && !path.exists() {
            return GRANT_IDLE;
        }
        let until = read_lease_end(asked, grant.left_ns);
        self.view.grants.put(path, grant.generation, owner, until);
        Duration::from_nanos(grant.left_ns / 3)
    }

    pub(crate) fn maps_regions(&self) -> bool {
        self.parts.region.is_some()
    }

    /// A step of a move with the shard's time; everything else as it is.
    pub(crate) fn stamped(&self, payload: Payload) -> Payload {
        // What begins like a step in the log of another machine is none.
        if self.parts.reads.is_none() || !slot_move::is_move(&payload.0) {
            return payload;
        }
        let term = self.replica.leading().map_or(Term(0), |leading| leading.term);
        let time_ms = self.replica.time().stamp(term, boot_now(), wall_ms());
        let mut bytes = payload.0.to_vec();
        stamp(&mut bytes, time_ms);
        Payload::copy_of(&bytes)
    }
}

fn terms(timing: Timing) -> LeaseTerms {
    let ns = |ms: u64| ms * 1_000_000;
    let Timing { lease_ms, lease_margin_ms, .. } = timing;
    LeaseTerms { length_ns: ns(lease_ms), margin_ns: ns(lease_margin_ms) }
}

/// Ends a hand-over's hold on the lease, also if whoever asked for it gives up.
struct Offering<'a> {
    tenure: &'a Tenure,
    term: Option<Term>,
}

impl Drop for Offering<'_> {
    fn drop(&mut self) {
        self.tenure.offered(self.term);
    }
}
