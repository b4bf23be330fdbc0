//! The named bounds of the store: what is full, too long or too many, and by which number.

/// Entries that a shard's table may be made for.
pub const CAPACITY_MAX: u32 = 1 << 28;

/// Transactions of one batch, so of one log entry.
pub const BATCH_TRANSACTIONS_MAX: usize = 4096;
/// Bytes of one batch in its archived form.
pub const BATCH_BYTES_MAX: usize = 4 << 20;

/// Outcomes remembered for each client: how far back a retry is recognised.
pub const OUTCOMES_PER_CLIENT: usize = 1024;
/// Clients whose outcomes are remembered; the least recently active one is forgotten first.
pub const OUTCOME_CLIENTS_MAX: usize = 256;

/// Changes of a slot that are noted while it is copied to another shard; with more the copy begins
/// anew.
pub const JOURNAL_MAX: usize = 1 << 18;

/// Notes of entries that were seen, in one batch and in one message.
pub const SEEN_NOTES_MAX: usize = 4096;

/// How long a returned port rests before it is given out again, unless told otherwise: the least
/// that it may be (RFC 6888 REQ-8: 120 seconds).
pub const PORT_HOLD_DOWN_MS: u64 = 120_000;
/// The longest that a port may rest: an hour.
pub const PORT_HOLD_DOWN_MS_MAX: u64 = 3_600_000;
/// Pools that a machine may have.
pub const POOLS_MAX: usize = 16;

/// Times another process's reader tries to get a stable view before it gives up: the writer may
/// have been killed in the middle of a write.
pub const READ_ATTEMPTS: u32 = 4096;
