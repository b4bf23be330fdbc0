//! How a node hears of newer maps: it asks for them.
//!
//! The system shard's log reaches only its replicas, and theirs may be cut off, so everybody asks.
//! Whoever was given up is no peer of anybody any more, and must hear of just that: where a peer
//! does not answer, a member is asked as a client would ask. The edge: waits when there is nobody.

use super::system_view::SystemView;
use nearstate_placement::Map;
use nearstate_placement::api::{Request, Response};
use nearstate_store::client::{Client, Wanted};
use nearstate_store::driver::Store;
use nearstate_store::{NodeId, ShardId};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// How long a node waits for another's newer map.
const MAP_WAIT_MS: u32 = 500;
/// How long the answer may take.
const MAP_PATIENCE: Duration = Duration::from_secs(1);
/// Between two tries while nobody answers.
const MAP_RETRY: Duration = Duration::from_millis(100);

/// Who asks, and where maps go.
pub(super) struct MapFeed<'a> {
    /// This node.
    pub(super) me: NodeId,
    /// Its cluster.
    pub(super) wanted: Wanted,
    /// Its connections.
    pub(super) store: &'a Arc<Store>,
    /// What it knows.
    pub(super) view: &'a SystemView,
}

impl MapFeed<'_> {
    /// Asks for newer maps. Never ends.
    pub(super) async fn run(&self) {
        for turn in 0_usize.. {
            let map = self.view.map();
            let request = Request::GetMap { newer_than: map.epoch, wait_ms: MAP_WAIT_MS }.encode();
            let answer = match self.ask_peer(&map, turn, &request).await {
                Some(answer) => Some(answer),
                None => self.ask_as_client(&map, turn, &request).await,
            };
            match answer.and_then(|bytes| Response::decode(&bytes).ok()) {
                Some(Response::Map(map)) => self.view.publish(Arc::new(map)),
                Some(Response::NoNewerMap) => {}
                _ => pause().await,
            }
        }
    }

    /// A replica of the system shard, each in turn.
    async fn ask_peer(&self, map: &Map, turn: usize, request: &[u8]) -> Option<Vec<u8>> {
        let replicas = &map.shard(ShardId::SYSTEM)?.replicas;
        let others: Vec<NodeId> = replicas.iter().copied().filter(|id| *id != self.me).collect();
        let node = others.get(turn % others.len().max(1))?;
        self.store.call(*node, request.to_vec(), MAP_PATIENCE).await.ok()
    }

    /// Any living member, each in turn.
    async fn ask_as_client(&self, map: &Map, turn: usize, request: &[u8]) -> Option<Vec<u8>> {
        let others = map.members.iter().filter(|member| member.state.is_live());
        let others: Vec<SocketAddr> =
            others.filter(|member| member.id != self.me).map(|member| member.address).collect();
        let address = others.get(turn % others.len().max(1))?;
        let client = Client::connect_to(self.wanted, *address, MAP_PATIENCE).await.ok()?;
        client.call(request.to_vec(), MAP_PATIENCE).await.ok()
    }
}

#[expect(clippy::disallowed_methods, reason = "the edge: nobody to ask now")]
async fn pause() {
    tokio::time::sleep(MAP_RETRY).await;
}
