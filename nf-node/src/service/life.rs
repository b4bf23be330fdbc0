//! Who a durable node is, as it stands in its file.
//!
//! ```text
//! nearstate-node-1 CHECKSUM      the version of this form; FNV-1a of all that follows, 16 digits
//! node = "3"                     TOML, numbers of 64 bits as hexadecimal digits
//! ...
//! ```
//!
//! Pure. What is not just so is nobody: the node then joins under another id (promise P6).

use crate::node_config::fnv;
use nearstate_store::NodeId;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// The first word of the file, with the version of its form.
const FORM: &str = "nearstate-node-1";

/// Who a node is, over all its processes that have the same logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Life {
    /// Its id.
    pub node: NodeId,
    /// Drawn when the life began: tells it from other lives.
    pub nonce: u64,
    /// Which forming of the cluster it belongs to.
    pub lineage: u64,
    /// Where it listens: peers know it there.
    pub listen: SocketAddr,
    /// How packets reach it.
    pub ports: Vec<String>,
    /// Slots of its cluster.
    pub slots: u32,
    /// Flow shards of its cluster.
    pub shards: u16,
    /// Processes so far, this one among them.
    pub starts: u32,
    /// It is the founder, and the cluster is not known to be formed yet.
    pub forming: bool,
}

impl Life {
    /// The file.
    ///
    /// # Panics
    /// If plain values cannot be written as TOML.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        // 64-bit numbers as text: TOML's have a sign.
        let text = toml::to_string(&Written::from(self)).expect("plain values can be written");
        format!("{FORM} {:016x}\n{text}", fnv(&text)).into_bytes()
    }

    /// Reads the file; anything but what [`Life::encode`] made is nothing.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let text = core::str::from_utf8(bytes).ok()?;
        let (first, rest) = text.split_once('\n')?;
        let sum = first.strip_prefix(FORM)?.strip_prefix(' ')?;
        if u64::from_str_radix(sum, 16).ok()? != fnv(rest) {
            return None;
        }
        toml::from_str::<Written>(rest).ok()?.life()
    }
}

/// The file's content.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    node: String,
    nonce: String,
    lineage: String,
    listen: SocketAddr,
    ports: Vec<String>,
    slots: u32,
    shards: u16,
    starts: u32,
    forming: bool,
}

impl From<&Life> for Written {
    fn from(life: &Life) -> Self {
        let Life { listen, slots, shards, starts, forming, .. } = *life;
        let text = |number: u64| format!("{number:x}");
        let (node, nonce, lineage) = (text(life.node.0), text(life.nonce), text(life.lineage));
        let ports = life.ports.clone();
        Self { node, nonce, lineage, listen, ports, slots, shards, starts, forming }
    }
}

impl Written {
    fn life(self) -> Option<Life> {
        let Self { listen, ports, slots, shards, starts, forming, .. } = self;
        let number = |text: &str| u64::from_str_radix(text, 16).ok();
        let node = NodeId(number(&self.node).filter(|node| *node != 0)?);
        let (nonce, lineage) = (number(&self.nonce)?, number(&self.lineage)?);
        Some(Life { node, nonce, lineage, listen, ports, slots, shards, starts, forming })
    }
}

#[cfg(test)]
pub(super) fn sample() -> Life {
    Life {
        node: NodeId(3),
        nonce: u64::MAX,
        lineage: 17,
        listen: "127.0.0.1:4000".parse().unwrap(),
        ports: vec!["/run/n1.ring".into()],
        slots: 64,
        shards: 2,
        starts: 7,
        forming: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_a_node_is_survives_and_any_flipped_byte_is_found() {
        let good = sample().encode();
        assert_eq!(Life::decode(&good), Some(sample()));
        for place in 0..good.len() {
            for flip in [1, 0x20, 0xff] {
                let mut bad = good.clone();
                bad[place] ^= flip;
                assert_ne!(Life::decode(&bad), Some(Life { starts: 8, ..sample() }));
                // A capital letter in the checksum is the same number.
                let same = Life::decode(&bad).is_some_and(|found| found == sample());
                assert!(Life::decode(&bad).is_none() || same, "byte {place}");
            }
            assert_eq!(Life::decode(&good[..place]), None, "cut at {place}");
        }
    }
}
