//! `nearstate nat subscribers`: who has most ports.

use super::{held_pools, without};
use crate::cli::Ended;
use crate::cli::asked::Asked;
use crate::cli::status_table::screen_width;
use crate::cli::text_table::{Align, TextTable, grouped};
use clap::Args;
use nearstate_placement::store_api::HeldPools;
use nearstate_store::pool_use::{HolderUse, most};
use nearstate_store::{Address, PoolId};
use serde_json::json;
use std::collections::BTreeMap;
use std::process::ExitCode;

/// The options of `nearstate nat subscribers`.
#[derive(Debug, Args)]
#[command(after_help = "A subscriber is an inside address. Exit code 1 if the owner of a shard \
    does not answer.")]
pub(in crate::cli) struct SubscribersArgs {
    #[command(flatten)]
    asked: Asked,
    /// Subscribers to list at most
    #[arg(long, value_name = "COUNT", default_value_t = 20)]
    limit: usize,
}

/// Runs it.
pub(super) fn run(args: &SubscribersArgs) -> Ended {
    let (_, map) = args.asked.map()?;
    let (held, silent) = held_pools(&args.asked, &map);
    let (holders, is_all) = together(&held, args.limit);
    if args.asked.json {
        let silent: Vec<u16> = silent.iter().map(|shard| shard.0).collect();
        let listed: Vec<_> = holders
            .iter()
            .map(|one| {
                json!({
                    "subscriber": address(one),
                    "pool": one.pool.0,
                    "blocks": one.blocks,
                    "live": one.live,
                    "resting": one.resting,
                })
            })
            .collect();
        println!("{:#}", json!({ "subscribers": listed, "is_all": is_all, "no_answer": silent }));
    } else {
        print!("{}", as_table(&holders).render(screen_width()));
        let more = if is_all { "" } else { "; there are more: raise --limit" };
        println!("{} subscribers{more}", holders.len());
        without(&silent).iter().for_each(|line| println!("{line}"));
    }
    Ok(if silent.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What subscribers have in all shards, those with most first; whether that is all of them.
fn together(held: &[HeldPools], limit: usize) -> (Vec<HolderUse>, bool) {
    let mut all: BTreeMap<(PoolId, [u8; 16]), HolderUse> = BTreeMap::new();
    for one in held.iter().flat_map(|held| &held.holders) {
        let none = HolderUse { pool: one.pool, holder: one.holder, blocks: 0, live: 0, resting: 0 };
        let sum = all.entry((one.pool, one.holder)).or_insert(none);
        sum.blocks += one.blocks;
        sum.live += one.live;
        sum.resting += one.resting;
    }
    let is_listed = |held: &HeldPools| held.holders.len() as u64 == u64::from(held.holders_count);
    let is_all = held.iter().all(is_listed) && all.len() <= limit;
    (most(all.into_values().collect(), limit), is_all)
}

fn address(one: &HolderUse) -> String {
    Address::from_octets(one.holder).ip().to_string()
}

fn as_table(holders: &[HolderUse]) -> TextTable {
    let mut table = TextTable::new(&[
        ("subscriber", Align::Left),
        ("pool", Align::Right),
        ("blocks", Align::Right),
        ("ports", Align::Right),
        ("resting", Align::Right),
    ]);
    for one in holders {
        let cells = vec![
            address(one),
            one.pool.0.to_string(),
            grouped(one.blocks.into()),
            grouped(one.live),
            grouped(one.resting),
        ];
        table.row(cells, None);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use nearstate_placement::store_api::PortHolder;

    #[test]
    fn a_subscriber_is_one_line_wherever_its_ports_are() {
        let holder = |last: u8, blocks| {
            let holder = Address::v4([10, 0, 0, last]).octets();
            PortHolder { pool: PoolId(1), holder, blocks, live: 5, resting: 1 }
        };
        let shard = |holders: Vec<PortHolder>, holders_count| HeldPools {
            is_current: true,
            pools: vec![],
            holders,
            holders_count,
        };
        let held = [shard(vec![holder(1, 2), holder(2, 3)], 2), shard(vec![holder(1, 2)], 1)];
        let (listed, is_all) = together(&held, 10);
        let found: Vec<_> = listed.iter().map(|one| (address(one), one.blocks, one.live)).collect();
        assert_eq!(found, [("10.0.0.1".to_owned(), 4, 10), ("10.0.0.2".to_owned(), 3, 5)]);
        assert!(is_all && !together(&held, 1).1);
        assert!(!together(&[shard(vec![holder(1, 2)], 9)], 10).1, "a node does not list all");
    }
}
