//! One replica as a process of its own: a node's store, and, if it owns the shard, a pipe beside it
//! through which new flows are opened.

use crate::allocations;
use crate::cluster::{Node, PATIENCE, SHARD, Shape};
use crate::function::NAT44;
use crate::processes::{answer, book};
use crate::rows::Rows;
use crate::traffic::Traffic;
use crate::uniform::shape;
use crate::way::{Way, open};
use hdrhistogram::Histogram;
use nearstate_nf_node::cluster_access::ClusterAccess;
use nearstate_nf_node::pipe::SteeredChain;
use nearstate_store::driver::runtime;
use nearstate_store::{Doorbell, NodeId, clock};
use std::error::Error;
use std::sync::Arc;
use tokio::runtime::Runtime;

/// The first argument of a process that is to be a replica.
pub(crate) const ARGUMENT: &str = "--replica";

type Failure = Box<dyn Error>;

struct Served {
    runtime: Runtime,
    node: Node,
    chain: SteeredChain,
    flows: u32,
    /// What flows are opened by, once somebody asks for that.
    opener: Option<Opener>,
}

/// New flows one after the other, none twice.
struct Opener {
    way: Way<ClusterAccess>,
    traffic: Traffic,
    next: usize,
}

/// What the process does that was started with [`ARGUMENT`], node id and number of flows.
pub(crate) fn run(mut arguments: impl Iterator<Item = String>) -> Result<(), Failure> {
    let mut number =
        || -> Result<u64, Failure> { Ok(arguments.next().ok_or("a number is missing")?.parse()?) };
    let (id, flows) = (NodeId(number()?), u32::try_from(number()?)?);
    let directory = Rows::directory()?;
    let empty: Shape = shape(directory.path().join(format!("replica-{}", id.0)));
    let (chain, shape) = NAT44.chain(flows, empty)?;
    let runtime = runtime()?;
    let node = runtime.block_on(Node::start(id, &shape))?;
    // Nobody else maps the region, and this process will be killed: what has no name any more is
    // gone with it.
    directory.close()?;
    answer(&node.address.to_string())?;
    let mut served = Served { runtime, node, chain, flows, opener: None };
    for line in std::io::stdin().lines() {
        let line = line?;
        let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
        let said = served.serve(word, rest).unwrap_or_else(|error| format!("! {error}"));
        answer(&said)?;
    }
    served.runtime.shutdown_background();
    Ok(())
}

impl Served {
    fn serve(&mut self, word: &str, rest: &str) -> Result<String, Failure> {
        match word {
            "peers" => {
                let book = book(rest)?;
                self.runtime.block_on(async { self.node.store.set_peers(&book) });
                Ok("ok".into())
            }
            "form" => {
                let ids = rest.split(' ').map(|id| Ok::<_, Failure>(NodeId(id.parse()?)));
                let voters = ids.collect::<Result<Vec<_>, _>>()?;
                self.runtime.block_on(self.node.store.initialize(SHARD, &voters))?;
                Ok("ok".into())
            }
            "owner" => self.owner(),
            "open" => self.opener()?.open(rest.parse()?),
            "one-by-one" => self.opener()?.one_by_one(rest.parse()?),
            _ => Err(format!("{word} means nothing").into()),
        }
    }

    /// Waits until somebody owns the shard, and says who; if it is this node, its lease has begun.
    fn owner(&self) -> Result<String, Failure> {
        let store = &self.node.store;
        let mut watch = store.watch(SHARD).ok_or("no such shard")?;
        let settled = watch.wait_for(|status| match status.leader {
            Some(leader) if leader == store.node() => status.owns(clock::boot_now()),
            leader => leader.is_some(),
        });
        let status =
            self.runtime.block_on(async { tokio::time::timeout(PATIENCE, settled).await })??;
        Ok(status.leader.map_or(0, |leader| leader.0).to_string())
    }

    fn opener(&mut self) -> Result<&mut Opener, Failure> {
        if self.opener.is_none() {
            let bell = Arc::new(Doorbell::new()?);
            let access = self.node.access(self.node.link(&self.runtime, bell.clone()));
            let way = Way::new(&self.chain, access, clock::boot_now).with_bell(bell);
            let traffic = NAT44.packets(self.flows);
            self.opener = Some(Opener { way, traffic, next: 0 });
        }
        Ok(self.opener.as_mut().expect("it was just made"))
    }
}

impl Opener {
    /// Opens `count` flows, as many at a time as the store takes requests; says the nanoseconds and
    /// the allocations of this thread that each took.
    fn open(&mut self, count: usize) -> Result<String, Failure> {
        let before = allocations::of_this_thread();
        let ns = self.flows(count)?;
        let allocated = allocations::of_this_thread() - before;
        Ok(format!("{ns} {}", allocated as f64 / count as f64))
    }

    /// Opens `count` flows one after the other; says the median and the 99th percentile of the
    /// nanoseconds between a packet's coming and its leaving.
    fn one_by_one(&mut self, count: usize) -> Result<String, Failure> {
        let mut times = Histogram::<u64>::new(3)?;
        for _ in 0..count {
            times.record(self.flows(1)? as u64)?;
        }
        Ok(format!("{} {}", times.value_at_quantile(0.5), times.value_at_quantile(0.99)))
    }

    fn flows(&mut self, count: usize) -> Result<f64, Failure> {
        if self.next + count > self.traffic.len() {
            return Err("no flows are left".into());
        }
        let ns = open(&mut self.way, &self.traffic, self.next, count);
        self.next += count;
        Ok(ns)
    }
}
