//! Views over packets, and [`parse`]: the one look that a packet gets on its way in.
//!
//! One header is one file, all of one shape: a view over bytes with a checked constructor, getters,
//! setters and a line like tcpdump's. Nothing here allocates, but for the builder.

pub mod builder;
pub mod checksum;
pub mod cutter;
pub mod ethernet;
pub mod fragment;
pub mod icmp;
pub mod icmp_message;
pub(crate) mod icmp_translation;
pub mod icmpv6;
pub mod ipv4;
pub mod ipv6;
mod parse;
pub mod parsed;
mod quote;
pub mod tcp;
pub mod translation;
pub mod udp;
pub(crate) mod word;

pub use builder::PacketBuilder;
pub use fragment::{Fragment, parse_fragment};
pub use parse::{Verify, parse, parse_into, parse_with};
pub use parsed::{IpVersion, Parsed, Transport};
