//! The store of one node: its shards, its connections, and how the rest of the program asks them.
//!
//! An edge: it reads the clock and starts tasks. It decides nothing about state; that is the
//! machines' business. A node that is not yet in a shard's group starts that shard empty and
//! waits until a leader adds it as a learner; its id is new in every life, unless its log is on
//! disk: then it comes back as the replica that it was (promise P6).

#![expect(clippy::disallowed_methods, reason = "starts the tasks of the store")]

use crate::consensus::{
    CallError, ChangeError, Compaction, PAYLOAD_BYTES_MAX, ProposeError, ShardStatus, Timing,
    TimingError,
};
use crate::disk::{Counts, DiskCounts, DiskError, DiskLog, Durability, Opened};
use crate::doorbell::Doorbell;
use crate::keeper::UpkeepCounts;
use crate::lease::LeaseCell;
use crate::link::{LinkContext, PipeLink, run_link};
pub use crate::local_reads::{LocalReads, RegionAddress};
use crate::machine::{Machine, PayloadError, Reply};
use crate::note_relay::run_relay;
use crate::raft::{Payload, Replica, ReplicaSetup, WriteError};
use crate::refusal_counts::RefusalCounts;
use crate::serve::Server;
use crate::shard::{Shard, ShardParts};
use crate::slot_map::SlotMap;
use crate::transport::{Identity, Transport};
use crate::types::{NodeId, ShardId, Time};
use crate::wire::{APP_BYTES_MAX, NotServed, Request, Response};
use core::net::SocketAddr;
use core::time::Duration;
use futures::future::BoxFuture;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock};
use std::{fmt, io};
use thiserror::Error;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Shards that one node may have.
pub const SHARDS_MAX: usize = 64;
/// How long a proposal may take unless told otherwise.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two tries to find a shard's owner, if nothing is heard meanwhile.
const RETRY: Duration = Duration::from_millis(10);

/// Worker threads of [`runtime`]. One: a commit passes through a dozen tasks, and from one thread
/// to another each step costs a system call on one side and a wake-up on the other; with two
/// threads a lone commit took twice the processor time. What computes for long goes to the
/// runtime's blocking threads.
const WORKERS: usize = 1;

/// The runtime that a store is made for: what a node runs on, and what benchmarks measure.
///
/// # Errors
/// If the system gives no threads.
pub fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build()
}

/// What a store needs to know.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// Which cluster; others are not spoken to.
    pub cluster: u64,
    /// Drawn at random when the cluster was formed: tells it from another of the same name. 0: not
    /// known, so that it is not looked at.
    pub lineage: u64,
    /// This life's id. Never used before, unless the logs of that life are here.
    pub node: NodeId,
    /// How fast groups notice things.
    pub timing: Timing,
    /// Drawn at random by this life: a process that comes back with its logs has the same again.
    pub nonce: u64,
    /// Whether logs outlive the process.
    pub durability: Durability,
    /// When logs give way to snapshots.
    pub compaction: Compaction,
}

impl StoreConfig {
    /// With the default timing, in memory, and no lineage.
    #[must_use]
    pub fn new(cluster: u64, node: NodeId, nonce: u64) -> Self {
        let (timing, durability) = (Timing::default(), Durability::Memory);
        let compaction = Compaction::default();
        Self { cluster, lineage: 0, node, timing, nonce, durability, compaction }
    }

    /// Opens the files of a shard, if they are kept.
    fn open(&self, shard: ShardId, counts: &Counts) -> Result<Option<Opened>, StartError> {
        let Durability::Disk(disk) = &self.durability else { return Ok(None) };
        let Self { cluster, lineage, node, nonce: life, .. } = *self;
        let identity = crate::disk::Identity { cluster, lineage, life, node, shard };
        let opened = crate::disk::open(disk, identity, counts);
        opened.map(Some).map_err(|source| StartError::Disk { shard, source })
    }
}

/// Serves the messages of the layers above.
pub trait AppHandler: Send + Sync + 'static {
    /// Answers a message from a node, or from a client (`None`). Called on a connection's task: it
    /// must not block before it returns the future.
    fn handle(&self, from: Option<NodeId>, request: Vec<u8>) -> BoxFuture<'static, Vec<u8>>;
}

/// A shard as it is handed to the store.
pub struct ShardSetup {
    /// Which.
    pub id: ShardId,
    /// What its log drives.
    pub machine: Box<dyn Machine>,
    /// [`Machine::check`] of that machine.
    pub check: fn(&[u8]) -> Result<(), PayloadError>,
    /// Reads of its table, if it has one.
    pub reads: Option<Arc<dyn LocalReads>>,
    /// Where its table can be mapped, if it can.
    pub region: Option<RegionAddress>,
    /// Where its lease is published.
    pub lease: Arc<LeaseCell>,
    /// Told the term when this node becomes owner, before the lease begins; 0 when it is none.
    pub generation: Option<Arc<dyn Fn(u64) + Send + Sync>>,
}

/// Why a store does not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// The timing does not work.
    #[error(transparent)]
    Timing(#[from] TimingError),
    /// The id 0 belongs to clients.
    #[error("a node's id must not be 0")]
    NodeId,
    /// No shard, too many, or one twice.
    #[error("a store has 1 to {SHARDS_MAX} shards, each once; {0} were given")]
    Shards(usize),
    /// The listener cannot be used.
    #[error("the listening socket cannot be used: {0}")]
    Listener(#[from] io::Error),
    /// A shard's files cannot be used. See [`DiskError::is_loss`].
    #[error("{shard}: {source}")]
    Disk {
        /// Which.
        shard: ShardId,
        /// Why.
        source: DiskError,
    },
    /// A group's instance does not start.
    #[error("{shard} does not start: {reason}")]
    Group {
        /// Which.
        shard: ShardId,
        /// In words.
        reason: String,
    },
}

/// See the module's text.
pub struct Store {
    pub(crate) config: StoreConfig,
    pub(crate) transport: Arc<Transport>,
    pub(crate) shards: Arc<BTreeMap<ShardId, Arc<Shard>>>,
    // Connections know it weakly, so that it ends with the store.
    _server: Arc<Server>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
    disk: Counts,
    slots: Arc<OnceLock<SlotMap>>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Store {
    /// Starts all shards and begins to accept connections.
    ///
    /// # Errors
    /// If a setting does not work or a shard does not start.
    pub async fn start(
        config: StoreConfig,
        listener: std::net::TcpListener,
        shards: Vec<ShardSetup>,
        app: Arc<dyn AppHandler>,
    ) -> Result<Arc<Self>, StartError> {
        config.timing.validate()?;
        if config.node.0 == 0 {
            return Err(StartError::NodeId);
        }
        let given = shards.len();
        let ids: std::collections::BTreeSet<ShardId> = shards.iter().map(|s| s.id).collect();
        if given == 0 || given > SHARDS_MAX || ids.len() != given {
            return Err(StartError::Shards(given));
        }
        let StoreConfig { cluster, lineage, node, nonce, .. } = config;
        let transport = Transport::new(Identity { cluster, lineage, node, nonce });
        let disk = Counts::default();
        let mut tasks = Vec::new();
        let opened = open_all(&config, shards, &disk).await?;
        let shards = start_shards(&config, opened, &transport, &mut tasks).await?;
        let shards = Arc::new(shards);
        let server = Arc::new(Server { shards: shards.clone(), app });
        let serve: std::sync::Weak<Server> = Arc::downgrade(&server);
        transport.run(listener, serve)?;
        let slots: Arc<OnceLock<SlotMap>> = Arc::default();
        let context = LinkContext {
            node,
            shards: shards.clone(),
            transport: transport.clone(),
            slots: slots.clone(),
        };
        for shard in shards.values().filter(|shard| shard.maps_regions()) {
            tasks.push(tokio::spawn(shard.clone().grant_loop(context.clone())));
        }
        if matches!(config.durability, Durability::Disk(_)) {
            for shard in shards.values() {
                tasks.push(tokio::spawn(context.clone().leave_when_full(shard.clone())));
            }
        }
        let tasks = Mutex::new(tasks);
        Ok(Arc::new(Self { config, transport, shards, _server: server, tasks, disk, slots }))
    }

    /// What this node's disk did; all zero in memory.
    #[must_use]
    pub fn disk_counts(&self) -> &DiskCounts {
        &self.disk
    }

    /// Whether this node refuses writes of a shard because there is no room on its disk.
    #[must_use]
    pub fn disk_is_full(&self, shard: ShardId) -> bool {
        self.shards.get(&shard).is_some_and(|shard| shard.replica.disk_is_full())
    }

    /// This life's id.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.config.node
    }

    /// Sets the address book. Nodes that stood in it and no longer do are forgotten, and their ids
    /// are refused from now on.
    pub fn set_peers(&self, book: &[(NodeId, SocketAddr)]) {
        self.transport.set_peers(book);
    }

    /// Forms a shard's group, once; forming it again is no error. Every voter may be asked, with
    /// the same list.
    ///
    /// # Errors
    /// If this node is not among the voters.
    pub async fn initialize(&self, shard: ShardId, voters: &[NodeId]) -> Result<(), ChangeError> {
        self.shard_to_change(shard)?.replica.initialize(voters).await
    }

    /// Puts a payload into a shard's log, here or at the owner, and gives the machine's answer once
    /// it is applied there.
    ///
    /// # Errors
    /// After [`ProposeError::Unknown`] it may still take effect; after all others it does not.
    pub async fn propose(&self, shard: ShardId, payload: Vec<u8>) -> Result<Reply, ProposeError> {
        self.propose_within(shard, payload, PATIENCE).await
    }

    /// The same, with a deadline of the caller's.
    ///
    /// # Errors
    /// After [`ProposeError::Unknown`] it may still take effect; after all others it does not.
    pub async fn propose_within(
        &self,
        shard: ShardId,
        payload: Vec<u8>,
        patience: Duration,
    ) -> Result<Reply, ProposeError> {
        let shard = self.shards.get(&shard).ok_or(ProposeError::NoSuchShard(shard))?;
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(ProposeError::TooLarge(payload.len()));
        }
        let aligned = Payload::copy_of(&payload);
        shard.replica.check(&aligned)?;
        let request = Request::Propose(shard.id, payload);
        let deadline = Instant::now() + patience;
        let mut refusal = ProposeError::NoOwner;
        loop {
            let moved = shard.moved.notified();
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(refusal);
            }
            let tried = match self.context().target(shard) {
                Some(leader) if leader == self.config.node => {
                    let write = shard.replica.write(shard.stamped(aligned.clone()));
                    written(tokio::time::timeout(left, write).await.ok())
                }
                Some(leader) => {
                    let answer = self.transport.call(leader, &request, left).await;
                    shard.view.learn(leader, answer.as_ref());
                    proposed(answer)
                }
                None => None,
            };
            match tried {
                // Whoever has room may take over before the deadline.
                Some(Err(ProposeError::DiskFull)) => refusal = ProposeError::DiskFull,
                Some(result) => return result,
                None => {}
            }
            tokio::select! {
                () = moved => {}
                () = tokio::time::sleep(RETRY.min(left)) => {}
            }
        }
    }

    pub(crate) fn context(&self) -> LinkContext {
        let (shards, transport) = (self.shards.clone(), self.transport.clone());
        LinkContext { node: self.config.node, shards, transport, slots: self.slots.clone() }
    }

    /// Says where slots are, as far as is known: links ask there again what a shard does not serve
    /// because the slot has moved. Without it they give such an answer to whoever asked. The first
    /// one counts; it is kept current by whoever made it.
    pub fn follow_slots(&self, slots: SlotMap) {
        self.slots.get_or_init(|| slots);
    }

    /// A link for one packet thread. `client` is the first half of the ids of its transactions. The
    /// bell is rung when completions have come. Has to be called inside the runtime.
    #[must_use]
    pub fn pipe_link(&self, client: u64, bell: Arc<Doorbell>) -> PipeLink {
        tracing::debug!(client, "a pipe's link");
        let (link, queues, notes) = PipeLink::new(&self.shards);
        let link_task = tokio::spawn(run_link(self.context(), queues, bell));
        let relay_task = tokio::spawn(run_relay(self.context(), notes));
        crate::transport::lock(&self.tasks).extend([link_task, relay_task]);
        link
    }

    /// Asks another node's [`AppHandler`].
    ///
    /// # Errors
    /// If no answer comes in time.
    pub async fn call(
        &self,
        node: NodeId,
        request: Vec<u8>,
        patience: Duration,
    ) -> Result<Vec<u8>, CallError> {
        if request.len() > APP_BYTES_MAX {
            return Err(CallError::TooLarge(request.len()));
        }
        match self.transport.call(node, &Request::App(request), patience).await? {
            Response::App(bytes) => Ok(bytes),
            Response::NotServed(reason) => Err(CallError::Refused(reason.to_string())),
            _ => Err(CallError::Garbage("an answer to another question".into())),
        }
    }

    /// When each peer was last heard; long ago if never.
    #[must_use]
    pub fn peer_contacts(&self) -> Vec<(NodeId, Time)> {
        self.transport.contacts()
    }

    /// How often something was refused, by reason: by this node, or its connections by others.
    #[must_use]
    pub fn refusals(&self) -> &RefusalCounts {
        self.transport.refusals()
    }

    /// A shard's group as this node sees it now.
    #[must_use]
    pub fn status(&self, shard: ShardId) -> Option<ShardStatus> {
        Some(self.shards.get(&shard)?.status())
    }

    /// What this node has done as owner of a shard beside answering.
    #[must_use]
    pub fn upkeep_counts(&self, shard: ShardId) -> Option<UpkeepCounts> {
        Some(self.shards.get(&shard)?.upkeep.read())
    }

    /// The same, published whenever it changes; positions in the log with a little delay.
    #[must_use]
    pub fn watch(&self, shard: ShardId) -> Option<watch::Receiver<ShardStatus>> {
        Some(self.shards.get(&shard)?.subscribe())
    }

    /// Adds a node to a shard's group that copies the log and has no vote. It is still catching up
    /// when this returns: see [`ShardStatus::matched`]. Only the leader can.
    ///
    /// # Errors
    /// If this node does not lead, or the group is being changed.
    pub async fn add_learner(&self, shard: ShardId, node: NodeId) -> Result<(), ChangeError> {
        self.shard_to_change(shard)?.replica.add_learner(node).await
    }

    /// Sets who votes in a shard's group. Who voted before and is not in the list leaves it. Only
    /// the leader can, and it cannot leave.
    ///
    /// # Errors
    /// If this node does not lead, a node is no learner or voter yet, or the group is being
    /// changed.
    pub async fn change_voters(
        &self,
        shard: ShardId,
        voters: Vec<NodeId>,
    ) -> Result<(), ChangeError> {
        self.shard_to_change(shard)?.replica.change_voters(&voters).await
    }

    /// Removes a node without a vote from a shard's group. Only the leader can.
    ///
    /// # Errors
    /// If this node does not lead, the other has a vote, or the group is being changed.
    pub async fn remove_learner(&self, shard: ShardId, node: NodeId) -> Result<(), ChangeError> {
        self.shard_to_change(shard)?.replica.remove_learner(node).await
    }

    /// Hands a shard over to another voter. All leases run out first; commits go on until then.
    /// Once this returns, this node leads no more in the term in which it was asked. Normally the
    /// other does; if it failed to take over, whomever the voters elected: see the status.
    ///
    /// # Errors
    /// If this node does not lead, the other does not vote, or the leadership was offered already
    /// in this term. [`ChangeError::Timeout`] if nobody has taken over yet: then this node is
    /// without a lease, and without a word in this term, until the voters elect somebody, and the
    /// other may still be the one.
    pub async fn transfer_leader(&self, shard: ShardId, to: NodeId) -> Result<(), ChangeError> {
        let shard = self.shard_to_change(shard)?;
        let leads = shard.replica.leading().is_some() && to != self.config.node;
        // Asked before the lease is let run out for nothing.
        if leads
            && shard.status().voters.contains(&to)
            && self.context().would_lead(shard, to).await == Some(false)
        {
            return Err(ChangeError::NotReady(to));
        }
        shard.transfer(to).await
    }

    /// Says whether the cluster wants a replica of a shard here; it does until told otherwise. A
    /// node without one asks for no votes, and believes others about who owns the shard.
    pub fn set_part(&self, shard: ShardId, has_part: bool) {
        if let Some(shard) = self.shards.get(&shard) {
            shard.set_part(has_part);
        }
    }

    fn shard_to_change(&self, shard: ShardId) -> Result<&Arc<Shard>, ChangeError> {
        self.shards.get(&shard).ok_or(ChangeError::NoSuchShard(shard))
    }

    /// For a node that is about to say that it leaves: that others refuse it then is no fault.
    pub fn expect_refusals(&self) {
        self.transport.expect_refusals();
    }

    /// Ends all groups, connections and tasks.
    pub async fn shutdown(&self) {
        self.transport.stop();
        for shard in self.shards.values() {
            shard.replica.stop().await;
        }
        let tasks = core::mem::take(&mut *crate::transport::lock(&self.tasks));
        for task in &tasks {
            task.abort();
        }
        futures::future::join_all(tasks).await;
        for shard in self.shards.values() {
            shard.end_lease();
        }
    }
}

/// What came of proposing here (`None`: no answer in time); `None` if it certainly had no effect.
fn written(answer: Option<Result<Reply, WriteError>>) -> Option<Result<Reply, ProposeError>> {
    match answer {
        Some(Ok(reply)) => Some(Ok(reply)),
        Some(Err(WriteError::NotLeader(_))) => None,
        Some(Err(WriteError::DiskFull)) => Some(Err(ProposeError::DiskFull)),
        _ => Some(Err(ProposeError::Unknown)),
    }
}

/// What came of proposing at another node; `None` if it certainly had no effect.
fn proposed(answer: Result<Response, CallError>) -> Option<Result<Reply, ProposeError>> {
    match answer {
        Ok(Response::Proposed(reply)) => Some(Ok(reply.into())),
        Ok(Response::NotServed(
            NotServed::NotOwner(_) | NotServed::Busy | NotServed::NoSuchShard,
        ))
        | Err(CallError::Unreachable(_) | CallError::Busy) => None,
        Ok(Response::NotServed(NotServed::DiskFull)) => Some(Err(ProposeError::DiskFull)),
        _ => Some(Err(ProposeError::Unknown)),
    }
}

type OpenedShard = (ShardSetup, Option<Opened>);

/// Opens the files of all shards before any of them has a voice, and lets old promises run out.
async fn open_all(
    config: &StoreConfig,
    shards: Vec<ShardSetup>,
    counts: &Counts,
) -> Result<Vec<OpenedShard>, StartError> {
    let mut opened = Vec::with_capacity(shards.len());
    for setup in shards {
        match config.open(setup.id, counts) {
            Ok(files) => opened.push((setup, files)),
            Err(error) => {
                close_all(logs_of(&opened)).await;
                return Err(error);
            }
        }
    }
    let old = |(_, files): &OpenedShard| files.as_ref().is_some_and(|f| !f.recovered.fresh);
    if opened.iter().any(old) {
        // The process before may have promised a leader, by answering its heartbeat, to vote for
        // nobody else for so long; the leader's lease rests on it, and this process does not know.
        tokio::time::sleep(Duration::from_millis(config.timing.election_max_ms)).await;
    }
    Ok(opened)
}

fn logs_of(opened: &[OpenedShard]) -> Vec<DiskLog> {
    opened.iter().filter_map(|(_, files)| Some(files.as_ref()?.log.clone())).collect()
}

async fn close_all(logs: Vec<DiskLog>) {
    for log in logs {
        log.close().await;
    }
}

async fn start_shards(
    config: &StoreConfig,
    opened: Vec<OpenedShard>,
    transport: &Arc<Transport>,
    tasks: &mut Vec<JoinHandle<()>>,
) -> Result<BTreeMap<ShardId, Arc<Shard>>, StartError> {
    let logs = logs_of(&opened);
    let mut started: BTreeMap<ShardId, Arc<Shard>> = BTreeMap::new();
    for opened in opened {
        match start_shard(config, opened, transport, tasks).await {
            Ok(shard) => drop(started.insert(shard.id, shard)),
            Err(error) => {
                for shard in started.values() {
                    shard.replica.stop().await;
                }
                close_all(logs).await;
                return Err(error);
            }
        }
    }
    Ok(started)
}

async fn start_shard(
    config: &StoreConfig,
    (setup, files): OpenedShard,
    transport: &Arc<Transport>,
    tasks: &mut Vec<JoinHandle<()>>,
) -> Result<Arc<Shard>, StartError> {
    let ShardSetup { id, machine, check, reads, region, lease, generation } = setup;
    let StoreConfig { node, timing, compaction, .. } = *config;
    let moves = machine.moves();
    let setup = ReplicaSetup { shard: id, node, timing, compaction, machine, check, files };
    let replica = Replica::start(setup, transport.clone())
        .await
        .map_err(|reason| StartError::Group { shard: id, reason })?;
    let refusals = transport.refusals().clone();
    let parts = ShardParts { reads, region, lease, generation, moves, refusals };
    let (shard, asked) = Shard::new((id, node), replica, parts, timing);
    tasks.push(tokio::spawn(shard.clone().watch_loop()));
    tasks.push(tokio::spawn(shard.clone().commit_loop(asked)));
    tasks.push(tokio::spawn(shard.clone().keep_loop()));
    tasks.push(tokio::spawn(shard.clone().succession_loop(transport.clone())));
    Ok(shard)
}
