//! What a packet costs: each function, over a plain table, at the owner of its state, and at a node
//! that reads the owner's memory.
//!
//! Packets go from memory through `Pipe`, the loop that a node runs, and back to a frame pool
//! (`way`). One core, while the stores' threads live on another. Owner-local and remote-shm run
//! over the shipped access to a cluster, with its leases and grants (`cluster`). What the packets
//! are has a file each: 64-byte packets of uniform flows (`uniform`), new flows (`new_flows`),
//! three lengths (`imix`), a capture (`trace`).
//!
//! `cargo bench --bench packet_path [-- --quick] [--only nat44_64k] [--json FILE]`; with
//! `--instructions` it counts those of a packet instead, and fails if there are too many
//! (`instructions`).

mod allocations;
mod cluster;
mod function;
mod imix;
mod instructions;
mod measured;
mod memory;
mod new_flows;
#[path = "../processes/mod.rs"]
mod processes;
mod replica;
#[path = "../report/mod.rs"]
mod report;
mod rows;
mod trace;
mod traffic;
mod uniform;
mod way;

use function::{FUNCTIONS, NAT44, SLOTS};
use measured::CHUNKS;
use nearstate_nf_node::frame::BURST_MAX;
use report::{Options, Report};
use rows::Rows;
use std::error::Error;
use uniform::{LARGEST, SIZES};

/// Asks for instructions instead of times.
const INSTRUCTIONS: (&str, &str) =
    ("--instructions", "count instructions a packet instead, and fail if they are too many");

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1).peekable();
    if arguments.next_if(|first| first == replica::ARGUMENT).is_some() {
        return replica::run(arguments);
    }
    if arguments.next_if(|first| first == instructions::PROBE).is_some() {
        return probe(arguments);
    }
    let options = Options::read("packet_path", &[INSTRUCTIONS], arguments);
    let counts = options.has(INSTRUCTIONS.0);
    let settings = format!(
        "64-byte UDP packets, uniform flows unless a row says otherwise, bursts of {BURST_MAX}, \
         {SLOTS} slots, tables filled to 80 % of their capacity, one core, median of {CHUNKS} \
         chunks, the ways of each chunk in turn"
    );
    let mut report = Report::begin(options, &settings);
    if counts {
        instructions::hold(&mut report, &FUNCTIONS)?;
        return report.finish();
    }
    let mut rows = Rows::begin(report);
    for function in &FUNCTIONS {
        for size in SIZES {
            uniform::run(&mut rows, function, size)?;
        }
    }
    new_flows::run(&mut rows)?;
    imix::run(&mut rows)?;
    trace::run(&mut rows)?;
    uniform::run(&mut rows, NAT44, LARGEST)?;
    rows.report.finish()
}

/// What the process does that callgrind looks at: so many packets of one function.
fn probe(mut arguments: impl Iterator<Item = String>) -> Result<(), Box<dyn Error>> {
    let asked = (arguments.next(), arguments.next().map(|count| count.parse()));
    let (Some(name), Some(Ok(count))) = asked else { return Err("a probe of what?".into()) };
    let function = FUNCTIONS.iter().find(|function| function.name == name);
    let function = function.ok_or("there is no such function")?;
    let directory = Rows::directory()?;
    instructions::probe(function, uniform::shape(directory.path().join("probe")), count)
}
