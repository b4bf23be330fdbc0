//! How long a shard takes no commits when its owner's process is killed.
//!
//! The clock runs from just before SIGKILL is sent until the first commit is acknowledged at the
//! new owner, to a client of its process that tries all the time. Then a new process under a new id
//! takes the dead one's place, and when it votes the next owner dies.

use crate::replica::Cluster;
use crate::report::Report;
use hdrhistogram::Histogram;
use nearstate_store::clock;
use std::error::Error;

const P50: &str = "failover_p50_ms";
const P99: &str = "failover_p99_ms";
const CAPACITY: u32 = 100_000;

/// Measures the rows of this file.
pub(crate) fn run(report: &mut Report) -> Result<(), Box<dyn Error>> {
    if !report.wants_any(&[P50, P99]) {
        return Ok(());
    }
    let kills = if report.quick() { 10 } else { 100 };
    let mut cluster = Cluster::form(CAPACITY)?;
    let mut times = Histogram::<u64>::new(3)?;
    for _ in 0..kills {
        times.record(kill(&mut cluster)?)?;
        replace(&mut cluster)?;
    }
    let ms = |quantile| times.value_at_quantile(quantile) as f64 / 1e6;
    report.row(P50, ms(0.5), "ms");
    report.row(P99, ms(0.99), "ms");
    Ok(())
}

/// Kills the owner; gives the nanoseconds until the first commit. The dead replica stays in the
/// list.
fn kill(cluster: &mut Cluster) -> Result<u64, Box<dyn Error>> {
    let owner = cluster.owner()?;
    cluster.replicas[owner].ask("latency 50")?;
    let killed = clock::boot_now();
    let dead = &mut cluster.replicas[owner];
    dead.kill()?;
    let dead = cluster.replicas.remove(owner);
    for replica in &mut cluster.replicas {
        replica.say("first")?;
    }
    let mut first = u64::MAX;
    for replica in &mut cluster.replicas {
        first = first.min(replica.hear()?.parse()?);
    }
    cluster.replicas.push(dead);
    Ok(first - killed.0)
}

/// A new process takes the last replica's place.
fn replace(cluster: &mut Cluster) -> Result<(), Box<dyn Error>> {
    let Some(dead) = cluster.replicas.pop() else { return Err("no replica has died".into()) };
    let new = cluster.join()?;
    cluster.introduce()?;
    let newcomer = cluster.replicas.pop().ok_or("it was pushed just now")?;
    let owner = cluster.owner()?;
    cluster.replicas[owner].ask(&format!("replace {} {new}", dead.id))?;
    cluster.replicas.push(newcomer);
    Ok(())
}
