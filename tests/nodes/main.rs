//! Nodes as an operator starts them: real processes, their configurations, their command line, and
//! what becomes of their state when they are killed.

mod commands;
mod durability;
mod life;
mod moves;
mod process;
mod sender;
