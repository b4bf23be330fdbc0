//! Groups that change: newcomers, snapshots, hand-overs.

use crate::cluster::{Cluster, Node, SHARD, config, log};
use nearstate_store::NodeId;
use nearstate_store::clock::boot_now;
use nearstate_store::consensus::{ChangeError, Compaction, Role};
use nearstate_store::driver::StoreConfig;

async fn retry<F: Future<Output = Result<(), ChangeError>>>(change: impl Fn() -> F) {
    let done = async {
        while let Err(error) = change().await {
            assert_eq!(error, ChangeError::InProgress);
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(crate::cluster::PATIENCE, done).await.expect("the group never changed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_of_one_grows_to_three_and_a_lost_voter_is_replaced() {
    let mut cluster = Cluster::form(&[1]).await;
    for number in 1..=5 {
        log(cluster.owner().await, number).await;
    }
    for id in [2, 3] {
        cluster.0.insert(NodeId(id), Node::start(config(id)).await);
        cluster.share_addresses();
        let owner = &cluster.0[&NodeId(1)];
        retry(|| owner.store.add_learner(SHARD, NodeId(id))).await;
        cluster.0[&NodeId(id)].until_sums(5).await;
    }
    let first = &cluster.0[&NodeId(1)];
    let voters = vec![NodeId(1), NodeId(2), NodeId(3)];
    retry(|| first.store.change_voters(SHARD, voters.clone())).await;
    for node in cluster.0.values() {
        node.until(|status| status.voters == voters && !status.changing).await;
    }

    // The first node dies; a fourth takes its place.
    cluster.0.remove(&NodeId(1)).unwrap().store.shutdown().await;
    cluster.0.insert(NodeId(4), Node::start(config(4)).await);
    cluster.share_addresses();
    for id in [2, 3] {
        let gone = |status: &nearstate_store::consensus::ShardStatus| {
            status.leader.is_some_and(|leader| leader != NodeId(1))
        };
        cluster.0[&NodeId(id)].until(gone).await;
    }
    let leader = cluster.0[&NodeId(2)].status().leader.unwrap();
    let owner = &cluster.0[&leader];
    owner.until(|status| status.owns(boot_now())).await;
    log(owner, 6).await;
    retry(|| owner.store.add_learner(SHARD, NodeId(4))).await;
    cluster.0[&NodeId(4)].until_sums(6).await;
    let voters = vec![NodeId(2), NodeId(3), NodeId(4)];
    retry(|| owner.store.change_voters(SHARD, voters.clone())).await;
    let seen = cluster.0[&NodeId(4)].until(|status| status.voters == voters).await;
    assert!(seen.learners.is_empty());
    assert_eq!(cluster.0[&NodeId(4)].sums(), [1, 2, 3, 4, 5, 6]);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newcomer_catches_up_from_a_snapshot_in_pieces() {
    let first =
        Node::start_with(StoreConfig { compaction: Compaction::after(20), ..config(1) }, None)
            .await;
    let mut cluster = Cluster::form_of(vec![first]).await;
    cluster.owner().await;
    for number in 1..=100 {
        log(&cluster.0[&NodeId(1)], number).await;
    }
    cluster.0.insert(
        NodeId(2),
        Node::start_with(StoreConfig { compaction: Compaction::after(20), ..config(2) }, None)
            .await,
    );
    cluster.share_addresses();
    let owner = &cluster.0[&NodeId(1)];
    retry(|| owner.store.add_learner(SHARD, NodeId(2))).await;
    let newcomer = &cluster.0[&NodeId(2)];
    newcomer.until_sums(100).await;
    assert_eq!(newcomer.sums(), (1..=100).collect::<Vec<u64>>());
    assert!(newcomer.held.lock().unwrap().installed >= 1, "it came by the log");
    log(owner, 101).await;
    newcomer.until_sums(101).await;
    retry(|| owner.store.remove_learner(SHARD, NodeId(2))).await;
    owner.until(|status| status.learners.is_empty()).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_is_handed_over_after_the_lease_and_nothing_is_lost() {
    let cluster = Cluster::form(&[1, 2, 3]).await;
    let owner = cluster.owner().await;
    log(owner, 1).await;
    let heir = cluster.others(owner)[0];
    heir.until_sums(1).await;
    assert_eq!(
        owner.store.transfer_leader(SHARD, NodeId(9)).await,
        Err(ChangeError::NotMember(NodeId(9)))
    );
    assert_eq!(
        heir.store.transfer_leader(SHARD, heir.id()).await,
        Err(ChangeError::NotLeader(Some(owner.id())))
    );
    let everybody_else = cluster.others(owner).iter().map(|node| node.id()).collect();
    assert_eq!(
        owner.store.change_voters(SHARD, everybody_else).await,
        Err(ChangeError::RemovesLeader)
    );
    owner.store.transfer_leader(SHARD, heir.id()).await.unwrap();
    let now = boot_now();
    assert!(!owner.lease.is_valid(now), "the old owner's lease outlasts the hand-over");
    heir.until(|status| status.leader == Some(heir.id()) && status.owns(boot_now())).await;
    assert_eq!(log(owner, 2).await, 3);
    assert_eq!(heir.sums(), [1, 2]);
    cluster.stop().await;
}

/// As a table that cannot place an entry. Going on without it would make the replica differ.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_that_stops_stops_its_replica_and_ends_its_lease() {
    let cluster = Cluster::form(&[1]).await;
    let owner = cluster.owner().await;
    let batch = nearstate_store::encode_batch(&Default::default());
    // The machine of these tests reads 8 bytes as a number and counts on a sum that fits.
    for number in [u64::MAX, 1] {
        let payload = number.to_le_bytes().to_vec();
        let _ = owner.store.propose(SHARD, payload).await;
    }
    owner.until(|status| status.role == Role::Stopped).await;
    assert!(!owner.lease.is_valid(boot_now()));
    assert!(owner.store.propose(SHARD, batch).await.is_err());
    cluster.stop().await;
}
