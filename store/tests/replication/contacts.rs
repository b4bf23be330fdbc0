//! Who is heard of, and who is asked: signs of life, and owners that are named wrongly.

use crate::cluster::{CLUSTER, Cluster, Node, PATIENCE, SHARD, config, log};
use nearstate_store::NodeId;
use nearstate_store::clock::boot_now;
use nearstate_store::consensus::{ProposeError, ShardStatus};
use nearstate_store::frame::{self, FrameKind};
use nearstate_store::types::Time;
use nearstate_store::wire::Hello;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

fn heard(node: &Node, of: NodeId) -> Time {
    let contacts = node.store.peer_contacts();
    contacts.iter().find(|(id, _)| *id == of).map_or(Time(0), |(_, at)| *at)
}

/// Waits until `node` has heard of another so many times more.
async fn until_heard(node: &Node, of: NodeId, times: usize) {
    let counted = async {
        let (mut last, mut left) = (heard(node, of), times);
        while left > 0 {
            tokio::task::yield_now().await;
            let now = heard(node, of);
            if now > last {
                (last, left) = (now, left - 1);
            }
        }
    };
    tokio::time::timeout(PATIENCE, counted).await.expect("nothing is heard of it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_with_nothing_to_say_is_heard_of_and_one_that_is_silent_is_not() {
    // Neither has a part in a group, so nobody sends a heartbeat.
    let (one, two) = (Node::start(config(1)).await, Node::start(config(2)).await);
    one.store.set_peers(&[(two.id(), two.address)]);
    two.store.set_peers(&[(one.id(), one.address)]);
    until_heard(&one, two.id(), 1).await;

    // A third says hello and no more: as one that hangs.
    let mut bytes = Vec::new();
    let hello = Hello { cluster: CLUSTER, lineage: 0, from: 3, to: 1, nonce: 7 };
    frame::encode(FrameKind::Hello, 0, &hello.encode().unwrap(), &mut bytes);
    #[expect(clippy::disallowed_methods, reason = "tests own sockets")]
    let mut silent = TcpStream::connect(one.address).await.unwrap();
    silent.write_all(&bytes).await.unwrap();
    let known = async {
        while heard(&one, NodeId(3)) == Time(0) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, known).await.expect("its hello is not heard");

    let at = heard(&one, NodeId(3));
    until_heard(&one, two.id(), 5).await;
    until_heard(&two, one.id(), 5).await;
    assert_eq!(heard(&one, NodeId(3)), at, "a silent peer is taken for alive");
    drop(silent);
    one.store.shutdown().await;
    two.store.shutdown().await;
}

async fn retry(done: impl AsyncFn() -> bool) {
    let tried = async {
        while !done().await {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, tried).await.expect("never done");
}

/// A node that is no member learns whom to ask from others only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_died_is_forgotten_by_those_who_were_told_of_it() {
    let mut cluster = Cluster::form(&[1, 2, 3]).await;
    let id = cluster.owner().await.id();
    let asker = Node::start(config(4)).await;
    let book: Vec<_> = cluster.0.values().map(|node| (node.id(), node.address)).collect();
    asker.store.set_peers(&book);
    assert_eq!(log(&asker, 5).await, 5);
    // Twice: by now it knows whom to ask.
    assert_eq!(log(&asker, 6).await, 11);
    let old = cluster.0.remove(&id).unwrap();
    old.store.shutdown().await;
    drop(old);
    let asked = async {
        // Its connection may break with the question on it: then it may happen twice.
        loop {
            match asker.store.propose_within(SHARD, 0_u64.to_le_bytes().to_vec(), PATIENCE).await {
                Err(ProposeError::Unknown) => {}
                other => break other,
            }
        }
    };
    assert!(asked.await.is_ok());
    asker.store.shutdown().await;
    cluster.stop().await;
}

/// A node that was removed from the group never hears of a later leader by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_member_does_not_believe_in_its_last_leader_for_ever() {
    let mut cluster = Cluster::form(&[1, 2, 3]).await;
    let id = cluster.owner().await.id();
    cluster.0.insert(NodeId(4), Node::start(config(4)).await);
    cluster.share_addresses();
    let owner = &cluster.0[&id];
    retry(async || owner.store.add_learner(SHARD, NodeId(4)).await.is_ok()).await;
    let removed = &cluster.0[&NodeId(4)];
    removed.until(|status| status.leader == Some(id)).await;
    retry(async || owner.store.remove_learner(SHARD, NodeId(4)).await.is_ok()).await;
    owner.until(|status| status.learners.is_empty() && !status.changing).await;

    let heir = cluster.0.keys().find(|node| **node != id && node.0 != 4).copied().unwrap();
    retry(async || owner.store.transfer_leader(SHARD, heir).await.is_ok()).await;
    let leads = |status: &ShardStatus| status.leader.is_some_and(|leader| leader != id);
    owner.until(leads).await;
    let removed = &cluster.0[&NodeId(4)];
    assert_eq!(removed.status().leader, Some(id), "the test is about a wrong belief");
    assert_eq!(log(removed, 9).await, 9);
    cluster.stop().await;
}

/// The other voter that was to take over is dead: nobody is left without a leader for good, and
/// the old one keeps no lease in the term in which it offered its office.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_office_that_nobody_takes_over_ends_all_the_same() {
    let mut cluster = Cluster::form(&[1, 2, 3]).await;
    let id = cluster.owner().await.id();
    let heir = cluster.0.keys().find(|node| **node != id).copied().unwrap();
    log(&cluster.0[&id], 1).await;
    cluster.0.remove(&heir).unwrap().store.shutdown().await;
    let owner = &cluster.0[&id];
    let term = owner.status().term;
    // The living third node may have won an election meanwhile: then there is nothing to offer.
    let _ = owner.store.transfer_leader(SHARD, heir).await;
    let seen = owner.status();
    assert!(seen.term > term || !owner.lease.is_valid(boot_now()), "{seen:?}");
    for node in cluster.0.values() {
        node.until(|status| status.term > term && status.leader.is_some()).await;
    }
    assert_eq!(log(cluster.owner().await, 2).await, 3);
    cluster.stop().await;
}
