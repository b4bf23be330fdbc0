//! The pipe against a world that answers late, in another order, falsely slow, or not at all.

mod bad_inputs;
mod fragments;
mod model;
mod nat;
mod nat64;
mod nodes;
mod table;
mod world;
