//! What makes a node follow the map, and end: stores on real TCP, and whole nodes in one process.

#![expect(clippy::disallowed_methods, reason = "tests own sockets and tasks")]

use super::formation::Origin;
use super::seeds::{Newcomer, Seeds};
use super::*;
use futures::FutureExt;
use futures::future::BoxFuture;
use nearstate_placement::MemberState;
use nearstate_placement::api::{Request, Response};
use nearstate_placement::system::{SystemMachine, SystemReply};
use nearstate_store::client::Client;
use nearstate_store::driver::{AppHandler, ShardSetup};
use nearstate_store::lease::LeaseCell;
use nearstate_store::machine::{PayloadError, SnapshotError};
use nearstate_store::{Epoch, LogIndex, Machine, Reply, SlotMap};
use std::time::Duration;
use tokio::sync::oneshot;

/// Far longer than anything takes: only a hang reaches it.
const PATIENCE: Duration = Duration::from_secs(30);
const LINEAGE: u64 = 0x1e;

async fn soon<F: Future>(what: &str, done: F) -> F::Output {
    match tokio::time::timeout(PATIENCE, done).await {
        Ok(output) => output,
        Err(_) => panic!("never came: {what}"),
    }
}

/// Answers for maps as a node does.
struct Maps(SystemView);

impl AppHandler for Maps {
    fn handle(&self, _: Option<NodeId>, request: Vec<u8>) -> BoxFuture<'static, Vec<u8>> {
        let view = self.0.clone();
        async move {
            let Ok(Request::GetMap { newer_than, wait_ms }) = Request::decode(&request) else {
                panic!("only maps are asked for");
            };
            match view.newer_than(newer_than, wait_ms).await {
                Some(map) => Response::Map((*map).clone()),
                None => Response::NoNewerMap,
            }
            .encode()
        }
        .boxed()
    }
}

fn system_shard(view: &SystemView) -> ShardSetup {
    let publisher = view.clone();
    let machine = SystemMachine::new(Arc::new(move |map| publisher.publish(map)));
    setup(0, Box::new(machine), SystemMachine::check)
}

fn setup(
    shard: u16,
    machine: Box<dyn Machine>,
    check: fn(&[u8]) -> Result<(), PayloadError>,
) -> ShardSetup {
    let lease = Arc::new(LeaseCell::none());
    let (reads, region, generation) = (None, None, None);
    ShardSetup { id: ShardId(shard), machine, check, reads, region, lease, generation }
}

async fn store(node: u64, view: &SystemView, shards: Vec<ShardSetup>) -> (Arc<Store>, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let config = StoreConfig { lineage: LINEAGE, ..StoreConfig::new(1, NodeId(node), node) };
    let handler = Arc::new(Maps(view.clone()));
    (Store::start(config, listener, shards, handler).await.unwrap(), address)
}

fn founder(name: &str, address: SocketAddr) -> Member {
    let state = MemberState::Alive;
    Member { id: NodeId(1), name: name.to_owned(), address, ports: vec![], state }
}

/// The founder's store with its system shard, and a second member that has no part in that.
struct Pair {
    views: [SystemView; 2],
    stores: [Arc<Store>; 2],
}

async fn ask_system(store: &Arc<Store>, command: SystemCommand) -> SystemReply {
    match store.propose(ShardId::SYSTEM, command.encode()).await {
        Ok(Reply::System(bytes)) => SystemReply::decode(&bytes).unwrap(),
        other => panic!("{other:?}"),
    }
}

fn join(name: &str, address: SocketAddr, nonce: u64) -> SystemCommand {
    SystemCommand::Join { name: name.to_owned(), address, ports: vec![], nonce }
}

impl Pair {
    async fn start() -> Self {
        let views = [SystemView::new(Map::unformed()), SystemView::new(Map::unformed())];
        let (first, at_first) = store(1, &views[0], vec![system_shard(&views[0])]).await;
        let (second, at_second) = store(2, &views[1], vec![system_shard(&views[1])]).await;
        first.initialize(ShardId::SYSTEM, &[NodeId(1)]).await.unwrap();
        let members = vec![founder("n1", at_first)];
        let (slots, shards, replicas) = (2, 1, 1);
        let form = SystemCommand::Form { members, slots, shards, replicas, lineage: LINEAGE };
        assert_eq!(ask_system(&first, form).await, SystemReply::Done(Epoch(1)));
        let joined = ask_system(&first, join("n2", at_second, 7)).await;
        assert_eq!(joined, SystemReply::Joined(NodeId(2), Epoch(2)));
        views[1].publish(views[0].map());
        Self { views, stores: [first, second] }
    }

    fn second_feed(&self) -> MapFeed<'_> {
        let wanted = Wanted { cluster: 1, lineage: LINEAGE };
        MapFeed { me: NodeId(2), wanted, store: &self.stores[1], view: &self.views[1] }
    }

    async fn stop(self) {
        for store in self.stores {
            store.shutdown().await;
        }
    }
}

async fn until(view: &SystemView, wanted: impl Fn(&Map) -> bool) {
    let mut maps = view.follow();
    soon("the map", maps.wait_for(|map| wanted(map))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_a_replica_of_the_system_shard_gets_its_maps() {
    let pair = Pair::start().await;
    tell_peers(&pair.stores[0], &pair.views[0].map(), NodeId(1));
    tell_peers(&pair.stores[1], &pair.views[1].map(), NodeId(2));
    let feed = pair.second_feed();
    let news = async {
        let third = ask_system(&pair.stores[0], join("n3", ([127, 0, 0, 1], 9).into(), 8)).await;
        assert_eq!(third, SystemReply::Joined(NodeId(3), Epoch(3)));
        until(&pair.views[1], |map| map.member(NodeId(3)).is_some()).await;
    };
    tokio::select! {
        () = news => {}
        () = feed.run() => unreachable!("a feed never ends"),
    }
    pair.stop().await;
}

/// Nobody is a peer of a node that was given up: it hears of it all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_given_up_while_it_was_away_ends() {
    let pair = Pair::start().await;
    let [first, second] = &pair.stores;
    tell_peers(first, &pair.views[0].map(), NodeId(1));
    let dead = SystemCommand::SetMember { id: NodeId(2), state: MemberState::Dead };
    assert_eq!(ask_system(first, dead).await, SystemReply::Done(Epoch(3)));
    tell_peers(first, &pair.views[0].map(), NodeId(1));
    // It wakes up, with what it knew: it is refused under its id.
    let slots = SlotMap::new([0, 0]);
    let feed = pair.second_feed();
    let given_up = async {
        tokio::select! {
            () = follow_map(&pair.views[1], second, (&slots, NodeId(2)), |_| {}) => {}
            () = feed.run() => unreachable!("a feed never ends"),
        }
    };
    soon("the end of a node that was given up", given_up).await;
    assert_eq!(pair.views[1].map().state_of(NodeId(2)), MemberState::Dead);
    pair.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn maps_of_another_cluster_of_the_same_name_are_not_believed() {
    let pair = Pair::start().await;
    let mut other = (*pair.views[0].map()).clone();
    (other.epoch, other.lineage) = (Epoch(99), LINEAGE + 1);
    pair.views[1].publish(Arc::new(other));
    assert_eq!(pair.views[1].map().epoch, Epoch(2));
    pair.stop().await;
}

/// As a table that cannot place an entry: it stops its replica.
struct Stumbles;

impl Machine for Stumbles {
    fn check(_: &[u8]) -> Result<(), PayloadError> {
        Ok(())
    }

    fn apply(&mut self, _: LogIndex, _: &[u8]) -> Reply {
        panic!("this machine stops at its first entry, as the test wants it")
    }

    fn snapshot(&self) -> Vec<u8> {
        vec![]
    }

    fn install(&mut self, _: &[u8]) -> Result<(), SnapshotError> {
        Ok(())
    }

    fn state_hash(&self) -> u64 {
        0
    }
}

/// A node that seems to live but serves a shard no more would never be replaced.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_stops_by_itself_is_noticed() {
    let view = SystemView::new(Map::unformed());
    let stumbles = setup(1, Box::new(Stumbles), Stumbles::check);
    let (store, _) = store(1, &view, vec![system_shard(&view), stumbles]).await;
    for shard in [0, 1] {
        store.initialize(ShardId(shard), &[NodeId(1)]).await.unwrap();
    }
    let follow = follow_groups(&view, &store);
    let stumble = async {
        let _ = store.propose(ShardId(1), vec![1]).await;
        std::future::pending().await
    };
    let stopped = soon("a stopped replica", async {
        tokio::select! {
            shard = follow => shard,
            () = stumble => unreachable!("it waits for ever"),
        }
    });
    assert_eq!(stopped.await, ShardId(1));
    store.shutdown().await;
}

/// A whole node in this process.
struct Whole {
    ready: Ready,
    stop: Option<oneshot::Sender<()>>,
    ended: tokio::task::JoinHandle<Result<(), NodeError>>,
}

impl Whole {
    async fn start(directory: &Path, name: &str, start: &str) -> Self {
        let directory = directory.display();
        let config = NodeConfig::parse(&format!(
            r#"
            cluster = "test"
            name = "{name}"
            listen = "127.0.0.1:0"
            directory = "{directory}"
            table-capacity = 64
            start = {start}
            port = {{ kind = "shm", path = "{directory}/{name}.ring", ring = 16 }}
            [chain]
            functions = ["firewall"]
            [chain.firewall]
            rules = ["allow out any"]
            "#
        ))
        .unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let (tell, told) = oneshot::channel();
        let ended = tokio::spawn(run(
            config,
            move |ready: &Ready| tell.send(ready.clone()).unwrap(),
            Stop { asked: async { drop(stopped.await) }, at_once: std::future::pending() },
        ));
        let ready = soon("a node", told).await.unwrap();
        Self { ready, stop: Some(stop), ended }
    }

    async fn join(directory: &Path, name: &str, seed: &Self) -> Self {
        let start = format!("{{ join = {{ seeds = [\"{}\"] }} }}", seed.ready.listen);
        Self::start(directory, name, &start).await
    }

    async fn map(&self) -> Map {
        let cluster = crate::node_config::cluster_id("test");
        let client = Client::connect(cluster, self.ready.listen, PATIENCE).await.unwrap();
        let request = Request::GetMap { newer_than: Epoch(0), wait_ms: 0 }.encode();
        match Response::decode(&client.call(request, PATIENCE).await.unwrap()).unwrap() {
            Response::Map(map) => map,
            other => panic!("{other:?}"),
        }
    }

    async fn end(mut self) -> Result<(), NodeError> {
        drop(self.stop.take());
        soon("the end of a node", self.ended).await.unwrap()
    }
}

const FORM: &str = "{ form = { slots = 4, shards = 1, replicas = 1 } }";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whole_nodes_follow_the_map_and_end_when_they_are_given_up() {
    let scratch = tempfile::tempdir().unwrap();
    let first = Whole::start(scratch.path(), "n1", FORM).await;
    let second = Whole::join(scratch.path(), "n2", &first).await;
    let third = Whole::join(scratch.path(), "n3", &first).await;
    let lineage = first.map().await.lineage;
    assert_ne!(lineage, 0);
    // One replica is wanted: only the founder hears of the third by the log.
    let informed = async {
        loop {
            let map = second.map().await;
            if map.member(third.ready.node).is_some() {
                break map;
            }
            tokio::task::yield_now().await;
        }
    };
    let map = soon("a map with the third node", informed).await;
    assert_eq!((map.lineage, &map.shards[0].replicas), (lineage, &vec![NodeId(1)]));

    // A member of the test's own gives the second node up.
    let view = SystemView::new(map.clone());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let cluster = crate::node_config::cluster_id("test");
    let config = StoreConfig { lineage, ..StoreConfig::new(cluster, NodeId(99), 5) };
    let handler = Arc::new(Maps(view.clone()));
    let judge = Store::start(config, listener, vec![system_shard(&view)], handler).await.unwrap();
    judge.set_peers(&[(NodeId(1), first.ready.listen)]);
    let dead = SystemCommand::SetMember { id: second.ready.node, state: MemberState::Dead };
    assert!(matches!(ask_system(&judge, dead).await, SystemReply::Done(_)));
    judge.shutdown().await;
    let ended = soon("the end of a node that was given up", second.ended).await.unwrap();
    assert!(matches!(ended, Err(NodeError::GivenUp)), "{ended:?}");
    third.end().await.unwrap();
    first.end().await.unwrap();
}

/// A founder was wiped and forms anew: its old members do not come to belong to the new cluster by
/// the way, nor do they form another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_joins_no_other_cluster_of_the_same_name() {
    let (old, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let members = tempfile::tempdir().unwrap();
    let first = Whole::start(old.path(), "n1", FORM).await;
    Whole::join(members.path(), "n2", &first).await.end().await.unwrap();
    let founded_anew = Whole::start(new.path(), "n1", FORM).await;
    assert_ne!(first.map().await.lineage, founded_anew.map().await.lineage);

    let own = SocketAddr::from(([127, 0, 0, 1], 9));
    let newcomer =
        || Newcomer { name: "n2".to_owned(), address: own, ports: vec![], nonce: 99, settings: 0 };
    let origin = Origin { directory: members.path(), cluster: "test", name: "n2" };
    let mut seeds = vec![founded_anew.ready.listen];
    let cluster = crate::node_config::cluster_id("test");
    let asker = Seeds::new(cluster, &origin, &seeds, own).unwrap();
    let refused = soon("a refusal", asker.join(newcomer())).await.map(|_| ());
    assert!(matches!(refused, Err(NodeError::OtherLineage(_))), "{refused:?}");
    // That nobody else answers does not hide what keeps it out.
    let silent = SocketAddr::from(([127, 0, 0, 1], 1));
    let mut asker = Seeds::new(cluster, &origin, &[seeds[0], silent], own).unwrap();
    asker.patience_ms = 100;
    let said = soon("a refusal", asker.join(newcomer())).await.map(|_| ()).unwrap_err();
    assert!(matches!(said, NodeError::OwnLineageSilent { .. }), "{said:?}");
    let said = said.to_string();
    assert!(said.contains("test.n2.joined") && said.contains("remove the file"), "{said}");
    // At a seed of its own cluster it is asked for its settings, which the test does not have.
    seeds.push(first.ready.listen);
    let asker = Seeds::new(cluster, &origin, &seeds, own).unwrap();
    let refused = soon("an answer", asker.join(newcomer())).await;
    let said = refused.map(|_| ()).unwrap_err().to_string();
    assert!(said.contains("is not that of the cluster"), "{said}");
    founded_anew.end().await.unwrap();
    first.end().await.unwrap();
}
