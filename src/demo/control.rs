//! The demo's other thread: runs the orchestrator, follows the map, asks nodes how they are.
//!
//! It decides nothing. What happens goes to the driver's thread as [`News`], what is to be done
//! comes back as [`Order`]s; packets never pass here. When the driver's end goes away, all children
//! end.

use super::moves::Mover;
use super::settle;
use crate::ask::{CLUSTER_NAME, ask_soon};
use nearstate_orchestrator::event::Event;
use nearstate_orchestrator::executor::NodeTemplate;
use nearstate_orchestrator::launcher::process::ProcessLauncher;
use nearstate_orchestrator::policy::Policy;
use nearstate_orchestrator::service::{Orchestrator, OrchestratorHandle};
use nearstate_placement::Map;
use nearstate_placement::api::{Request, Response, StatusReport};
use nearstate_store::{Epoch, NodeId, ShardId};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};

/// How long a map request waits for a newer one.
const MAP_WAIT_MS: u32 = 1_000;
/// How long a node may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a node that is about to be killed may take to tell its counters.
const LAST_WORDS: Duration = Duration::from_millis(300);
/// How long the cluster may take to settle.
const SETTLE_MAX: Duration = Duration::from_secs(20);
/// After this, an owner that the map would rather have elsewhere is good enough.
const SETTLE_STRICTLY: Duration = Duration::from_secs(10);
/// Between two looks at a cluster that is settling, and after a failed request.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// What has happened.
#[derive(Debug)]
pub(crate) enum News {
    /// Something that the orchestrator tells.
    Event(Event),
    /// A newer map.
    Map(Map),
    /// What a node has counted so far.
    Counters(NodeId, Vec<(String, u64)>),
    /// To [`Order::Settle`]: ready for traffic, or what it lacks.
    Settled(Result<(), String>),
    /// To [`Order::Move`]: slots have arrived at a shard; whether these were the last ones.
    Moved {
        /// How many.
        slots: u64,
        /// Where.
        to: ShardId,
        /// Whether no more are to move.
        is_last: bool,
    },
    /// To [`Order::Kill`]: it is done.
    Killed,
    /// To [`Order::Collect`]: all living nodes have told their counters.
    Collected,
    /// The user wants the demo to end.
    Interrupted,
    /// The orchestrator cannot go on.
    Failed(String),
}

/// What is to be done.
#[derive(Debug)]
pub(crate) enum Order {
    /// Say when the cluster is ready for traffic.
    Settle,
    /// Have so many slots move back and forth.
    Move(u32),
    /// Kill the process of this node.
    Kill(NodeId),
    /// Ask all living nodes for their counters.
    Collect,
}

/// The driver's end.
pub(crate) struct Control {
    orders: Option<mpsc::UnboundedSender<Order>>,
    news: Receiver<News>,
    thread: Option<JoinHandle<()>>,
}

impl Control {
    /// Starts the thread, which starts the nodes.
    pub(crate) fn start(policy: Policy, template: NodeTemplate) -> std::io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (orders, orders_out) = mpsc::unbounded_channel();
        let (news_in, news) = channel();
        let thread = std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || runtime.block_on(serve(policy, template, orders_out, news_in)))?;
        Ok(Self { orders: Some(orders), news, thread: Some(thread) })
    }

    /// Has something done.
    pub(crate) fn order(&self, order: Order) {
        if let Some(orders) = &self.orders {
            // If the thread is gone, the news says so.
            let _ = orders.send(order);
        }
    }

    /// The next news, waiting for at most so long.
    pub(crate) fn news_within(&self, patience: Duration) -> Option<News> {
        match self.news.recv_timeout(patience) {
            Ok(news) => Some(news),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => {
                Some(News::Failed("its thread has ended".to_owned()))
            }
        }
    }

    /// The next news, if there is some.
    pub(crate) fn news(&self) -> Option<News> {
        self.news.try_recv().ok()
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            // A panic there has been told already.
            let _ = thread.join();
        }
    }
}

/// What the thread knows.
struct Desk {
    handle: OrchestratorHandle,
    news: Sender<News>,
    /// Nodes that serve.
    ready: BTreeMap<NodeId, (String, SocketAddr)>,
    /// Where the map's follower may ask.
    addresses: watch::Sender<Vec<SocketAddr>>,
    map: watch::Receiver<Map>,
}

async fn serve(
    policy: Policy,
    template: NodeTemplate,
    mut orders: mpsc::UnboundedReceiver<Order>,
    news: Sender<News>,
) {
    let handle = match Orchestrator::start(policy, template, ProcessLauncher::new()) {
        Ok(handle) => handle,
        Err(error) => {
            let _ = news.send(News::Failed(error.to_string()));
            return;
        }
    };
    let signals = tokio::spawn(tell_signals(news.clone()));
    let (addresses, seeds) = watch::channel(Vec::new());
    let (map_in, map) = watch::channel(Map::unformed());
    let follower = tokio::spawn(follow_map(seeds, map_in, news.clone()));
    let mut desk = Desk { handle, news, ready: BTreeMap::new(), addresses, map };
    loop {
        tokio::select! {
            event = desk.handle.next_event() => match event {
                Some(event) => desk.on_event(event),
                None => {
                    desk.tell(News::Failed("the orchestrator has ended".to_owned()));
                    break;
                }
            },
            order = orders.recv() => match order {
                Some(order) => desk.on_order(order, &orders).await,
                None => break,
            },
        }
    }
    follower.abort();
    signals.abort();
    if let Err(error) = desk.handle.shutdown().await {
        let _ = desk.news.send(News::Failed(error.to_string()));
    }
}

/// Tells of each Ctrl-C, of each polite request to end, and of a terminal that went away.
async fn tell_signals(news: Sender<News>) -> std::io::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    loop {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = hangup.recv() => {}
            _ = terminate.recv() => {}
        }
        if news.send(News::Interrupted).is_err() {
            return Ok(());
        }
    }
}

impl Desk {
    fn tell(&self, news: News) {
        // A driver that is gone has dropped the orders too, and that ends this thread.
        let _ = self.news.send(news);
    }

    fn on_event(&mut self, event: Event) {
        match &event {
            Event::Ready { name, node, .. } => {
                self.ready.insert(node.node, (name.clone(), node.listen));
            }
            Event::Died { node: Some(node), .. } => {
                self.ready.remove(node);
            }
            _ => {}
        }
        self.addresses.send_replace(self.ready.values().map(|(_, address)| *address).collect());
        self.tell(News::Event(event));
    }

    async fn on_order(&mut self, order: Order, orders: &mpsc::UnboundedReceiver<Order>) {
        match order {
            Order::Settle => {
                let settled = self.settle(orders).await;
                self.tell(News::Settled(settled));
            }
            Order::Move(slots) => {
                let addresses = self.addresses.subscribe();
                let (map, news) = (self.map.clone(), self.news.clone());
                // Ends with this thread's runtime.
                tokio::spawn(Mover { addresses, map, news }.run(slots));
            }
            Order::Kill(node) => {
                let Some((name, address)) = self.ready.get(&node).cloned() else { return };
                if let Some(report) = status(address, LAST_WORDS).await {
                    self.tell(News::Counters(report.node, report.counters));
                }
                self.tell(News::Killed);
                if let Err(error) = self.handle.kill(&name).await {
                    self.tell(News::Failed(error.to_string()));
                }
            }
            Order::Collect => {
                for (_, address) in self.ready.values() {
                    if let Some(report) = status(*address, PATIENCE).await {
                        self.tell(News::Counters(report.node, report.counters));
                    }
                }
                self.tell(News::Collected);
            }
        }
    }

    /// Waits until the cluster is ready for traffic.
    async fn settle(&self, orders: &mpsc::UnboundedReceiver<Order>) -> Result<(), String> {
        let began = Instant::now();
        loop {
            let mut reports = Vec::new();
            for (_, address) in self.ready.values() {
                reports.extend(status(*address, PATIENCE).await);
            }
            let strictly = began.elapsed() < SETTLE_STRICTLY;
            let map = self.map.borrow().clone();
            match settle::lack(&map, &reports, self.ready.len(), strictly) {
                None => return Ok(()),
                Some(_) if orders.is_closed() => return Err("nobody waits for it".to_owned()),
                Some(lack) if began.elapsed() > SETTLE_MAX => return Err(lack),
                Some(_) => sleep(LOOK_AGAIN).await,
            }
        }
    }
}

async fn status(address: SocketAddr, patience: Duration) -> Option<StatusReport> {
    match ask_soon(CLUSTER_NAME, address, &Request::Status, patience).await {
        Ok(Response::Status(report)) => Some(*report),
        _ => None,
    }
}

/// Tells each newer map, asking whichever node answers.
async fn follow_map(
    mut addresses: watch::Receiver<Vec<SocketAddr>>,
    known: watch::Sender<Map>,
    news: Sender<News>,
) {
    let patience = PATIENCE + Duration::from_millis(MAP_WAIT_MS.into());
    loop {
        let now: Vec<SocketAddr> = addresses.borrow_and_update().clone();
        if now.is_empty() && addresses.changed().await.is_err() {
            return;
        }
        for address in now {
            let newer_than: Epoch = known.borrow().epoch;
            let request = Request::GetMap { newer_than, wait_ms: MAP_WAIT_MS };
            match ask_soon(CLUSTER_NAME, address, &request, patience).await {
                Ok(Response::Map(map)) if map.epoch > newer_than => {
                    known.send_replace(map.clone());
                    if news.send(News::Map(map)).is_err() {
                        return;
                    }
                }
                Ok(_) => {}
                Err(_) => sleep(LOOK_AGAIN).await,
            }
        }
    }
}
