//! Starts, watches and replaces nodes.
//!
//! Policy (what is wanted) and inventory (what was last seen) go into a pure planner; its plans are
//! complete and immutable, are checked by rules that share no code with it, and an executor makes
//! reality match them, again and again. Launchers do the starting. Only [`executor`], [`launcher`]
//! and [`service`] touch the outside.

pub mod check;
pub mod event;
pub mod executor;
pub mod inventory;
pub mod launcher;
pub mod plan;
pub mod planner;
pub mod policy;
pub mod service;

pub use event::Event;
pub use plan::Plan;
pub use policy::Policy;
pub use service::{Orchestrator, OrchestratorHandle};
