//! The command line: what can be said, and how failures are told.
//!
//! Each command is a file; none of them decides anything about packets or state. Errors go to
//! standard error with what to do about them; the exit code is 0 only for success, 2 for a command
//! line that makes no sense.

mod asked;
mod chain_list;
mod demo;
mod explain;
mod named_flow;
mod nat;
mod node;
mod slots;
mod status;
mod status_table;
mod store;
mod text_table;
mod trace;

use clap::{Parser, Subcommand};
use std::error::Error;
use std::process::ExitCode;

/// A cluster of NAT, firewall and load-balancer nodes that keep their flow state in a replicated
/// store of their own, so that any packet may go to any node.
#[derive(Debug, Parser)]
#[command(name = "nearstate", version, max_term_width = 100, after_help = FIRST_STEPS)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const FIRST_STEPS: &str = "\
First steps:
  nearstate demo                        three nodes, generated traffic, one of them killed
  nearstate demo --pcap FILE --steer random
                                        packets of a capture, each to a random node
  nearstate trace --pcap FILE --packet 1 --side inside
                                        one packet's way through a chain, in words";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a cluster on this machine, push packets through it, kill a node, check every packet
    Demo(demo::DemoArgs),
    /// Run one node of a cluster
    Node(node::NodeArgs),
    /// Show the nodes, shards and counters of a running cluster
    Status(status::StatusArgs),
    /// Show which shard has how many slots, and move slots to another shard
    Slots(slots::SlotsArgs),
    /// Look into the stores of running nodes, and check the files of stopped ones
    #[command(subcommand)]
    Store(store::StoreCommand),
    /// Show how external ports are used, and the mappings that use them
    #[command(subcommand)]
    Nat(nat::NatCommand),
    /// Tell everything about one flow: its entries, their timers, and what becomes of its packets
    Explain(explain::ExplainArgs),
    /// Tell one packet's way through chain and store, in words; nothing is changed
    Trace(trace::TraceArgs),
}

/// What a command ends with.
type Ended = Result<ExitCode, Box<dyn Error>>;

/// Runs the command that the process was started with.
pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    let ended = match cli.command {
        Command::Demo(args) => demo::run(args),
        Command::Node(args) => node::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Slots(args) => slots::run(&args),
        Command::Store(command) => store::run(&command),
        Command::Nat(command) => nat::run(&command),
        Command::Explain(args) => explain::run(&args),
        Command::Trace(args) => trace::run(&args),
    };
    ended.unwrap_or_else(|error| {
        let mut told = error.to_string();
        eprintln!("error: {told}");
        let mut source = error.source();
        while let Some(cause) = source {
            let words = cause.to_string();
            // Many messages say their cause themselves.
            if !told.contains(&words) {
                eprintln!("  because: {words}");
            }
            told = words;
            source = cause.source();
        }
        ExitCode::FAILURE
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_and_option_says_what_it_is_for() {
        let cli = Cli::command();
        let commands = cli.get_subcommands();
        for command in commands.flat_map(|one| one.get_subcommands().chain([one])) {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for argument in command.get_arguments().filter(|argument| argument.get_id() != "help") {
                let name = argument.get_id();
                assert!(argument.get_help().is_some(), "{} {name}", command.get_name());
            }
        }
    }
}
