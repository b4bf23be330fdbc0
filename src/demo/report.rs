//! The end of the story: figures as JSON with stable keys, and the same as a table.
//!
//! Only arithmetic and text. Whether a run was good is decided here, once.

use super::measure::LatencyUs;
use super::outcome::{Outcome, Outcomes};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// How state was reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Accesses {
    /// In the memory of the packet's own node.
    pub(crate) local: u64,
    /// One-sided, in the owner's memory.
    pub(crate) remote_shm: u64,
    /// By asking the owner over TCP.
    pub(crate) remote_tcp: u64,
    /// One-sided, by a network card.
    pub(crate) remote_rdma: u64,
}

impl Accesses {
    /// Local hits / all accesses; 1 if there was none.
    pub(crate) fn locality(&self) -> f64 {
        let all = self.local + self.remote_shm + self.remote_tcp + self.remote_rdma;
        if all == 0 { 1.0 } else { self.local as f64 / all as f64 }
    }

    /// The same in words; a node without accesses has no share.
    fn percent_local(&self) -> String {
        if *self == Self::default() {
            return "-".to_owned();
        }
        format!("{:.1} %", self.locality() * 100.0)
    }

    /// Adds another node's.
    pub(crate) fn add(&mut self, other: &Self) {
        self.local += other.local;
        self.remote_shm += other.remote_shm;
        self.remote_tcp += other.remote_tcp;
        self.remote_rdma += other.remote_rdma;
    }
}

/// One node of the run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct NodeReport {
    /// Its name.
    pub(crate) name: String,
    /// Its number in the cluster.
    pub(crate) id: u64,
    /// Whether it was alive at the end.
    pub(crate) alive: bool,
    /// Packets that it answered.
    pub(crate) packets: u64,
    /// Its state accesses. Of a killed node: up to shortly before the kill.
    pub(crate) accesses: Accesses,
    /// Transactions that its packets had committed.
    pub(crate) commits: u64,
}

/// One kill.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct KillReport {
    /// Who.
    pub(crate) name: String,
    /// Its number in the cluster.
    pub(crate) id: u64,
    /// Packets that had an answer then.
    pub(crate) at_packet: u64,
    /// Milliseconds since the first packet.
    pub(crate) at_ms: f64,
    /// Packets that were inside it.
    pub(crate) inside: u64,
    /// Who took its place, if that happened before the end.
    pub(crate) replaced_by: Option<String>,
}

/// A whole run. The keys are stable.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Report {
    /// Packets of the capture, or generated.
    pub(crate) packets_in: u64,
    /// Packets that left.
    pub(crate) packets_out: u64,
    /// Packets that did not, by reason.
    pub(crate) drops: BTreeMap<&'static str, u64>,
    /// Flows among them.
    pub(crate) flows: u64,
    /// How state was reached.
    pub(crate) accesses: Accesses,
    /// Local hits / all accesses.
    pub(crate) locality: f64,
    /// Transactions committed.
    pub(crate) commits: u64,
    /// Packets sent again because a node died with them.
    pub(crate) retransmitted: u64,
    /// Packets whose verdict or bytes are not those of one node that sees them all.
    pub(crate) mismatches: u64,
    /// Flows that were forgotten.
    pub(crate) state_lost: u64,
    /// Slots that moved to another shard while packets flowed.
    pub(crate) slots_moved: u64,
    /// The longest that any packet waited for its answer around a kill.
    pub(crate) outage_ms: f64,
    /// Million packets a second, from the first packet in to the last answer.
    pub(crate) mpps: f64,
    /// From a packet's going in to its answer.
    pub(crate) latency_us: LatencyUs,
    /// All nodes of the run, the killed and the new ones too.
    pub(crate) nodes: Vec<NodeReport>,
    /// What was killed.
    pub(crate) kills: Vec<KillReport>,
}

/// What became of the packets of a run, counted.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Packets that left.
    pub(crate) out: u64,
    /// Packets that did not, by reason.
    pub(crate) drops: BTreeMap<&'static str, u64>,
}

impl Counts {
    /// Counts a run's outcomes; a pending packet is in neither count.
    pub(crate) fn of(outcomes: &Outcomes) -> Self {
        let mut counts = Self::default();
        for number in 0..outcomes.len() as u32 {
            match outcomes.get(number) {
                Outcome::Pending => {}
                Outcome::Left { .. } => counts.out += 1,
                Outcome::Dropped(reason) => *counts.drops.entry(reason.name()).or_default() += 1,
            }
        }
        counts
    }
}

impl Report {
    /// What is wrong with the run; empty if it was good.
    pub(crate) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let dropped: u64 = self.drops.values().sum();
        if self.packets_in != self.packets_out + dropped {
            faults.push(format!(
                "{} packets went in, {} left and {dropped} were dropped: {} are missing",
                self.packets_in,
                self.packets_out,
                self.packets_in.saturating_sub(self.packets_out + dropped)
            ));
        }
        if self.mismatches != 0 {
            faults.push(format!("{} packets differ from the baseline's", self.mismatches));
        }
        if self.state_lost != 0 {
            faults.push(format!("{} flows lost their state", self.state_lost));
        }
        faults
    }

    /// The report as text.
    pub(crate) fn table(&self) -> String {
        let mut text = String::new();
        let mut row = |name: &str, value: String| {
            let _ = writeln!(text, "  {name:<22} {value}");
        };
        row("packets in", self.packets_in.to_string());
        row("packets out", self.packets_out.to_string());
        for (reason, count) in &self.drops {
            row(&format!("  dropped, {reason}"), count.to_string());
        }
        row("flows", self.flows.to_string());
        let accesses = &self.accesses;
        row(
            "state accesses",
            format!(
                "{} local, {} remote by shared memory, {} remote by TCP, {} remote by RDMA",
                accesses.local, accesses.remote_shm, accesses.remote_tcp, accesses.remote_rdma
            ),
        );
        row("locality", format!("{:.4}", self.locality));
        row("commits", self.commits.to_string());
        row("sent again", self.retransmitted.to_string());
        row("mismatches", self.mismatches.to_string());
        row("flows without state", self.state_lost.to_string());
        if self.slots_moved > 0 {
            row("slots moved", format!("{}, while packets flowed", self.slots_moved));
        }
        if !self.kills.is_empty() {
            let outage_ms = self.outage_ms;
            row("outage", format!("{outage_ms:.1} ms, the longest wait of a packet around a kill"));
        }
        row("speed", format!("{:.4} million packets a second", self.mpps));
        let latency = &self.latency_us;
        row(
            "latency",
            format!(
                "{:.1} us median, {:.1} us p99, {:.1} us longest",
                latency.p50, latency.p99, latency.max
            ),
        );
        for node in &self.nodes {
            row(
                &format!("  {}", node.name),
                format!(
                    "{} packets, {} of accesses local, {} commits{}",
                    node.packets,
                    node.accesses.percent_local(),
                    node.commits,
                    if node.alive { "" } else { ", gone" }
                ),
            );
        }
        text
    }

    /// Sets the figures that follow from the nodes'.
    pub(crate) fn sum_up_nodes(&mut self) {
        self.accesses = Accesses::default();
        self.commits = 0;
        for node in &self.nodes {
            self.accesses.add(&node.accesses);
            self.commits += node.commits;
        }
        self.locality = (self.accesses.locality() * 1e6).round() / 1e6;
    }

    /// Sets the speed.
    pub(crate) fn set_speed(&mut self, elapsed_s: f64) {
        let speed = if elapsed_s > 0.0 { self.packets_in as f64 / elapsed_s / 1e6 } else { 0.0 };
        self.mpps = (speed * 1e6).round() / 1e6;
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn empty() -> Report {
        Report {
            packets_in: 0,
            packets_out: 0,
            drops: BTreeMap::new(),
            flows: 0,
            accesses: Accesses::default(),
            locality: 1.0,
            commits: 0,
            retransmitted: 0,
            mismatches: 0,
            state_lost: 0,
            slots_moved: 0,
            outage_ms: 0.0,
            mpps: 0.0,
            latency_us: LatencyUs::default(),
            nodes: Vec::new(),
            kills: Vec::new(),
        }
    }

    #[test]
    fn the_keys_are_those_that_others_rely_on() {
        let json = serde_json::to_value(empty()).unwrap();
        let mut keys: Vec<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
        keys.sort_unstable();
        let promised = "accesses commits drops flows kills latency_us locality mismatches mpps \
                        nodes outage_ms packets_in packets_out retransmitted slots_moved \
                        state_lost";
        assert_eq!(keys.join(" "), promised);
        for (key, members) in
            [("accesses", "local remote_rdma remote_shm remote_tcp"), ("latency_us", "max p50 p99")]
        {
            let mut found: Vec<&str> =
                json[key].as_object().unwrap().keys().map(String::as_str).collect();
            found.sort_unstable();
            assert_eq!(found.join(" "), members);
        }
    }

    #[test]
    fn a_run_is_good_only_if_every_packet_is_accounted_for_and_equal() {
        let good = Report {
            packets_in: 3,
            packets_out: 1,
            drops: BTreeMap::from([("no-state", 2)]),
            ..empty()
        };
        assert_eq!(good.faults(), Vec::<String>::new());
        let missing = Report { packets_in: 4, ..good.clone() };
        let faults = missing.faults();
        assert!(faults.len() == 1 && faults[0].contains("1 are missing"), "{faults:?}");
        assert_eq!(Report { packets_in: 2, ..good.clone() }.faults().len(), 1);
        assert_eq!(Report { mismatches: 1, ..good.clone() }.faults().len(), 1);
        assert_eq!(Report { state_lost: 1, ..good }.faults().len(), 1);
    }

    #[test]
    fn node_figures_add_up() {
        let node = |local, remote_shm| NodeReport {
            name: "n".into(),
            id: 1,
            alive: true,
            packets: 1,
            accesses: Accesses { local, remote_shm, ..Accesses::default() },
            commits: 2,
        };
        let mut report = Report { nodes: vec![node(5, 1), node(4, 2)], ..empty() };
        report.sum_up_nodes();
        assert_eq!((report.accesses.local, report.commits), (9, 4));
        assert_eq!(report.locality, 0.75);
        assert!(report.table().contains("0.7500"));
        report.nodes[0].accesses = Accesses::default();
        let table = report.table();
        assert!(table.contains("1 packets, - of accesses local, 2 commits"), "{table}");
    }
}
