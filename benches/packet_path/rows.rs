//! What this benchmark prints: each figure under the name of its row, beside its aim.

use crate::measured::Measured;
use crate::report::Report;
use std::error::Error;
use tempfile::TempDir;

/// What rows should be at least: for what one core of the machines of today can do.
const AIMS: &[(&str, f64)] = &[
    ("nat44_1k_mpps", 20.0),
    ("nat44_64k_mpps", 15.0),
    ("nat44_1m_mpps", 10.0),
    ("nat44_10m_mpps", 8.0),
    ("nat44_new_baseline_mops", 1.5),
    ("nat44_new_3r_kops", 500.0),
];
/// What each owner-local row of a NAT44 should be of its baseline.
const OF_BASELINE: f64 = 0.85;

/// The rows of this benchmark.
pub(crate) struct Rows {
    pub(crate) report: Report,
}

impl Rows {
    /// Prints what the columns are.
    pub(crate) fn begin(report: Report) -> Self {
        println!(
            "{:<28} {:>10} {:<9} {:>9} {:>12} {:>9}",
            "row", "figure", "unit", "aim", "ns a packet", "allocs"
        );
        Self { report }
    }

    /// A directory for regions that are shared; on tmpfs, as in a node. What is in it is gone with
    /// it.
    pub(crate) fn directory() -> Result<TempDir, Box<dyn Error>> {
        Ok(tempfile::Builder::new().prefix("packet-path").tempdir_in("/dev/shm")?)
    }

    /// Prints and keeps a figure; `beside` is what else stands in its line.
    pub(crate) fn figure(&mut self, name: &str, (value, unit): (f64, &'static str), beside: &str) {
        let aim = aim_of(name);
        let said = aim.map_or(String::new(), |aim| format!("aim {aim}"));
        println!("{name:<28} {value:>10.3} {unit:<9} {said:>9} {beside}");
        self.report.keep_beside(name, (value, unit), aim);
    }

    /// New flows a second.
    pub(crate) fn opened(&mut self, name: &str, ns: f64, what: &str) {
        self.figure(
            &format!("{name}_mops"),
            (1e3 / ns, "M flows/s"),
            &format!("{ns:>12.1} {:>9} {what}", ""),
        );
    }

    /// One way of packets: packets a second, and what each costs.
    pub(crate) fn way(&mut self, name: &str, measured: &Measured) {
        let (suffix, what) = measured.row;
        let Measured { ns, allocations, share, .. } = *measured;
        let name = format!("{name}{suffix}");
        let beside = format!("{ns:>12.1} {allocations:>9.3} {what}");
        self.figure(&format!("{name}_mpps"), (measured.mpps(), "Mpps"), &beside);
        if share < 1.0 {
            println!("    {:.4} % of its reads took another way", 100.0 * (1.0 - share));
        }
        self.report.keep(format!("{name}_ns"), ns, "ns/packet");
        self.report.keep(format!("{name}_allocs"), allocations, "1/packet");
    }

    /// All ways of packets, and what the owner's is of the baseline.
    pub(crate) fn ways(&mut self, name: &str, measured: &[Measured]) {
        for one in measured {
            self.way(name, one);
        }
        let find = |suffix| measured.iter().find(|one| one.row.0 == suffix).map(Measured::mpps);
        if let (Some(baseline), Some(local)) = (find("_baseline"), find("")) {
            let name = format!("{name}_of_baseline");
            self.figure(&name, (local / baseline, ""), "");
        }
    }

    /// The same with the bits that leave in a second.
    pub(crate) fn goodput(&mut self, name: &str, measured: &[Measured]) {
        self.ways(name, measured);
        for one in measured {
            let name = format!("{name}{}_gbps", one.row.0);
            self.figure(&name, (one.gbps(), "Gbit/s"), "");
        }
    }
}

fn aim_of(name: &str) -> Option<f64> {
    let is_ratio = name.starts_with("nat44_") && name.ends_with("_of_baseline");
    let found = AIMS.iter().find(|(row, _)| *row == name).map(|(_, aim)| *aim);
    found.or(is_ratio.then_some(OF_BASELINE))
}
