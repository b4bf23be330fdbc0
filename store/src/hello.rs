//! The first words on a connection: who speaks, whom it believes to speak to, and whether it may
//! stay.

use rkyv::{Archive, Deserialize, Serialize};
use thiserror::Error;

/// The first message of each side.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Which cluster.
    pub cluster: u64,
    /// Which forming of it: drawn when it was formed, 0 if the speaker does not know. Tells two
    /// clusters of one name apart.
    pub lineage: u64,
    /// Who speaks; 0 is a client, which has no part in the cluster.
    pub from: u64,
    /// Whom it believes to speak to; 0 if it does not care.
    pub to: u64,
    /// Drawn anew by each process: tells two lives of one id apart.
    pub nonce: u64,
}

/// The acceptor's answer to a [`Hello`].
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Welcome {
    /// Come in; this is who I am.
    Accepted(Hello),
    /// Go away.
    Refused(Refused),
}

/// Why a connection is refused.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refused {
    /// It belongs to another cluster.
    #[error("it belongs to another cluster (0x{0:x})")]
    Cluster(u64),
    /// It belongs to another cluster of the same name.
    #[error(
        "it belongs to another cluster of the same name, formed at another time (this is lineage \
         {0:016x}): two were formed, or one anew"
    )]
    Lineage(u64),
    /// Another node lives at this address.
    #[error("node-{0} lives at this address")]
    WrongNode(u64),
    /// The id was seen in another life: memory was lost, so the id may not be used again.
    #[error("its id was used by another process before; start with a new id")]
    Reincarnated,
    /// The id was removed from the cluster.
    #[error("its id was removed from the cluster; start with a new id")]
    Retired,
    /// The older node dialled the newer one, or a node dialled itself.
    #[error("connections are made by the node with the larger id")]
    Direction,
    /// No room for another connection.
    #[error("too many connections")]
    Full,
}
