//! Nearstate: network functions that keep their flow state in a replicated store of their own.
//!
//! The facade of the project: what a program needs that embeds a node, talks to a cluster or steers
//! packets to one. The binary `nearstate` is the usual way to all of it.

pub use nearstate_nf_node as nf_node;
pub use nearstate_orchestrator as orchestrator;
pub use nearstate_placement as placement;
pub use nearstate_store as store;
