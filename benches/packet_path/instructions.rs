//! How many instructions a packet costs: a figure that neither load nor clock rate disturbs, so
//! that a gate can hold the packet path to it.
//!
//! This program runs itself under callgrind twice, with different numbers of packets; the
//! difference, divided by the difference of the numbers, is what one packet costs, and all that
//! happens once falls out. The packets go the same way as in the table, over the baseline, with a
//! clock that stands still (reading one is no part of a packet, and callgrind does not run all of
//! them). What the store adds at its owner is a look at a lease.

use crate::cluster::Shape;
use crate::function::Function;
use crate::report::Report;
use crate::uniform::baseline;
use crate::way::{Way, open, push_all};
use nearstate_nf_node::frame::BURST_MAX;
use nearstate_store::Time;
use std::error::Error;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;

/// What a probe is asked for by.
pub(crate) const PROBE: &str = "--probe";
/// Flows of a probe.
const FLOWS: u32 = 1 << 10;
/// Packets of the shorter run.
const FEW: usize = 64 * BURST_MAX;
/// Packets of the longer run.
const MANY: usize = 9 * FEW;

fn standing_still() -> Time {
    Time(1_000_000_000)
}

/// Runs this many packets of a function, for callgrind to count.
pub(crate) fn probe(function: &Function, shape: Shape, count: usize) -> Result<(), Box<dyn Error>> {
    let traffic = function.packets(FLOWS);
    let (chain, shape) = function.chain(FLOWS, shape)?;
    let mut way = Way::new(&chain, baseline(&shape)?, standing_still);
    open(&mut way, &traffic, 0, traffic.len());
    push_all(&mut way, &traffic, 0, count);
    Ok(())
}

/// Counts, and holds each function to its limit.
///
/// # Errors
/// If one costs more. Where callgrind does not run, nothing is held to anything, and that is said.
pub(crate) fn hold(report: &mut Report, functions: &[Function]) -> Result<(), Box<dyn Error>> {
    let mut over = vec![];
    for function in functions {
        let name = format!("{}_instructions", function.name);
        if !report.wants(&name) {
            continue;
        }
        let (few, many) = match (count(function, FEW)?, count(function, MANY)?) {
            (Ok(few), Ok(many)) => (few, many),
            (Err(reason), _) | (_, Err(reason)) => {
                report.skip(name, reason);
                continue;
            }
        };
        let each = (many - few) as f64 / (MANY - FEW) as f64;
        report.row(&name, each, "instructions/packet");
        let most = function.instructions_max;
        if each > most {
            over.push(format!("{name}: {each:.0}, at most {most:.0} allowed"));
        }
    }
    if over.is_empty() { Ok(()) } else { Err(over.join("; ").into()) }
}

/// Instructions of a whole run, or why callgrind cannot count them on this machine.
///
/// # Errors
/// If it is the probe that fails.
fn count(function: &Function, packets: usize) -> Result<Result<u64, String>, Box<dyn Error>> {
    let run = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe()?)
        .args([PROBE, function.name, &packets.to_string()])
        .output();
    let output = match run {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Err("valgrind is not here: apt-get install valgrind".to_owned()));
        }
        other => other?,
    };
    // Of the processors that there are, valgrind does not know all instructions.
    if let Some(signal) = output.status.signal() {
        return Ok(Err(format!("valgrind ends with signal {signal} here")));
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let collected = said.lines().find_map(|line| line.split("Collected :").nth(1));
    match collected.map(|count| count.trim().parse()) {
        Some(Ok(count)) if output.status.success() => Ok(Ok(count)),
        _ => Err(format!("the probe under callgrind failed:\n{said}").into()),
    }
}
