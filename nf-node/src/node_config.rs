//! The configuration of one node: a TOML file, checked as a whole before anything starts.
//!
//! Unknown keys are refused, so a misspelt one is found at once. Nothing here touches the outside:
//! reading the file is the caller's.

use crate::chain_config::ChainConfig;
use nearstate_placement::steer::SLOTS_MAX;
use nearstate_store::consensus::{SNAPSHOT_BYTES_MAX, Timing, TimingError};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use thiserror::Error;

/// Flow shards a cluster may have.
pub const SHARDS_MAX: u16 = 64;
/// Bytes of a node's name.
pub const NAME_BYTES_MAX: usize = 32;
/// Entries that a shard's table may have: a snapshot of more could not be sent.
pub const CAPACITY_MAX: u32 = 32_000_000;

const _: () = assert!(CAPACITY_MAX as usize * 128 < SNAPSHOT_BYTES_MAX);

/// A configuration that cannot be used.
#[derive(Debug, Error)]
pub enum NodeConfigError {
    /// Not TOML, an unknown key, or a value of the wrong kind.
    #[error("{0}")]
    Toml(#[from] toml::de::Error),
    /// A value that is out of its range.
    #[error("`{key}` is {found}; it must be {expected}")]
    Range {
        /// Which setting.
        key: &'static str,
        /// What it says.
        found: String,
        /// What it may say.
        expected: String,
    },
    /// Elections and leases that would not work together.
    #[error("`timing`: {0}")]
    Timing(#[from] TimingError),
    /// Settings that do not go together.
    #[error("{0}")]
    Conflict(&'static str),
}

/// How a node gets into a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum Start {
    /// Makes a new cluster, of which this node is the first member.
    Form {
        /// Slots, a power of two.
        #[serde(default = "default_slots")]
        slots: u32,
        /// Flow shards.
        shards: u16,
        /// Replicas of each shard, once there are that many nodes.
        #[serde(default = "default_replicas")]
        replicas: u16,
    },
    /// Asks members of an existing cluster, one after the other, to be let in.
    Join {
        /// Addresses of members.
        seeds: Vec<SocketAddr>,
    },
}

fn default_slots() -> u32 {
    1024
}

fn default_replicas() -> u16 {
    3
}

/// How packets reach the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", tag = "kind")]
pub enum PortConfig {
    /// A pair of rings in a shared-memory file, which the node makes.
    Shm {
        /// Where the file is to be.
        path: PathBuf,
        /// Frames that each ring holds, a power of two.
        #[serde(default = "default_ring")]
        ring: u32,
    },
    /// Packets from a capture file; what leaves goes into two others.
    Pcap {
        /// What comes in.
        input: PathBuf,
        /// Where packets go that leave to the inside.
        inside_output: PathBuf,
        /// Where packets go that leave to the outside.
        outside_output: PathBuf,
    },
}

fn default_ring() -> u32 {
    1024
}

/// Whether a node's state outlives its process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Durability {
    /// It lives in the memory of the replicas. A cluster whose nodes are all down at once is lost.
    #[default]
    Memory,
    /// It is on disk before it is acknowledged. A node comes back as the member that it was.
    Disk,
}

/// When a leader is missed, and how long an owner may answer alone. Milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct TimingConfig {
    /// Between two heartbeats of an idle leader.
    pub heartbeat_ms: u64,
    /// Shortest wait for a leader before an election.
    pub election_min_ms: u64,
    /// Longest such wait.
    pub election_max_ms: u64,
    /// How long an owner answers alone, and a dead one is waited out; less the margin.
    pub lease_ms: u64,
    /// What the clocks of two nodes may drift apart in one lease, and more.
    pub lease_margin_ms: u64,
}

impl Default for TimingConfig {
    fn default() -> Self {
        let Timing { heartbeat_ms, election_min_ms, election_max_ms, lease_ms, lease_margin_ms } =
            Timing::default();
        Self { heartbeat_ms, election_min_ms, election_max_ms, lease_ms, lease_margin_ms }
    }
}

/// One node, as its configuration file says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct NodeConfig {
    /// The cluster's name; nodes of other clusters are refused.
    pub cluster: String,
    /// This node's name, unique among the living members.
    pub name: String,
    /// Where peers and clients connect; port 0 picks a free one.
    pub listen: SocketAddr,
    /// A directory for the node's files: table regions, marks, logs.
    pub directory: PathBuf,
    /// How it gets into the cluster.
    pub start: Start,
    /// Whether its state outlives its process; the same on all nodes.
    #[serde(default)]
    pub durability: Durability,
    /// Where a durable node keeps its logs and snapshots; `directory` if it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_directory: Option<PathBuf>,
    /// How packets reach it.
    pub port: PortConfig,
    /// Cells of each shard's table.
    #[serde(default = "default_capacity")]
    pub table_capacity: u32,
    /// Whether packets at another node read the owner's memory where they can map it; else they ask
    /// over TCP.
    #[serde(default = "default_true")]
    pub shared_memory_reads: bool,
    /// End when standard input closes: a launcher's children then end with it.
    #[serde(default)]
    pub end_with_stdin: bool,
    /// Seed of the steering hash; the same on all nodes and steerers.
    #[serde(default)]
    pub steer_seed: u32,
    /// Elections and leases.
    #[serde(default)]
    pub timing: TimingConfig,
    /// The network functions; the same on all nodes.
    pub chain: ChainConfig,
}

fn default_capacity() -> u32 {
    65_536
}

fn default_true() -> bool {
    true
}

/// The number that stands for a cluster's name in every handshake: FNV-1a of its bytes.
#[must_use]
pub fn cluster_id(name: &str) -> u64 {
    fnv(name)
}

/// FNV-1a of a text's bytes.
pub(crate) fn fnv(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

impl NodeConfig {
    /// Reads and checks a configuration.
    ///
    /// # Errors
    /// Names the setting that is wrong and says what it must be.
    pub fn parse(text: &str) -> Result<Self, NodeConfigError> {
        let config: Self = toml::from_str(text)?;
        config.check()?;
        Ok(config)
    }

    /// The number that stands for the cluster's name in every handshake.
    #[must_use]
    pub fn cluster_id(&self) -> u64 {
        cluster_id(&self.cluster)
    }

    /// Stands for the settings that must be equal on all nodes of a cluster: with other rules or
    /// pools a packet would fare differently at this node, and with another capacity replicas would
    /// part (promise P4). What survives the loss of all nodes at once is what a majority keeps.
    ///
    /// # Panics
    /// If the settings cannot be written as TOML: they came from it.
    #[must_use]
    pub fn shared_settings(&self) -> u64 {
        #[derive(Serialize)]
        struct Shared<'a> {
            table_capacity: u32,
            steer_seed: u32,
            durability: Durability,
            chain: &'a ChainConfig,
        }
        let Self { table_capacity, steer_seed, durability, ref chain, .. } = *self;
        let shared = Shared { table_capacity, steer_seed, durability, chain };
        fnv(&toml::to_string(&shared).expect("what was read as TOML can be written"))
    }

    /// Where the node keeps what a later life of it must find.
    #[must_use]
    pub fn lasting_directory(&self) -> &Path {
        self.log_directory.as_ref().unwrap_or(&self.directory)
    }

    /// The timing in the store's words.
    #[must_use]
    pub fn timing(&self) -> Timing {
        let TimingConfig {
            heartbeat_ms,
            election_min_ms,
            election_max_ms,
            lease_ms,
            lease_margin_ms,
        } = self.timing;
        Timing { heartbeat_ms, election_min_ms, election_max_ms, lease_ms, lease_margin_ms }
    }

    fn check(&self) -> Result<(), NodeConfigError> {
        check_name("cluster", &self.cluster)?;
        check_name("name", &self.name)?;
        if !self.listen.ip().is_loopback() {
            let expected = "a loopback address: what nodes say to each other is not encrypted yet";
            return Err(range("listen", &self.listen, expected));
        }
        in_range("table-capacity", self.table_capacity, 64, CAPACITY_MAX)?;
        if let PortConfig::Shm { ring, .. } = &self.port
            && !(ring.is_power_of_two() && (2..=65_536).contains(ring))
        {
            return Err(range("port.ring", ring, "a power of two from 2 to 65536"));
        }
        self.check_start()?;
        self.timing().validate()?;
        Ok(())
    }

    fn check_start(&self) -> Result<(), NodeConfigError> {
        match &self.start {
            Start::Form { slots, shards, replicas } => {
                if !(slots.is_power_of_two() && (2..=SLOTS_MAX).contains(slots)) {
                    return Err(range("start.form.slots", slots, "a power of two from 2 to 65536"));
                }
                in_range("start.form.shards", u32::from(*shards), 1, u32::from(SHARDS_MAX))?;
                in_range("start.form.replicas", u32::from(*replicas), 1, 7)
            }
            Start::Join { seeds } if seeds.is_empty() => Err(NodeConfigError::Conflict(
                "`start.join.seeds` is empty: name the address of at least one member",
            )),
            Start::Join { .. } => Ok(()),
        }
    }
}

fn check_name(key: &'static str, name: &str) -> Result<(), NodeConfigError> {
    let fits = !name.is_empty()
        && name.len() <= NAME_BYTES_MAX
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if fits { Ok(()) } else { Err(range(key, &name, "1 to 32 letters, digits and hyphens")) }
}

fn in_range(key: &'static str, value: u32, low: u32, high: u32) -> Result<(), NodeConfigError> {
    if (low..=high).contains(&value) {
        Ok(())
    } else {
        Err(range(key, &value, &format!("from {low} to {high}")))
    }
}

fn range(key: &'static str, found: &impl ToString, expected: &str) -> NodeConfigError {
    NodeConfigError::Range { key, found: found.to_string(), expected: expected.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        cluster = "test"
        name = "n1"
        listen = "127.0.0.1:0"
        directory = "run"
        start = { form = { shards = 3 } }
        port = { kind = "shm", path = "run/n1.ring" }
        [chain]
        functions = ["firewall"]
    "#;

    fn refusal(from: &str, to: &str) -> String {
        assert!(GOOD.contains(from), "the test replaces nothing");
        NodeConfig::parse(&GOOD.replace(from, to)).unwrap_err().to_string()
    }

    #[test]
    fn a_good_configuration_gets_the_defaults() {
        let config = NodeConfig::parse(GOOD).unwrap();
        assert_eq!(config.start, Start::Form { slots: 1024, shards: 3, replicas: 3 });
        assert_eq!(config.table_capacity, 65_536);
        assert!(config.shared_memory_reads);
        assert_eq!(config.durability, Durability::Memory);
        let disk = GOOD.replace("directory", "durability = \"disk\"\ndirectory");
        let disk = NodeConfig::parse(&disk).unwrap();
        assert_eq!(disk.durability, Durability::Disk);
        assert_ne!(disk.shared_settings(), config.shared_settings());
    }

    #[test]
    fn it_survives_being_written_and_read() {
        let config = NodeConfig::parse(GOOD).unwrap();
        assert_eq!(NodeConfig::parse(&toml::to_string(&config).unwrap()).unwrap(), config);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (from, to, said) in [
            ("name = \"n1\"", "nmae = \"n1\"", "unknown field `nmae`"),
            ("name = \"n1\"", "name = \"a b\"", "`name` is a b"),
            ("shards = 3", "shards = 0", "`start.form.shards` is 0"),
            ("shards = 3", "shards = 3, slots = 1000", "a power of two"),
            ("127.0.0.1:0", "192.0.2.1:0", "loopback"),
            ("[chain]", "table-capacity = 0\n[chain]", "`table-capacity` is 0"),
            ("[chain]", "timing = { lease-margin-ms = 20 }\n[chain]", "the margin of 20 ms"),
            ("[chain]", "timing = { heartbeat-ms = 200 }\n[chain]", "three heartbeats of 200 ms"),
            ("{ form = { shards = 3 } }", "{ join = { seeds = [] } }", "seeds"),
        ] {
            let message = refusal(from, to);
            assert!(message.contains(said), "{message:?} does not say {said:?}");
        }
    }
}
