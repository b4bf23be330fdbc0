//! How much of everything there may be. What arrives from the network is held to these before it is
//! used.

/// Slots of a cluster: a slot number has 16 bits.
pub const SLOTS_MAX: usize = 65_536;
/// Moves of slots that may be ordered at a time.
pub const MOVES_MAX: usize = 4_096;
/// Shards of a cluster, the system shard among them.
pub const SHARDS_MAX: usize = 65;
/// Replicas of one shard.
pub const REPLICAS_MAX: usize = 7;
/// Members that a map knows, dead and retired ones among them.
pub const MEMBERS_MAX: usize = 256;
/// Retired members that are kept for people to look at; older ones are forgotten.
pub const RETIRED_KEPT_MAX: usize = 32;
/// Bytes of a node's name.
pub const NAME_BYTES_MAX: usize = 32;
/// Ports of one node.
pub const PORTS_MAX: usize = 8;
/// Bytes of a port's path.
pub const PORT_BYTES_MAX: usize = 1024;
/// Joins whose answer is remembered, so that a retry gets the same id.
pub const JOINS_KEPT_MAX: usize = 512;
/// Bytes of an encoded map.
pub const MAP_BYTES_MAX: usize = 4 << 20;
/// Bytes of an encoded command to the system shard: a map and little more.
pub const COMMAND_BYTES_MAX: usize = MAP_BYTES_MAX + 4096;
/// Bytes of an encoded snapshot of the system shard.
pub const SNAPSHOT_BYTES_MAX: usize = MAP_BYTES_MAX + 64 * 1024;
/// Bytes of an encoded control message.
pub const MESSAGE_BYTES_MAX: usize = MAP_BYTES_MAX + 64 * 1024;
/// Bytes of a frame that may be traced.
pub const TRACE_FRAME_BYTES_MAX: usize = 16 * 1024;
/// Lines of a trace.
pub const TRACE_LINES_MAX: usize = 256;
/// Bytes of a line of text in a control message.
pub const TEXT_BYTES_MAX: usize = 1024;
/// Counters of a status report.
pub const COUNTERS_MAX: usize = 512;
/// Entries of one piece of a listing.
pub const SCAN_ENTRIES_MAX: usize = 1024;
/// Cells that one piece of a listing looks at: some milliseconds.
pub const SCAN_CELLS_MAX: u32 = 1 << 18;
/// Keys that may be asked for at once.
pub const GET_KEYS_MAX: usize = 16;
/// Holders of ports that are listed of a shard.
pub const HOLDERS_MAX: usize = 1024;
/// Distances and probes that a table's counts have.
pub const DISTANCES_MAX: usize = 64;
/// Longest wait that a request for a newer map may ask for.
pub const MAP_WAIT_MS_MAX: u32 = 30_000;

const _: () = assert!(SLOTS_MAX == crate::steer::SLOTS_MAX as usize);
// A map at its limits fits into its bytes: slots, members with all their ports, shards.
const _: () = assert!(
    2 * SLOTS_MAX
        + 32 * MOVES_MAX
        + MEMBERS_MAX * (256 + PORTS_MAX * (16 + PORT_BYTES_MAX))
        + SHARDS_MAX * 256
        < MAP_BYTES_MAX
);
/// Epochs, ids and moves that a cluster counts in its life: a thousand a second for ages. What
/// says more is no snapshot of one; counting on from there would overflow.
pub const COUNTED_MAX: u64 = 1 << 48;
