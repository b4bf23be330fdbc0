//! `nearstate nat pools`: the use of each pool, and when it will be used up if all goes on so.

use super::{held_pools, without};
use crate::cli::Ended;
use crate::cli::asked::Asked;
use crate::cli::status_table::screen_width;
use crate::cli::text_table::{Align, TextTable, grouped};
use clap::Args;
use nearstate_placement::store_api::{HeldPool, HeldPools};
use nearstate_store::{PoolId, ShardId};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// The options of `nearstate nat pools`.
#[derive(Debug, Args)]
#[command(after_help = "Ports are given out in blocks of 64 to an inside address. A pool is used \
    up when no block is free; who has a block can still open flows in it. `full in` is for the \
    growth between two looks. Each slot has blocks of its own: a single slot may be used up \
    earlier. Exit code 1 if the owner of a shard does not answer.")]
pub(in crate::cli) struct PoolsArgs {
    #[command(flatten)]
    asked: Asked,
    /// Seconds between the two looks that the growth is taken from; 0 looks once
    #[arg(long, value_name = "SECONDS", default_value_t = 2)]
    #[arg(value_parser = clap::value_parser!(u64).range(0..=3600))]
    interval: u64,
}

/// All shards' parts of a pool together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Total {
    blocks: u64,
    blocks_held: u64,
    blocks_per_holder_max: u16,
    live: [u64; 3],
    resting: [u64; 3],
}

impl Total {
    fn add(&mut self, part: &HeldPool) {
        self.blocks += u64::from(part.blocks);
        self.blocks_held += u64::from(part.blocks_held);
        self.blocks_per_holder_max = part.blocks_per_holder_max;
        for class in 0..3 {
            self.live[class] += part.live[class];
            self.resting[class] += part.resting[class];
        }
    }

    /// Seconds until no block is free, if so many more are held every second; `None` if there are
    /// not more of them.
    fn full_in_s(&self, blocks_a_second: f64) -> Option<u64> {
        let free = self.blocks.saturating_sub(self.blocks_held);
        (blocks_a_second > 0.0).then(|| (free as f64 / blocks_a_second) as u64)
    }
}

fn totals(held: &[HeldPools]) -> BTreeMap<PoolId, Total> {
    let mut totals: BTreeMap<PoolId, Total> = BTreeMap::new();
    for part in held.iter().flat_map(|held| &held.pools) {
        totals.entry(part.pool).or_default().add(part);
    }
    totals
}

/// A pool, and by how many blocks it grows in a second, if that is known.
type Row = (PoolId, Total, Option<f64>);

/// Runs it.
pub(super) fn run(args: &PoolsArgs) -> Ended {
    let (_, map) = args.asked.map()?;
    let first = (args.interval > 0).then(|| {
        let (held, silent) = held_pools(&args.asked, &map);
        let looked = (totals(&held), silent, Instant::now());
        std::thread::sleep(Duration::from_secs(args.interval));
        looked
    });
    let (held, silent) = held_pools(&args.asked, &map);
    let now = Instant::now();
    let growth = |pool: &PoolId, total: &Total| {
        // Of the same shards, or it says nothing.
        let (before, _, at) = first.as_ref().filter(|(_, then, _)| *then == silent)?;
        let before = before.get(pool)?.blocks_held as f64;
        Some((total.blocks_held as f64 - before) / now.duration_since(*at).as_secs_f64())
    };
    let rows: Vec<Row> =
        totals(&held).into_iter().map(|(id, total)| (id, total, growth(&id, &total))).collect();
    if args.asked.json {
        let silent: Vec<u16> = silent.iter().map(|shard| shard.0).collect();
        let pools: Vec<Value> = rows.iter().map(as_json).collect();
        println!("{:#}", json!({ "pools": pools, "no_answer": silent }));
    } else {
        print!("{}", as_text(&rows, &silent));
    }
    Ok(if silent.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn as_json((id, total, growth): &Row) -> Value {
    let classes = |[tcp, udp, icmp]: [u64; 3]| json!({ "tcp": tcp, "udp": udp, "icmp": icmp });
    json!({
        "pool": id.0,
        "blocks": total.blocks,
        "blocks_held": total.blocks_held,
        "blocks_per_subscriber": total.blocks_per_holder_max,
        "live": classes(total.live),
        "resting": classes(total.resting),
        "blocks_per_second": growth,
        "full_in_s": growth.and_then(|growth| total.full_in_s(growth)),
    })
}

fn as_text(rows: &[Row], silent: &[ShardId]) -> String {
    let mut table = TextTable::new(&[
        ("pool", Align::Right),
        ("blocks", Align::Right),
        ("held", Align::Right),
        ("", Align::Right),
        ("tcp", Align::Right),
        ("udp", Align::Right),
        ("icmp", Align::Right),
        ("resting", Align::Right),
        ("blocks/s", Align::Right),
        ("full in", Align::Right),
    ]);
    for (id, total, growth) in rows {
        let share = total.blocks_held as f64 * 100.0 / (total.blocks.max(1)) as f64;
        let full = growth.and_then(|growth| total.full_in_s(growth));
        let [tcp, udp, icmp] = total.live.map(grouped);
        let cells = vec![
            id.0.to_string(),
            grouped(total.blocks),
            grouped(total.blocks_held),
            format!("{share:.1} %"),
            tcp,
            udp,
            icmp,
            grouped(total.resting.iter().sum()),
            growth.map_or("-".to_owned(), |growth| format!("{growth:.1}")),
            full.map_or("-".to_owned(), span),
        ];
        table.row(cells, None);
    }
    let mut text = if rows.is_empty() {
        "no node of this cluster has a pool: its chain has no nat\n".to_owned()
    } else {
        table.render(screen_width())
    };
    if let Some(line) = without(silent) {
        text.push_str(&format!("{line}\n"));
    }
    text
}

/// A time, as people say it.
fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(blocks_held: u32) -> HeldPools {
        let (live, resting) = ([10, 20, 30], [1, 2, 3]);
        let pool = HeldPool {
            pool: PoolId(1),
            blocks: 100,
            blocks_held,
            blocks_per_holder_max: 4,
            live,
            resting,
        };
        HeldPools { is_current: true, pools: vec![pool], holders: vec![], holders_count: 0 }
    }

    #[test]
    fn the_parts_of_a_pool_add_up_and_growth_says_when_it_is_full() {
        let totals = totals(&[held(40), held(10)]);
        let total = totals[&PoolId(1)];
        assert_eq!((total.blocks, total.blocks_held), (200, 50));
        assert_eq!((total.live, total.resting), ([20, 40, 60], [2, 4, 6]));
        assert_eq!(total.full_in_s(0.5), Some(300));
        assert_eq!((total.full_in_s(0.0), total.full_in_s(-3.0)), (None, None));
        let row = (PoolId(1), total, Some(0.5));
        let text = as_text(&[row], &[]);
        assert!(text.contains("25.0 %") && text.contains("5 min"), "{text}");
        assert_eq!(as_json(&row)["full_in_s"], json!(300));
        let text = as_text(&[], &[ShardId(2)]);
        assert!(text.contains("no nat") && text.contains("without shard-2"), "{text}");
    }

    #[test]
    fn times_are_said_as_people_say_them() {
        let said = [0, 119, 120, 7_199, 7_200, 172_800].map(span);
        assert_eq!(said, ["0 s", "119 s", "2 min", "119 min", "2 h", "2 days"]);
    }
}
