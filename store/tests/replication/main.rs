//! Replication as a whole: stores in one process that speak over real TCP.

mod cluster;

use cluster::{Cluster, log};

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
    cluster.stop().await;
}
