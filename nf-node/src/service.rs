//! The whole node: put together, run until told to stop, taken apart.
//!
//! The edge where all others meet; it decides nothing. The order matters. Everything that can be
//! wrong with a configuration is found before the node has an id; the id is there before any
//! replica votes; a port is open before the node says that it is ready.

mod answers;
mod control;
mod durable;
mod formation;
mod map_feed;
mod replicas;
mod system_view;

use crate::chain::Chain;
use crate::chain_config::ChainConfigError;
use crate::cluster_access::{ClusterAccess, SlotTable};
use crate::node_config::{NodeConfig, PortConfig, Start};
use crate::pipe::{PARKED_MAX, Pipe, PipeSettings, SteeredChain};
use crate::pipe_driver::{self, PipeHandle};
use crate::port::Port;
use crate::port::capture::{CaptureError, CaptureReader, CaptureWriter};
use crate::port::pcap::{Outputs, PcapPort, SideRule};
use crate::port::shm::ShmPort;
use answers::{Answers, Handler};
use control::Control;
use durable::{Home, Life};
use formation::{Newcomer, Origin, Past};
use map_feed::MapFeed;
use nearstate_placement::service::ServiceConfig;
use nearstate_placement::system::{SystemCommand, SystemRefusal, SystemReply};
use nearstate_placement::{Map, Member, MemberState};
use nearstate_store::client::Wanted;
use nearstate_store::clock::boot_now;
use nearstate_store::consensus::Role;
use nearstate_store::disk::{DiskError, Durability};
use nearstate_store::doorbell::Doorbell;
use nearstate_store::driver::{StartError, Store, StoreConfig};
use nearstate_store::{NodeId, RegionError, Reply, ShardId, TableError};
use replicas::{ReplicaView, Replicas, Shape};
use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, OnceLock};
use system_view::SystemView;
use thiserror::Error;

/// How long a durable node may be silent before it is given up: it is expected to come back.
const DURABLE_DEAD_AFTER_MS: u64 = 30_000;

/// Why a node did not start, or ended.
#[derive(Debug, Error)]
pub enum NodeError {
    /// The chain cannot be built.
    #[error("the chain: {0}")]
    Chain(#[from] ChainConfigError),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}; choose another port, or 0 for any free one")]
    Listen {
        /// Which address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file cannot be used.
    #[error("{}: {source}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// No randomness.
    #[error("the system gives no random numbers: {0}")]
    Random(std::io::Error),
    /// It has formed the cluster in an earlier life.
    #[error(
        "{} says that this node has formed the cluster before and has lost its memory since. If \
         other members live, start it with `start = {{ join = ... }}`. If all were down at once, \
         the cluster's state is lost (`durability = \"disk\"` would have kept it): to form a new \
         cluster without it, remove the file, start this node again, and let the others join",
        .0.display()
    )]
    FormedBefore(PathBuf),
    /// It is a member under another address, or with other ports.
    #[error(
        "the cluster knows this node's `{key}` as {was}, and the configuration says {is}: set it \
         back, or give the node another directory to let it join as a new one"
    )]
    Moved {
        /// Which setting.
        key: &'static str,
        /// What members know.
        was: String,
        /// What the configuration says.
        is: String,
    },
    /// Its logs cannot be looked at.
    #[error("the logs of this node: {0}")]
    Disk(#[source] DiskError),
    /// It was a member in an earlier life.
    #[error(
        "{} says that this node was a member of a cluster of this name, and forming one would \
         make two; start it with `start = {{ join = ... }}`, or remove the file if that cluster \
         is gone",
        .0.display()
    )]
    JoinedBefore(PathBuf),
    /// A mark cannot be read.
    #[error(
        "{} is no mark of this program; remove it if the cluster that this node was in is gone",
        .0.display()
    )]
    NoMark(PathBuf),
    /// Every seed is of another cluster of the same name.
    #[error(
        "all seeds belong to another cluster of this name, formed at another time than the one \
         that {} speaks of; name seeds of that one, or remove the file if it is gone", .0.display()
    )]
    OtherLineage(PathBuf),
    /// No member lets it in.
    #[error("not let into the cluster: {0}")]
    NotLetIn(String),
    /// The cluster has given the node up.
    #[error("the cluster has taken this node for dead and given it up; start it again")]
    GivenUp,
    /// A replica has stopped by itself.
    #[error("the replica of {0} has stopped, see the log; start the node again")]
    ReplicaStopped(ShardId),
    /// The system shard refused to be formed.
    #[error("the cluster cannot be formed: {0}")]
    NotFormed(String),
    /// A table's region cannot be had.
    #[error("no memory for a table: {0}")]
    Region(#[from] RegionError),
    /// A table cannot be made.
    #[error("no table: {0}")]
    Table(#[from] TableError),
    /// The store does not start.
    #[error("the store: {0}")]
    Store(#[from] StartError),
    /// The port cannot be opened.
    #[error("the port: {0}")]
    Port(String),
    /// The thread of the pipe cannot be started.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
}

/// A node that takes packets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ready {
    /// Its id in this life.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// Where peers and clients connect.
    pub listen: SocketAddr,
    /// How packets reach it.
    pub ports: Vec<String>,
}

impl std::fmt::Display for Ready {
    /// The line that a launcher waits for.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { node, name, listen, ports } = self;
        write!(f, "ready node={} name={name} listen={listen} port={}", node.0, ports.join(","))
    }
}

/// Runs a node until `stop` resolves, somebody asks it to end, or its port is exhausted.
///
/// # Errors
/// If it cannot start. Everything that was begun is taken back.
pub async fn run(
    config: NodeConfig,
    on_ready: impl FnOnce(&Ready),
    stop: impl Future<Output = ()>,
) -> Result<(), NodeError> {
    let started = Node::start(&config).await?;
    on_ready(&started.ready);
    let ended = started.run(stop).await;
    replicas::remove_region_files(&config);
    ended
}

struct Node {
    ready: Ready,
    wanted: Wanted,
    store: Arc<Store>,
    view: SystemView,
    pipe: PipeHandle,
    pipe_stop: PipeStop,
    slots: SlotTable,
    home: Option<Home>,
}

/// Ends a pipe from outside.
struct PipeStop {
    flag: Arc<AtomicBool>,
    bell: Arc<Doorbell>,
}

impl PipeStop {
    fn stop(&self) {
        self.flag.store(true, Ordering::Release);
        self.bell.ring();
    }
}

/// The id and what came with it.
struct Identity {
    life: Life,
    map: Map,
    home: Option<Home>,
}

impl Identity {
    fn durability(&self) -> Durability {
        match &self.home {
            None => Durability::Memory,
            Some(home) => Durability::Disk(home.logs(self.life.starts > 1)),
        }
    }

    /// For the transactions of this process: their serials begin anew, so it must not be one of
    /// another process, of this life or of another one.
    fn client(&self) -> u64 {
        self.life.node.0 << 32 | u64::from(self.life.starts as u16) << 16
    }

    /// Keeps who this node is. Before the founder has formed the cluster, and before anything that
    /// must not happen twice in a life.
    fn save(&self) -> Result<(), NodeError> {
        self.home.as_ref().map_or(Ok(()), |home| home.save(&self.life))
    }
}

impl Node {
    async fn start(config: &NodeConfig) -> Result<Self, NodeError> {
        std::fs::create_dir_all(&config.directory)
            .map_err(|source| NodeError::File { path: config.directory.clone(), source })?;
        let past = formation::look_back(config).await?;
        let (listener, listen) = listen(past.address(config, &port_names(config))?)?;
        let early = early_slots(config);
        // Built once before the node has an id, so that a wrong chain costs nobody an id.
        drop(Chain::new(&config.chain, early)?);
        let port = open_port(config)?;
        let mut identity = identify(config, past, listen).await?;
        let Life { node, nonce, lineage, slots: slot_count, shards, .. } = identity.life;
        let chain = Arc::new(Chain::new(&config.chain, slot_count)?);
        let steering = chain.steering(config.steer_seed);
        let view = SystemView::new(identity.map.clone());
        let shape = Shape { slots: slot_count, shards, pools: chain.pools() };
        let replicas = Replicas::new(config, node, &shape, &view)?;
        let answers = Arc::new(Answers {
            node,
            name: config.name.clone(),
            started: boot_now(),
            view: view.clone(),
            store: OnceLock::new(),
            counters: OnceLock::new(),
            replicas: replicas.views.clone(),
            chain: chain.clone(),
            settings: config.shared_settings(),
            steering,
        });
        let store_config = StoreConfig {
            cluster: config.cluster_id(),
            lineage,
            node,
            timing: config.timing(),
            nonce,
            durability: identity.durability(),
        };
        let handler = Arc::new(Handler(answers.clone()));
        let store = Store::start(store_config, listener, replicas.setups, handler).await?;
        answers.store.get_or_init(|| store.clone());
        identity.save()?;
        tell_peers(&store, &identity.map, node);
        if let Start::Form { slots, shards, replicas } = config.start
            && identity.life.forming
        {
            let shape = SystemCommand::Form {
                members: vec![member(config, listen)],
                slots,
                shards,
                replicas,
                lineage,
            };
            form(&store, node, shards, &shape).await?;
            identity.life.forming = false;
            identity.save()?;
        }
        let slots: SlotTable = (0..slot_count).map(|_| AtomicU16::new(0)).collect();
        load_slots(&slots, &Map::first_slots(slot_count, shards));
        let stages = SteeredChain::new(chain, config.steer_seed);
        let parts = PipeParts { stages, port, slots: slots.clone() };
        let (pipe, pipe_stop) = start_pipe(config, &identity, &store, &replicas.views, parts)?;
        answers.counters.get_or_init(|| pipe.counters().clone());
        let ready = Ready { node, name: config.name.clone(), listen, ports: port_names(config) };
        let wanted = Wanted { cluster: config.cluster_id(), lineage };
        let home = identity.home;
        Ok(Self { ready, wanted, store, view, pipe, pipe_stop, slots, home })
    }

    async fn run(self, stop: impl Future<Output = ()>) -> Result<(), NodeError> {
        let Self { ready, wanted, store, view, pipe, pipe_stop, slots, home } = self;
        let mut pipe = tokio::task::spawn_blocking(move || pipe.join());
        let mut pipe_is_over = false;
        let control = Control { me: ready.node, store: store.clone(), view: view.clone() };
        let feed = MapFeed { me: ready.node, wanted, store: &store, view: &view };
        let mut service = ServiceConfig::default();
        if home.is_some() {
            service.thresholds.dead_after_ms = DURABLE_DEAD_AFTER_MS;
        }
        let placement = nearstate_placement::service::run(&control, service);
        let keep = |map: &Map| home.iter().for_each(|home| home.save_map(map));
        let ended = tokio::select! {
            () = stop => Ok(()),
            () = view.stopped() => Ok(()),
            _ = &mut pipe => {
                pipe_is_over = true;
                Ok(())
            }
            () = follow_map(&view, &store, (&slots, ready.node), keep) => Err(NodeError::GivenUp),
            shard = follow_groups(&view, &store) => Err(NodeError::ReplicaStopped(shard)),
            () = feed.run() => Ok(()),
            () = placement => Ok(()),
        };
        view.stop();
        pipe_stop.stop();
        if !pipe_is_over {
            // A pipe that panicked has said so; the node ends in either case.
            let _ = pipe.await;
        }
        store.shutdown().await;
        ended
    }
}

fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), NodeError> {
    #[expect(clippy::disallowed_methods, reason = "the edge")]
    let listener =
        TcpListener::bind(address).map_err(|source| NodeError::Listen { address, source })?;
    let bound = listener.local_addr().map_err(|source| NodeError::Listen { address, source })?;
    Ok((listener, bound))
}

/// Slots as far as they are known before the node has a map: enough to check the chain.
fn early_slots(config: &NodeConfig) -> u32 {
    match config.start {
        Start::Form { slots, .. } => slots,
        Start::Join { .. } => 2,
    }
}

fn port_names(config: &NodeConfig) -> Vec<String> {
    match &config.port {
        PortConfig::Shm { path, .. } => vec![path.display().to_string()],
        PortConfig::Pcap { .. } => Vec::new(),
    }
}

fn open_port(config: &NodeConfig) -> Result<Box<dyn Port>, NodeError> {
    match &config.port {
        PortConfig::Shm { path, ring } => ShmPort::create(path, *ring as usize)
            .map(|port| Box::new(port) as Box<dyn Port>)
            .map_err(|error| NodeError::Port(error.to_string())),
        PortConfig::Pcap { input, inside_output, outside_output } => {
            open_capture(input, inside_output, outside_output)
                .map(|port| Box::new(port) as Box<dyn Port>)
                .map_err(|error| NodeError::Port(error.to_string()))
        }
    }
}

fn open_capture(input: &Path, inside: &Path, outside: &Path) -> Result<PcapPort, CaptureError> {
    let reader = CaptureReader::open(input)?;
    let outputs = Outputs {
        inside: Some(CaptureWriter::create(inside)?),
        outside: Some(CaptureWriter::create(outside)?),
    };
    Ok(PcapPort::new(reader, outputs, SideRule::first_sender()))
}

fn member(config: &NodeConfig, address: SocketAddr) -> Member {
    Member {
        id: NodeId(1),
        name: config.name.clone(),
        address,
        ports: port_names(config),
        state: MemberState::Alive,
    }
}

/// Gets the node an id: the one that it had, if that life goes on; else the first of a new cluster,
/// or a fresh one of an existing cluster.
async fn identify(
    config: &NodeConfig,
    past: Past,
    address: SocketAddr,
) -> Result<Identity, NodeError> {
    let Past { home, life, seeds: mut known } = past;
    if let Some((life, map)) = life {
        tracing::info!(node = %life.node, starts = life.starts, "comes back with its memory");
        return Ok(Identity { life, map, home });
    }
    let nonce = formation::draw_nonce().map_err(NodeError::Random)?;
    let (ports, origin) = (port_names(config), origin(config));
    let life = |node, lineage, (slots, shards), forming| Life {
        node,
        nonce,
        lineage,
        listen: address,
        ports: ports.clone(),
        slots,
        shards,
        starts: 1,
        forming,
    };
    match &config.start {
        Start::Form { slots, shards, .. } if known.is_empty() => {
            let lineage = formation::draw_nonce().map_err(NodeError::Random)?;
            origin.mark_as_former(lineage)?;
            let life = life(NodeId(1), lineage, (*slots, *shards), true);
            return Ok(Identity { life, map: Map::unformed(), home });
        }
        Start::Form { .. } => {}
        Start::Join { seeds } => known.extend(seeds),
    }
    let newcomer = Newcomer {
        cluster: config.cluster_id(),
        name: config.name.clone(),
        address,
        ports: ports.clone(),
        nonce,
        settings: config.shared_settings(),
    };
    let (node, map) = formation::join(&newcomer, &origin, &known).await?;
    origin.mark_as_member(map.lineage)?;
    let shape = (map.slots, map.shards.len() as u16 - 1);
    Ok(Identity { life: life(node, map.lineage, shape, false), map, home })
}

fn origin(config: &NodeConfig) -> Origin<'_> {
    Origin { directory: &config.directory, cluster: &config.cluster, name: &config.name }
}

/// Makes every group with this node as its only voter, then writes the first map.
async fn form(
    store: &Arc<Store>,
    me: NodeId,
    shards: u16,
    shape: &SystemCommand,
) -> Result<(), NodeError> {
    for shard in 0..=shards {
        store
            .initialize(ShardId(shard), &[me])
            .await
            .map_err(|error| NodeError::NotFormed(error.to_string()))?;
    }
    let reply = store
        .propose(ShardId::SYSTEM, shape.encode())
        .await
        .map_err(|error| NodeError::NotFormed(error.to_string()))?;
    let Reply::System(bytes) = reply else {
        return Err(NodeError::NotFormed("no answer of the system shard".to_owned()));
    };
    match SystemReply::decode(&bytes) {
        // A founder that was killed in the middle forms again.
        Ok(SystemReply::Done(_) | SystemReply::Refused(SystemRefusal::AlreadyFormed)) => Ok(()),
        Ok(SystemReply::Refused(refusal)) => Err(NodeError::NotFormed(refusal.to_string())),
        Ok(SystemReply::Joined(..)) => Err(NodeError::NotFormed("a wrong answer".to_owned())),
        Err(error) => Err(NodeError::NotFormed(error.to_string())),
    }
}

struct PipeParts {
    stages: SteeredChain,
    port: Box<dyn Port>,
    slots: SlotTable,
}

fn start_pipe(
    config: &NodeConfig,
    identity: &Identity,
    store: &Arc<Store>,
    views: &[Option<ReplicaView>],
    parts: PipeParts,
) -> Result<(PipeHandle, PipeStop), NodeError> {
    let bell = match parts.port.bell() {
        Some(bell) => bell,
        None => Arc::new(Doorbell::new()?),
    };
    let client = identity.client();
    let link = store.pipe_link(client, bell.clone());
    let local = views.iter().map(|view| view.as_ref().map(ReplicaView::to_local)).collect();
    let access = ClusterAccess::new(
        config.cluster_id(),
        parts.slots,
        local,
        link,
        config.shared_memory_reads,
    );
    let settings =
        PipeSettings { client, parked_max: PARKED_MAX, seed: identity.life.nonce ^ client };
    let pipe = Pipe::new(parts.stages, access, settings);
    let stop = PipeStop { flag: Arc::default(), bell: bell.clone() };
    let handle = pipe_driver::spawn("pipe-0", pipe, parts.port, bell, stop.flag.clone())
        .map_err(NodeError::Thread)?;
    Ok((handle, stop))
}

fn load_slots(table: &SlotTable, shards: &[u16]) {
    for (place, shard) in table.iter().zip(shards) {
        place.store(*shard, Ordering::Relaxed);
    }
}

fn tell_peers(store: &Store, map: &Map, me: NodeId) {
    let is_peer = |member: &&Member| {
        member.id != me && !matches!(member.state, MemberState::Dead | MemberState::Retired)
    };
    let peers: Vec<_> = map.members.iter().filter(is_peer).map(|m| (m.id, m.address)).collect();
    store.set_peers(&peers);
}

/// Keeps address book and slot table as the newest map says. Ends when the map has given this node
/// up: its id is worth nothing any more, and a new life needs a new one (P6).
async fn follow_map(
    view: &SystemView,
    store: &Arc<Store>,
    (slots, me): (&SlotTable, NodeId),
    keep: impl Fn(&Map),
) {
    let mut maps = view.follow();
    loop {
        let map = maps.borrow_and_update().clone();
        if map.is_formed() {
            keep(&map);
            if !map.state_of(me).is_live() {
                return;
            }
            tell_peers(store, &map, me);
            load_slots(slots, &map.slot_to_shard);
            view.nudge();
        }
        if maps.changed().await.is_err() {
            return;
        }
    }
}

/// Wakes the placement loops when a group has another leader, other members or another owner: a new
/// owner is reported at once, and steerers follow it. Ends when a replica has stopped by itself: a
/// node that seems to live but serves a shard no more would never be replaced.
async fn follow_groups(view: &SystemView, store: &Store) -> ShardId {
    let shards = (0..).map(ShardId).map_while(|shard| store.watch(shard));
    let follow = shards.map(|mut statuses| async move {
        let mut seen = None;
        loop {
            let status = statuses.borrow_and_update().clone();
            if status.role == Role::Stopped {
                return status.shard;
            }
            let owns = status.owns(boot_now());
            let now = Some((status.leader, status.term, owns, status.voters, status.learners));
            if seen != now {
                seen = now;
                view.nudge();
            }
            if statuses.changed().await.is_err() {
                return status.shard;
            }
        }
    });
    let (stopped, _, _) = futures::future::select_all(follow.map(Box::pin)).await;
    stopped
}

#[cfg(test)]
mod tests;
