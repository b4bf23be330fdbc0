//! The whole node: put together, run until told to stop, taken apart.
//!
//! The edge where all others meet; it decides nothing. The order matters. Everything that can be
//! wrong with a configuration is found, and the memory for all tables is had, before the node has
//! an id: a node that cannot be leaves no trace in the cluster. The id is there before any replica
//! votes; a port is open before the node says that it is ready.

mod admission;
mod answers;
mod control;
mod durable;
mod error;
mod formation;
mod identity;
mod leaving;
pub mod life;
mod map_feed;
pub mod mark;
mod past;
mod replicas;
mod seeds;
pub mod stopped;
mod store_answers;
mod store_words;
mod system_view;
mod tracer;
mod vigil;

use crate::chain::Chain;
use crate::cluster_access::ClusterAccess;
use crate::node_config::{NodeConfig, PortConfig, Start};
use crate::pipe::{PARKED_MAX, Pipe, PipeSettings, SteeredChain};
use crate::pipe_driver::{self, PipeHandle};
use crate::port::Port;
use crate::port::capture::{CaptureError, CaptureReader, CaptureWriter};
use crate::port::pcap::{Outputs, PcapPort, SideRule};
use crate::port::shm::ShmPort;
use answers::{Answers, Handler};
use control::Control;
use durable::Home;
pub use error::NodeError;
use identity::{ClusterShape, Identity};
use map_feed::MapFeed;
use nearstate_placement::service::ServiceConfig;
use nearstate_placement::system::SystemCommand;
use nearstate_placement::{Map, Member};
use nearstate_store::client::Wanted;
use nearstate_store::clock::boot_now;
use nearstate_store::consensus::Compaction;
use nearstate_store::consensus::Role;
use nearstate_store::doorbell::Doorbell;
use nearstate_store::driver::{Store, StoreConfig};
use nearstate_store::{NodeId, ShardId, SlotMap};
use replicas::{ReplicaView, Replicas};
use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use system_view::SystemView;

/// How long a durable node may be silent before it is given up: it is expected to come back.
const DURABLE_DEAD_AFTER_MS: u64 = 30_000;

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

/// What ends a node.
pub struct Stop<A, O> {
    /// Resolves when the node is to end: it hands over what it owns and leaves the cluster first.
    pub asked: A,
    /// Resolves when it is not to take the time for that.
    pub at_once: O,
}

/// Runs a node until it is told to stop, somebody asks it to end, or its port is exhausted.
///
/// # Errors
/// If it cannot start. Everything that was begun is taken back.
pub async fn run<A, O>(
    config: NodeConfig,
    on_ready: impl FnOnce(&Ready),
    stop: Stop<A, O>,
) -> Result<(), NodeError>
where
    A: Future<Output = ()>,
    O: Future<Output = ()>,
{
    let nonce = formation::draw_nonce().map_err(NodeError::Random)?;
    let ended = async {
        let Stop { asked, at_once } = stop;
        tokio::pin!(asked);
        let Some(started) = Node::start(&config, nonce, asked.as_mut()).await? else {
            tracing::info!("told to end before it was in the cluster");
            return Ok(());
        };
        on_ready(&started.ready);
        started.run(Stop { asked, at_once }).await
    };
    let ended = ended.await;
    replicas::remove_region_files(&config, nonce);
    ended
}

struct Node {
    ready: Ready,
    wanted: Wanted,
    store: Arc<Store>,
    view: SystemView,
    pipe: PipeHandle,
    pipe_stop: PipeStop,
    slots: SlotMap,
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

impl Node {
    /// `nonce` is drawn for this process. Nobody if `asked` resolves before the node has an id:
    /// once it is a member, it is started all the same, to leave in good order.
    async fn start(
        config: &NodeConfig,
        nonce: u64,
        mut asked: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Option<Self>, NodeError> {
        make_directory(config)?;
        replicas::remove_orphans(config);
        let past = past::look_back(config).await?;
        let (listener, listen) = listen(past.address(config, &port_names(config))?)?;
        // Built once before the node has an id, so that a wrong chain costs nobody an id.
        drop(Chain::new(&config.chain, early_slots(config))?);
        let port = open_port(config)?;
        let shape = tokio::select! {
            shape = identity::find_shape(config, &past, listen) => shape?,
            () = asked.as_mut() => return Ok(None),
        };
        let chain = Arc::new(Chain::new(&config.chain, shape.slots)?);
        let steering = chain.steering(config.steer_seed);
        let view = SystemView::new(Map::unformed());
        let replicas = Replicas::new(config, nonce, (shape, &chain), &view)?;
        let mut identity = tokio::select! {
            biased;
            found = identity::identify(config, past, (listen, nonce), shape) => found?,
            () = asked => return Ok(None),
        };
        let (node, lineage) = (identity.life.node, identity.life.lineage);
        view.publish(Arc::new(identity.map.clone()));
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
            nonce: identity.life.nonce,
            durability: identity.durability(),
            compaction: Compaction::default(),
        };
        let handler = Arc::new(Handler(answers.clone()));
        let store = Store::start(store_config, listener, replicas.setups, handler).await?;
        answers.store.get_or_init(|| store.clone());
        identity.save_with(config)?;
        tell_peers(&store, &identity.map, node);
        form_if_first(config, &mut identity, &store).await?;
        let slots = SlotMap::new(Map::first_slots(shape.slots, shape.shards));
        store.follow_slots(slots.clone());
        let stages = SteeredChain::new(chain, config.steer_seed);
        let client = identity.client();
        let parts = PipeParts { stages, port, slots: slots.clone(), client, seed: nonce };
        let (pipe, pipe_stop) = start_pipe(config, &store, &replicas.views, parts)?;
        answers.counters.get_or_init(|| pipe.counters().clone());
        let ready = Ready { node, name: config.name.clone(), listen, ports: port_words(config) };
        let wanted = Wanted { cluster: config.cluster_id(), lineage };
        let home = identity.home;
        Ok(Some(Self { ready, wanted, store, view, pipe, pipe_stop, slots, home }))
    }

    async fn run<A, O>(self, stop: Stop<A, O>) -> Result<(), NodeError>
    where
        A: Future<Output = ()>,
        O: Future<Output = ()>,
    {
        let Self { ready, wanted, store, view, pipe, pipe_stop, slots, home } = self;
        let me = ready.node;
        let counters = pipe.counters().clone();
        let mut pipe = tokio::task::spawn_blocking(move || pipe.join());
        let mut pipe_is_over = false;
        let control = Control { me, store: store.clone(), view: view.clone() };
        let feed = MapFeed { me, wanted, store: &store, view: &view };
        let mut service = ServiceConfig::default();
        if home.is_some() {
            service.thresholds.dead_after_ms = DURABLE_DEAD_AFTER_MS;
        }
        let placement = nearstate_placement::service::run(&control, service);
        let keep = |map: &Map| home.iter().for_each(|home| home.save_map(map));
        let serving = async {
            tokio::select! {
                () = follow_map(&view, &store, (&slots, me), keep) => Err(NodeError::GivenUp),
                shard = follow_groups(&view, &store) => Err(NodeError::ReplicaStopped(shard)),
                () = feed.run() => Ok(()),
                () = placement => Ok(()),
                () = vigil::keep(&store, &view, me) => Ok(()),
            }
        };
        tokio::pin!(serving);
        let mut failed = None;
        tokio::select! {
            () = stop.asked => {}
            () = view.asked_to_end() => {}
            _ = &mut pipe => {
                pipe_is_over = true;
                tracing::info!(packets = %counters.snapshot(), "the port has no more packets");
            }
            ended = &mut serving => failed = Some(ended),
        }
        // A durable node comes back as the member that it was: it must not be listed as gone, or
        // its memory would be worth nothing, and a cluster that ends as a whole would lose all.
        let leaves = failed.is_none() && home.is_none();
        let mut handed_over = 0;
        if leaves {
            tokio::select! {
                count = leaving::hand_over(&store, &view, me) => handed_over = count,
                () = stop.at_once => tracing::warn!("told twice to end: nothing is handed over"),
                _ = &mut serving => {}
            }
        }
        pipe_stop.stop();
        if !pipe_is_over {
            // A pipe that panicked has said so; the node ends in either case.
            let _ = pipe.await;
        }
        if leaves {
            leaving::say_farewell(&store, &view, me, handed_over).await;
        } else if failed.is_none() {
            tracing::info!(node = %me, "ends, and is expected back as the member that it is");
        }
        view.stop();
        store.shutdown().await;
        failed.unwrap_or(Ok(()))
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

/// What others open to send it packets, as the cluster knows it: nothing for a capture.
fn port_names(config: &NodeConfig) -> Vec<String> {
    match &config.port {
        PortConfig::Shm { path, .. } => vec![path.display().to_string()],
        PortConfig::Pcap { .. } => Vec::new(),
    }
}

/// What packets come through, for people and launchers.
fn port_words(config: &NodeConfig) -> Vec<String> {
    match &config.port {
        PortConfig::Pcap { input, .. } => vec![input.display().to_string()],
        PortConfig::Shm { .. } => port_names(config),
    }
}

/// Makes the directory, and sees that files can be made in it: otherwise this comes to light only
/// once the node has an id.
fn make_directory(config: &NodeConfig) -> Result<(), NodeError> {
    for directory in [config.directory.as_path(), config.lasting_directory()] {
        try_directory(config, directory)?;
    }
    Ok(())
}

fn try_directory(config: &NodeConfig, directory: &Path) -> Result<(), NodeError> {
    let probe = directory.join(format!(".{}.{}.probe", config.cluster, config.name));
    std::fs::create_dir_all(directory)
        .and_then(|()| std::fs::write(&probe, b""))
        .and_then(|()| std::fs::remove_file(&probe))
        .map_err(|source| NodeError::Directory { path: directory.to_owned(), source })
}

fn open_port(config: &NodeConfig) -> Result<Box<dyn Port>, NodeError> {
    match &config.port {
        PortConfig::Shm { path, ring } => match ShmPort::create(path, *ring as usize) {
            Ok(port) => Ok(Box::new(port)),
            Err(error) => Err(NodeError::Port { key: "port.path", reason: error.to_string() }),
        },
        PortConfig::Pcap { input, inside_output, outside_output } => {
            Ok(Box::new(open_capture(input, inside_output, outside_output)?))
        }
    }
}

fn open_capture(input: &Path, inside: &Path, outside: &Path) -> Result<PcapPort, NodeError> {
    let at = |key| move |error: CaptureError| NodeError::Port { key, reason: error.to_string() };
    let reader = CaptureReader::open(input).map_err(at("port.input"))?;
    let outputs = Outputs {
        inside: Some(CaptureWriter::create(inside).map_err(at("port.inside_output"))?),
        outside: Some(CaptureWriter::create(outside).map_err(at("port.outside_output"))?),
    };
    Ok(PcapPort::new(reader, outputs, SideRule::first_sender()))
}

/// A founder makes its cluster. One that was killed in the middle of that goes on with it.
async fn form_if_first(
    config: &NodeConfig,
    identity: &mut Identity,
    store: &Arc<Store>,
) -> Result<(), NodeError> {
    let Start::Form { slots, shards, replicas } = config.start else { return Ok(()) };
    if !identity.life.forming {
        return Ok(());
    }
    let members = vec![identity.member(config)];
    let lineage = identity.life.lineage;
    let shape = SystemCommand::Form { members, slots, shards, replicas, lineage };
    formation::form(store, identity.life.node, shards, &shape).await?;
    identity.life.forming = false;
    identity.save()
}

struct PipeParts {
    stages: SteeredChain,
    port: Box<dyn Port>,
    slots: SlotMap,
    /// Of this process, for its transactions.
    client: u64,
    /// Random, of this process.
    seed: u64,
}

fn start_pipe(
    config: &NodeConfig,
    store: &Arc<Store>,
    views: &[Option<ReplicaView>],
    parts: PipeParts,
) -> Result<(PipeHandle, PipeStop), NodeError> {
    let bell = match parts.port.bell() {
        Some(bell) => bell,
        None => Arc::new(Doorbell::new()?),
    };
    let client = parts.client;
    let link = store.pipe_link(client, bell.clone());
    let local = views.iter().map(|view| view.as_ref().map(ReplicaView::to_local)).collect();
    let access = ClusterAccess::new(
        config.cluster_id(),
        parts.slots,
        local,
        link,
        config.shared_memory_reads,
    );
    let settings = PipeSettings { client, parked_max: PARKED_MAX, seed: parts.seed };
    let pipe = Pipe::new(parts.stages, access, settings);
    let stop = PipeStop { flag: Arc::default(), bell: bell.clone() };
    let handle = pipe_driver::spawn("pipe-0", pipe, parts.port, bell, stop.flag.clone())
        .map_err(NodeError::Thread)?;
    Ok((handle, stop))
}

fn tell_peers(store: &Store, map: &Map, me: NodeId) {
    let is_peer = |member: &&Member| member.id != me && member.state.is_live();
    let peers: Vec<_> = map.members.iter().filter(is_peer).map(|m| (m.id, m.address)).collect();
    store.set_peers(&peers);
}

/// Keeps address book and slot table as the newest map says. Ends when the map has given this node
/// up: its id is worth nothing any more, and a new life needs a new one (P6).
async fn follow_map(
    view: &SystemView,
    store: &Arc<Store>,
    (slots, me): (&SlotMap, NodeId),
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
            for placement in &map.shards {
                store.set_part(placement.shard, placement.replicas.contains(&me));
            }
            slots.load(&map.slot_to_shard);
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
