//! One TCP connection for each pair of nodes, for all shards and both directions of asking.
//!
//! The node with the larger id dials, again and again with a bounded backoff; new nodes have larger
//! ids, so a newcomer needs no introduction. Clients dial too and have no id. Both ends say hello
//! first: another cluster, another wire version, the wrong node, a removed id, or an id that was
//! seen in another life (promise P6) is refused, counted and logged.
//!
//! A connection is one task that reads and writes. Whatever is queued when it gets to write goes
//! out in one system call. When it breaks, everything that waits for an answer on it fails at once.
//! This file decides nothing about shards; it knows requests only by the messages of
//! [`crate::wire`].

#![expect(clippy::disallowed_methods, reason = "this file owns the sockets and their tasks")]

use crate::clock::boot_now;
use crate::connection::{Caller, Connection, Serve, read_frame, run};
use crate::consensus::CallError;
use crate::frame::{self, FrameDecoder, FrameError, FrameKind};
use crate::refusal_counts::{RefusalCounts, RefusalReason};
use crate::types::{NodeId, Time};
use crate::wire::{Hello, Refused, Request, Response, Welcome};
use core::net::SocketAddr;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use core::time::Duration;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, Weak};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

/// Ids that are remembered, living and retired.
pub const PEERS_MAX: usize = 4096;
/// Clients that may be connected.
pub const CLIENTS_MAX: usize = 256;
/// Connections whose hello has not come yet.
const STRANGERS_MAX: usize = 64;
const HELLO_TIMEOUT: Duration = Duration::from_secs(2);
const DIAL_TIMEOUT: Duration = Duration::from_secs(2);
const BACKOFF_MIN: Duration = Duration::from_millis(5);
const BACKOFF_MAX: Duration = Duration::from_millis(250);

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What the locks here guard is whole after every statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Who this process is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity {
    pub(crate) cluster: u64,
    pub(crate) lineage: u64,
    pub(crate) node: NodeId,
    pub(crate) nonce: u64,
}

impl Identity {
    fn hello(&self, to: u64) -> Hello {
        let Self { cluster, lineage, node, nonce } = *self;
        Hello { cluster, lineage, from: node.0, to, nonce }
    }

    /// Whether who says this belongs to the same cluster. Who knows no lineage yet belongs to any.
    fn recognise(&self, hello: &Hello) -> Result<(), Refused> {
        if hello.cluster != self.cluster {
            return Err(Refused::Cluster(self.cluster));
        }
        same_lineage(self.lineage, hello.lineage).map_err(|_| Refused::Lineage(self.lineage))
    }
}

/// What is known of another node.
#[derive(Debug)]
struct Peer {
    id: NodeId,
    address: Mutex<Option<SocketAddr>>,
    /// The nonce of its one life, once heard.
    nonce: Mutex<Option<u64>>,
    connection: Mutex<Option<Arc<Connection>>>,
    heard: Arc<AtomicU64>,
    retired: AtomicBool,
    dialling: AtomicBool,
    /// The address or the connection changed.
    changed: Notify,
}

impl Peer {
    fn new(id: NodeId) -> Arc<Self> {
        Arc::new(Self {
            id,
            address: Mutex::new(None),
            nonce: Mutex::new(None),
            connection: Mutex::new(None),
            heard: Arc::new(AtomicU64::new(0)),
            retired: AtomicBool::new(false),
            dialling: AtomicBool::new(false),
            changed: Notify::new(),
        })
    }

    fn live(&self) -> Option<Arc<Connection>> {
        lock(&self.connection).as_ref().filter(|connection| !connection.is_closed()).cloned()
    }

    fn attach(&self, connection: &Arc<Connection>) {
        let old = lock(&self.connection).replace(connection.clone());
        if let Some(old) = old {
            old.close();
        }
        self.changed.notify_waiters();
    }

    fn retire(&self) {
        self.retired.store(true, Ordering::SeqCst);
        if let Some(connection) = lock(&self.connection).take() {
            connection.close();
        }
        self.changed.notify_one();
    }
}

/// All connections of this process.
pub(crate) struct Transport {
    identity: Identity,
    peers: RwLock<BTreeMap<NodeId, Arc<Peer>>>,
    serve: OnceLock<Weak<dyn Serve>>,
    /// By this node, or by the other end of a connection that it made.
    refusals: Arc<RefusalCounts>,
    strangers: AtomicUsize,
    clients: AtomicUsize,
    stopping: watch::Sender<bool>,
    /// Whether others may have been told that this node leaves.
    leaving: AtomicBool,
    /// Counts connections that began and ended.
    links: watch::Sender<u64>,
}

impl Transport {
    pub(crate) fn new(identity: Identity) -> Arc<Self> {
        Arc::new(Self {
            identity,
            peers: RwLock::default(),
            serve: OnceLock::new(),
            refusals: Arc::default(),
            strangers: AtomicUsize::new(0),
            clients: AtomicUsize::new(0),
            stopping: watch::Sender::new(false),
            leaving: AtomicBool::new(false),
            links: watch::Sender::new(0),
        })
    }

    /// Begins to accept connections and to serve what they ask.
    pub(crate) fn run(
        self: &Arc<Self>,
        listener: std::net::TcpListener,
        serve: Weak<dyn Serve>,
    ) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let first = self.serve.set(serve).is_ok();
        assert!(first, "a transport runs once");
        tokio::spawn(self.clone().accept_loop(listener));
        Ok(())
    }

    /// Changes when a connection begins or ends.
    pub(crate) fn links(&self) -> watch::Receiver<u64> {
        self.links.subscribe()
    }

    pub(crate) const fn refusals(&self) -> &Arc<RefusalCounts> {
        &self.refusals
    }

    /// This node tells the others that it leaves: that they refuse it from then on is no news.
    pub(crate) fn expect_refusals(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }

    /// Ends all connections and tasks.
    pub(crate) fn stop(&self) {
        self.stopping.send_replace(true);
        for peer in self.all_peers() {
            if let Some(connection) = lock(&peer.connection).take() {
                connection.close();
            }
        }
    }

    /// The address book. Who stood in it and no longer does is retired: its connection ends and
    /// its id is refused from now on.
    pub(crate) fn set_peers(self: &Arc<Self>, book: &[(NodeId, SocketAddr)]) {
        for peer in self.all_peers() {
            let known = lock(&peer.address).is_some();
            if known && !book.iter().any(|(id, _)| *id == peer.id) {
                peer.retire();
            }
        }
        for (id, address) in book {
            if *id == self.identity.node || id.0 == 0 {
                continue;
            }
            let Some(peer) = self.peer_or_new(*id) else {
                tracing::warn!(node = %id, "the address book is full");
                continue;
            };
            if lock(&peer.address).replace(*address) != Some(*address) {
                peer.changed.notify_one();
            }
            let dials = *id < self.identity.node && !peer.retired.load(Ordering::SeqCst);
            if dials && !peer.dialling.swap(true, Ordering::SeqCst) {
                tokio::spawn(self.clone().dial_loop(peer));
            }
        }
    }

    /// When each peer was last heard.
    pub(crate) fn contacts(&self) -> Vec<(NodeId, Time)> {
        let peers = self.all_peers();
        let heard = |peer: &Arc<Peer>| (peer.id, Time(peer.heard.load(Ordering::Relaxed)));
        peers.iter().filter(|peer| !peer.retired.load(Ordering::SeqCst)).map(heard).collect()
    }

    /// Queues a request now, in this order; the answer is awaited later.
    pub(crate) fn begin(&self, to: NodeId, request: &Request) -> Result<Pending, CallError> {
        let connection = self.connection(to).ok_or(CallError::Unreachable(to))?;
        connection.begin(request)
    }

    /// Asks and waits.
    pub(crate) async fn call(
        &self,
        to: NodeId,
        request: &Request,
        patience: Duration,
    ) -> Result<Response, CallError> {
        self.begin(to, request)?.within(patience).await
    }

    pub(crate) fn connection(&self, to: NodeId) -> Option<Arc<Connection>> {
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        peers.get(&to)?.live()
    }

    fn all_peers(&self) -> Vec<Arc<Peer>> {
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        peers.values().cloned().collect()
    }

    fn peer_or_new(&self, id: NodeId) -> Option<Arc<Peer>> {
        let mut peers = self.peers.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(peer) = peers.get(&id) {
            return Some(peer.clone());
        }
        if peers.len() >= PEERS_MAX {
            return None;
        }
        let peer = Peer::new(id);
        peers.insert(id, peer.clone());
        Some(peer)
    }

    async fn accept_loop(self: Arc<Self>, listener: TcpListener) {
        let mut stopping = self.stopping.subscribe();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = stopping.wait_for(|stop| *stop) => return,
            };
            match accepted {
                Ok((stream, _)) if self.strangers.load(Ordering::Relaxed) < STRANGERS_MAX => {
                    self.strangers.fetch_add(1, Ordering::Relaxed);
                    tokio::spawn(self.clone().welcome(stream));
                }
                Ok(_) => self.refusals.count(Refused::Full),
                Err(error) => {
                    // Out of descriptors, most likely: waiting is all that helps.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(BACKOFF_MIN).await;
                }
            }
        }
    }

    /// The acceptor's side of a hello, then the connection's life.
    async fn welcome(self: Arc<Self>, mut stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        let mut decoder = FrameDecoder::new();
        let heard = timeout(HELLO_TIMEOUT, read_frame(&mut stream, &mut decoder)).await;
        self.strangers.fetch_sub(1, Ordering::Relaxed);
        let hello = match heard {
            Ok(Ok(frame)) if frame.kind == FrameKind::Hello => {
                Hello::decode(&frame.body).map_err(|_| RefusalReason::Message)
            }
            Ok(Ok(_)) => Err(RefusalReason::Message),
            Err(_) => Err(RefusalReason::Silent),
            Ok(Err(error)) => {
                self.note_frame_error(&error);
                // A frame of ours tells another version what this one is.
                let hello = Welcome::Accepted(self.identity.hello(0));
                let _ = send_welcome(&mut stream, &hello).await;
                return;
            }
        };
        let hello = match hello {
            Ok(hello) => hello,
            Err(reason) => return self.refusals.count(reason),
        };
        match self.admit(&hello) {
            Err(reason) => {
                self.refusals.count(reason);
                if reason == Refused::Retired {
                    // Who has left or was given up may not know yet that everybody knows.
                    tracing::info!(from = hello.from, %reason, "refused a connection");
                } else {
                    tracing::warn!(from = hello.from, %reason, "refused a connection");
                }
                let _ = send_welcome(&mut stream, &Welcome::Refused(reason)).await;
            }
            Ok(peer) => {
                let answer = Welcome::Accepted(self.identity.hello(hello.from));
                if send_welcome(&mut stream, &answer).await.is_ok() {
                    self.live(peer.as_ref(), stream, decoder).await;
                }
                if peer.is_none() {
                    self.clients.fetch_sub(1, Ordering::Relaxed);
                }
            }
        }
    }

    /// Whether this hello may come in; `None` is a client.
    fn admit(&self, hello: &Hello) -> Result<Option<Arc<Peer>>, Refused> {
        self.identity.recognise(hello)?;
        if hello.to != 0 && hello.to != self.identity.node.0 {
            return Err(Refused::WrongNode(self.identity.node.0));
        }
        if hello.from == 0 {
            if self.clients.fetch_add(1, Ordering::Relaxed) >= CLIENTS_MAX {
                self.clients.fetch_sub(1, Ordering::Relaxed);
                return Err(Refused::Full);
            }
            return Ok(None);
        }
        if hello.from <= self.identity.node.0 {
            return Err(Refused::Direction);
        }
        let peer = self.peer_or_new(NodeId(hello.from)).ok_or(Refused::Full)?;
        recognise(&peer, hello.nonce)?;
        Ok(Some(peer))
    }

    /// Runs an agreed connection until it ends.
    async fn live(&self, peer: Option<&Arc<Peer>>, stream: TcpStream, decoder: FrameDecoder) {
        let caller = peer.map_or(Caller::Client, |peer| Caller::Node(peer.id));
        let heard = peer.map_or_else(Arc::default, |peer| peer.heard.clone());
        heard.store(boot_now().0, Ordering::Relaxed);
        let connection = Connection::new(caller, heard, self.refusals.clone());
        if let Some(peer) = peer {
            peer.attach(&connection);
            self.links.send_modify(|count| *count += 1);
            tracing::info!(node = %peer.id, "connected");
        }
        let Some(serve) = self.serve.get() else { return };
        let mut stopping = self.stopping.subscribe();
        let ended = tokio::select! {
            ended = run(&connection, stream, decoder, serve) => ended,
            _ = stopping.wait_for(|stop| *stop) => Ok(()),
        };
        connection.close();
        if let Err(error) = ended {
            self.note_frame_error(&error);
        }
        if let Some(peer) = peer {
            tracing::info!(node = %peer.id, "disconnected");
            self.links.send_modify(|count| *count += 1);
            peer.changed.notify_one();
        }
    }

    async fn dial_loop(self: Arc<Self>, peer: Arc<Peer>) {
        let mut stopping = self.stopping.subscribe();
        let mut backoff = BACKOFF_MIN;
        while !peer.retired.load(Ordering::SeqCst) && !*self.stopping.borrow() {
            let address = *lock(&peer.address);
            let dialled = match address {
                Some(address) => timeout(DIAL_TIMEOUT, self.dial(&peer, address)).await,
                None => Ok(Err(io::ErrorKind::AddrNotAvailable.into())),
            };
            match dialled {
                Ok(Ok((stream, decoder))) => {
                    backoff = BACKOFF_MIN;
                    self.live(Some(&peer), stream, decoder).await;
                }
                Ok(Err(error)) => tracing::debug!(node = %peer.id, %error, "cannot connect"),
                Err(_) => tracing::debug!(node = %peer.id, "cannot connect in time"),
            }
            tokio::select! {
                () = tokio::time::sleep(backoff) => {}
                () = peer.changed.notified() => {}
                _ = stopping.wait_for(|stop| *stop) => {}
            }
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
        peer.dialling.store(false, Ordering::SeqCst);
    }

    /// The dialler's side of a hello.
    async fn dial(
        &self,
        peer: &Arc<Peer>,
        address: SocketAddr,
    ) -> io::Result<(TcpStream, FrameDecoder)> {
        let (stream, decoder, theirs) =
            greet(address, &self.identity.hello(peer.id.0)).await.map_err(|error| {
                match error {
                    GreetError::Refused(reason) => {
                        self.refusals.count(reason);
                        if reason == Refused::Retired && self.leaving.load(Ordering::Relaxed) {
                            tracing::debug!(node = %peer.id, "refused, as one that has left");
                        } else {
                            tracing::warn!(node = %peer.id, %reason, "this node was refused");
                        }
                    }
                    GreetError::Frame(ref error) => self.note_frame_error(error),
                    GreetError::Io(_) => {}
                }
                io::Error::from(error)
            })?;
        let wrong = if theirs.cluster != self.identity.cluster {
            Err(Refused::Cluster(theirs.cluster))
        } else if same_lineage(self.identity.lineage, theirs.lineage).is_err() {
            Err(Refused::Lineage(theirs.lineage))
        } else if theirs.from != peer.id.0 {
            Err(Refused::WrongNode(theirs.from))
        } else {
            recognise(peer, theirs.nonce)
        };
        if let Err(reason) = wrong {
            self.refusals.count(reason);
            tracing::warn!(node = %peer.id, %reason, "refused a node that was dialled");
            return Err(io::Error::new(io::ErrorKind::ConnectionRefused, reason));
        }
        Ok((stream, decoder))
    }

    fn note_frame_error(&self, error: &io::Error) {
        if let Some(frame) = error.get_ref().and_then(|inner| inner.downcast_ref::<FrameError>()) {
            self.refusals.count(*frame);
            tracing::warn!(error = %frame, "ended a connection");
        }
    }
}

/// Two clusters of one name are told apart by their lineages, as far as both ends know theirs.
pub(crate) fn same_lineage(ours: u64, theirs: u64) -> Result<(), Refused> {
    if ours == 0 || theirs == 0 || ours == theirs { Ok(()) } else { Err(Refused::Lineage(theirs)) }
}

/// An id belongs to one life: the first nonce heard under it is the only one.
fn recognise(peer: &Peer, nonce: u64) -> Result<(), Refused> {
    if peer.retired.load(Ordering::SeqCst) {
        return Err(Refused::Retired);
    }
    let mut known = lock(&peer.nonce);
    if *known.get_or_insert(nonce) == nonce { Ok(()) } else { Err(Refused::Reincarnated) }
}

async fn send_welcome(stream: &mut TcpStream, welcome: &Welcome) -> io::Result<()> {
    let body = welcome.encode().map_err(io::Error::other)?;
    let mut bytes = Vec::new();
    frame::encode(FrameKind::Hello, 0, &body, &mut bytes);
    timeout(HELLO_TIMEOUT, stream.write_all(&bytes)).await?
}

/// Why a hello led nowhere.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GreetError {
    #[error("refused: {0}")]
    Refused(Refused),
    #[error(transparent)]
    Frame(io::Error),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<GreetError> for io::Error {
    fn from(error: GreetError) -> Self {
        match error {
            GreetError::Refused(reason) => Self::new(io::ErrorKind::ConnectionRefused, reason),
            GreetError::Frame(error) | GreetError::Io(error) => error,
        }
    }
}

/// Connects, says hello, and gives the other end's hello.
pub(crate) async fn greet(
    address: SocketAddr,
    hello: &Hello,
) -> Result<(TcpStream, FrameDecoder, Hello), GreetError> {
    greet_on(TcpStream::connect(address).await?, hello).await
}

/// The same on a connection that has been made.
pub(crate) async fn greet_on(
    mut stream: TcpStream,
    hello: &Hello,
) -> Result<(TcpStream, FrameDecoder, Hello), GreetError> {
    stream.set_nodelay(true)?;
    let body = hello.encode().map_err(io::Error::other)?;
    let mut bytes = Vec::new();
    frame::encode(FrameKind::Hello, 0, &body, &mut bytes);
    stream.write_all(&bytes).await?;
    let mut decoder = FrameDecoder::new();
    let frame = read_frame(&mut stream, &mut decoder).await.map_err(GreetError::Frame)?;
    let welcome = Welcome::decode(&frame.body).map_err(io::Error::other)?;
    match welcome {
        Welcome::Accepted(theirs) if frame.kind == FrameKind::Hello => {
            Ok((stream, decoder, theirs))
        }
        Welcome::Accepted(_) => Err(io::Error::from(io::ErrorKind::InvalidData).into()),
        Welcome::Refused(reason) => Err(GreetError::Refused(reason)),
    }
}

pub(crate) use crate::connection::Pending;
