//! The store by itself: three replicas in one process, without nodes, packets or placement.
//!
//! `cargo run --release --example store_alone` forms them, writes an entry through a follower,
//! reads it in place at the owner and over the network at the other follower, and watches it.

use nearstate_store::{Condition, Embedded, EmbeddedConfig, Endpoint, Key, NodeId, SlotId};
use nearstate_store::{TenantId, Value, Write};
use std::error::Error;
use std::time::Instant;

/// The kind of this program's keys: any number but 0.
const KIND: u8 = 9;
const SLOT: SlotId = SlotId(7);

fn main() -> Result<(), Box<dyn Error>> {
    nearstate_store::driver::runtime()?.block_on(run())
}

async fn run() -> Result<(), Box<dyn Error>> {
    let mut replicas = Vec::new();
    for node in (1..=3).map(NodeId) {
        let config = EmbeddedConfig::new(0xe1, node, 10_000);
        replicas.push(config.start("127.0.0.1:0".parse()?).await?);
    }
    let first = Embedded::form_all(&replicas).await?;
    println!("three replicas on loopback; {first} owns the shard");
    replicas.sort_by_key(|replica| replica.node() != first);
    let [owner, writer, watcher] = &replicas[..] else { unreachable!("three were started") };

    let ends = (Endpoint::v4([10, 0, 0, 1], 40_000), Endpoint::v4([192, 0, 2, 1], 443));
    let key = Key::new(KIND, 6, TenantId(0), ends);
    let put = |number| [Write::put(key, Value([number; 8]))];
    let done = writer.commit(SLOT, [Condition::Absent(key)], put(1)).await?;
    println!("written through {}, if absent: {done:?}", writer.node());
    let done = writer.commit(SLOT, [Condition::Absent(key)], put(2)).await?;
    println!("once more, if absent: {done:?}");

    let began = Instant::now();
    let here = owner.peek(&key).filter(|_| owner.is_owner()).ok_or("an election came between")?;
    println!("read in place at {}: {} in {:?}", owner.node(), here.version, began.elapsed());
    let began = Instant::now();
    let there = watcher.read(&key).await?.ok_or("it was committed")?;
    println!("asked through {}: {} in {:?}", watcher.node(), there.version, began.elapsed());

    let (seen, done) = tokio::join!(
        watcher.changed(&key, Some(there.version)),
        writer.commit(SLOT, [Condition::Version(key, there.version)], put(3)),
    );
    println!("changed, if still that version: {:?}", done?);
    println!("{}, which watched, now holds {:?}", watcher.node(), seen?);
    for replica in &replicas {
        replica.shutdown().await;
    }
    Ok(())
}
