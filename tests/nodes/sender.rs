//! Packets that are sent through a node's ring until they have left it.

use crate::process::{Node, PATIENCE};
use nearstate_nf_node::packet::{PacketBuilder, parse};
use nearstate_nf_node::port::shm::{ShmEvent, ShmPeer};
use nearstate_placement::Side;
use nearstate_store::Endpoint;
use std::time::{Duration, Instant};

/// The outer end of a node's ring.
pub(crate) struct Sender(ShmPeer);

impl Sender {
    pub(crate) fn new(node: &Node) -> Self {
        Self(ShmPeer::open(&node.ring()).unwrap())
    }

    /// Where a packet of this inside endpoint comes from once it has left: by then the state that
    /// it made is acknowledged. What is dropped, because nobody owned its shard just then, is sent
    /// again.
    pub(crate) fn external_of(&mut self, inside: Endpoint) -> Endpoint {
        let web = Endpoint::v4([192, 0, 2, 1], 53);
        let frame = PacketBuilder::udp(inside, web).payload(b"?").build();
        let (bell, deadline) = (self.0.bell(), Instant::now() + PATIENCE);
        let mut is_under_way = false;
        loop {
            assert!(Instant::now() < deadline, "a packet of {inside} never left");
            if !is_under_way {
                self.0.push(Side::Inside, 0, &frame).unwrap();
                self.0.flush();
                is_under_way = true;
            }
            let seen = bell.count();
            match self.0.pop() {
                Some(ShmEvent::Packet { bytes, .. }) => return parse(bytes).unwrap().tuple.source,
                Some(ShmEvent::Dropped { .. }) => is_under_way = false,
                None => drop(bell.wait(seen, Duration::from_secs(1))),
            }
        }
    }
}
