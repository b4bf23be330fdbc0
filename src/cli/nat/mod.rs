//! `nearstate nat`: how the external ports are used, by pool and by subscriber, and which mappings
//! there are.
//!
//! Each owner of a shard is asked for its part, and the parts are added up; nothing is changed.

mod mappings;
mod pools;
mod subscribers;

use super::Ended;
use super::asked::Asked;
use crate::ask::AskError;
use clap::Subcommand;
use nearstate_placement::Map;
use nearstate_placement::store_api::{HeldPools, StoreRequest, StoreResponse};
use nearstate_store::ShardId;
use std::net::SocketAddr;

/// What may be asked about NAT.
#[derive(Debug, Subcommand)]
pub(super) enum NatCommand {
    /// Show how the ports of each pool are used, and when they will be used up
    Pools(pools::PoolsArgs),
    /// Show who has most ports
    Subscribers(subscribers::SubscribersArgs),
    /// List mappings
    Mappings(mappings::MappingsArgs),
}

/// Runs it.
pub(super) fn run(command: &NatCommand) -> Ended {
    match command {
        NatCommand::Pools(args) => pools::run(args),
        NatCommand::Subscribers(args) => subscribers::run(args),
        NatCommand::Mappings(args) => mappings::run(args),
    }
}

/// The shards that hold flows, and where the map says that their owners are.
fn owners(map: &Map) -> impl Iterator<Item = (ShardId, Option<SocketAddr>)> + '_ {
    let shards = map.shards.iter().filter(|placement| placement.shard != ShardId(0));
    shards.map(|placement| {
        let owner = placement.owner.and_then(|(owner, _)| map.member(owner));
        (placement.shard, owner.map(|member| member.address))
    })
}

/// What the owner of each shard says of its pools, and the shards of which nobody says anything.
fn held_pools(asked: &Asked, map: &Map) -> (Vec<HeldPools>, Vec<ShardId>) {
    let (mut held, mut silent) = (Vec::new(), Vec::new());
    for (shard, address) in owners(map) {
        let answer = address.map(|address| asked.ask_at(address, &StoreRequest::Pools(shard)));
        match answer {
            Some(Ok(StoreResponse::Pools(Some(pools)))) if pools.is_current => held.push(pools),
            _ => silent.push(shard),
        }
    }
    (held, silent)
}

/// Says of which shards nothing is known.
fn without(silent: &[ShardId]) -> Option<String> {
    let names: Vec<String> = silent.iter().map(ShardId::to_string).collect();
    (!names.is_empty()).then(|| {
        let shards = names.join(", ");
        format!("without {shards}: no owner answers; ask again, or see `nearstate status`")
    })
}

/// Not the answer to this question.
fn unexpected(address: SocketAddr) -> AskError {
    AskError::Unexpected { address }
}
