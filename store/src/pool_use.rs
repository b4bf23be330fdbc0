//! How the ports of a shard's pools are used, for people who look: counts of pools and of holders.
//!
//! Counted by a scan of all blocks that are held. Nothing here changes anything, and no packet
//! waits for it.

use crate::flow_machine::FlowMachine;
use crate::types::PoolId;
use std::collections::BTreeMap;

/// Port spaces: TCP, UDP, ICMP identifiers.
pub const PORT_CLASSES: usize = 3;

/// What a shard gives out of one pool, over all slots that it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolUse {
    /// The pool.
    pub pool: PoolId,
    /// Blocks of its slots.
    pub blocks: u32,
    /// Blocks with a holder.
    pub blocks_held: u32,
    /// Most blocks that a holder may have in one slot.
    pub blocks_per_holder_max: u16,
    /// Ports in use, by port space.
    pub live: [u64; PORT_CLASSES],
    /// Returned ports that rest, by port space.
    pub resting: [u64; PORT_CLASSES],
}

/// What one holder (a subscriber) has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HolderUse {
    /// Of which pool.
    pub pool: PoolId,
    /// Who: the address, IPv4 as IPv4-mapped.
    pub holder: [u8; 16],
    /// Its blocks.
    pub blocks: u32,
    /// Its ports in use.
    pub live: u64,
    /// Its returned ports that rest.
    pub resting: u64,
}

/// All of a shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolUsage {
    /// By pool.
    pub pools: Vec<PoolUse>,
    /// Who has most blocks, then most ports, comes first; not all, if there are many.
    pub holders: Vec<HolderUse>,
    /// How many there are in all.
    pub holders_count: u32,
}

impl FlowMachine {
    /// See [`crate::machine::Machine::pool_usage`].
    pub(crate) fn count_pools(&self, holders_max: usize) -> PoolUsage {
        let mut usage = PoolUsage::default();
        let mut holders: BTreeMap<(PoolId, [u8; 16]), HolderUse> = BTreeMap::new();
        for (at, spec) in (0..).zip(&self.specs) {
            let pool = spec.id();
            let mut counted = PoolUse {
                pool,
                blocks: self.slots.iter().map(|slot| spec.blocks_of(slot).len() as u32).sum(),
                blocks_held: 0,
                blocks_per_holder_max: spec.blocks_per_holder_max(),
                live: [0; PORT_CLASSES],
                resting: [0; PORT_CLASSES],
            };
            let theirs = self.pools.iter().filter(|((of, slot), _)| {
                // What is on its way is counted where it goes.
                *of == at && self.slots.contains(*slot)
            });
            for block in theirs.flat_map(|(_, pool)| pool.held_blocks()) {
                counted.blocks_held += 1;
                let new = HolderUse { pool, holder: block.holder, blocks: 0, live: 0, resting: 0 };
                let holder = holders.entry((pool, block.holder)).or_insert(new);
                holder.blocks += 1;
                for class in 0..PORT_CLASSES {
                    let live = u64::from(block.live[class].count_ones());
                    let resting = u64::from(block.resting[class].count_ones());
                    counted.live[class] += live;
                    counted.resting[class] += resting;
                    holder.live += live;
                    holder.resting += resting;
                }
            }
            usage.pools.push(counted);
        }
        usage.holders_count = holders.len() as u32;
        usage.holders = most(holders.into_values().collect(), holders_max);
        usage
    }
}

/// Those who have most, in order.
#[must_use]
pub fn most(mut holders: Vec<HolderUse>, holders_max: usize) -> Vec<HolderUse> {
    holders.sort_by_key(|one| core::cmp::Reverse((one.blocks, one.live, one.resting)));
    holders.truncate(holders_max);
    holders
}
