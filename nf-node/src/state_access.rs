//! How a pipe reaches state, wherever it lies: the seam between packets and the store.
//!
//! Three bodies: the cluster's ([`crate::cluster_access`]), a plain local table
//! ([`crate::baseline`]), and the simulator's. A pipe is generic over it, so the packet path pays
//! no indirect call.

use nearstate_store::{Entry, Key, KeyHash, Outcome, SlotId, Tally, Time, Transaction};

/// Names a parked packet: answers that come later carry it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// Where a read was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// In this node's memory, under its own lease.
    Local,
    /// One-sided, in memory mapped from another process of the host, under a read lease.
    RemoteShm,
    /// By the owner, asked over TCP.
    RemoteTcp,
    /// One-sided, by a network card.
    RemoteRdma,
}

/// The answer to a read.
#[derive(Clone, Copy, Debug)]
pub enum ReadAnswer {
    /// Read in hand. `valid_until` is the end of the lease that it was read under, margin taken
    /// off: nothing that depends on the read may leave later.
    Here {
        /// Whether there is such an entry; then it is where it was wanted.
        found: bool,
        /// How.
        access: Access,
        /// When the right to use it ends.
        valid_until: Time,
    },
    /// Asked for; the answer comes as [`Completion::Read`] with the token.
    Later,
    /// It cannot be asked for now (queue full, owner unknown). Park the packet and try again.
    Unavailable,
}

/// Something that was asked for earlier has come.
#[derive(Clone, Debug)]
pub enum Completion {
    /// A read. `None`: it failed, ask again.
    Read {
        /// Who asked.
        token: Token,
        /// The entry (or its absence), how it was read, and until when it may be used.
        answer: Option<(Option<Entry>, Access, Time)>,
    },
    /// A transaction. `None`: no answer before the deadline, so whether it took effect is unknown;
    /// the packet is dropped.
    Transaction {
        /// Who asked.
        token: Token,
        /// What came of it.
        outcome: Option<Outcome>,
    },
}

/// No room for another request now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueFull;

/// Reads and transactions, as a pipe asks for them. Nothing here blocks or allocates.
pub trait StateAccess {
    /// First step for the keys of a burst: draws near what says where the entry lies, if it lies in
    /// memory that can be read here. The hash is for the calls that follow.
    fn prefetch(&self, slot: SlotId, key: &Key) -> KeyHash;

    /// Second step: draws the entry itself near. The hash then knows where that is.
    fn prefetch_entry(&self, slot: SlotId, hash: KeyHash) -> KeyHash;

    /// Reads an entry, into the room that is given: it is 80 bytes, and every copy of it shows.
    /// Who asks for what slot; with the key comes its hash, or [`KeyHash::UNKNOWN`].
    fn read(
        &mut self,
        now: Time,
        asks: (Token, SlotId),
        wanted: (&Key, KeyHash),
        into: &mut Entry,
    ) -> ReadAnswer;

    /// Reads an entry for a packet that keeps it alive. If it is found at once its owner learns
    /// that it was seen, and what to count, soon and without anybody waiting for that.
    fn read_seen(
        &mut self,
        (now, _tally): (Time, Tally),
        asks: (Token, SlotId),
        wanted: (&Key, KeyHash),
        into: &mut Entry,
    ) -> ReadAnswer {
        self.read(now, asks, wanted, into)
    }

    /// The same for an entry that came as a completion.
    fn saw(&mut self, _seen: (Time, Tally), _slot: SlotId, _key: &Key) {}

    /// Sends a transaction to the owner of its slot. It is retried under its id until it is decided
    /// or its deadline has passed; exactly one completion follows. On `QueueFull` nothing follows.
    ///
    /// # Errors
    /// If too many are under way.
    fn submit(
        &mut self,
        now: Time,
        token: Token,
        transaction: &Transaction,
    ) -> Result<(), QueueFull>;

    /// The next completion, if one has come.
    fn poll(&mut self, now: Time) -> Option<Completion>;
}
