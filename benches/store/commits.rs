//! Commits on three replicas: how many flows a second can be made, and how long one takes.
//!
//! The client is a thread in the owner's process that talks to the store as a pipe does, over a
//! [`PipeLink`]: it submits without waiting, looks for completions, and waits on its doorbell when
//! there is nothing to do. A flow counts when its completion says that it is committed.

use crate::replica::{Cluster, SHARD, SLOTS, Served};
use crate::report::Report;
use arrayvec::ArrayVec;
use hdrhistogram::Histogram;
use nearstate_store::doorbell::Doorbell;
use nearstate_store::link::{LINK_CAPACITY, LinkCompletion, PipeLink};
use nearstate_store::{
    Condition, Endpoint, Fill, FlowMachine, Key, LogIndex, Outcome, SlotId, TenantId, Transaction,
    TransactionId, Value, Write, clock,
};
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Rounds that look for completions before the client waits, as a pipe does.
const IDLE_ROUNDS: u32 = 64;
/// Longer than any commit takes.
const DEADLINE_MS: u64 = 30_000;
/// Room in the tables.
const CAPACITY: u32 = 12_000_000;

const KOPS: &str = "commit_3r_kops";
const CPU: &str = "commit_3r_cpu_us";
const P50: &str = "commit_p50_us";
const P99: &str = "commit_p99_us";

type Failure = Box<dyn Error>;

/// How long flows live that nobody sees: UDP (RFC 4787 REQ-5).
const TTL_S: u32 = 300;

/// The key of a client's flow.
pub(crate) fn flow_key(client: u64, serial: u64) -> Key {
    let [.., s2, s1, s0] = serial.to_be_bytes();
    let [.., c2, c1, c0] = client.to_be_bytes();
    let inside = Endpoint::v4([10, s2, s1, s0], u16::from_be_bytes([c1, c0]));
    let outside = Endpoint::v4([192, 0, 2, c2], 53);
    Key::new(3, 17, TenantId(0), (inside, outside))
}

/// The slot of a client's flow.
pub(crate) fn slot_of(serial: u64) -> SlotId {
    SlotId((serial % u64::from(SLOTS)) as u16)
}

/// The transaction that the firewall makes of a new flow.
fn new_flow(client: u64, serial: u64) -> Transaction {
    let key = flow_key(client, serial);
    let mut value = Value::ZERO;
    (value.0[0], value.0[1]) = (0xff, 1);
    Transaction {
        id: TransactionId { client, serial },
        slot: slot_of(serial),
        conditions: ArrayVec::from_iter([Condition::Absent(key)]),
        writes: ArrayVec::from_iter([Write::Put {
            key,
            value,
            fill: Fill::default(),
            ttl_s: TTL_S,
        }]),
    }
}

/// Makes so many flows in a machine without a log.
pub(crate) fn fill(machine: &mut FlowMachine, count: u64) {
    for serial in 1..=count {
        let outcome = machine.apply_one(LogIndex(serial), 1, &new_flow(1, serial));
        assert!(matches!(outcome, Outcome::Committed(_)), "{outcome:?}");
    }
}

/// A link, and whose flows go over it.
struct Client {
    link: PipeLink,
    bell: Arc<Doorbell>,
    number: u64,
    serial: u64,
}

impl Client {
    fn new(served: &mut Served, runtime: &tokio::runtime::Runtime) -> Result<Self, Failure> {
        let number = served.next_client();
        let bell = Arc::new(Doorbell::new()?);
        let link = {
            let _inside = runtime.enter();
            served.store.pipe_link(number, bell.clone())
        };
        Ok(Self { link, bell, number, serial: 0 })
    }

    fn submit(&mut self) -> Result<(), Failure> {
        self.serial += 1;
        let transaction = new_flow(self.number, self.serial);
        let deadline = clock::boot_now().plus_ms(DEADLINE_MS);
        Ok(self.link.submit(self.serial, SHARD, &transaction, deadline)?)
    }

    /// Takes all completions that have come; gives how many.
    fn take(&mut self) -> Result<u64, Failure> {
        let mut taken = 0;
        while let Some(completion) = self.link.poll() {
            match completion {
                LinkCompletion::Transaction { outcome: Some(Outcome::Committed(_)), .. } => {}
                other => return Err(format!("no commit: {other:?}").into()),
            }
            taken += 1;
        }
        Ok(taken)
    }

    /// Waits for completions as a pipe does.
    fn wait(&mut self) -> Result<u64, Failure> {
        let mut idle = 0;
        loop {
            let seen = self.bell.count();
            let taken = self.take()?;
            if taken > 0 {
                return Ok(taken);
            }
            idle += 1;
            if idle < IDLE_ROUNDS {
                core::hint::spin_loop();
            } else {
                self.bell.wait(seen, Duration::from_secs(1));
            }
        }
    }
}

/// Makes `COUNT` flows, up to `DEPTH` at a time; says how many nanoseconds it took.
pub(crate) fn create(
    served: &mut Served,
    runtime: &tokio::runtime::Runtime,
    rest: &str,
) -> Result<String, Failure> {
    let (count, depth) = rest.split_once(' ').ok_or("create COUNT DEPTH")?;
    let (count, depth): (u64, u64) = (count.parse()?, depth.parse()?);
    let mut client = Client::new(served, runtime)?;
    let began = Instant::now();
    let (mut submitted, mut done) = (0, 0);
    while done < count {
        while submitted < count && submitted - done < depth {
            client.submit()?;
            submitted += 1;
        }
        done += client.wait()?;
    }
    Ok(began.elapsed().as_nanos().to_string())
}

/// Makes `COUNT` flows one after the other; says the median and the 99th percentile in
/// nanoseconds.
pub(crate) fn latency(
    served: &mut Served,
    runtime: &tokio::runtime::Runtime,
    rest: &str,
) -> Result<String, Failure> {
    let count: u64 = rest.parse()?;
    let mut client = Client::new(served, runtime)?;
    let mut times = Histogram::<u64>::new(3)?;
    for _ in 0..count {
        let began = Instant::now();
        client.submit()?;
        client.wait()?;
        times.record(began.elapsed().as_nanos() as u64)?;
    }
    Ok(format!("{} {}", times.value_at_quantile(0.5), times.value_at_quantile(0.99)))
}

/// Makes one flow, however long it takes; says when it was committed.
pub(crate) fn first(
    served: &mut Served,
    runtime: &tokio::runtime::Runtime,
) -> Result<String, Failure> {
    let mut client = Client::new(served, runtime)?;
    client.submit()?;
    client.wait()?;
    Ok(clock::boot_now().0.to_string())
}

/// Measures the rows of this file.
pub(crate) fn run(report: &mut Report) -> Result<(), Failure> {
    if !report.wants_any(&[KOPS, CPU, P50, P99]) {
        return Ok(());
    }
    let (flows, singles) = if report.quick() { (500_000, 2_000) } else { (5_000_000, 20_000) };
    let mut cluster = Cluster::form(CAPACITY)?;
    let owner = cluster.owner()?;
    // The first commits grow buffers and touch pages for the first time.
    cluster.replicas[owner].ask("latency 500")?;
    if report.wants_any(&[P50, P99]) {
        let said = cluster.replicas[owner].ask(&format!("latency {singles}"))?;
        let (p50, p99) = said.split_once(' ').ok_or("two numbers are wanted")?;
        report.row(P50, p50.parse::<f64>()? / 1e3, "us");
        report.row(P99, p99.parse::<f64>()? / 1e3, "us");
    }
    if report.wants_any(&[KOPS, CPU]) {
        cluster.replicas[owner].ask(&format!("create {} {LINK_CAPACITY}", flows / 10))?;
        let before = cpu_us(&mut cluster)?;
        let took = cluster.replicas[owner].ask(&format!("create {flows} {LINK_CAPACITY}"))?;
        let spent = cpu_us(&mut cluster)? - before;
        report.row(KOPS, flows as f64 * 1e6 / took.parse::<f64>()?, "kops");
        // Of all three replicas and the client.
        report.row(CPU, spent / flows as f64, "us/flow");
    }
    Ok(())
}

/// Processor time that all replicas have taken.
fn cpu_us(cluster: &mut Cluster) -> Result<f64, Failure> {
    let mut total = 0.0;
    for replica in &mut cluster.replicas {
        total += replica.ask("cpu")?.parse::<f64>()?;
    }
    Ok(total)
}
