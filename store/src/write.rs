//! The closed list of what a transaction may write.
//!
//! Its module is private, and [`Write`] is offered by [`crate::transaction`]: of fields with names
//! rkyv's derive makes public helpers without a text, and nobody needs to see those.

use crate::key::{Key, Value};
use crate::transaction::{Fill, Take};
use crate::types::PoolId;
use rkyv::{Archive, Deserialize, Serialize};

/// One change of a transaction.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// Sets the entry of `key`.
    Put {
        /// Which entry.
        key: Key,
        /// What it is to hold.
        value: Value,
        /// Where the taken endpoint goes, if anywhere.
        fill: Fill,
        /// Seconds that it lives after it was last seen, at most
        /// [`crate::lifetimes::TTL_MAX_S`]; 0: until it is deleted. Putting it is seeing it.
        ttl_s: u32,
    },
    /// Removes the entry of this key; no failure if there is none.
    Delete(Key),
    /// Raises the entry's version and leaves its value.
    Touch(Key),
    /// Adds to the little-endian 64-bit counter at a byte offset (a multiple of 8) of a value.
    Add {
        /// Which entry.
        key: Key,
        /// Byte offset in the value.
        at: u8,
        /// What to add; wraps.
        amount: i64,
    },
    /// Takes a port from the slot's pool, for the puts that follow in this transaction.
    Take(Take),
    /// Gives a port back to the slot's pool.
    Return {
        /// The pool.
        pool: PoolId,
        /// IP protocol whose port space it is.
        protocol: u8,
        /// IPv4 address and port in network order.
        endpoint: [u8; 6],
    },
}

impl Write {
    /// Sets an entry that takes nothing from a pool and lives until it is deleted.
    #[must_use]
    pub const fn put(key: Key, value: Value) -> Self {
        Self::Put { key, value, fill: Fill { key_at: None, value_at: None }, ttl_s: 0 }
    }
}
