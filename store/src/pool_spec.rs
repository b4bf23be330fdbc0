//! Which ports belong to which slot: arithmetic that nodes, steerers and machines share.
//!
//! A pool is a list of IPv4 addresses. Each address has the same port blocks of [`BLOCK_PORTS`]
//! ports. All blocks of the pool stand in one row, and the slots divide that row into equal runs,
//! so a slot's ports lie on few addresses (paired pooling, RFC 4787 REQ-2) and the slot of a port
//! is one division away. A slot only gives out ports of its own run: a packet that comes back to
//! such a port is steered to the slot that has its state.

use crate::limits::{PORT_HOLD_DOWN_MS, PORT_HOLD_DOWN_MS_MAX};
use crate::types::{PoolId, SlotId};
use core::net::Ipv4Addr;
use thiserror::Error;

/// Ports of a block.
pub const BLOCK_PORTS: u16 = 64;
/// The first port given out: well-known ports are left alone.
pub const FIRST_PORT: u16 = 1024;
/// Port blocks of one address.
pub const BLOCKS_PER_ADDRESS: u32 = (65_536 - FIRST_PORT as u32) / BLOCK_PORTS as u32;
/// Addresses a pool may have.
pub const ADDRESSES_MAX: usize = 4096;

const _: () = assert!(BLOCK_PORTS == 64, "a block's ports are the bits of one word");

/// A pool that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PoolSpecError {
    /// No address, or too many.
    #[error("a pool needs 1 to {ADDRESSES_MAX} addresses, this one has {0}")]
    Addresses(usize),
    /// Fewer blocks than slots.
    #[error("{slots} slots cannot share {blocks} port blocks; give the pool more addresses")]
    TooFewBlocks {
        /// Blocks that the addresses have.
        blocks: u32,
        /// Slots of the cluster.
        slots: u32,
    },
    /// Ports would come back too soon, or hardly ever.
    #[error(
        "returned ports cannot rest for {0} ms: give {PORT_HOLD_DOWN_MS} (RFC 6888 REQ-8) to \
         {PORT_HOLD_DOWN_MS_MAX}"
    )]
    HoldDown(u64),
    /// An address stands in the pool twice.
    #[error("address {0} stands in the pool twice")]
    Twice(Ipv4Addr),
}

/// A pool's addresses and how the slots divide its ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolSpec {
    id: PoolId,
    /// Sorted, without repetition.
    addresses: Vec<Ipv4Addr>,
    slots: u32,
    /// Most port blocks that one holder may have.
    blocks_per_holder_max: u16,
    hold_down_ms: u64,
}

impl PoolSpec {
    /// A pool whose blocks are divided among `slots` slots.
    ///
    /// # Errors
    /// If the addresses cannot serve that many slots.
    pub fn new(
        id: PoolId,
        mut addresses: Vec<Ipv4Addr>,
        slots: u32,
        blocks_per_holder_max: u16,
    ) -> Result<Self, PoolSpecError> {
        if addresses.is_empty() || addresses.len() > ADDRESSES_MAX {
            return Err(PoolSpecError::Addresses(addresses.len()));
        }
        addresses.sort_unstable();
        if let Some(pair) = addresses.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(PoolSpecError::Twice(pair[0]));
        }
        let blocks = addresses.len() as u32 * BLOCKS_PER_ADDRESS;
        if blocks < slots {
            return Err(PoolSpecError::TooFewBlocks { blocks, slots });
        }
        let hold_down_ms = PORT_HOLD_DOWN_MS;
        Ok(Self { id, addresses, slots, blocks_per_holder_max, hold_down_ms })
    }

    /// The same pool, whose returned ports rest for so long. All replicas need the same.
    ///
    /// # Errors
    /// If that is too short or too long.
    pub fn with_hold_down(self, hold_down_ms: u64) -> Result<Self, PoolSpecError> {
        if !(PORT_HOLD_DOWN_MS..=PORT_HOLD_DOWN_MS_MAX).contains(&hold_down_ms) {
            return Err(PoolSpecError::HoldDown(hold_down_ms));
        }
        Ok(Self { hold_down_ms, ..self })
    }

    /// How long returned ports rest.
    #[must_use]
    pub const fn hold_down_ms(&self) -> u64 {
        self.hold_down_ms
    }

    /// Which pool this is.
    #[must_use]
    pub const fn id(&self) -> PoolId {
        self.id
    }

    /// The addresses, sorted.
    #[must_use]
    pub fn addresses(&self) -> &[Ipv4Addr] {
        &self.addresses
    }

    /// Most port blocks that one holder may have.
    #[must_use]
    pub const fn blocks_per_holder_max(&self) -> u16 {
        self.blocks_per_holder_max
    }

    /// All port blocks of the pool.
    #[must_use]
    pub fn blocks(&self) -> u32 {
        self.addresses.len() as u32 * BLOCKS_PER_ADDRESS
    }

    /// Whether this address belongs to the pool.
    #[must_use]
    pub fn holds(&self, address: Ipv4Addr) -> bool {
        self.addresses.binary_search(&address).is_ok()
    }

    /// The place in the row of blocks of the block that this port lies in.
    #[must_use]
    pub fn block_of(&self, address: Ipv4Addr, port: u16) -> Option<u32> {
        let address = self.addresses.binary_search(&address).ok()? as u32;
        let port = port.checked_sub(FIRST_PORT)?;
        Some(address * BLOCKS_PER_ADDRESS + u32::from(port / BLOCK_PORTS))
    }

    /// The slot that gives out this port.
    #[must_use]
    pub fn slot_of(&self, address: Ipv4Addr, port: u16) -> Option<SlotId> {
        let block = u64::from(self.block_of(address, port)?);
        Some(SlotId((block * u64::from(self.slots) / u64::from(self.blocks())) as u16))
    }

    /// The run of blocks, first and one past the last, that a slot gives out.
    #[must_use]
    pub fn blocks_of(&self, slot: SlotId) -> core::ops::Range<u32> {
        let edge = |slot: u64| {
            // The first block b with b * slots / blocks >= slot.
            (slot * u64::from(self.blocks())).div_ceil(u64::from(self.slots)) as u32
        };
        edge(u64::from(slot.0))..edge(u64::from(slot.0) + 1)
    }

    /// Address and first port of a block of the row.
    #[must_use]
    pub fn block_start(&self, block: u32) -> (Ipv4Addr, u16) {
        let address = self.addresses[(block / BLOCKS_PER_ADDRESS) as usize];
        (address, FIRST_PORT + (block % BLOCKS_PER_ADDRESS) as u16 * BLOCK_PORTS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(addresses: u8, slots: u32) -> PoolSpec {
        let addresses = (0..addresses).map(|i| Ipv4Addr::new(198, 19, 0, i)).collect();
        PoolSpec::new(PoolId(0), addresses, slots, 64).unwrap()
    }

    #[test]
    fn the_runs_of_the_slots_cover_every_block_once_and_agree_with_slot_of() {
        for (addresses, slots) in [(2, 1024), (3, 512), (64, 1024), (1, 1), (5, 4)] {
            let spec = spec(addresses, slots);
            let mut next = 0;
            for slot in 0..slots {
                let run = spec.blocks_of(SlotId(slot as u16));
                assert_eq!(run.start, next);
                assert!(run.end > run.start, "slot {slot} of {slots} has no block");
                for block in run.clone() {
                    let (address, port) = spec.block_start(block);
                    for port in [port, port + (BLOCK_PORTS - 1)] {
                        assert_eq!(spec.slot_of(address, port), Some(SlotId(slot as u16)));
                        assert_eq!(spec.block_of(address, port), Some(block));
                    }
                }
                next = run.end;
            }
            assert_eq!(next, spec.blocks());
        }
    }

    #[test]
    fn a_pool_that_cannot_serve_the_slots_is_refused() {
        let one = vec![Ipv4Addr::new(198, 19, 0, 1)];
        assert_eq!(
            PoolSpec::new(PoolId(0), one.clone(), 1024, 1),
            Err(PoolSpecError::TooFewBlocks { blocks: 1008, slots: 1024 })
        );
        assert_eq!(PoolSpec::new(PoolId(0), vec![], 1, 1), Err(PoolSpecError::Addresses(0)));
        let twice = vec![one[0], one[0]];
        assert_eq!(PoolSpec::new(PoolId(0), twice, 1, 1), Err(PoolSpecError::Twice(one[0])));
    }

    #[test]
    fn ports_that_are_not_given_out_have_no_slot() {
        let spec = spec(2, 16);
        assert_eq!(spec.slot_of(Ipv4Addr::new(198, 19, 0, 0), 1023), None);
        assert_eq!(spec.slot_of(Ipv4Addr::new(198, 19, 0, 9), 2000), None);
    }
}
