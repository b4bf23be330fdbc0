//! Replication as a whole: stores in one process that speak over real TCP.

mod bad_messages;
mod cluster;
mod contacts;
mod durable;
mod links;
mod membership;
mod refusals;

use cluster::{Cluster, PATIENCE, SHARD, log};
use nearstate_store::NodeId;
use nearstate_store::clock::boot_now;
use nearstate_store::consensus::{CallError, ProposeError, Role};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_stores_elect_an_owner_and_commit_whoever_is_asked() {
    let cluster = Cluster::form(&[1, 2, 3]).await;
    let owner = cluster.owner().await;
    assert_eq!(log(owner, 5).await, 5);
    for (n, node) in cluster.others(owner).into_iter().enumerate() {
        assert_eq!(log(node, 10).await, 15 + 10 * n as u64);
    }
    for node in cluster.0.values() {
        node.until_sums(3).await;
        assert_eq!(node.sums(), [5, 10, 10]);
    }
    assert!(owner.generation.load(std::sync::atomic::Ordering::SeqCst) >= 1);
    cluster.stop().await;
}

#[tokio::test]
async fn one_thread_is_enough_and_a_lone_node_owns_its_shard() {
    let cluster = Cluster::form(&[7]).await;
    let owner = cluster.owner().await;
    assert_eq!(log(owner, 5).await, 5);
    assert_eq!(owner.status().voters, [NodeId(7)]);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_committed_survives_its_owner() {
    let mut cluster = Cluster::form(&[1, 2, 3]).await;
    let id = cluster.owner().await.id();
    for number in 1..=20 {
        log(&cluster.0[&id], number).await;
    }
    let old = cluster.0.remove(&id).unwrap();
    let term = old.status().term;
    old.store.shutdown().await;
    assert_eq!(old.lease.until().0, 0, "an owner that ends has no lease");
    for node in cluster.0.values() {
        node.until(|status| status.term > term && status.leader.is_some()).await;
    }
    let owner = cluster.owner().await;
    assert_eq!(log(owner, 1000).await, 1210);
    assert_eq!(owner.sums()[..20], (1..=20).collect::<Vec<_>>());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_owner_keeps_its_lease_and_only_one_node_has_one() {
    let cluster = Cluster::form(&[1, 2, 3]).await;
    let owner = cluster.owner().await;
    let term = owner.status().term;
    // Several lease lengths, watched through the lease's own moves.
    let mut ends = 0;
    let mut last = owner.lease.until();
    while ends < 40 {
        let now = boot_now();
        let holders = cluster.0.values().filter(|node| node.lease.is_valid(now)).count();
        assert!(holders <= 1, "{holders} nodes hold a lease");
        if owner.lease.until() > last {
            (last, ends) = (owner.lease.until(), ends + 1);
        }
        if owner.status().term != term {
            // A loaded host may cost an owner its office: then there is nothing to watch.
            break;
        }
        tokio::task::yield_now().await;
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_and_their_layers_talk_to_each_other() {
    let cluster = Cluster::form(&[1, 2]).await;
    cluster.owner().await;
    let (one, two) = (&cluster.0[&NodeId(1)], &cluster.0[&NodeId(2)]);
    for (from, to) in [(one, two), (two, one)] {
        let answer = from.store.call(to.id(), b"hello".to_vec(), PATIENCE).await.unwrap();
        let expected = format!("{:?} hello", Some(from.id()));
        assert_eq!(String::from_utf8(answer).unwrap(), expected);
        let contacts = from.store.peer_contacts();
        assert!(contacts.iter().any(|(id, heard)| *id == to.id() && heard.0 > 0));
    }
    let nobody = one.store.call(NodeId(9), vec![1], PATIENCE).await;
    assert_eq!(nobody, Err(CallError::Unreachable(NodeId(9))));
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_proposals_are_refused_and_a_minority_commits_nothing() {
    let mut cluster = Cluster::form(&[1, 2, 3]).await;
    let id = cluster.owner().await.id();
    let owner = cluster.0.remove(&id).unwrap();
    let garbage = owner.store.propose(SHARD, vec![1, 2, 3]).await;
    assert!(matches!(garbage, Err(ProposeError::Payload(_))), "{garbage:?}");
    cluster.stop().await;
    // Alone, the old owner loses its lease and may not answer.
    let payload = 1_u64.to_le_bytes().to_vec();
    let patience = std::time::Duration::from_millis(800);
    let alone = owner.store.propose_within(SHARD, payload, patience).await;
    assert!(matches!(alone, Err(ProposeError::Unknown | ProposeError::NoOwner)), "{alone:?}");
    owner.until(|status| !status.owns(boot_now())).await;
    assert!(owner.sums().is_empty());
    assert_ne!(owner.status().role, Role::Stopped);
    owner.store.shutdown().await;
}
