//! C2 to C7, each over a whole history: what clients were told against what the nodes' log says.
//!
//! All of them take time in proportion to the history, or nearly so, and look at every operation.

use crate::history::{Entry, History};
use crate::record::{OpId, SHARDS, Seen, Way};
use crate::replay::{Decision, Replayed};
use nearstate_store::{NodeId, Outcome, ShardId, Term, Time};
use std::collections::{BTreeMap, BTreeSet};

/// Voters of three that are a majority.
const QUORUM: usize = 2;

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) property: &'static str,
    pub(crate) text: String,
}

fn violation(property: &'static str, text: String) -> Violation {
    Violation { property, text }
}

/// C2: what a client was told is what the log says of the first time that it decided the operation.
/// (That it decided once is found when the log is replayed.) Nothing is refused.
pub(crate) fn once(history: &History) -> Vec<Violation> {
    let mut first: BTreeMap<OpId, Outcome> = BTreeMap::new();
    for (op, outcome) in history.log.values().flat_map(|entry| &entry.decided) {
        first.entry(*op).or_insert(*outcome);
    }
    let mut found = Vec::new();
    for (op, asked) in &history.ops {
        let Some((_, told)) = asked.answered else { continue };
        if matches!(told, Outcome::Refused(_)) {
            found.push(violation("C2", format!("{op:?} was refused")));
        }
        if let Some(outcome) = first.get(op).filter(|outcome| **outcome != told) {
            found.push(violation("C2", format!("{op:?} was {outcome:?}, and told {told:?}")));
        }
    }
    found
}

/// Who owned a shard in which term, as the first said who spoke of it.
fn owners(history: &History) -> BTreeMap<(ShardId, Term), NodeId> {
    let own = history.owners.iter().map(|(node, shard, term)| (*shard, *term, *node));
    let mut owners = BTreeMap::new();
    for (shard, term, node) in own.chain(history.leaders.iter().copied()) {
        owners.entry((shard, term)).or_insert(node);
    }
    owners
}

/// Who had the entry of a decision at a moment, from its owner on, of those whose vote had been
/// asked for.
fn holders(history: &History, owner: Option<&NodeId>, (entry, at): (&Entry, Time)) -> usize {
    let Some(received) = history.received.get(&entry.payload) else { return 0 };
    let by_owner = received.iter().filter(|(_, node)| Some(node) == owner).map(|(at, _)| *at);
    let written = by_owner.min().unwrap_or_default();
    let votes = |node: &NodeId| history.promoted.get(node).is_some_and(|since| *since <= at);
    let had = received.iter().filter(|(since, node)| (written..=at).contains(since) && votes(node));
    had.map(|(_, node)| node).collect::<BTreeSet<_>>().len()
}

/// C3: before anybody is told an outcome or a value, a quorum has the entry that decided it, and
/// some node has begun to apply it.
pub(crate) fn released_after_commit(history: &History, replayed: &Replayed) -> Vec<Violation> {
    let owners = owners(history);
    let mut found = Vec::new();
    let mut look = |what: &str, op: &OpId, at: Time| {
        // What the log does not know at all is another check's matter.
        let Some(Decision { at: place, .. }) = replayed.decisions.get(op) else { return };
        let Some(entry) = history.log.get(place) else { return };
        let holders = holders(history, owners.get(&(place.0, entry.term)), (entry, at));
        if holders < QUORUM {
            let text = format!("{what} of {op:?} at {at:?} when {holders} had it");
            found.push(violation("C3", text));
        }
        let applied = history.applied(*place, entry);
        if applied > at {
            let text = format!("{what} of {op:?} at {at:?}, applied at {applied:?}");
            found.push(violation("C3", text));
        }
    };
    for (op, asked) in &history.ops {
        if let Some((at, _)) = asked.answered {
            look("answer", op, at);
        }
    }
    for (_, read) in &history.reads {
        if let Seen::Entry(op, _) = read.seen {
            look("read", &op, read.to);
        }
    }
    found
}

/// C4: what was acknowledged is in the log, and every voter's table at the end is what the log
/// makes.
pub(crate) fn acknowledged_stays(
    history: &History,
    replayed: &Replayed,
    voters: &[NodeId],
) -> Vec<Violation> {
    let mut found = Vec::new();
    for (op, asked) in &history.ops {
        if asked.answered.is_some() && !replayed.decisions.contains_key(op) {
            found.push(violation("C4", format!("{op:?} was answered and is in no log")));
        }
    }
    for shard in (1..=SHARDS).map(ShardId) {
        let expected = replayed.end(shard);
        let last = history.log.range((shard, Default::default())..);
        let last = last.take_while(|((of, _), _)| *of == shard).last().map(|((_, at), _)| *at);
        for node in voters {
            let Some(held) = history.held.get(&(*node, shard)) else {
                found.push(violation("C4", format!("{node} did not tell what {shard} holds")));
                continue;
            };
            if held.entries != expected || held.count != expected.len() as u64 {
                let wrong =
                    expected.iter().find(|(key, entry)| held.entries.get(key) != Some(entry));
                let text = format!(
                    "{node} holds {} entries of {shard}, by the log {}; wrong is {wrong:?}",
                    held.count,
                    expected.len()
                );
                found.push(violation("C4", text));
            }
            if last.is_some_and(|last| held.applied < last) {
                found.push(violation("C4", format!("{node} is behind the log of {shard}")));
            }
        }
    }
    found
}

/// What is known of a key from some moment on: that it has reached a span.
#[derive(Default)]
struct Floor(Vec<(Time, usize)>);

impl Floor {
    /// In the order of time.
    fn raise(&mut self, at: Time, span: usize) {
        let highest = self.0.last().map_or(0, |(_, span)| *span);
        self.0.push((at, highest.max(span)));
    }

    /// What everybody may rely on who begins at a moment.
    fn at(&self, from: Time) -> usize {
        let before = self.0.partition_point(|(at, _)| *at < from);
        before.checked_sub(1).map_or(0, |last| self.0[last].1)
    }
}

/// Something that a client was told about a key, by when.
enum Told {
    Decided(OpId),
    Read(Way, Seen),
}

/// C5: who begins after somebody was told something of a key finds the key at least as far; and
/// nobody is told what had not been asked for.
pub(crate) fn no_read_is_old(history: &History, replayed: &Replayed) -> Vec<Violation> {
    let mut told: BTreeMap<_, Vec<(Time, Time, Told)>> = BTreeMap::new();
    for (op, asked) in &history.ops {
        if let Some((at, _)) = asked.answered {
            told.entry(asked.key).or_default().push((at, asked.invoked, Told::Decided(*op)));
        }
    }
    for (_, read) in &history.reads {
        let item = (read.to, read.from, Told::Read(read.way, read.seen));
        told.entry(read.key).or_default().push(item);
    }
    let mut found = Vec::new();
    for (key, mut told) in told {
        told.sort_by_key(|(to, ..)| *to);
        let spans = replayed.spans.get(&key).map_or(&[][..], Vec::as_slice);
        let mut floor = Floor::default();
        for (to, from, what) in told {
            let least = floor.at(from);
            let span = match what {
                Told::Decided(op) => replayed.decisions.get(&op).map(|decision| decision.span),
                Told::Read(_, Seen::Entry(op, version)) => replayed.span_of(key, (op, version)),
                Told::Read(_, Seen::Nothing) => (least..spans.len().max(1))
                    .find(|at| spans.get(*at).is_none_or(|span| span.holds.is_none()))
                    // Nothing from then on: whatever was before is old.
                    .or(Some(0)),
                Told::Read(_, Seen::Nonsense) => None,
            };
            // What the log does not know is another check's matter.
            let Some(span) = span else { continue };
            let name = match what {
                Told::Decided(op) => format!("{op:?}"),
                Told::Read(way, seen) => format!("a {way:?} read of {seen:?}"),
            };
            if span < least {
                let text = format!("{name} of {key:?} in {from:?}..{to:?}: {span} after {least}");
                found.push(violation("C5", text));
                continue;
            }
            let by = spans.get(span).and_then(|span| span.by);
            let asked = by.and_then(|by| history.ops.get(&by));
            if asked.is_some_and(|asked| asked.invoked > to) {
                found.push(violation(
                    "C5",
                    format!("{name} of {key:?} was not asked for by {to:?}"),
                ));
            }
            floor.raise(to, span);
        }
    }
    found
}

/// C6: one owner for a term of a shard, as owners, followers and readers see it; terms rise; what
/// is in the log was put there by its term's owner.
pub(crate) fn one_owner(history: &History) -> Vec<Violation> {
    let owners = owners(history);
    let mut found = Vec::new();
    let mut last: BTreeMap<(NodeId, ShardId), Term> = BTreeMap::new();
    for (node, shard, term) in &history.owners {
        if last.insert((*node, *shard), *term).is_some_and(|last| last >= *term) {
            found.push(violation("C6", format!("{node} owns {shard} in {term}, not a later term")));
        }
    }
    let own = history.owners.iter().map(|(node, shard, term)| (*shard, *term, *node));
    for (shard, term, node) in own.chain(history.leaders.iter().copied()) {
        let owner = owners[&(shard, term)];
        if owner != node {
            let text = format!("{shard} has two owners in {term}: {owner} and {node}");
            found.push(violation("C6", text));
        }
    }
    found.extend(written_by_owners(history, &owners));
    for (node, read) in history.reads.iter().filter(|(_, read)| read.term != Term(0)) {
        let owner = owners.get(&(read.key.shard(), read.term));
        let fits = if read.way == Way::Local { owner == Some(node) } else { owner.is_some() };
        if !fits {
            let text = format!("{node} read under {}, which is {owner:?}'s: {read:?}", read.term);
            found.push(violation("C6", text));
        }
    }
    found
}

/// C6, of the log: its terms rise, and each entry was in its term's owner's hands before anybody
/// applied it. (That others had the payload before proves nothing: an owner of before may have been
/// too late to write it, too shortly in office for anybody to have seen it there.)
fn written_by_owners(
    history: &History,
    owners: &BTreeMap<(ShardId, Term), NodeId>,
) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut before = (ShardId(0), Term(0));
    for ((shard, index), entry) in &history.log {
        let term = entry.term;
        if before.0 == *shard && term < before.1 {
            let text = format!("{index} of {shard} is of {term}, after {}", before.1);
            found.push(violation("C6", text));
        }
        before = (*shard, term);
        let Some(owner) = owners.get(&(*shard, term)) else { continue };
        let Some(received) = history.received.get(&entry.payload) else { continue };
        let by_owner = received.iter().filter(|(_, node)| node == owner).map(|(at, _)| *at);
        let written = by_owner.min().unwrap_or(Time(u64::MAX));
        if written > history.applied((*shard, *index), entry) {
            let text = format!("{index} of {shard} was applied before {owner} of {term} had it");
            found.push(violation("C6", text));
        }
    }
    found
}

/// C7: every value that was read is one that was written to that key, with the version that it got.
pub(crate) fn only_intact_values(history: &History, replayed: &Replayed) -> Vec<Violation> {
    let is_wrong = |seen, key| match seen {
        Seen::Nothing => false,
        Seen::Entry(op, version) => replayed.span_of(key, (op, version)).is_none(),
        Seen::Nonsense => true,
    };
    let wrong = history.reads.iter().filter(|(_, read)| is_wrong(read.seen, read.key));
    wrong.map(|(node, read)| violation("C7", format!("{node}: {read:?}"))).collect()
}
