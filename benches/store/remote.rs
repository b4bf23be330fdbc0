//! Reads of another node's entries over TCP: posted as a pipe posts them, many at a time, answered
//! by the owner under its lease.
//!
//! The reader is a thread in a follower's process whose store may not map the owner's region, so
//! every read goes to the owner and back. Keys are drawn uniformly; every read is checked to find
//! its entry.

use crate::commits::{flow_key, slot_of};
use crate::replica::{Cluster, SHARD, Served};
use crate::report::Report;
use nearstate_store::clock;
use nearstate_store::doorbell::Doorbell;
use nearstate_store::link::LINK_CAPACITY;
use nearstate_store::remote_read::{LinkReads, RemoteReads};
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

const ROW: &str = "tcp_read_mops";
const ENTRIES: u64 = 1_000_000;
/// Room in the tables.
const CAPACITY: u32 = 2_000_000;
/// Longer than any read takes.
const DEADLINE_MS: u64 = 30_000;
/// Rounds that look for answers before the reader waits, as a pipe does.
const IDLE_ROUNDS: u32 = 64;

type Failure = Box<dyn Error>;

/// Reads `COUNT` entries of the flows 1 to `ENTRIES` that `CLIENT` made; says how many nanoseconds
/// it took.
pub(crate) fn read(
    served: &mut Served,
    runtime: &tokio::runtime::Runtime,
    rest: &str,
) -> Result<String, Failure> {
    let numbers: Result<Vec<u64>, _> = rest.split(' ').map(str::parse).collect();
    let [count, client, entries] = numbers?[..] else {
        return Err("read COUNT CLIENT ENTRIES".into());
    };
    let bell = Arc::new(Doorbell::new()?);
    let number = served.next_client();
    let link = {
        let _inside = runtime.enter();
        served.store.pipe_link(number, bell.clone())
    };
    let mut reads = LinkReads::new(link, SHARD);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let (mut posted, mut done, mut idle) = (0, 0, 0);
    let began = Instant::now();
    while done < count {
        let now = clock::boot_now();
        while posted < count && posted - done < LINK_CAPACITY as u64 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let serial = 1 + ((u128::from(state) * u128::from(entries)) >> 64) as u64;
            posted += 1;
            let of = (slot_of(serial), &flow_key(client, serial));
            reads.post(posted, of, now.plus_ms(DEADLINE_MS))?;
        }
        reads.flush(now);
        let (seen, before) = (bell.count(), done);
        while let Some(answer) = reads.poll() {
            answer.found?.0.ok_or("an entry is missing")?;
            done += 1;
        }
        idle = if done == before { idle + 1 } else { 0 };
        if idle >= IDLE_ROUNDS {
            bell.wait(seen, Duration::from_secs(1));
        }
    }
    Ok(began.elapsed().as_nanos().to_string())
}

/// Measures the row of this file.
pub(crate) fn run(report: &mut Report) -> Result<(), Failure> {
    if !report.wants(ROW) {
        return Ok(());
    }
    let (entries, count) = if report.quick() { (50_000, 200_000) } else { (ENTRIES, 5_000_000) };
    let mut cluster = Cluster::form(CAPACITY)?;
    let owner = cluster.owner()?;
    let client = cluster.replicas[owner].ask("client")?;
    cluster.replicas[owner].ask(&format!("create {entries} {LINK_CAPACITY}"))?;
    let reader = (owner + 1) % cluster.replicas.len();
    let mut took = Vec::new();
    // The first one warms up.
    for count in [count / 10, count] {
        let said = cluster.replicas[reader].ask(&format!("read {count} {client} {entries}"))?;
        took.push(said.parse::<f64>()?);
    }
    report.row(ROW, count as f64 * 1e3 / took[1], "Mops");
    Ok(())
}
