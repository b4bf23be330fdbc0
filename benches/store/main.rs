//! What the store costs: reads in place and from other processes, commits on three replicas, an
//! owner's death, a cold start, the move of a slot; and what others cost in the same run.
//!
//! Replicas are processes of their own: this program starts itself again for each (`replica`).
//! All of them, and all clients, share this machine's cores.
//!
//! `cargo bench --bench store [-- --quick] [--only commit] [--json FILE]`

#[path = "../processes/mod.rs"]
mod processes;
#[path = "../report/mod.rs"]
mod report;

mod commits;
mod failover;
mod moves;
mod peers;
mod reads;
mod remote;
mod replica;
mod starts;

use report::{Options, Report};
use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1).peekable();
    if arguments.next_if(|first| first == replica::ARGUMENT).is_some() {
        return replica::run(arguments);
    }
    if arguments.next_if(|first| first == moves::ARGUMENT).is_some() {
        return moves::serve(arguments);
    }
    if arguments.next_if(|first| first == reads::OWNER_ARGUMENT).is_some() {
        return reads::own(arguments);
    }
    let options = Options::read("store", &[], arguments);
    let mut report = Report::begin(
        options,
        "3 replicas in 3 processes, loopback TCP, durability memory, default timing; a flow is one \
         entry of 40 + 64 bytes, made on the condition that it is absent",
    );
    reads::run(&mut report)?;
    remote::run(&mut report)?;
    commits::run(&mut report)?;
    starts::run(&mut report)?;
    failover::run(&mut report)?;
    moves::run(&mut report)?;
    peers::run(&mut report)?;
    report.finish()
}
