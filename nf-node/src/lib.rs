//! Packets, ports, pipes and network functions: the node.

pub mod chain;
pub mod chain_config;
pub mod frame;
pub mod maglev;
pub mod nf;
pub mod node_config;
pub mod packet;
pub mod port;
pub mod rewrite;
pub mod siphash;
pub mod state_access;
pub mod verdict;

pub use nf::{Changes, NetworkFunction, Packet};
pub use state_access::{Access, Completion, ReadAnswer, StateAccess, Token};
pub use verdict::{DropReason, Verdict};
