//! Packet threads' links: transactions, reads and read leases, from any node.

use crate::cluster::{Cluster, Node, PATIENCE, SHARD, config, log};
use nearstate_store::clock::boot_now;
use nearstate_store::driver::RegionAddress;
use nearstate_store::link::{LINK_CAPACITY, LinkCompletion, LinkFull, PipeLink};
use nearstate_store::{Doorbell, Key, Outcome, ShardId, SlotId, Time, Transaction, TransactionId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Where all entries lie.
const PLACE: (ShardId, SlotId) = (SHARD, SlotId(0));

fn transaction(client: u64, serial: u64) -> Transaction {
    Transaction {
        id: TransactionId { client, serial },
        slot: SlotId(0),
        conditions: Default::default(),
        writes: Default::default(),
    }
}

/// A key whose last word is the place in the log that the test machine reads.
fn key(place: u64) -> Key {
    Key([1, 0, 0, 0, place])
}

fn soon() -> Time {
    boot_now().plus_ms(20_000)
}

/// Plays the packet thread: waits at the bell until so many completions have come.
async fn collect(
    mut link: PipeLink,
    bell: Arc<Doorbell>,
    count: usize,
) -> (PipeLink, Vec<LinkCompletion>) {
    let thread = tokio::task::spawn_blocking(move || {
        let mut all = Vec::new();
        let end = soon();
        while all.len() < count {
            let seen = bell.count();
            match link.poll() {
                Some(completion) => all.push(completion),
                None if boot_now() > end => panic!("{} of {count} completions came", all.len()),
                None => drop(bell.wait(seen, PATIENCE)),
            }
        }
        (link, all)
    });
    thread.await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_and_reads_of_every_node_are_answered_once() {
    let cluster = Cluster::form(&[1, 2, 3]).await;
    let owner = cluster.owner().await;
    log(owner, 42).await;
    for (node, client) in cluster.0.values().zip(1..) {
        let bell = Arc::new(Doorbell::new().unwrap());
        let mut link = node.store.pipe_link(client, bell.clone());
        for serial in 1..=200 {
            link.submit(serial, SHARD, &transaction(client, serial), soon()).unwrap();
        }
        for place in 0..2 {
            link.post_read(1000 + place, PLACE, &key(place), soon()).unwrap();
        }
        let (mut link, all) = collect(link, bell, 202).await;
        assert_eq!(link.poll(), None);
        assert_eq!(link.leader(SHARD), Some(owner.id()));
        let mut outcomes = BTreeMap::new();
        let mut found = BTreeMap::new();
        for completion in all {
            match completion {
                LinkCompletion::Transaction { token, outcome } => {
                    assert!(matches!(outcome, Some(Outcome::Committed(_))), "{outcome:?}");
                    assert_eq!(outcomes.insert(token, outcome), None);
                }
                LinkCompletion::Read { token, answer } => {
                    let (entry, until) = answer.expect("the owner lives");
                    assert!(until > Time(0) && until < soon());
                    found.insert(token, entry.map(|entry| entry.value.0[0]));
                }
            }
        }
        assert_eq!(outcomes.len(), 200);
        assert_eq!(found, BTreeMap::from([(1000, Some(42)), (1001, None)]));
    }
    assert_eq!(owner.held.lock().unwrap().done.len(), 600);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_outlive_their_owner() {
    let mut cluster = Cluster::form(&[1, 2, 3]).await;
    let id = cluster.owner().await.id();
    let node = cluster.0.values().find(|node| node.id() != id).unwrap().id();
    let bell = Arc::new(Doorbell::new().unwrap());
    let mut link = cluster.0[&node].store.pipe_link(1, bell.clone());
    link.submit(1, SHARD, &transaction(1, 1), soon()).unwrap();
    let (mut link, _) = collect(link, bell.clone(), 1).await;
    let old = cluster.0.remove(&id).unwrap();
    for serial in 2..=50 {
        link.submit(serial, SHARD, &transaction(1, serial), soon()).unwrap();
    }
    old.store.shutdown().await;
    let (_, all) = collect(link, bell, 49).await;
    for completion in all {
        let LinkCompletion::Transaction { outcome, .. } = completion else {
            panic!("{completion:?}")
        };
        assert!(matches!(outcome, Some(Outcome::Committed(_))), "{outcome:?}");
    }
    let owner = cluster.owner().await;
    assert_eq!(owner.held.lock().unwrap().done.len(), 50);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_answers_ends_at_its_deadline_and_a_full_link_says_so() {
    let node = Node::start(config(1)).await;
    let bell = Arc::new(Doorbell::new().unwrap());
    let mut link = node.store.pipe_link(1, bell.clone());
    for token in 0..LINK_CAPACITY as u64 {
        let deadline = boot_now().plus_ms(20);
        match token % 3 {
            0 => link.post_read(token, PLACE, &key(0), deadline).unwrap(),
            1 => link.submit(token, SHARD, &transaction(1, token), deadline).unwrap(),
            _ => link.submit(token, ShardId(9), &transaction(1, token), deadline).unwrap(),
        }
    }
    assert_eq!(link.submit(0, SHARD, &transaction(1, 1), soon()), Err(LinkFull));
    assert_eq!(link.post_read(0, PLACE, &key(0), soon()), Err(LinkFull));
    let (mut link, all) = collect(link, bell, LINK_CAPACITY).await;
    assert!(all.iter().all(|completion| matches!(
        completion,
        LinkCompletion::Read { answer: None, .. }
            | LinkCompletion::Transaction { outcome: None, .. }
    )));
    link.submit(0, SHARD, &transaction(1, 1), soon()).unwrap();
    node.store.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_leases_come_renew_and_follow_the_owner() {
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = Vec::new();
    for id in 1..=3 {
        let path = dir.path().join(format!("region-{id}"));
        std::fs::write(&path, b"here").unwrap();
        nodes.push(Node::start_with(config(id), Some(RegionAddress { path })).await);
    }
    let cluster = Cluster::form_of(nodes).await;
    let owner = cluster.owner().await;
    let reader = cluster.others(owner)[0];
    let bell = Arc::new(Doorbell::new().unwrap());
    let mut link = reader.store.pipe_link(1, bell);
    let wait = async |link: &mut PipeLink, owner: &Node| loop {
        if let Some(grant) = link.grant(SHARD).filter(|grant| grant.owner == owner.id()) {
            break grant;
        }
        tokio::task::yield_now().await;
    };
    let grant = tokio::time::timeout(PATIENCE, wait(&mut link, owner)).await.unwrap();
    assert_eq!(grant.path, dir.path().join(format!("region-{}", owner.id().0)));
    assert_eq!(grant.generation, owner.status().term.0);
    assert!(grant.valid_until() <= owner.lease.until(), "a read lease outlasts its owner's");
    let first = grant.valid_until();
    let renewed = async {
        // It is renewed while it is used.
        while grant.valid_until() <= first {
            assert!(link.grant(SHARD).is_some());
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, renewed).await.expect("never renewed");

    // Handed over: the old grant is over before the new owner begins.
    owner.store.transfer_leader(SHARD, reader.id()).await.unwrap();
    assert!(grant.valid_until() <= boot_now());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_the_group_has_given_up_finds_every_later_owner() {
    let cluster = Cluster::form(&[1, 2, 3, 4]).await;
    let owner = cluster.owner().await;
    let others = cluster.others(owner);
    let (gone, heir) = (others[0], others[1]);
    let rest: Vec<_> = cluster.0.keys().copied().filter(|id| *id != gone.id()).collect();
    owner.store.change_voters(SHARD, rest).await.unwrap();
    gone.store.set_part(SHARD, false);
    let bell = Arc::new(Doorbell::new().unwrap());
    let mut link = gone.store.pipe_link(1, bell.clone());
    link.submit(1, SHARD, &transaction(1, 1), soon()).unwrap();
    let (mut link, _) = collect(link, bell.clone(), 1).await;
    // What it copied of the log still names the old owner, which lives and owns nothing any more.
    owner.store.transfer_leader(SHARD, heir.id()).await.unwrap();
    heir.until(|status| status.owns(boot_now())).await;
    let before = gone.status().term;
    link.submit(2, SHARD, &transaction(1, 2), soon()).unwrap();
    let (_, all) = collect(link, bell, 1).await;
    let [LinkCompletion::Transaction { outcome: Some(Outcome::Committed(_)), .. }] = all[..] else {
        panic!("{all:?}")
    };
    assert_eq!(gone.status().term, before, "it asks nobody for a vote");
    cluster.stop().await;
}
