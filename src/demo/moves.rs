//! Orders slots to move from one shard to another and back while packets flow.
//!
//! A task of the demo's other thread. It orders as `nearstate slots move` does, looks at the map
//! until the slots have arrived, and orders them back. It decides nothing about packets.

use super::control::News;
use crate::ask::{CLUSTER_NAME, ask_soon};
use nearstate_placement::Map;
use nearstate_placement::api::{Request, Response};
use nearstate_store::{Epoch, ShardId, SlotId};
use std::net::SocketAddr;
use std::sync::mpsc::Sender;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::sleep;

/// Slots of one order.
const SLOTS_AT_ONCE: u16 = 8;
/// How long a node may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Until an order is given again that nobody took.
const AGAIN: Duration = Duration::from_millis(50);

/// The two shards between which slots go back and forth.
const SHARDS: [ShardId; 2] = [ShardId(1), ShardId(2)];

/// What the task needs.
pub(super) struct Mover {
    /// Where to order.
    pub(super) addresses: watch::Receiver<Vec<SocketAddr>>,
    /// The newest map.
    pub(super) map: watch::Receiver<Map>,
    /// Who is told.
    pub(super) news: Sender<News>,
}

impl Mover {
    /// Has so many slots move, one after the other; the same ones again and again.
    pub(super) async fn run(mut self, moves: u32) {
        let mut left = moves;
        let all = of_shard(&self.map.borrow(), SHARDS[0]);
        for to in [SHARDS[1], SHARDS[0]].into_iter().cycle() {
            let at_once = left.min(SLOTS_AT_ONCE.into()) as usize;
            let slots: Vec<u16> = all.iter().copied().take(at_once).collect();
            left -= slots.len() as u32;
            let Some(arrived) = self.order(slots, to).await else { return };
            let news = News::Moved { slots: arrived, to, is_last: left == 0 };
            if self.news.send(news).is_err() || left == 0 {
                return;
            }
        }
    }

    /// How many have arrived once nothing moves any more; `None` if nobody follows the map.
    async fn order(&mut self, slots: Vec<u16>, to: ShardId) -> Option<u64> {
        let epoch = self.ordered(&slots, to).await;
        let is_over = |map: &Map| map.epoch >= epoch && map.moves.is_empty();
        let map = self.map.wait_for(is_over).await.ok()?;
        Some(slots.iter().filter(|slot| map.shard_of(SlotId(**slot)) == Some(to)).count() as u64)
    }

    /// The epoch of the map in which the order stands.
    async fn ordered(&self, slots: &[u16], to: ShardId) -> Epoch {
        loop {
            let addresses = self.addresses.borrow().clone();
            for address in addresses {
                let request = Request::MoveSlots { slots: slots.to_vec(), to };
                let answer = ask_soon(CLUSTER_NAME, address, &request, PATIENCE).await;
                if let Ok(Response::Ordered(epoch)) = answer {
                    return epoch;
                }
            }
            sleep(AGAIN).await;
        }
    }
}

fn of_shard(map: &Map, shard: ShardId) -> Vec<u16> {
    let slots = (0_u16..).zip(&map.slot_to_shard);
    slots.filter(|(_, of)| **of == shard.0).map(|(slot, _)| slot).collect()
}
