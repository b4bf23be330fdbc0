//! Views over packets.

pub mod parsed;
