//! Who is not let in: other clusters, other versions, other lives, nonsense.

#![expect(clippy::disallowed_methods, reason = "tests own sockets")]

use crate::cluster::{CLUSTER, Cluster, Node, PATIENCE, SHARD, config};
use nearstate_store::client::{Client, ConnectError, Wanted};
use nearstate_store::driver::StoreConfig;
use nearstate_store::frame::{self, FrameKind};
use nearstate_store::wire::{Hello, Refused, Request, Response, Welcome};
use nearstate_store::{NodeId, RefusalReason, ShardId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

async fn until_counted(node: &Node, reason: RefusalReason) {
    let counted = async {
        while node.store.refusals().of(reason) == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, counted).await.expect("never counted");
}

fn hello(from: u64, nonce: u64) -> Hello {
    Hello { cluster: CLUSTER, lineage: 0, from, to: 1, nonce }
}

/// Sends bytes and gives the frames that come back until the other end closes or falls silent.
async fn talk(node: &Node, bytes: &[u8], frames: usize) -> Vec<frame::Frame> {
    let mut stream = TcpStream::connect(node.address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut decoder = frame::FrameDecoder::new();
    let mut all = Vec::new();
    let mut buffer = [0; 4096];
    while all.len() < frames {
        let read = tokio::time::timeout(PATIENCE, stream.read(&mut buffer)).await.unwrap();
        match read {
            Ok(0) | Err(_) => break,
            Ok(n) => decoder.feed(&buffer[..n]),
        }
        while let Some(frame) = decoder.next_frame().unwrap() {
            all.push(frame);
        }
    }
    all
}

async fn greet(node: &Node, hello: Hello) -> Welcome {
    let mut bytes = Vec::new();
    frame::encode(FrameKind::Hello, 0, &hello.encode().unwrap(), &mut bytes);
    let frames = talk(node, &bytes, 1).await;
    Welcome::decode(&frames[0].body).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_are_refused_with_a_reason_and_counted() {
    let node = Node::start(config(5)).await;
    let to = |to, hello: Hello| Hello { to, ..hello };
    let cases = [
        (Hello { cluster: 9, ..to(5, hello(6, 1)) }, Refused::Cluster(CLUSTER)),
        (to(4, hello(6, 1)), Refused::WrongNode(5)),
        (to(5, hello(5, 1)), Refused::Direction),
        (to(5, hello(3, 1)), Refused::Direction),
    ];
    for (hello, reason) in cases {
        assert_eq!(greet(&node, hello).await, Welcome::Refused(reason));
    }
    let counts = node.store.refusals();
    assert_eq!(counts.of(RefusalReason::Cluster), 1);
    assert_eq!(counts.of(RefusalReason::WrongNode), 1);
    assert_eq!(counts.of(RefusalReason::Direction), 2);

    // One id, two lives.
    assert!(matches!(greet(&node, to(5, hello(6, 1))).await, Welcome::Accepted(_)));
    assert!(matches!(greet(&node, to(5, hello(6, 1))).await, Welcome::Accepted(_)));
    let second = greet(&node, to(5, hello(6, 2))).await;
    assert_eq!(second, Welcome::Refused(Refused::Reincarnated));

    // A node that was in the book and is no longer.
    node.store.set_peers(&[(NodeId(8), node.address)]);
    node.store.set_peers(&[]);
    assert_eq!(greet(&node, to(5, hello(8, 1))).await, Welcome::Refused(Refused::Retired));
    node.store.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_of_the_same_name_that_was_formed_at_another_time_is_refused() {
    let of = |node, lineage| StoreConfig { lineage, ..config(node) };
    let node = Node::start(of(5, 0xa)).await;
    let to = |hello: Hello, lineage| Hello { to: 5, lineage, ..hello };
    // The first founder was wiped and formed anew; its old followers still dial that address.
    let refused = greet(&node, to(hello(6, 1), 0xb)).await;
    assert_eq!(refused, Welcome::Refused(Refused::Lineage(0xa)));
    assert_eq!(node.store.refusals().of(RefusalReason::Lineage), 1);
    // Who knows none yet learns it.
    for (from, lineage) in
        [(hello(6, 1), 0xa), (hello(7, 1), 0), (Hello { from: 0, ..hello(0, 0) }, 0)]
    {
        match greet(&node, to(from, lineage)).await {
            Welcome::Accepted(theirs) => assert_eq!(theirs.lineage, 0xa),
            Welcome::Refused(reason) => panic!("{reason}"),
        }
    }

    // The same between two stores, whoever dials; and for clients that know whom they want.
    let (one, two, three) = (
        Node::start(of(1, 0xb)).await,
        Node::start(of(9, 0xb)).await,
        Node::start(of(10, 0xa)).await,
    );
    for other in [&one, &two, &three] {
        let book = [(node.id(), node.address), (other.id(), other.address)];
        node.store.set_peers(&[
            (one.id(), one.address),
            (two.id(), two.address),
            (three.id(), three.address),
        ]);
        other.store.set_peers(&book);
    }
    until_counted(&one, RefusalReason::Lineage).await;
    until_counted(&two, RefusalReason::Lineage).await;
    let talks = async {
        while node.store.call(three.id(), vec![1], PATIENCE).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, talks).await.expect("the own lineage is let in");
    assert_eq!(three.store.refusals().of(RefusalReason::Lineage), 0);
    let wanted = Wanted { cluster: CLUSTER, lineage: 0xb };
    let stranger = Client::connect_to(wanted, node.address, PATIENCE).await.unwrap_err();
    assert!(stranger.to_string().contains("formed at another time"), "{stranger}");
    for node in [node, one, two, three] {
        node.store.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_node_under_its_old_id_stays_outside() {
    let mut cluster = Cluster::form(&[1, 2, 3]).await;
    cluster.owner().await;
    let old = cluster.0.remove(&NodeId(3)).unwrap();
    old.store.shutdown().await;
    let wiped = Node::start(StoreConfig { nonce: 4711, ..config(3) }).await;
    let book: Vec<_> = cluster.0.values().map(|node| (node.id(), node.address)).collect();
    wiped.store.set_peers(&book);
    until_counted(&wiped, RefusalReason::Reincarnated).await;
    for node in cluster.0.values() {
        until_counted(node, RefusalReason::Reincarnated).await;
    }
    assert_eq!(wiped.status().leader, None);
    cluster.stop().await;
    wiped.store.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_version_and_nonsense_end_the_connection() {
    let node = Node::start(config(5)).await;
    let mut bytes = Vec::new();
    frame::encode(FrameKind::Hello, 0, &hello(0, 0).encode().unwrap(), &mut bytes);
    bytes[8] = frame::WIRE_VERSION + 1;
    talk(&node, &bytes, 10).await;
    assert_eq!(node.store.refusals().of(RefusalReason::Version), 1);

    talk(&node, b"GET / HTTP/1.1\r\nHost: example\r\n\r\n", 10).await;
    // A frame's length comes first there, and its version is no version of ours.
    let counts = node.store.refusals();
    let seen = counts.of(RefusalReason::Version) + counts.of(RefusalReason::Garbage);
    assert_eq!(seen, 2);

    // A good hello, then a request that is no archive.
    let mut bytes = Vec::new();
    let client = Hello { to: 0, ..hello(0, 0) };
    frame::encode(FrameKind::Hello, 0, &client.encode().unwrap(), &mut bytes);
    frame::encode(FrameKind::Request, 1, &[0xff; 64], &mut bytes);
    assert_eq!(talk(&node, &bytes, 10).await.len(), 1, "only the welcome comes back");
    node.store.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_may_ask_the_handler_and_nothing_else() {
    let node = Node::start(config(5)).await;
    let client = Client::connect(CLUSTER, node.address, PATIENCE).await.unwrap();
    assert_eq!(client.node(), NodeId(5));
    let answer = client.call(b"who".to_vec(), PATIENCE).await.unwrap();
    assert_eq!(answer, b"None who");

    let mut bytes = Vec::new();
    let hello = Hello { to: 0, ..hello(0, 0) };
    frame::encode(FrameKind::Hello, 0, &hello.encode().unwrap(), &mut bytes);
    for (id, request) in [
        Request::ReadLease(SHARD),
        Request::Propose(SHARD, 1_u64.to_le_bytes().to_vec()),
        Request::ReadLease(ShardId(99)),
    ]
    .into_iter()
    .enumerate()
    {
        frame::encode(FrameKind::Request, id as u64, &request.encode().unwrap(), &mut bytes);
    }
    let frames = talk(&node, &bytes, 4).await;
    assert_eq!(frames.len(), 4);
    for frame in &frames[1..] {
        let response = Response::decode(&frame.body).unwrap();
        assert!(matches!(response, Response::NotServed(_)), "{response:?}");
    }
    let other = Client::connect(1, node.address, PATIENCE).await;
    assert!(matches!(other, Err(ConnectError::OtherCluster(at)) if at == node.address));
    drop(client);
    node.store.shutdown().await;
}
