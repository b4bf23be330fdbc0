//! `nearstate trace`: one packet's way through chain and store, in words. Nothing is changed by it.
//!
//! With `--node` a running node tells what it would do, with the state that it has. Without, a
//! chain is built here that knows of no flow: what the first packet of a flow would see.

use super::Ended;
use super::chain_list::{CHAIN_HELP, ChainList, SLOTS};
use crate::ask::{AskError, ClusterName, NODE_ADDRESS, NodeAddress, ask};
use crate::demo::DemoError;
use crate::demo::capture::load_one;
use crate::demo::script::{DEMO_TENANT, FRAME_BYTES_MAX};
use clap::{Args, ValueEnum, ValueHint};
use nearstate_nf_node::chain::Chain;
use nearstate_nf_node::trace::{Found, TraceRecord, trace_packet};
use nearstate_placement::Side;
use nearstate_placement::api::{Request, Response};
use nearstate_store::{ShardId, Time};
use std::path::PathBuf;
use std::process::ExitCode;
use thiserror::Error;

/// The options of `nearstate trace`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("packet_source").required(true).args(["pcap", "hex"]))]
pub(super) struct TraceArgs {
    /// Where a running node listens; it asks the owner of the packet's state. Without it a chain
    /// without state is built here
    #[arg(long, value_name = NODE_ADDRESS)]
    node: Option<NodeAddress>,
    #[command(flatten)]
    cluster: ClusterName,
    /// Take the packet from this capture
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, requires = "packet")]
    pcap: Option<PathBuf>,
    /// Which packet of the capture, 1 for the first
    #[arg(long, value_name = "N", requires = "pcap")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    packet: Option<u64>,
    /// The packet's bytes, from its Ethernet header on, as hexadecimal digits
    #[arg(long, value_name = "BYTES")]
    hex: Option<String>,
    /// The side that it comes in on
    #[arg(long, value_enum)]
    side: SideName,
    #[arg(long, value_name = "LIST", default_value = "firewall,nat")]
    #[arg(conflicts_with = "node", help = format!("Without --node: {CHAIN_HELP}"))]
    chain: ChainList,
}

/// A side, on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SideName {
    /// The protected network.
    Inside,
    /// The rest of the world.
    Outside,
}

/// A packet that cannot be traced.
#[derive(Debug, Error)]
enum TraceError {
    /// Not hexadecimal.
    #[error("--hex: {0:?} is not an even number of hexadecimal digits")]
    Hex(String),
    /// Too long.
    #[error("the packet has {0} bytes; no node takes more than {FRAME_BYTES_MAX}")]
    TooLong(usize),
}

/// Runs it.
pub(super) fn run(args: &TraceArgs) -> Ended {
    let frame = match (&args.pcap, args.packet, &args.hex) {
        (Some(path), Some(number), _) => load_one(path, number)?,
        (_, _, Some(text)) => bytes(text)?,
        _ => unreachable!("the command line demands one of them"),
    };
    if frame.len() > FRAME_BYTES_MAX {
        return Err(TraceError::TooLong(frame.len()).into());
    }
    let side = match args.side {
        SideName::Inside => Side::Inside,
        SideName::Outside => Side::Outside,
    };
    let lines = match &args.node {
        Some(node) => trace_at(&args.cluster, node, side, frame)?,
        None => trace_here(&args.chain, side, &frame)?,
    };
    for line in lines {
        println!("{line}");
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn trace_at(
    cluster: &ClusterName,
    node: &NodeAddress,
    side: Side,
    frame: Vec<u8>,
) -> Result<Vec<String>, AskError> {
    let request = Request::Trace { side, tenant: DEMO_TENANT, frame, passed_on: false };
    match ask(cluster, node, &request)? {
        (_, Response::Trace(lines)) => Ok(lines),
        (address, other) => Err(AskError::unexpected(address, &other)),
    }
}

fn trace_here(chain: &ChainList, side: Side, frame: &[u8]) -> Result<Vec<String>, DemoError> {
    let chain = Chain::new(&chain.0, SLOTS)?;
    let nothing = Found { entry: None, shard: ShardId(1), access: None };
    let records =
        trace_packet(&chain, &chain.steering(0), Time(0), (side, frame), &mut |_, _| Some(nothing));
    let mut lines = Vec::new();
    for record in records {
        lines.extend(record.to_string().lines().map(str::to_owned));
        if matches!(record, TraceRecord::Steered { .. }) {
            lines.push("read      nowhere: a chain without state, since no --node is given".into());
        }
    }
    Ok(lines)
}

/// The bytes that hexadecimal digits spell; blanks and colons between them do not matter.
fn bytes(text: &str) -> Result<Vec<u8>, TraceError> {
    let wrong = || TraceError::Hex(text.to_owned());
    let digits: Vec<u8> = text
        .chars()
        .filter(|c| !c.is_whitespace() && *c != ':')
        .map(|c| c.to_digit(16).map(|digit| digit as u8).ok_or_else(wrong))
        .collect::<Result<_, _>>()?;
    let (pairs, rest) = digits.as_chunks::<2>();
    if pairs.is_empty() || !rest.is_empty() {
        return Err(wrong());
    }
    Ok(pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nearstate_nf_node::packet::PacketBuilder;
    use nearstate_nf_node::packet::tcp::flags::SYN;
    use nearstate_store::Endpoint;

    #[test]
    fn hexadecimal_digits_become_bytes() {
        assert_eq!(bytes("02:00 fF").unwrap(), [2, 0, 0xff]);
        for wrong in ["", "2", "0g", "0x00", "12 3"] {
            assert!(bytes(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_first_packet_from_inside_asks_for_state_and_one_from_outside_is_dropped() {
        let (host, server) = (Endpoint::v4([10, 0, 0, 1], 4000), Endpoint::v4([192, 0, 2, 1], 80));
        let names: ChainList = "firewall,nat".parse().unwrap();
        let out = PacketBuilder::tcp(host, server).flags(SYN).build();
        let told = trace_here(&names, Side::Inside, &out).unwrap().join("\n");
        assert!(told.contains("commit") && told.contains("leaves    then"), "{told}");
        assert!(told.contains("of which there is none here") && !told.contains("memory"), "{told}");
        let strange = PacketBuilder::tcp(server, Endpoint::v4([198, 19, 0, 1], 2000)).build();
        let told = trace_here(&names, Side::Outside, &strange).unwrap().join("\n");
        assert!(told.contains("drop"), "{told}");
    }
}
