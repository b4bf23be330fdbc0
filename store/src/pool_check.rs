//! Proves by a scan that no port of a pool has leaked: every port in use is in use for just one
//! entry, and every entry that holds a port has it. Pure; believes neither side.

use crate::Entry;
use crate::key::Key;
use crate::pool::{PoolCounts, SlotPool, port_class};
use crate::pool_spec::PoolSpec;
use crate::types::PoolId;
use crate::upkeep::{EntryRules, PoolPort};
use std::collections::BTreeMap;
use thiserror::Error;

/// How the ports of a shard are used: `live + resting` were given out and are not free.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolReport {
    /// Blocks with a holder.
    pub blocks_held: u64,
    /// Ports in use, each for one entry.
    pub live: u64,
    /// Returned ports that rest.
    pub resting: u64,
}

/// A port and an entry that do not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PoolLeak {
    /// A port is in use, and no entry is the reason.
    #[error("port {1:?} (class {2}) of {0} is in use, and no entry holds it")]
    NoEntry(PoolId, [u8; 6], u8),
    /// Two entries hold one port.
    #[error("port {0:?} is held by two entries: {1:?} and {2:?}")]
    TwoEntries(PoolPort, Key, Key),
    /// An entry holds a port that is free, resting or none of the shard's.
    #[error("entry {1:?} holds port {0:?}, which is not in use")]
    NoPort(PoolPort, Key),
}

/// A port as pools know it: pool, class of the protocol, endpoint.
type Port = (PoolId, u8, [u8; 6]);

/// See the module's text. `pools` are all pools of all slots that have given out ports.
///
/// # Errors
/// Names the first thing that does not fit.
pub fn pool_check<'a>(
    entries: impl Iterator<Item = (Key, Entry)>,
    pools: impl Iterator<Item = (&'a PoolSpec, &'a SlotPool)>,
    rules: &dyn EntryRules,
) -> Result<PoolReport, PoolLeak> {
    let mut held: BTreeMap<Port, (PoolPort, Key)> = BTreeMap::new();
    for (key, entry) in entries {
        let Some(port) = rules.port(&key, &entry) else { continue };
        let class = port_class(port.protocol).ok_or(PoolLeak::NoPort(port, key))?;
        if let Some((_, other)) = held.insert((port.pool, class, port.endpoint), (port, key)) {
            return Err(PoolLeak::TwoEntries(port, other, key));
        }
    }
    let mut report = PoolReport::default();
    for (spec, pool) in pools {
        let PoolCounts { blocks_held, live, resting, .. } = pool.counts();
        report.blocks_held += u64::from(blocks_held);
        report.live += live;
        report.resting += resting;
        for (class, endpoint) in pool.live_ports(spec) {
            if held.remove(&(spec.id(), class, endpoint)).is_none() {
                return Err(PoolLeak::NoEntry(spec.id(), endpoint, class));
            }
        }
    }
    match held.into_values().next() {
        Some((port, key)) => Err(PoolLeak::NoPort(port, key)),
        None => Ok(report),
    }
}
