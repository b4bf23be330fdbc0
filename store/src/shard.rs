//! One shard on this node: its group, its lease, its group commit.
//!
//! Two tasks, and a third for read leases. One turns what a quorum has acknowledged into the lease
//! and tells the others who leads; the other collects proposals into entries.
//!
//! **The lease.** A leader's lease counts from the *sending* of what a quorum has answered, for as
//! long as voters refuse other candidates (`lease_ms`), less a margin. It is kept in a clock
//! that goes on while the host sleeps; the consensus library's clock does not, so a jump between
//! the two voids what was acknowledged before it. A new leader has none until an entry of its own
//! term is applied: then its table holds everything that was ever acknowledged.
//!
//! **Handing over.** The library ends the voters' refusal when asked to transfer leadership, and
//! knows nothing of what was promised here. So the lease is frozen first: nothing is promised past
//! its end, reads go on until then, and only then is the leadership given away.

#![expect(clippy::disallowed_methods, reason = "keeps time, and compares two clocks")]

use crate::batch::{batch_header, encode_transaction};
use crate::clock::{boot_now, wall_ms};
use crate::connection::Answer;
use crate::consensus::{ChangeError, ShardStatus, Timing};
use crate::driver::{LocalReads, RegionAddress};
use crate::group_commit::{GroupCommit, GroupLimits, Weight};
use crate::lease::{LeaseCell, LeaseTerms, owner_lease_end, read_lease_end, read_lease_grant_ns};
use crate::link::{GrantBoard, LinkContext};
use crate::machine::Reply;
use crate::raft::{Leading, Payload, Replica, Watch, WriteError};
use crate::transaction::{Outcome, Transaction};
use crate::transport::lock;
use crate::types::{NodeId, ShardId, Term, Time};
use crate::wire::{Found, Grant, NotServed, Readings, Request, Response};
use crate::{Entry, Key};
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use rkyv::util::AlignedVec;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::sleep;

/// Questions that may wait for the group commit of a shard.
const ASKS_MAX: usize = 4096;
/// Longest read lease that is granted at a time.
const GRANT_MAX_NS: u64 = 1_000_000_000;
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

    pub(crate) fn hint(&self) -> Option<NodeId> {
        match self.hint.load(Ordering::Relaxed) {
            0 => None,
            id => Some(NodeId(id)),
        }
    }

    pub(crate) fn set_hint(&self, node: u64) {
        self.hint.store(node, Ordering::Relaxed);
    }

    pub(crate) fn next_guess(&self) -> u64 {
        self.guess.fetch_add(1, Ordering::Relaxed)
    }
}

/// Transactions that want to be in an entry, and who wants to know.
pub(crate) struct Ask {
    /// As they stand in a batch.
    encoded: Vec<u8>,
    count: usize,
    route: Route,
}

/// Where outcomes go.
pub(crate) enum Route {
    Local(oneshot::Sender<Result<Vec<Outcome>, NotServed>>),
    Remote(Answer),
}

impl Route {
    fn answer(self, result: Result<Vec<Outcome>, NotServed>) {
        match self {
            // Who asked may have given up.
            Self::Local(sender) => drop(sender.send(result)),
            Self::Remote(answer) => answer.send(&match result {
                Ok(outcomes) => Response::Outcomes(outcomes),
                Err(reason) => Response::NotServed(reason),
            }),
        }
    }
}

impl Ask {
    pub(crate) fn new<'a>(
        transactions: impl Iterator<Item = &'a Transaction>,
        route: Route,
    ) -> Self {
        let (mut encoded, mut count) = (Vec::new(), 0);
        for transaction in transactions {
            encode_transaction(transaction, &mut encoded);
            count += 1;
        }
        Self { encoded, count, route }
    }

    fn weight(&self) -> Weight {
        Weight { units: self.count, bytes: self.encoded.len() }
    }
}

/// What the edge gives a shard besides its machine.
pub(crate) struct ShardParts {
    pub(crate) reads: Option<Arc<dyn LocalReads>>,
    pub(crate) region: Option<RegionAddress>,
    pub(crate) lease: Arc<LeaseCell>,
    pub(crate) generation: Option<Arc<dyn Fn(u64) + Send + Sync>>,
}

/// See the module's text.
pub(crate) struct Shard {
    pub(crate) id: ShardId,
    pub(crate) node: NodeId,
    pub(crate) replica: Replica,
    pub(crate) view: Arc<ShardView>,
    parts: ShardParts,
    timing: Timing,
    /// The lease is not made longer: leadership is being handed over.
    frozen: Mutex<bool>,
    /// The latest end of anything granted to others.
    granted: AtomicU64,
    /// The last term in which this node owned the shard.
    generation: AtomicU64,
    status: watch::Sender<ShardStatus>,
    asks: mpsc::Sender<Ask>,
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
            parts,
            timing,
            frozen: Mutex::new(false),
            granted: AtomicU64::new(0),
            generation: AtomicU64::new(0),
            status,
            asks,
            moved: Arc::default(),
        };
        (Arc::new(shard), asked)
    }

    pub(crate) fn status(&self) -> ShardStatus {
        self.replica.status(self.parts.lease.until())
    }

    /// For the end, when nothing makes it longer any more.
    pub(crate) fn end_lease(&self) {
        self.parts.lease.set(Time(0));
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<ShardStatus> {
        self.status.subscribe()
    }

    /// Hands transactions to the group commit.
    pub(crate) fn ask(&self, ask: Ask) {
        let leader = self.view.leader();
        if leader != Some(self.node) {
            let not_owner = NotServed::NotOwner(leader.map_or(0, |leader| leader.0));
            ask.route.answer(Err(not_owner));
            return;
        }
        if let Err(refused) = self.asks.try_send(ask) {
            refused.into_inner().route.answer(Err(NotServed::Busy));
        }
    }

    /// Reads for another node, and for how long they may be used; the lease is looked at after the
    /// reads.
    pub(crate) fn read_for_others(&self, keys: &[Key]) -> Response {
        let Some(reads) = &self.parts.reads else {
            return Response::NotServed(NotServed::Malformed);
        };
        let found: Vec<Option<Found>> =
            keys.iter().map(|key| reads.get(key).map(Found::from)).collect();
        match self.promise() {
            Some(left_ns) => Response::Reads(Readings { found, left_ns }),
            None => self.not_owner(),
        }
    }

    /// One read in this node's own memory, under its own lease.
    pub(crate) fn read_here(&self, key: &Key) -> Option<(Option<Entry>, Time)> {
        let entry = self.parts.reads.as_ref()?.get(key);
        let until = self.parts.lease.until();
        (boot_now() < until).then_some((entry, until))
    }

    /// A read lease for another node.
    pub(crate) fn grant(&self) -> Response {
        let path = self.parts.region.as_ref().and_then(|region| region.path.to_str());
        let Some(path) = path else { return Response::NotServed(NotServed::Malformed) };
        let generation = self.generation.load(Ordering::SeqCst);
        match self.promise() {
            Some(left_ns) => Response::ReadLease(Grant { path: path.into(), generation, left_ns }),
            None => self.not_owner(),
        }
    }

    fn terms(&self) -> LeaseTerms {
        let ns = |ms: u64| ms * 1_000_000;
        let Timing { lease_ms, lease_margin_ms, .. } = self.timing;
        LeaseTerms { length_ns: ns(lease_ms), margin_ns: ns(lease_margin_ms) }
    }

    fn not_owner(&self) -> Response {
        let leader = self.view.leader().filter(|leader| *leader != self.node);
        Response::NotServed(NotServed::NotOwner(leader.map_or(0, |leader| leader.0)))
    }

    /// Lets another node rely on this one's lease for what is returned, if there is one.
    fn promise(&self) -> Option<u64> {
        let now = boot_now();
        let until = self.parts.lease.until();
        let left = read_lease_grant_ns(until, now, self.terms()).min(GRANT_MAX_NS);
        if left == 0 {
            return None;
        }
        self.granted.fetch_max(now.plus_ns(left).0, Ordering::SeqCst);
        Some(left)
    }

    /// Gives the leadership away once everything promised has run out.
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
        if core::mem::replace(&mut *lock(&self.frozen), true) {
            return Err(ChangeError::InProgress);
        }
        let result = self.transfer_frozen(to, leading.term).await;
        *lock(&self.frozen) = false;
        self.moved.notify_waiters();
        result
    }

    async fn transfer_frozen(&self, to: NodeId, term: Term) -> Result<(), ChangeError> {
        loop {
            let now = boot_now();
            let promised = self.granted.load(Ordering::SeqCst).max(self.parts.lease.until().0);
            let left = Time(promised).since_ns(now);
            if left == 0 {
                break;
            }
            sleep(Duration::from_nanos(left)).await;
        }
        let mut watch = self.replica.watch();
        self.replica.transfer(to).await?;
        let patience = Duration::from_millis(self.timing.election_max_ms * 4);
        let gone = async {
            while self.replica.leading().is_some_and(|leading| leading.term == term) {
                if !watch.role_changed().await {
                    break;
                }
            }
        };
        tokio::time::timeout(patience, gone).await.map_err(|_| ChangeError::Timeout)
    }

    fn publish(&self) {
        let status = self.status();
        let leader = status.leader.map_or(0, |leader| leader.0);
        let moved = self.view.leader.swap(leader, Ordering::SeqCst) != leader;
        self.status.send_if_modified(|old| {
            let changed = *old != status;
            *old = status;
            changed
        });
        if moved {
            self.moved.notify_waiters();
        }
    }

    /// Makes the lease last as long as what is acknowledged allows.
    /// `before` was read before `leading` was: a pause between the two makes the lease shorter.
    fn renew(
        &self,
        (before, leading): (Time, &Leading),
        clocks: &mut Clocks,
        announced: &mut Option<Term>,
    ) -> bool {
        let acked = if leading.alone { Some(Duration::ZERO) } else { leading.acked_ago };
        let usable = clocks.look().filter(|_| leading.caught_up);
        let Some((acked, trusted)) = acked.zip(usable) else { return false };
        if acked > trusted {
            return false;
        }
        let spent = u64::try_from(acked.as_nanos()).unwrap_or(u64::MAX);
        let until = owner_lease_end(Time(before.0.saturating_sub(spent)), self.terms());
        if until <= boot_now() {
            return false;
        }
        if *announced != Some(leading.term) {
            *announced = Some(leading.term);
            self.generation.store(leading.term.0, Ordering::SeqCst);
            if let Some(generation) = &self.parts.generation {
                generation(leading.term.0);
            }
        }
        // Held over look and set: a transfer that freezes in between would wait for the old end
        // only.
        let frozen = lock(&self.frozen);
        if !*frozen && until > self.parts.lease.until() {
            self.parts.lease.set(until);
        }
        true
    }

    /// The first task: lease, leader, status.
    pub(crate) async fn watch_loop(self: Arc<Self>) {
        let mut watch: Watch = self.replica.watch();
        let mut clocks = Clocks::new();
        let mut announced = None;
        let tick = Duration::from_millis((self.timing.heartbeat_ms / 4).max(1));
        loop {
            let before = boot_now();
            let leading = self.replica.leading();
            let settled = match &leading {
                Some(leading) => self.renew((before, leading), &mut clocks, &mut announced),
                None => {
                    self.parts.lease.set(Time(0));
                    true
                }
            };
            self.publish();
            let wait = if leading.is_some() { tick } else { STATUS_EVERY };
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
        self.parts.lease.set(Time(0));
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
        let patience = Duration::from_millis(self.timing.election_min_ms);
        // The reader counts from here: before the question is sent.
        let asked = boot_now();
        let request = Request::ReadLease(self.id);
        let grant = match context.transport.call(owner, &request, patience).await {
            Ok(Response::ReadLease(grant)) => grant,
            Ok(Response::NotServed(NotServed::NotOwner(other))) => {
                self.view.set_hint(other);
                return GRANT_RETRY;
            }
            _ => {
                self.view.set_hint(0);
                return GRANT_RETRY;
            }
        };
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

    /// The second task: group commit.
    pub(crate) async fn commit_loop(self: Arc<Self>, mut asked: mpsc::Receiver<Ask>) {
        let mut group = GroupCommit::new(GroupLimits::default());
        let mut flying = FuturesUnordered::new();
        let mut news = Vec::new();
        loop {
            tokio::select! {
                biased;
                Some(()) = flying.next(), if !flying.is_empty() => group.done(),
                count = asked.recv_many(&mut news, ASKS_MAX) => {
                    if count == 0 {
                        return;
                    }
                }
            }
            let now = boot_now();
            for ask in news.drain(..) {
                let weight = ask.weight();
                if let Err(ask) = group.offer(now, weight, ask) {
                    ask.route.answer(Err(NotServed::Busy));
                }
            }
            while let Some(batch) = group.take(now) {
                flying.push(self.commit(batch));
            }
        }
    }

    /// Writes one entry and tells everybody who has a part in it.
    async fn commit(&self, asks: Vec<Ask>) {
        let count = asks.iter().map(|ask| ask.count).sum();
        let header = batch_header(wall_ms(), count);
        let bytes = asks.iter().map(|ask| ask.encoded.len()).sum::<usize>();
        let mut payload = AlignedVec::with_capacity(header.len() + bytes);
        payload.extend_from_slice(&header);
        let mut routes = Vec::with_capacity(asks.len());
        for Ask { encoded, count, route } in asks {
            payload.extend_from_slice(&encoded);
            routes.push((count, route));
        }
        let payload = Payload(Arc::new(payload));
        // Followers would refuse what the machine does not take, and wait for ever.
        let result = match self.replica.check(&payload) {
            Ok(()) => self.replica.write(payload).await,
            Err(error) => {
                tracing::error!(shard = %self.id, %error, "a batch is not acceptable");
                Err(WriteError::Malformed)
            }
        };
        let refusal = match result {
            Ok(Reply::Outcomes(outcomes)) if outcomes.len() == count => {
                let mut outcomes = outcomes.into_iter();
                for (count, route) in routes {
                    route.answer(Ok(outcomes.by_ref().take(count).collect()));
                }
                return;
            }
            Ok(_) => NotServed::Malformed,
            Err(WriteError::NotLeader(leader)) => {
                NotServed::NotOwner(leader.map_or(0, |leader| leader.0))
            }
            Err(WriteError::Unknown) => NotServed::Unknown,
            Err(WriteError::Malformed) => NotServed::Malformed,
            Err(WriteError::Stopped) => NotServed::Stopped,
        };
        for (_, route) in routes {
            route.answer(Err(refusal));
        }
    }
}

/// Notices when the host slept: the monotonic clock stops then, the lease's clock does not.
struct Clocks {
    origin: Instant,
    /// Boot-time clock less monotonic clock, when last looked at.
    apart_ns: i128,
    /// What was acknowledged before it is void.
    since: Instant,
}

/// Clocks drift apart by less than this between two looks, unless the host slept.
const APART_NS: i128 = 1_000_000;

impl Clocks {
    fn new() -> Self {
        let origin = Instant::now();
        let mut clocks = Self { origin, apart_ns: 0, since: origin };
        clocks.apart_ns = clocks.apart();
        clocks
    }

    fn apart(&self) -> i128 {
        let mut best = (Duration::MAX, 0);
        // A thread may be put aside between two looks at two clocks: take the closest pair.
        for _ in 0..4 {
            let before = self.origin.elapsed();
            let boot = boot_now();
            let gap = self.origin.elapsed().saturating_sub(before);
            if gap < best.0 {
                best = (gap, i128::from(boot.0) - before.as_nanos() as i128);
            }
            if gap < Duration::from_micros(50) {
                break;
            }
        }
        best.1
    }

    /// How far back the monotonic clock can be trusted; `None` if the host slept just now.
    fn look(&mut self) -> Option<Duration> {
        let apart = self.apart();
        let jumped = (apart - self.apart_ns).abs() > APART_NS;
        self.apart_ns = apart;
        if jumped {
            self.since = Instant::now();
            return None;
        }
        Some(self.since.elapsed())
    }
}
