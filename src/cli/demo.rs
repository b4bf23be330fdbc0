//! `nearstate demo`: what may be asked of the demo, checked before anything starts.

use super::Ended;
use super::chain_list::{CHAIN_HELP, ChainList};
use crate::demo::steerer::Steer;
use crate::demo::traffic::{FLOWS_MAX, PACKETS_MAX, TrafficSpec};
use crate::demo::{self, DemoError, DemoPlan, JsonTo, NODES_FOR_KILL, Source};
use clap::{Args, ValueHint};
use std::path::PathBuf;
use std::process::ExitCode;

/// Flows, if nothing is said.
const FLOWS: u32 = 30_000;
/// Packets, if nothing is said.
const PACKETS: u32 = 600_000;
/// When a node is killed, if nothing is said.
const KILL_PERCENT: u8 = 50;

/// Nodes that a demo starts at most.
const NODES_MAX: i64 = 9;

fn flows_help() -> String {
    format!("Flows to generate, 1 to {FLOWS_MAX} [default: {FLOWS}]")
}

fn packets_help() -> String {
    format!(
        "Packets to generate, about, 1 to {PACKETS_MAX} and at least one a flow \
         [default: {PACKETS}]"
    )
}

fn nodes_help() -> String {
    format!("Nodes to start, 1 to {NODES_MAX}; one can be killed if they are {NODES_FOR_KILL}")
}

/// The options of `nearstate demo`.
#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// Take the packets of this capture (pcap or pcapng, Ethernet) instead of generated ones
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    #[arg(conflicts_with_all = ["flows", "packets"])]
    pcap: Option<PathBuf>,
    #[arg(long, value_name = "N", help = flows_help())]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=FLOWS_MAX as i64))]
    flows: Option<u32>,
    #[arg(long, value_name = "N", help = packets_help())]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=PACKETS_MAX as i64))]
    packets: Option<u32>,
    #[arg(long, value_name = "N", default_value_t = 3, help = nodes_help())]
    #[arg(value_parser = clap::value_parser!(u8).range(1..=NODES_MAX))]
    nodes: u8,
    #[arg(long, value_name = "LIST", default_value = "firewall,nat", help = CHAIN_HELP)]
    chain: ChainList,
    /// Which node a packet goes to: the owner of its state, or a random one, packet by packet
    #[arg(long, value_enum, default_value_t = Steer::Owner)]
    steer: Steer,
    /// Kill the busiest node when this share of the packets is through, 1 to 99 % [default: 50;
    /// with fewer than three nodes nothing is killed]
    #[arg(long, value_name = "PERCENT")]
    #[arg(value_parser = clap::value_parser!(u8).range(1..=99))]
    kill: Option<u8>,
    /// Kill no node
    #[arg(long, conflicts_with = "kill")]
    no_kill: bool,
    /// Move so many slots between two shards and back, one after the other, while packets flow
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    moves: Option<u32>,
    /// Seed of traffic and steering: the same seed gives the same packets
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Write report.json, what left (inside.pcap, outside.pcap) and the nodes' logs into this
    /// directory
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    out: Option<PathBuf>,
    /// Write the report as JSON; with - to standard output, and the story to standard error
    #[arg(long, value_name = "FILE|-")]
    json: Option<PathBuf>,
}

/// Runs it.
pub(super) fn run(args: DemoArgs) -> Ended {
    let good = demo::run(&plan(args)?)?;
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn plan(args: DemoArgs) -> Result<DemoPlan, DemoError> {
    let source = match args.pcap {
        Some(path) => Source::Capture(path),
        None => {
            let flows = args.flows.unwrap_or(FLOWS);
            let packets = args.packets.unwrap_or(PACKETS.max(flows));
            if packets < flows {
                return Err(DemoError::TooFewPackets { flows, packets });
            }
            Source::Generated(TrafficSpec { flows, packets, seed: args.seed })
        }
    };
    let may_kill = args.nodes >= NODES_FOR_KILL;
    if args.kill.is_some() && !may_kill {
        return Err(DemoError::TooFewNodes { nodes: args.nodes, needed: NODES_FOR_KILL });
    }
    if args.moves.is_some() && args.nodes < 2 {
        return Err(DemoError::OneShard);
    }
    let kill_percent =
        if args.no_kill || !may_kill { None } else { Some(args.kill.unwrap_or(KILL_PERCENT)) };
    Ok(DemoPlan {
        source,
        nodes: args.nodes,
        chain: args.chain.0,
        steer: args.steer,
        kill_percent,
        moves: args.moves,
        seed: args.seed,
        out: args.out,
        json: args
            .json
            .map(|path| if path.as_os_str() == "-" { JsonTo::Stdout } else { JsonTo::File(path) }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{Parser, error::ErrorKind};
    use nearstate_nf_node::chain_config::FunctionName;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: DemoArgs,
    }

    fn parse(words: &str) -> Result<DemoArgs, clap::Error> {
        let words = std::iter::once("demo").chain(words.split_whitespace());
        Line::try_parse_from(words).map(|line| line.args)
    }

    fn planned(words: &str) -> Result<DemoPlan, DemoError> {
        plan(parse(words).unwrap())
    }

    #[test]
    fn without_options_it_generates_traffic_and_kills_one_of_three() {
        let plan = planned("").unwrap();
        let spec = TrafficSpec { flows: FLOWS, packets: PACKETS, seed: 1 };
        assert_eq!(plan.source, Source::Generated(spec));
        assert_eq!((plan.nodes, plan.kill_percent, plan.steer), (3, Some(50), Steer::Owner));
        assert_eq!(plan.chain.functions, [FunctionName::Firewall, FunctionName::Nat]);
    }

    #[test]
    fn what_goes_together_is_taken() {
        let plan = planned("--pcap a.pcap --steer random --kill 30 --json -").unwrap();
        assert_eq!(plan.source, Source::Capture("a.pcap".into()));
        assert_eq!((plan.kill_percent, plan.json), (Some(30), Some(JsonTo::Stdout)));
        assert_eq!(planned("--no-kill").unwrap().kill_percent, None);
        assert_eq!(planned("--nodes 1").unwrap().kill_percent, None);
        let spec = TrafficSpec { flows: 900_000, packets: 900_000, seed: 7 };
        let plan = planned("--flows 900000 --seed 7").unwrap();
        assert_eq!(plan.source, Source::Generated(spec));
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_a_word_on_it() {
        for (words, said) in [
            ("--nodes 2 --kill 50", "--nodes 3"),
            ("--flows 10 --packets 5", "--packets 10"),
            ("--nodes 1 --moves 5", "--nodes 2"),
        ] {
            let message = planned(words).unwrap_err().to_string();
            assert!(message.contains(said), "{message:?} does not say {said:?}");
        }
        for words in [
            "--nodes 10",
            "--nodes 0",
            "--kill 100",
            "--kill 0",
            "--flows 0",
            "--chain firewall,nta",
        ] {
            assert_eq!(parse(words).unwrap_err().kind(), ErrorKind::ValueValidation, "{words}");
        }
        for words in ["--pcap a --flows 3", "--kill 5 --no-kill"] {
            assert_eq!(parse(words).unwrap_err().kind(), ErrorKind::ArgumentConflict, "{words}");
        }
    }
}
