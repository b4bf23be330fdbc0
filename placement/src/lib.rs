//! Which slot a packet belongs to, and which node owns it.

pub mod flow;
pub mod steer;

pub use flow::{FlowKey, FlowTuple, Side};
pub use steer::{Affinity, Steering, steer_hash};
