//! A store of one flow shard that holds all slots: the replicated table by itself, for a program
//! that wants no more of Nearstate than that.
//!
//! It puts together what a node puts together for each of its shards, and adds calls that wait:
//! commit, read, watch. Kept in memory: a process that comes back is a new node with a new id.
//! Not for packet paths, which never wait: they take a [`TableReader`] and a
//! [`Store::pipe_link`].

#![expect(clippy::disallowed_methods, reason = "binds a socket and waits")]

use crate::Entry;
use crate::clock::boot_now;
use crate::committer::{Ask, Route};
use crate::consensus::{CallError, ChangeError};
use crate::driver::{AppHandler, ShardSetup, StartError, Store, StoreConfig};
use crate::flow_machine::{FlowMachine, FlowMachineConfig};
use crate::key::Key;
use crate::lease::LeaseCell;
use crate::machine::Machine;
use crate::region::{Region, RegionError};
use crate::shard::Shard;
use crate::slot_set::{BadSlotCount, SlotSet};
use crate::table::Table;
use crate::table_reader::{RegionIdentity, TableError, TableReader};
use crate::transaction::{Condition, Outcome, Transaction, TransactionId, Write};
use crate::types::{NodeId, ShardId, SlotId, Version};
use crate::wire::{Reading, Request, Response};
use core::net::SocketAddr;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use futures::future::BoxFuture;
use std::io;
use std::sync::Arc;
use thiserror::Error;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};

/// The shard of an embedded store.
pub const SHARD: ShardId = ShardId(1);
/// The shard holds all slots for ever, so no question depends on which it is about.
const ANY_SLOT: SlotId = SlotId(0);
/// The number of this asker among those of its node; see [`TransactionId::client`].
const CLIENT: u64 = 0xfffe;
/// How long a commit or a read may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long one try of it may take.
const TRY: Duration = Duration::from_millis(500);
/// Between two tries to find the owner, if nothing is heard meanwhile.
const RETRY: Duration = Duration::from_millis(10);

/// What an embedded store needs to know. Slots, capacity and cluster are the same on all replicas.
#[derive(Clone, Debug)]
pub struct EmbeddedConfig {
    /// The cluster, this replica's id, timing.
    pub store: StoreConfig,
    /// Slots of the cluster, a power of two.
    pub slots: u32,
    /// Entries that the table has room for.
    pub capacity: u32,
}

/// What a reading says of an entry; `None` if it says nothing.
fn found(reading: Reading) -> Option<Option<Entry>> {
    match reading {
        Reading::Absent => Some(None),
        Reading::Found(found) => Some(Some(Entry::from(found))),
        Reading::NotHere(_) => None,
    }
}

/// Why an embedded store does not start.
#[derive(Debug, Error)]
pub enum EmbeddedError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}; choose another address, or port 0 for any")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// No such number of slots.
    #[error(transparent)]
    Slots(#[from] BadSlotCount),
    /// No such table.
    #[error(transparent)]
    Table(#[from] TableError),
    /// No memory for the table.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// The store itself.
    #[error(transparent)]
    Start(#[from] StartError),
    /// Files would have to be kept with more than this store keeps.
    #[error("an embedded store is kept in memory: set durability to memory")]
    Durable,
}

/// No answer. A commit may have taken effect all the same, unless it says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Unanswered {
    /// Nobody owned the shard, or the owner did not answer, in the time that there is.
    #[error("no owner has answered in {PATIENCE:?}: are most replicas running and connected?")]
    NoOwner,
    /// The replica has stopped.
    #[error("the replica has stopped")]
    Stopped,
}

/// See the module's text.
#[derive(Debug)]
pub struct Embedded {
    store: Arc<Store>,
    reader: TableReader,
    address: SocketAddr,
    serials: AtomicU64,
}

fn stopped(error: Unanswered) -> ChangeError {
    ChangeError::Other(error.to_string())
}

/// There are no layers above.
struct NoApp;

impl AppHandler for NoApp {
    fn handle(&self, _: Option<NodeId>, _: Vec<u8>) -> BoxFuture<'static, Vec<u8>> {
        Box::pin(core::future::ready(Vec::new()))
    }
}

impl EmbeddedConfig {
    /// With the default timing. The id must never have been used before.
    #[must_use]
    pub fn new(cluster: u64, node: NodeId, capacity: u32) -> Self {
        let nonce = boot_now().0 ^ u64::from(std::process::id()) << 32;
        Self { store: StoreConfig::new(cluster, node, nonce), slots: 1024, capacity }
    }

    /// Starts a replica that listens there. It is alone until it is told of others
    /// ([`Embedded::meet`]), and serves nothing until its group is formed ([`Embedded::form`]).
    ///
    /// # Errors
    /// If the address, the memory or a setting does not work.
    pub async fn start(self, listen: SocketAddr) -> Result<Embedded, EmbeddedError> {
        if !matches!(self.store.durability, crate::disk::Durability::Memory) {
            return Err(EmbeddedError::Durable);
        }
        SlotSet::check_count(self.slots)?;
        let failed = |source| EmbeddedError::Listen { address: listen, source };
        let listener = std::net::TcpListener::bind(listen).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let region = Region::anonymous(Table::bytes_for(self.capacity)?)?;
        let identity = RegionIdentity { cluster: self.store.cluster, shard: SHARD };
        // A seed of this life, so that nobody can know which keys collide.
        let table = Table::format(Arc::new(region), identity, self.capacity, self.store.nonce)?;
        let reader = table.reader();
        let generation = table.generation_cell();
        let slots = SlotSet::all(self.slots);
        let machine = FlowMachine::new(FlowMachineConfig { table, slots, pools: Vec::new() });
        let setup = ShardSetup {
            id: SHARD,
            machine: Box::new(machine),
            check: FlowMachine::check,
            reads: Some(Arc::new(reader.clone())),
            region: None,
            lease: Arc::new(LeaseCell::none()),
            generation: Some(Arc::new(move |term| generation.set(term))),
        };
        let store = Store::start(self.store, listener, vec![setup], Arc::new(NoApp)).await?;
        Ok(Embedded { store, reader, address, serials: AtomicU64::new(0) })
    }
}

impl Embedded {
    /// This replica's id.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.store.node()
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The store itself, for all that is not offered here.
    #[must_use]
    pub const fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Says where the other replicas are.
    pub fn meet(&self, others: &[(NodeId, SocketAddr)]) {
        let me = self.node();
        let book: Vec<_> = others.iter().copied().filter(|(node, _)| *node != me).collect();
        self.store.set_peers(&book);
    }

    /// Forms the group, once; every voter may be asked, with the same list.
    ///
    /// # Errors
    /// If this replica is not among the voters.
    pub async fn form(&self, voters: &[NodeId]) -> Result<(), ChangeError> {
        self.store.initialize(SHARD, voters).await
    }

    /// Makes replicas of one process a group: tells each where the others are, forms the group of
    /// all, and waits until all know the owner and its lease has begun. Gives who it is.
    ///
    /// # Errors
    /// If there is none, or one has stopped.
    pub async fn form_all(replicas: &[Self]) -> Result<NodeId, ChangeError> {
        let book: Vec<_> = replicas.iter().map(|one| (one.node(), one.address)).collect();
        let voters: Vec<_> = book.iter().map(|(node, _)| *node).collect();
        for replica in replicas {
            replica.meet(&book);
        }
        let first = replicas.first().ok_or(ChangeError::Size(0))?;
        first.form(&voters).await?;
        loop {
            let mut owners = Vec::new();
            for replica in replicas {
                owners.push(replica.owner().await.map_err(stopped)?);
            }
            // An election meanwhile would make them differ.
            if owners.iter().all(|owner| *owner == owners[0]) {
                return Ok(owners[0]);
            }
            sleep(RETRY).await;
        }
    }

    /// Waits until this replica knows an owner; if it is this one, until its lease has begun.
    ///
    /// # Errors
    /// If the replica has stopped.
    pub async fn owner(&self) -> Result<NodeId, Unanswered> {
        let mut statuses = self.store.watch(SHARD).ok_or(Unanswered::Stopped)?;
        loop {
            let status = statuses.borrow_and_update().clone();
            match status.leader {
                Some(leader) if leader != self.node() || status.owns(boot_now()) => {
                    return Ok(leader);
                }
                _ => statuses.changed().await.map_err(|_| Unanswered::Stopped)?,
            }
        }
    }

    /// Whether this replica is the owner now, with a lease.
    #[must_use]
    pub fn is_owner(&self) -> bool {
        self.store.status(SHARD).is_some_and(|status| status.owns(boot_now()))
    }

    /// Commits writes on keys of one slot, if the conditions hold, here or at the owner. Tried
    /// again under the same id until there is an answer, so it takes effect once at most.
    ///
    /// # Errors
    /// If no owner answers in time: then it may still take effect.
    ///
    /// # Panics
    /// If there are more conditions or writes than a transaction has room for.
    pub async fn commit(
        &self,
        slot: SlotId,
        conditions: impl IntoIterator<Item = Condition>,
        writes: impl IntoIterator<Item = Write>,
    ) -> Result<Outcome, Unanswered> {
        let serial = self.serials.fetch_add(1, Ordering::Relaxed) + 1;
        let transaction = Transaction {
            id: TransactionId { client: self.node().0 << 16 | CLIENT, serial },
            slot,
            conditions: conditions.into_iter().collect(),
            writes: writes.into_iter().collect(),
        };
        self.patiently(async |shard, owner, left| {
            let outcomes = if owner == self.node() {
                let (sender, answer) = oneshot::channel();
                shard.ask(Ask::new(core::iter::once(&transaction), Route::Local(sender)));
                timeout(left, answer).await.ok()?.ok()?.ok()?
            } else {
                let request = Request::Transactions(SHARD, vec![transaction.clone()]);
                match self.ask(shard, owner, &request, left).await? {
                    Response::Outcomes(outcomes) => outcomes,
                    _ => return None,
                }
            };
            outcomes.first().copied()
        })
        .await
    }

    /// Reads an entry as it is now, whichever replica is asked (linearizable): in place under this
    /// replica's lease, or at the owner.
    ///
    /// # Errors
    /// If no owner answers in time.
    pub async fn read(&self, key: &Key) -> Result<Option<Entry>, Unanswered> {
        self.patiently(async |shard, owner, left| {
            if owner == self.node() {
                return shard.read_here(ANY_SLOT, key).and_then(|(reading, _)| found(reading));
            }
            let asked = boot_now();
            match self
                .ask(shard, owner, &Request::Reads(SHARD, vec![(ANY_SLOT, *key)]), left)
                .await?
            {
                Response::Reads(readings) if readings.found.len() == 1 => {
                    let is_current = boot_now().since_ns(asked) < readings.left_ns;
                    if is_current { found(readings.found[0]) } else { None }
                }
                _ => None,
            }
        })
        .await
    }

    /// Reads an entry in place, in a few tens of nanoseconds: as it is if this replica is the
    /// owner ([`Embedded::is_owner`], asked *after* the read), and as far as this replica has
    /// heard if not.
    #[must_use]
    pub fn peek(&self, key: &Key) -> Option<Entry> {
        self.reader.get(key)
    }

    /// Waits until this replica holds another version of an entry than the one given (`None`:
    /// absent), and gives what it holds then. What is committed comes to followers by the log;
    /// they look up to ten times a second, and of several versions in a row only the last may be
    /// seen.
    ///
    /// # Errors
    /// If the replica has stopped.
    pub async fn changed(
        &self,
        key: &Key,
        from: Option<Version>,
    ) -> Result<Option<Entry>, Unanswered> {
        let mut statuses = self.store.watch(SHARD).ok_or(Unanswered::Stopped)?;
        loop {
            // First the mark, then the look: what is applied in between is news.
            statuses.borrow_and_update();
            let found = self.peek(key);
            if found.map(|entry| entry.version) != from {
                return Ok(found);
            }
            statuses.changed().await.map_err(|_| Unanswered::Stopped)?;
        }
    }

    /// Ends the replica.
    pub async fn shutdown(&self) {
        self.store.shutdown().await;
    }

    async fn ask(
        &self,
        shard: &Shard,
        owner: NodeId,
        request: &Request,
        left: Duration,
    ) -> Option<Response> {
        let answer: Result<Response, CallError> =
            self.store.transport.call(owner, request, left).await;
        shard.view.learn(owner, answer.as_ref());
        answer.ok()
    }

    /// Tries at whoever seems to be the owner, until there is an answer.
    async fn patiently<T>(
        &self,
        mut attempt: impl AsyncFnMut(&Shard, NodeId, Duration) -> Option<T>,
    ) -> Result<T, Unanswered> {
        let shard = self.store.shards.get(&SHARD).ok_or(Unanswered::Stopped)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let moved = shard.moved.notified();
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Unanswered::NoOwner);
            }
            if let Some(owner) = self.store.context().target(shard)
                && let Some(done) = attempt(shard, owner, left.min(TRY)).await
            {
                return Ok(done);
            }
            tokio::select! {
                () = moved => {}
                () = sleep(RETRY.min(left)) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Value;

    fn put(key: Key, number: u64) -> [Write; 1] {
        [Write::put(key, Value([number; 8]))]
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn any_replica_commits_once_reads_what_is_newest_and_hears_of_it() {
        let mut replicas = Vec::new();
        for node in (1..=3).map(NodeId) {
            let config = EmbeddedConfig::new(0xe2, node, 100);
            replicas.push(config.start("127.0.0.1:0".parse().unwrap()).await.unwrap());
        }
        let owner = Embedded::form_all(&replicas).await.unwrap();
        assert_eq!(replicas.iter().filter(|one| one.node() == owner).count(), 1);
        let key = Key([9, 1, 2, 3, 4]);
        assert_eq!(replicas[0].read(&key).await, Ok(None));
        let mut version = None;
        for (number, replica) in (0..).zip(&replicas) {
            let condition = version.map_or(Condition::Absent(key), |v| Condition::Version(key, v));
            let done = replica.commit(SlotId(3), [condition], put(key, number)).await.unwrap();
            assert!(matches!(done, Outcome::Committed(_)), "{done:?}");
            let late = replica.commit(SlotId(3), [condition], put(key, 99)).await.unwrap();
            assert_eq!(late, Outcome::ConditionFailed(0), "the condition held once");
            for reader in &replicas {
                let seen = reader.changed(&key, version).await.unwrap().unwrap();
                assert_eq!(seen.value, Value([number; 8]));
                assert_eq!(reader.read(&key).await, Ok(Some(seen)));
            }
            version = replica.peek(&key).map(|entry| entry.version);
        }
        for replica in &replicas {
            replica.shutdown().await;
        }
    }

    #[tokio::test]
    async fn what_cannot_be_kept_is_refused_at_the_start() {
        let mut config = EmbeddedConfig::new(0xe2, NodeId(1), 100);
        let disk = crate::disk::DiskConfig::new("/nowhere".into());
        config.store.durability = crate::disk::Durability::Disk(disk);
        let started = config.start("127.0.0.1:0".parse().unwrap()).await;
        assert!(matches!(started, Err(EmbeddedError::Durable)));
        for slots in [0, 3, 1000, 65_537, 1 << 17, u32::MAX] {
            let config = EmbeddedConfig { slots, ..EmbeddedConfig::new(0xe2, NodeId(1), 100) };
            let error = config.start("127.0.0.1:0".parse().unwrap()).await.unwrap_err();
            assert!(matches!(error, EmbeddedError::Slots(_)), "{error}");
            assert!(error.to_string().contains("a power of two of them, 1 to 65536"), "{error}");
        }
        let config = EmbeddedConfig { slots: 65_536, ..EmbeddedConfig::new(0xe2, NodeId(1), 100) };
        let most = config.start("127.0.0.1:0".parse().unwrap()).await.unwrap();
        most.shutdown().await;
    }
}
