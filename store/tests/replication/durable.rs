//! Replicas on disk: stores that are started anew on the directories of others.

use crate::cluster::{Cluster, Node, PATIENCE, SHARD, SumMachine, config, log};
use nearstate_store::clock::boot_now;
use nearstate_store::consensus::{Compaction, ProposeError};
use nearstate_store::disk::{
    self, DiskConfig, DiskError, Durability, SEGMENT_BYTES_MIN, StoppedError, StoppedReplica,
};
use nearstate_store::driver::{StartError, StoreConfig};
use nearstate_store::{Machine, NodeId};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;

fn home(directory: &Path, node: u64) -> PathBuf {
    directory.join(format!("n{node}"))
}

fn on(directory: PathBuf, node: u64) -> StoreConfig {
    let disk = DiskConfig { segment_bytes: SEGMENT_BYTES_MIN, ..DiskConfig::new(directory) };
    StoreConfig { durability: Durability::Disk(disk), ..config(node) }
}

async fn start(directory: &Path, node: u64, compaction: Compaction) -> Node {
    Node::start_with(StoreConfig { compaction, ..on(home(directory, node), node) }, None).await
}

/// All nodes, on what their directories hold.
async fn start_all(directory: &Path, compaction: Compaction) -> Cluster {
    let nodes = [1, 2, 3].map(|node| start(directory, node, compaction));
    let nodes = futures::future::join_all(nodes).await;
    let cluster = Cluster(nodes.into_iter().map(|node| (node.id(), node)).collect());
    cluster.share_addresses();
    cluster
}

async fn form(directory: &Path, compaction: Compaction) -> Cluster {
    let cluster = start_all(directory, compaction).await;
    let voters: Vec<NodeId> = cluster.0.keys().copied().collect();
    cluster.0[&NodeId(1)].store.initialize(SHARD, &voters).await.unwrap();
    cluster
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (path, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        if path.is_dir() {
            copy(&path, &to);
        } else {
            std::fs::copy(&path, &to).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_was_stopped_as_a_whole_has_everything_again() {
    // More than the payloads of all entries together: each weighs more than what it carries.
    let by_bytes = Compaction { bytes: 2_000, ..Compaction::default() };
    for compaction in [Compaction::default(), Compaction::after(20), by_bytes] {
        let scratch = tempfile::tempdir().unwrap();
        let cluster = form(scratch.path(), compaction).await;
        let owner = cluster.owner().await;
        for number in 1..=100 {
            log(owner, number).await;
        }
        let term = owner.status().term;
        cluster.stop().await;

        let cluster = start_all(scratch.path(), compaction).await;
        let owner = cluster.owner().await;
        assert!(owner.status().term > term, "the vote was forgotten");
        assert_eq!(log(owner, 101).await, 5151);
        for node in cluster.0.values() {
            node.until_sums(101).await;
            assert_eq!(node.sums(), (1..=101).collect::<Vec<_>>());
            let installed = node.held.lock().unwrap().installed;
            assert_eq!(installed > 0, compaction != Compaction::default(), "{compaction:?}");
        }
        cluster.stop().await;
        let report = disk::verify(&home(scratch.path(), 1)).unwrap();
        assert!(report.is_usable(), "{report:?}");
        assert_eq!(report.shards[0].name, "shard-1");
        assert!(report.shards[0].last.is_some_and(|last| last.0 >= 101), "{report:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_stopped_replica_held_can_be_looked_at_without_starting_it() {
    for compaction in [Compaction::default(), Compaction::after(20)] {
        let scratch = tempfile::tempdir().unwrap();
        let home = home(scratch.path(), 1);
        let node = start(scratch.path(), 1, compaction).await;
        node.store.initialize(SHARD, &[node.id()]).await.unwrap();
        node.until(|status| status.owns(boot_now())).await;
        for number in 1..=100 {
            log(&node, number).await;
        }
        let refused = StoppedReplica::open(&home, SHARD);
        assert!(matches!(refused, Err(StoppedError::Disk(DiskError::InUse(_)))), "{refused:?}");
        let live = node.store.inspect(SHARD, true).await.unwrap();
        node.store.shutdown().await;

        for _ in 0..2 {
            let replica = StoppedReplica::open(&home, SHARD).unwrap();
            assert_eq!((replica.identity().node, replica.last_log()), (node.id(), live.applied));
            let mut machine = SumMachine(std::sync::Arc::default());
            assert_eq!(replica.play(&mut machine).unwrap(), live.applied);
            assert_eq!(Some(Machine::state_hash(&machine)), live.state_hash);
            let held = machine.0.lock().unwrap();
            assert_eq!(held.sums, (1..=100).collect::<Vec<_>>());
            assert_eq!(
                held.installed > 0,
                compaction == Compaction::after(20),
                "whether from a snapshot"
            );
        }
        let other = StoppedReplica::open(&home, nearstate_store::ShardId(9));
        assert!(matches!(other, Err(StoppedError::Empty)), "{other:?}");
        assert!(!home.join("shard-9").exists(), "a look makes nothing");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_is_in_the_files_at_that_very_moment() {
    let scratch = tempfile::tempdir().unwrap();
    let cluster = form(scratch.path(), Compaction::default()).await;
    let owner = cluster.owner().await;
    for number in 1..=30 {
        log(owner, number).await;
    }
    // As if all were killed now.
    let image = tempfile::tempdir().unwrap();
    copy(scratch.path(), image.path());
    for number in 31..=40 {
        log(owner, number).await;
    }
    cluster.stop().await;
    let cluster = start_all(image.path(), Compaction::default()).await;
    let owner = cluster.owner().await;
    assert_eq!(log(owner, 1000).await, 465 + 1000);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_has_one_process_and_one_owner() {
    let scratch = tempfile::tempdir().unwrap();
    let node = start(scratch.path(), 1, Compaction::default()).await;
    let again = Node::try_start(on(home(scratch.path(), 1), 1), None).await;
    let said = again.err().unwrap().to_string();
    assert!(said.contains("in use by another process"), "{said}");
    node.store.shutdown().await;
    let other = StoreConfig { nonce: 77, ..on(home(scratch.path(), 1), 1) };
    let Err(error) = Node::try_start(other, None).await else { panic!("it started") };
    assert!(error.to_string().contains("in another life"), "{error}");
    let lost = Durability::Disk(DiskConfig {
        must_exist: true,
        ..DiskConfig::new(scratch.path().join("nowhere"))
    });
    let lost = StoreConfig { durability: lost, ..config(1) };
    let Err(error) = Node::try_start(lost, None).await else { panic!("it started") };
    let StartError::Disk { source, .. } = error else { panic!("{error}") };
    assert!(source.is_loss(), "{source}");
    start(scratch.path(), 1, Compaction::default()).await.store.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_replica_is_not_started_and_its_node_comes_back_as_another() {
    let scratch = tempfile::tempdir().unwrap();
    let mut cluster = form(scratch.path(), Compaction::default()).await;
    let owner = cluster.owner().await;
    for number in 1..=50 {
        log(owner, number).await;
    }
    let victim = cluster.others(owner)[0].id();
    cluster.0[&victim].until_sums(50).await;
    cluster.0.remove(&victim).unwrap().store.shutdown().await;
    let directory = home(scratch.path(), victim.0);
    let segment = directory.join("shard-1/log-0000000000000001.segment");
    let mut bytes = std::fs::read(&segment).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&segment, bytes).unwrap();

    let started = Node::try_start(on(directory.clone(), victim.0), None).await;
    let Err(StartError::Disk { source, .. }) = started else { panic!("it started") };
    assert!(source.is_loss(), "{source}");
    assert!(source.to_string().contains("byte"), "{source}");
    assert!(!disk::verify(&directory).unwrap().is_usable());
    let aside = disk::set_aside(&directory).unwrap();
    assert!(aside.to_string_lossy().ends_with(".damaged"));
    assert!(aside.join("shard-1/log-0000000000000001.segment").exists());

    // The same machine, another node.
    cluster.0.insert(NodeId(4), start(scratch.path(), 4, Compaction::default()).await);
    cluster.share_addresses();
    let owner = cluster.owner_of_those_that_know().await;
    let learning = async {
        while owner.store.add_learner(SHARD, NodeId(4)).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, learning).await.unwrap();
    cluster.0[&NodeId(4)].until_sums(50).await;
    cluster.stop().await;
}

/// A file system of one megabyte, which needs the right to mount.
struct Small(tempfile::TempDir);

impl Small {
    fn new() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m", "small"])
            .arg(directory.path())
            .output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self(directory)),
            other => {
                println!("skipped: a small file system cannot be mounted: {other:?}");
                None
            }
        }
    }

    /// Takes all the room that is left.
    fn fill(&self) -> PathBuf {
        use std::io::Write;
        let path = self.0.path().join("filler");
        let mut file = std::fs::File::create(&path).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
        path
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

/// Writes until the disk is full, and gives how many were written.
async fn write_until_full(node: &Node) -> u64 {
    let patience = std::time::Duration::from_millis(300);
    for number in 0..5_000_u64 {
        let payload = number.to_le_bytes().to_vec();
        match node.store.propose_within(SHARD, payload, patience).await {
            Ok(_) => {}
            Err(ProposeError::DiskFull) => return number,
            Err(other) => panic!("{number}: {other}"),
        }
    }
    panic!("the disk never was full");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_refuses_writes_by_name_and_heals_without_a_restart() {
    let Some(small) = Small::new() else { return };
    let node = Node::start_with(on(small.0.path().join("n1"), 1), None).await;
    let cluster = Cluster::form_of(vec![node]).await;
    let owner = cluster.owner().await;
    log(owner, 7).await;
    let filler = small.fill();
    let written = write_until_full(owner).await;
    assert!(owner.store.disk_is_full(SHARD));
    let counts = owner.store.disk_counts();
    assert_eq!(counts.became_full.load(Ordering::Relaxed), 1);
    assert!(counts.refused_full.load(Ordering::Relaxed) >= 1);
    // It leads on: there is nobody else. Nothing refused has taken effect.
    assert!(owner.status().owns(boot_now()));
    assert_eq!(owner.sums().len() as u64, written + 1);
    std::fs::remove_file(filler).unwrap();
    log(owner, 9).await;
    assert_eq!(counts.healed.load(Ordering::Relaxed), 1);
    assert_eq!(counts.failures.load(Ordering::Relaxed), 0);
    let sums = owner.sums();
    cluster.stop().await;
    let node = Node::start_with(on(small.0.path().join("n1"), 1), None).await;
    node.until_sums(sums.len()).await;
    assert_eq!(node.sums(), sums);
    node.store.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_whose_disk_is_full_gives_the_shard_away() {
    let Some(small) = Small::new() else { return };
    let scratch = tempfile::tempdir().unwrap();
    let first = Node::start_with(on(small.0.path().join("n1"), 1), None).await;
    let mut nodes = vec![first];
    for node in [2, 3] {
        nodes.push(start(scratch.path(), node, Compaction::default()).await);
    }
    let cluster = Cluster::form_of(nodes).await;
    let first = &cluster.0[&NodeId(1)];
    // Whoever was elected: the first one is to own it.
    let owner = cluster.owner().await;
    if owner.id() != first.id() {
        first.until_sums(0).await;
        owner.store.transfer_leader(SHARD, first.id()).await.unwrap();
    }
    first.until(|status| status.owns(boot_now())).await;
    let filler = small.fill();
    let mut total = 0;
    while !first.store.disk_is_full(SHARD) {
        log(first, 1).await;
        total += 1;
        assert!(total < 5_000, "the disk never was full");
    }
    // Writes go on: somebody else takes the shard over.
    let sum = log(first, 1).await;
    assert!(sum > total);
    let heir = first.until(|status| status.leader.is_some_and(|id| id != NodeId(1))).await;
    let heir = &cluster.0[&heir.leader.unwrap()];
    let back = heir.store.transfer_leader(SHARD, first.id()).await;
    assert!(back.is_err(), "a node without room was made the owner");
    std::fs::remove_file(filler).unwrap();
    let sum = log(heir, 1).await;
    first.until_sums(sum as usize).await;
    cluster.stop().await;
}
