//! Packets, ports, pipes and network functions: the node.

pub mod baseline;
pub mod chain;
pub mod chain_config;
pub mod cluster_access;
pub mod counters;
pub mod frame;
pub mod maglev;
pub mod nat64_prefix;
pub mod nf;
pub mod node_config;
pub mod packet;
pub mod pipe;
pub mod pipe_driver;
pub mod port;
pub mod rewrite;
pub mod service;
pub mod siphash;
pub mod source_check;
pub mod state_access;
pub mod static_config;
pub mod trace;
pub mod verdict;

pub use baseline::Baseline;
pub use chain::{Chain, Function};
pub use chain_config::{ChainConfig, ChainConfigError};
pub use counters::{CounterSnapshot, Counters, Event};
pub use frame::{Burst, Frame, FramePool};
pub use nf::{Changes, NetworkFunction, Packet};
pub use pipe::{Pipe, PipeSettings, Stages, SteeredChain};
pub use port::Port;
pub use state_access::{Access, Completion, ReadAnswer, StateAccess, Token};
pub use verdict::{DropReason, Verdict};
