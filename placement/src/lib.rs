//! Which slot a packet belongs to, and which node owns it.
//!
//! The map says it; the system shard keeps the map ([`system`]). What the map should be is decided
//! by pure code ([`membership`], [`planner`]), what a group must do to match it too
//! ([`reconcile`]), how slots move ([`moves`]), and rules that share no code with either hold it to
//! account ([`check`]). Only [`service`] and [`mover`] act.

pub mod api;
pub mod archive;
pub mod check;
pub mod difference;
pub mod flow;
pub mod limits;
pub mod map;
pub mod membership;
pub mod mover;
pub mod moves;
pub mod planner;
pub mod reconcile;
pub mod service;
pub mod static_map;
pub mod steer;
pub mod steering_table;
pub mod store_api;
pub mod system;

pub use flow::{FlowKey, FlowTuple, Side};
pub use map::{Map, Member, MemberState, ShardPlacement};
pub use moves::{MovePhase, SlotMove};
pub use static_map::{StaticMap, StaticMapping};
pub use steer::{Affinity, Steering, steer_hash};
pub use steering_table::SteeringTable;
