//! The whole node: put together, run until told to stop, taken apart.
//!
//! The edge where all others meet; it decides nothing. The order matters. Everything that can be
//! wrong with a configuration is found before the node has an id; the id is there before any
//! replica votes; a port is open before the node says that it is ready.

mod answers;
mod control;
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
use formation::{Newcomer, Origin};
use map_feed::MapFeed;
use nearstate_placement::service::ServiceConfig;
use nearstate_placement::system::{SystemCommand, SystemReply};
use nearstate_placement::{Map, Member, MemberState};
use nearstate_store::client::Wanted;
use nearstate_store::clock::boot_now;
use nearstate_store::consensus::Role;
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
        "{} says that this node has formed the cluster before and has lost its memory since; start \
         it with `start = {{ join = ... }}`, or remove the file if the whole cluster is gone",
        .0.display()
    )]
    FormedBefore(PathBuf),
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
    node: NodeId,
    nonce: u64,
    lineage: u64,
    map: Map,
    slots: u32,
    shards: u16,
}

impl Node {
    async fn start(config: &NodeConfig) -> Result<Self, NodeError> {
        std::fs::create_dir_all(&config.directory)
            .map_err(|source| NodeError::File { path: config.directory.clone(), source })?;
        let (listener, listen) = listen(config.listen)?;
        let early = early_slots(config);
        // Built once before the node has an id, so that a wrong chain costs nobody an id.
        drop(Chain::new(&config.chain, early)?);
        let port = open_port(config)?;
        let identity = identify(config, listen).await?;
        let chain = Arc::new(Chain::new(&config.chain, identity.slots)?);
        let steering = chain.steering(config.steer_seed);
        let view = SystemView::new(identity.map.clone());
        let shape = Shape {
            slots: identity.slots,
            shards: identity.shards,
            pools: chain.pools(),
            soft: chain.soft(),
        };
        let replicas = Replicas::new(config, identity.node, &shape, &view)?;
        let answers = Arc::new(Answers {
            node: identity.node,
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
            lineage: identity.lineage,
            node: identity.node,
            timing: config.timing(),
            nonce: identity.nonce,
        };
        let handler = Arc::new(Handler(answers.clone()));
        let store = Store::start(store_config, listener, replicas.setups, handler).await?;
        answers.store.get_or_init(|| store.clone());
        tell_peers(&store, &identity.map, identity.node);
        if let Start::Form { slots, shards, replicas } = config.start {
            let shape = SystemCommand::Form {
                members: vec![member(config, listen)],
                slots,
                shards,
                replicas,
                lineage: identity.lineage,
            };
            form(&store, identity.node, shards, &shape).await?;
        }
        let slots: SlotTable = (0..identity.slots).map(|_| AtomicU16::new(0)).collect();
        load_slots(&slots, &Map::first_slots(identity.slots, identity.shards));
        let stages = SteeredChain::new(chain, config.steer_seed);
        let parts = PipeParts { stages, port, slots: slots.clone() };
        let (pipe, pipe_stop) = start_pipe(config, &identity, &store, &replicas.views, parts)?;
        answers.counters.get_or_init(|| pipe.counters().clone());
        let ready = Ready {
            node: identity.node,
            name: config.name.clone(),
            listen,
            ports: port_names(config),
        };
        let wanted = Wanted { cluster: config.cluster_id(), lineage: identity.lineage };
        Ok(Self { ready, wanted, store, view, pipe, pipe_stop, slots })
    }

    async fn run(self, stop: impl Future<Output = ()>) -> Result<(), NodeError> {
        let Self { ready, wanted, store, view, pipe, pipe_stop, slots } = self;
        let mut pipe = tokio::task::spawn_blocking(move || pipe.join());
        let mut pipe_is_over = false;
        let control = Control { me: ready.node, store: store.clone(), view: view.clone() };
        let feed = MapFeed { me: ready.node, wanted, store: &store, view: &view };
        let placement = nearstate_placement::service::run(&control, ServiceConfig::default());
        let ended = tokio::select! {
            () = stop => Ok(()),
            () = view.stopped() => Ok(()),
            _ = &mut pipe => {
                pipe_is_over = true;
                Ok(())
            }
            () = follow_map(&view, &store, &slots, ready.node) => Err(NodeError::GivenUp),
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

/// Gets the node an id: the first of a new cluster, or a fresh one of an existing cluster.
async fn identify(config: &NodeConfig, address: SocketAddr) -> Result<Identity, NodeError> {
    let nonce = formation::draw_nonce().map_err(NodeError::Random)?;
    match &config.start {
        Start::Form { slots, shards, .. } => {
            let lineage = formation::draw_nonce().map_err(NodeError::Random)?;
            origin(config).mark_as_former(lineage)?;
            let map = Map::unformed();
            Ok(Identity { node: NodeId(1), nonce, lineage, map, slots: *slots, shards: *shards })
        }
        Start::Join { seeds } => {
            let newcomer = Newcomer {
                cluster: config.cluster_id(),
                name: config.name.clone(),
                address,
                ports: port_names(config),
                nonce,
                settings: config.shared_settings(),
            };
            let origin = origin(config);
            let (node, map) = formation::join(&newcomer, &origin, seeds).await?;
            origin.mark_as_member(map.lineage)?;
            let (slots, shards) = (map.slots, map.shards.len() as u16 - 1);
            Ok(Identity { node, nonce, lineage: map.lineage, map, slots, shards })
        }
    }
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
        Ok(SystemReply::Done(_)) => Ok(()),
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
    let client = identity.node.0 << 16;
    let link = store.pipe_link(client, bell.clone());
    let local = views.iter().map(|view| view.as_ref().map(ReplicaView::to_local)).collect();
    let access = ClusterAccess::new(
        config.cluster_id(),
        parts.slots,
        local,
        link,
        config.shared_memory_reads,
    );
    let settings = PipeSettings { client, parked_max: PARKED_MAX, seed: identity.nonce };
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
async fn follow_map(view: &SystemView, store: &Arc<Store>, slots: &SlotTable, me: NodeId) {
    let mut maps = view.follow();
    loop {
        let map = maps.borrow_and_update().clone();
        if map.is_formed() {
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
