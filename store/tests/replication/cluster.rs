//! A cluster of stores in one process, on real TCP, with a machine that logs and sums.

#![expect(clippy::disallowed_methods, reason = "tests own sockets and time")]

use futures::FutureExt;
use futures::future::BoxFuture;
use nearstate_store::batch::{check_batch, decode_batch};
use nearstate_store::consensus::{ShardStatus, Timing};
use nearstate_store::driver::{
    AppHandler, LocalReads, RegionAddress, ShardSetup, StartError, Store, StoreConfig,
};
use nearstate_store::lease::LeaseCell;
use nearstate_store::machine::{Machine, PayloadError, Reply, SnapshotError};
use nearstate_store::{
    Entry, Key, LogIndex, NodeId, Outcome, ShardId, SlotId, TransactionId, Value, Version,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub(crate) const SHARD: ShardId = ShardId(1);
pub(crate) const CLUSTER: u64 = 0xc1;
/// Far longer than anything takes: only a hang reaches it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// What the machine of one node holds, for the test to look at.
#[derive(Default)]
pub(crate) struct Held {
    pub(crate) sums: Vec<u64>,
    /// Which serials of which client took effect, and how often one did.
    pub(crate) done: BTreeMap<(u64, u64), u32>,
    pub(crate) installed: u32,
}

/// Takes two kinds of payload: 8 bytes are a number to log; a longer one is a batch of
/// transactions, each of which is noted once.
pub(crate) struct SumMachine(pub(crate) Arc<Mutex<Held>>);

impl SumMachine {
    pub(crate) fn check_payload(payload: &[u8]) -> Result<(), PayloadError> {
        if payload.len() == 8 {
            return Ok(());
        }
        check_batch(payload)
    }
}

impl Machine for SumMachine {
    fn check(payload: &[u8]) -> Result<(), PayloadError> {
        Self::check_payload(payload)
    }

    fn apply(&mut self, index: LogIndex, payload: &[u8]) -> Reply {
        let mut held = self.0.lock().unwrap();
        if let Ok(number) = <[u8; 8]>::try_from(payload) {
            let number = u64::from_le_bytes(number);
            held.sums.push(number);
            let sum: u64 = held.sums.iter().sum();
            return Reply::System(sum.to_le_bytes().into());
        }
        let batch = decode_batch(payload).expect("was checked");
        let outcomes = batch.transactions.iter().map(|transaction| {
            let TransactionId { client, serial } = transaction.id;
            let count = held.done.entry((client, serial)).or_default();
            *count += 1;
            Outcome::Committed(index)
        });
        Reply::Outcomes(outcomes.collect())
    }

    fn snapshot(&self) -> Vec<u8> {
        let held = self.0.lock().unwrap();
        // Large enough to take several pieces.
        let mut bytes = vec![7; 1_200_000];
        bytes.extend_from_slice(&(held.sums.len() as u64).to_le_bytes());
        for number in &held.sums {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        for ((client, serial), count) in &held.done {
            for word in [*client, *serial, u64::from(*count)] {
                bytes.extend_from_slice(&word.to_le_bytes());
            }
        }
        bytes
    }

    fn install(&mut self, snapshot: &[u8]) -> Result<(), SnapshotError> {
        let words = snapshot.get(1_200_000..).ok_or(SnapshotError::Damaged("too short"))?;
        let words: Vec<u64> =
            words.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
        let (count, words) = words.split_first().ok_or(SnapshotError::Damaged("too short"))?;
        let (sums, done) = words.split_at(*count as usize);
        let mut held = self.0.lock().unwrap();
        held.sums = sums.to_vec();
        held.done = done.as_chunks::<3>().0.iter().map(|[c, s, n]| ((*c, *s), *n as u32)).collect();
        held.installed += 1;
        Ok(())
    }

    fn state_hash(&self) -> u64 {
        let held = self.0.lock().unwrap();
        let done = held.done.iter().flat_map(|((c, s), n)| [*c, *s, u64::from(*n)]);
        let words = held.sums.iter().copied().chain(done);
        words.fold(17, |hash: u64, word| hash.wrapping_mul(31).wrapping_add(word))
    }
}

impl LocalReads for SumMachine {
    fn get(&self, key: &Key) -> Option<Entry> {
        let held = self.0.lock().unwrap();
        let number = held.sums.get(key.0[4] as usize)?;
        let mut value = Value::ZERO;
        value.0[0] = *number;
        Some(Entry { value, version: Version(key.0[4] + 1), slot: SlotId(0) })
    }
}

/// Answers with who asked and what was asked.
pub(crate) struct Echo;

impl AppHandler for Echo {
    fn handle(&self, from: Option<NodeId>, request: Vec<u8>) -> BoxFuture<'static, Vec<u8>> {
        async move { format!("{from:?} {}", String::from_utf8_lossy(&request)).into_bytes() }
            .boxed()
    }
}

pub(crate) struct Node {
    pub(crate) store: Arc<Store>,
    pub(crate) held: Arc<Mutex<Held>>,
    pub(crate) lease: Arc<LeaseCell>,
    pub(crate) generation: Arc<AtomicU64>,
    pub(crate) address: SocketAddr,
}

pub(crate) fn timing() -> Timing {
    Timing {
        heartbeat_ms: 50,
        election_min_ms: 300,
        election_max_ms: 450,
        lease_ms: 450,
        lease_margin_ms: 50,
    }
}

pub(crate) fn config(node: u64) -> StoreConfig {
    let nonce = node * 1000 + 1;
    StoreConfig { timing: timing(), ..StoreConfig::new(CLUSTER, NodeId(node), nonce) }
}

impl Node {
    pub(crate) async fn start(config: StoreConfig) -> Self {
        Self::start_with(config, None).await
    }

    pub(crate) async fn start_with(config: StoreConfig, region: Option<RegionAddress>) -> Self {
        Self::try_start(config, region).await.unwrap()
    }

    pub(crate) async fn try_start(
        config: StoreConfig,
        region: Option<RegionAddress>,
    ) -> Result<Self, StartError> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let held = Arc::new(Mutex::new(Held::default()));
        let lease = Arc::new(LeaseCell::none());
        let generation = Arc::new(AtomicU64::new(0));
        let told = generation.clone();
        let setup = ShardSetup {
            id: SHARD,
            machine: Box::new(SumMachine(held.clone())),
            check: SumMachine::check_payload,
            reads: Some(Arc::new(SumMachine(held.clone()))),
            region,
            lease: lease.clone(),
            generation: Some(Arc::new(move |term| told.store(term, Ordering::SeqCst))),
        };
        let store = Store::start(config, listener, vec![setup], Arc::new(Echo)).await?;
        Ok(Self { store, held, lease, generation, address })
    }

    pub(crate) fn status(&self) -> ShardStatus {
        self.store.status(SHARD).unwrap()
    }

    /// Waits until this node's view of the group satisfies `wanted`.
    pub(crate) async fn until(&self, wanted: impl Fn(&ShardStatus) -> bool) -> ShardStatus {
        let mut watch = self.store.watch(SHARD).unwrap();
        let seen = tokio::time::timeout(PATIENCE, watch.wait_for(wanted)).await;
        match seen {
            Ok(Ok(status)) => status.clone(),
            _ => panic!("never came: {:?}", self.status()),
        }
    }

    pub(crate) fn id(&self) -> NodeId {
        self.store.node()
    }

    pub(crate) fn sums(&self) -> Vec<u64> {
        self.held.lock().unwrap().sums.clone()
    }

    /// Waits until the machine has logged so many numbers.
    pub(crate) async fn until_sums(&self, count: usize) {
        self.until(|_| self.held.lock().unwrap().sums.len() >= count).await;
    }
}

pub(crate) struct Cluster(pub(crate) BTreeMap<NodeId, Node>);

impl Cluster {
    /// Nodes with these ids, all voters.
    pub(crate) async fn form(ids: &[u64]) -> Self {
        let mut nodes = Vec::new();
        for id in ids {
            nodes.push(Node::start(config(*id)).await);
        }
        Self::form_of(nodes).await
    }

    pub(crate) async fn form_of(nodes: Vec<Node>) -> Self {
        let voters: Vec<NodeId> = nodes.iter().map(Node::id).collect();
        let cluster = Self(nodes.into_iter().map(|node| (node.id(), node)).collect());
        cluster.share_addresses();
        cluster.0[&voters[0]].store.initialize(SHARD, &voters).await.unwrap();
        cluster
    }

    pub(crate) fn share_addresses(&self) {
        let book: Vec<_> = self.0.iter().map(|(id, node)| (*id, node.address)).collect();
        for node in self.0.values() {
            node.store.set_peers(&book);
        }
    }

    /// Waits until one node owns the shard and all others know it.
    pub(crate) async fn owner(&self) -> &Node {
        let check = async {
            loop {
                let mut leaders = BTreeSet::new();
                for node in self.0.values() {
                    leaders.insert(node.until(|status| status.leader.is_some()).await.leader);
                }
                let leader = leaders.first().copied().flatten();
                if let (1, Some(node)) = (leaders.len(), leader.and_then(|id| self.0.get(&id))) {
                    node.until(|status| {
                        status.lease_until.0 > 0 || status.leader != Some(node.id())
                    })
                    .await;
                    if node.status().owns(nearstate_store::clock::boot_now()) {
                        return node;
                    }
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, check).await.expect("nobody became owner")
    }

    /// The same, while some node is in no group yet.
    pub(crate) async fn owner_of_those_that_know(&self) -> &Node {
        let check = async {
            loop {
                let now = nearstate_store::clock::boot_now();
                if let Some(node) = self.0.values().find(|node| node.status().owns(now)) {
                    return node;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, check).await.expect("nobody became owner")
    }

    pub(crate) fn others(&self, owner: &Node) -> Vec<&Node> {
        self.0.values().filter(|node| node.id() != owner.id()).collect()
    }

    pub(crate) async fn stop(&self) {
        for node in self.0.values() {
            node.store.shutdown().await;
        }
    }
}

pub(crate) async fn log(node: &Node, number: u64) -> u64 {
    let payload = number.to_le_bytes().to_vec();
    match node.store.propose_within(SHARD, payload, PATIENCE).await {
        Ok(Reply::System(sum)) => u64::from_le_bytes(sum[..].try_into().unwrap()),
        other => panic!("{other:?}"),
    }
}
