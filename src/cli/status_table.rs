//! What `nearstate status` says, as tables for people.

use super::slots::moves_words;
use super::status::{Answered, Seen, state_word};
use super::text_table::{Align, TextTable, grouped, percent, span, wrapped};
use nearstate_placement::api::{ShardStatus, StatusReport};
use nearstate_placement::{Map, MemberState};
use nearstate_store::{NodeId, ShardId};
use std::fmt::Write as _;

/// Widest output, and what is taken where the width of the screen is not known.
const WIDTH_MAX: usize = 100;
/// On a narrower screen lines are broken by the screen.
const WIDTH_MIN: usize = 40;
/// Accesses to state, by where it was found.
const ACCESSES: [&str; 4] =
    ["access:local", "access:remote_shm", "access:remote_tcp", "access:remote_rdma"];

/// How wide the output may be: the screen, if there is one and it is narrower.
pub(super) fn screen_width() -> usize {
    let screen = rustix::termios::tcgetwinsize(std::io::stdout());
    match screen.map(|size| usize::from(size.ws_col)) {
        Ok(columns @ 1..) => columns.clamp(WIDTH_MIN, WIDTH_MAX),
        _ => WIDTH_MAX,
    }
}

/// Members, shards and what is missing.
pub(super) fn as_tables(seen: &Seen, width: usize) -> String {
    let Seen { map, members } = seen;
    let mut text = String::new();
    let live = members.iter().filter(|member| member.answer.is_some()).count();
    let shards = map.shards.len().saturating_sub(1);
    let head = format!(
        "map version {}: {live} members, {} slots in {shards} shards, {} replicas wanted",
        map.epoch.0, map.slots, map.replicas_wanted
    );
    let _ = writeln!(text, "{}", wrapped(&head, width).join("\n"));
    if let Some(words) = moves_words(map) {
        let _ = writeln!(text, "{}", wrapped(&words, width).join("\n"));
    }
    text.push('\n');
    text.push_str(&members_table(members).render(width));
    for line in silence(seen).iter().flat_map(|words| wrapped(words, width)) {
        let _ = writeln!(text, "{line}");
    }
    if members.iter().any(|member| member.answer.is_none()) {
        let kept = format!(
            "Members that are gone stand here until a node of their name joins, or for {}; \
             --all shows all that are remembered.",
            span(super::status::GONE_SHOWN_MS)
        );
        let _ = writeln!(text, "{}", wrapped(&kept, width).join("\n"));
    }
    text.push('\n');
    text.push_str(&shards_table(seen).render(width));
    text
}

/// What it means that shards have no majority, if some have none.
fn silence(seen: &Seen) -> Option<String> {
    let lost = seen.without_majority();
    let names = lost.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let meaning = match lost.first()? {
        &ShardId::SYSTEM => {
            "member states are the last known ones, and nobody is let in, given up or replaced"
        }
        _ => "packets that change state there are dropped after a while",
    };
    Some(format!(
        "No majority of {names} answers: {meaning}. Start the silent nodes again; with durability \
         \"disk\" they come back with their memory, with \"memory\" it is gone: end all nodes \
         then, remove their marks, and form the cluster anew."
    ))
}

fn members_table(members: &[Answered]) -> TextTable {
    let mut table = TextTable::new(&[
        ("node", Align::Left),
        ("state", Align::Left),
        ("address", Align::Left),
        ("packets in", Align::Right),
        ("packets out", Align::Right),
        ("commits", Align::Right),
        ("local reads", Align::Right),
    ]);
    for seen in members {
        let mut cells =
            vec![seen.member.label(), state_words(seen), seen.member.address.to_string()];
        let note = match &seen.answer {
            Some(Ok(report)) => {
                let counts = ["packets_in", "packets_out", "commits"];
                cells.extend(counts.map(|name| grouped(counter(report, name))));
                let accesses = ACCESSES.iter().map(|name| counter(report, name)).sum();
                cells.push(percent(counter(report, ACCESSES[0]), accesses));
                None
            }
            Some(Err(error)) => Some(error.clone()),
            None => None,
        };
        table.row(cells, note);
    }
    table
}

fn state_words(seen: &Answered) -> String {
    let state = state_word(seen.member.state);
    if seen.member.state == MemberState::Alive && matches!(seen.answer, Some(Err(_))) {
        return format!("{state}, silent");
    }
    let Some((for_ms, is_exact)) = seen.state_for.filter(|_| seen.answer.is_none()) else {
        return state.to_string();
    };
    let over = if is_exact { "" } else { "over " };
    format!("{state} {over}{} ago", span(for_ms))
}

fn counter(report: &StatusReport, name: &str) -> u64 {
    report.counters.iter().find(|(counter, _)| counter == name).map_or(0, |(_, count)| *count)
}

fn shards_table(seen: &Seen) -> TextTable {
    let map = &seen.map;
    let mut table = TextTable::new(&[
        ("shard", Align::Left),
        ("slots", Align::Right),
        ("owner", Align::Left),
        ("term", Align::Right),
        ("voters", Align::Left),
        ("log entries", Align::Right),
        ("table entries", Align::Right),
    ]);
    for placement in &map.shards {
        let shard = placement.shard;
        let slots = map.slot_to_shard.iter().filter(|&&of| of == shard.0).count();
        let slots = if shard == ShardId::SYSTEM { "system".to_owned() } else { slots.to_string() };
        let mut cells = vec![shard.to_string(), slots];
        let mut note = None;
        match seen.owned(shard) {
            Some((owner, seen)) => {
                let voters = nodes(map, &seen.voters);
                cells.extend([map.label(owner), seen.term.0.to_string(), voters]);
                cells.push(grouped(seen.applied.0));
                cells.push(table_words(seen));
            }
            None => {
                cells.push("nobody".to_owned());
                note = Some(format!("replicas: {}", nodes(map, &placement.replicas)));
            }
        }
        table.row(cells, note);
    }
    table
}

fn table_words(seen: &ShardStatus) -> String {
    if seen.capacity == 0 {
        return "-".to_owned();
    }
    format!("{} of {}", grouped(seen.entries), grouped(seen.capacity))
}

fn nodes(map: &Map, ids: &[NodeId]) -> String {
    ids.iter().map(|id| map.label(*id)).collect::<Vec<_>>().join(", ")
}
