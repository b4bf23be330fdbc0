//! Why a demo did not come to its end, in words that say what to do.

use nearstate_nf_node::baseline::BaselineError;
use nearstate_nf_node::chain_config::ChainConfigError;
use nearstate_nf_node::port::capture::CaptureError;
use nearstate_nf_node::port::shm::ShmError;
use std::path::PathBuf;
use thiserror::Error;

/// See the module's text.
#[derive(Debug, Error)]
pub(crate) enum DemoError {
    /// Not a packet for each flow.
    #[error(
        "--packets {packets} is less than --flows {flows}; a flow has at least one packet, so say \
         --packets {flows} or more"
    )]
    TooFewPackets {
        /// Flows wanted.
        flows: u32,
        /// Packets wanted.
        packets: u32,
    },
    /// Nobody would be left to agree.
    #[error(
        "--kill with --nodes {nodes} leaves no majority of the replicas alive; say \
         --nodes {needed} or more, or leave --kill away"
    )]
    TooFewNodes {
        /// Nodes wanted.
        nodes: u8,
        /// Nodes needed.
        needed: u8,
    },
    /// Nowhere to move slots to.
    #[error("--moves with one node has no other shard to move slots to; say --nodes 2 or more")]
    OneShard,
    /// The chain cannot be.
    #[error("--chain: {0}")]
    Chain(#[from] ChainConfigError),
    /// The capture cannot be read, or what left cannot be written.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// Nothing in it.
    #[error("the capture {} holds no packet; give one that does", .0.display())]
    NoPackets(PathBuf),
    /// More than the demo keeps in memory.
    #[error("the capture has more than {most} packets; cut it into pieces")]
    CaptureTooLarge {
        /// How many may be.
        most: usize,
    },
    /// Not that many.
    #[error("the capture {} has {packets} packets; there is no packet {number}", path.display())]
    NoSuchPacket {
        /// Which capture.
        path: PathBuf,
        /// Which packet.
        number: u64,
        /// How many there are.
        packets: u64,
    },
    /// A result that cannot be kept.
    #[error("{} cannot be written; choose another place", path.display())]
    Write {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// No place for the run's own files.
    #[error(
        "no directory for the nodes' files can be made; see that there is room in /dev/shm or /tmp"
    )]
    RunDirectory(#[source] std::io::Error),
    /// The program itself, threads, sockets.
    #[error("the nodes cannot be started")]
    Start(#[source] std::io::Error),
    /// A node's port.
    #[error("a node's packet port cannot be opened: {0}")]
    Port(#[from] ShmError),
    /// A node that does not come.
    #[error("node {0} does not start; what it wrote last stands above")]
    NodeGivenUp(String),
    /// Too slow.
    #[error("{what} after {seconds} s; see whether this machine is busy with something else")]
    Late {
        /// What is late.
        what: &'static str,
        /// How long the demo waited.
        seconds: u64,
    },
    /// Shards without owners.
    #[error("the cluster does not settle: {0}")]
    Unsettled(String),
    /// No packet moves.
    #[error("no packet has been answered for a while; {done} of {packets} are through")]
    Stalled {
        /// How many are through.
        done: usize,
        /// How many there are.
        packets: usize,
    },
    /// The orchestrator is gone.
    #[error("the orchestrator: {0}")]
    Orchestrator(String),
    /// The user does not want to wait.
    #[error("interrupted; all nodes have ended and their files are gone")]
    Interrupted,
    /// The baseline's table.
    #[error("the baseline node: {0}")]
    Baseline(#[from] BaselineError),
    /// The report.
    #[error("the report: {0}")]
    Report(#[from] serde_json::Error),
}
