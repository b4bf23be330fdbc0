//! The pipe against a world that answers late, in another order, falsely slow, or not at all.

mod model;
mod nat;
mod nat64;
mod table;
mod world;
