//! The nodes' shared-memory ports as the driver reaches them, and its sleep when nothing moves.

use super::driver::Lane;
use super::replay::{Answer, Push};
use super::steerer::NodeIndex;
use nearstate_nf_node::port::shm::{PushError, ShmError, ShmEvent, ShmPeer};
use std::path::Path;
use std::time::Duration;

/// Longest sleep while packets are inside one node only, or inside none.
const SLEEP: Duration = Duration::from_millis(5);
/// Longest sleep while packets are inside several nodes, of which only one can wake the driver.
const NAP: Duration = Duration::from_micros(400);

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Ports {
    peers: Vec<ShmPeer>,
    /// How often each bell had rung before ports were last looked at.
    rung: Vec<u32>,
}

impl Ports {
    /// Opens the port of the next node.
    pub(crate) fn open(&mut self, path: &Path) -> Result<(), ShmError> {
        self.peers.push(ShmPeer::open(path)?);
        self.rung.push(0);
        Ok(())
    }

    /// Call before looking for answers, so that none that comes meanwhile is slept through.
    pub(crate) fn listen(&mut self) {
        for (rung, peer) in self.rung.iter_mut().zip(&self.peers) {
            *rung = peer.bell().count();
        }
    }

    /// Sleeps until the node with the most packets rings, or a moment is over.
    pub(crate) fn sleep(&self, living: &[NodeIndex], inside: impl Fn(NodeIndex) -> usize) {
        let Some(&busiest) = living.iter().max_by_key(|&&node| inside(node)) else {
            return std::thread::sleep(SLEEP);
        };
        let busy = living.iter().filter(|&&node| inside(node) > 0).count();
        let longest = if busy > 1 { NAP } else { SLEEP };
        self.peers[busiest].bell().wait(self.rung[busiest], longest);
    }
}

impl Lane for Ports {
    fn push(&mut self, push: &Push<'_>) -> bool {
        match self.peers[push.node].push(push.side, u64::from(push.tag), push.frame) {
            Ok(()) => true,
            Err(PushError::Full) => false,
            Err(PushError::TooLong(error)) => {
                unreachable!("the script refuses such frames: {error}")
            }
        }
    }

    fn flush(&mut self) {
        self.peers.iter_mut().for_each(ShmPeer::flush);
    }

    fn pop(&mut self, node: NodeIndex) -> Option<(u64, Answer<'_>)> {
        Some(match self.peers[node].pop()? {
            ShmEvent::Packet { side, tag, bytes } => (tag, Answer::Left(side, bytes)),
            ShmEvent::Dropped { tag, reason } => (tag, Answer::Dropped(reason)),
        })
    }
}
