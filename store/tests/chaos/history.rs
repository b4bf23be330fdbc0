//! What happened, put together from the records of all processes: what clients asked and were told,
//! the log that the nodes applied, who owned what.
//!
//! Nodes must tell the same log; where they do not, that is a violation here already. Nothing is
//! judged otherwise.

use crate::checks::Violation;
use crate::record::{self, Action, KeyNumber, OpId, ReadRecord, Record, Way};
use nearstate_store::{LogIndex, NodeId, Outcome, ShardId, Term, Time, Version};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::path::Path;

/// A write that a client asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Op {
    pub(crate) key: KeyNumber,
    pub(crate) action: Action,
    pub(crate) invoked: Time,
    /// When it was told what. `None`: it never heard, or was told that nothing is known.
    pub(crate) answered: Option<(Time, Outcome)>,
}

/// An entry of a shard's log.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) term: Term,
    pub(crate) payload: u64,
    pub(crate) decided: Vec<(OpId, Outcome)>,
    /// When the first node that told of it began to apply it.
    applied: Time,
}

/// What a table held at the end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Held {
    pub(crate) applied: LogIndex,
    pub(crate) entries: BTreeMap<KeyNumber, (OpId, Version)>,
    /// As the table counts them.
    pub(crate) count: u64,
}

/// See the module's text.
#[derive(Clone, Debug, Default)]
pub(crate) struct History {
    pub(crate) ops: BTreeMap<OpId, Op>,
    pub(crate) reads: Vec<(NodeId, ReadRecord)>,
    pub(crate) log: BTreeMap<(ShardId, LogIndex), Entry>,
    /// Who was given a payload when. Two entries may have one payload: what an owner of before was
    /// too late to write, and the next one wrote within the same millisecond.
    pub(crate) received: BTreeMap<u64, Vec<(Time, NodeId)>>,
    /// In the order of each node.
    pub(crate) owners: Vec<(NodeId, ShardId, Term)>,
    pub(crate) leaders: Vec<(ShardId, Term, NodeId)>,
    pub(crate) promoted: BTreeMap<NodeId, Time>,
    pub(crate) held: BTreeMap<(NodeId, ShardId), Held>,
    /// When the first node, perhaps one that did not live to tell more, began to apply an entry.
    entered: BTreeMap<(ShardId, LogIndex), Time>,
    hashes: BTreeMap<(ShardId, LogIndex), u64>,
    contradictions: Vec<Violation>,
}

impl History {
    /// Reads all records of a directory.
    pub(crate) fn read(directory: &Path) -> io::Result<Self> {
        let mut history = Self::default();
        for file in std::fs::read_dir(directory)? {
            let path = file?.path();
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            let Ok(node) = stem.parse() else { continue };
            history.add(NodeId(node), &record::read(&path)?);
        }
        Ok(history)
    }

    /// Nodes' logs that are not one log.
    pub(crate) fn contradictions(&self) -> Vec<Violation> {
        self.contradictions.clone()
    }

    /// Adds the records of one process.
    pub(crate) fn add(&mut self, node: NodeId, records: &[Record]) {
        let mut held = Held::default();
        let mut rest = records;
        while let Some((first, after)) = rest.split_first() {
            rest = after;
            match *first {
                Record::Invoked { at, op, key, action } => {
                    self.ops.insert(op, Op { key, action, invoked: at, answered: None });
                }
                Record::Answered { at, op, outcome } => {
                    if let (Some(asked), Some(outcome)) = (self.ops.get_mut(&op), outcome) {
                        asked.answered = Some((at, outcome));
                    }
                }
                Record::Read(read) => self.reads.push((node, read)),
                Record::Received { at, payload } => {
                    self.received.entry(payload).or_default().push((at, node));
                }
                Record::Applied { at, shard, index, term, payload } => {
                    let count = rest.iter().take_while(|r| matches!(r, Record::Decided { .. }));
                    let (of_it, after) = rest.split_at(count.count());
                    rest = after;
                    let decided = of_it.iter().filter_map(|record| match *record {
                        Record::Decided { op, outcome } => Some((op, outcome)),
                        _ => None,
                    });
                    let entry = Entry { term, payload, decided: decided.collect(), applied: at };
                    self.add_entry((node, rest.is_empty()), (shard, index), entry);
                }
                Record::Owner { shard, term, .. } => self.owners.push((node, shard, term)),
                Record::Leader { shard, term, leader, .. } => {
                    self.leaders.push((shard, term, leader));
                }
                Record::Promoted { at, node } => drop(self.promoted.insert(node, at)),
                Record::Final { key, op, version } => {
                    held.entries.insert(key, (op, version));
                }
                Record::FinalEnd { shard, applied, entries } => {
                    (held.applied, held.count) = (applied, entries);
                    self.held.insert((node, shard), std::mem::take(&mut held));
                }
                Record::Entered { at, shard, index } => {
                    let first = self.entered.entry((shard, index)).or_insert(at);
                    *first = at.min(*first);
                }
                Record::Hashed { shard, index, hash } => {
                    let known = *self.hashes.entry((shard, index)).or_insert(hash);
                    if known != hash {
                        let text = format!("{node} has another state at {index} of {shard}");
                        self.contradictions.push(Violation { property: "R1", text });
                    }
                }
                // Follows its entry.
                Record::Decided { .. } => {}
            }
        }
    }

    /// `cut`: nothing follows, so its end may be missing.
    fn add_entry(&mut self, (node, cut): (NodeId, bool), at: (ShardId, LogIndex), new: Entry) {
        let Some(known) = self.log.get_mut(&at) else {
            self.log.insert(at, new);
            return;
        };
        known.applied = known.applied.min(new.applied);
        let common = known.decided.len().min(new.decided.len());
        let agrees = (known.term, known.payload) == (new.term, new.payload)
            && known.decided[..common] == new.decided[..common];
        if new.decided.len() > known.decided.len() {
            // The one that was known is of a node that was killed meanwhile, or they differ.
            known.decided = new.decided;
        } else if agrees && (cut || common == known.decided.len()) {
            return;
        }
        if !agrees {
            let text = format!("{node} applied another entry than others at {} of {}", at.1, at.0);
            self.contradictions.push(Violation { property: "C4", text });
        }
    }

    /// When the first node began to apply an entry.
    pub(crate) fn applied(&self, at: (ShardId, LogIndex), entry: &Entry) -> Time {
        self.entered.get(&at).map_or(entry.applied, |entered| entry.applied.min(*entered))
    }

    /// Operations whose outcome the client never learned.
    pub(crate) fn unknown(&self) -> usize {
        self.ops.values().filter(|op| op.answered.is_none()).count()
    }

    /// Reads and writes.
    pub(crate) fn operations(&self) -> usize {
        self.ops.len() + self.reads.len()
    }

    pub(crate) fn every_way_was_taken(&self) -> bool {
        Way::ALL.iter().all(|way| self.reads.iter().any(|(_, read)| read.way == *way))
    }

    /// How many of what, in words.
    pub(crate) fn summary(&self) -> String {
        let mut text = String::new();
        let mut count = |what: &str, of: &dyn Fn(&Op) -> bool| {
            let _ = write!(text, "{what} {}, ", self.ops.values().filter(|op| of(op)).count());
        };
        count("puts", &|op| op.action == Action::Put);
        count("creates", &|op| op.action == Action::Create);
        count("swaps", &|op| matches!(op.action, Action::Swap(..)));
        count("deletes", &|op| op.action == Action::Delete);
        count("of them with unknown outcome", &|op| op.answered.is_none());
        for way in Way::ALL {
            let reads = self.reads.iter().filter(|(_, read)| read.way == way).count();
            let _ = write!(text, "reads {way:?} {reads}, ");
        }
        let keys: std::collections::BTreeSet<_> = self.ops.values().map(|op| op.key).collect();
        let _ = write!(text, "keys {}, log entries {}", keys.len(), self.log.len());
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(index: u64, payload: u64) -> [Record; 2] {
        let (at, index) = (Time(1), LogIndex(index));
        let outcome = Outcome::Committed(index);
        [
            Record::Applied { at, shard: ShardId(1), index, term: Term(1), payload },
            Record::Decided { op: OpId::new(1, index.0), outcome },
        ]
    }

    #[test]
    fn nodes_with_other_entries_or_states_contradict_each_other() {
        let mut history = History::default();
        history.add(NodeId(1), &[applied(1, 7), applied(2, 8)].concat());
        history.add(NodeId(2), &[applied(1, 7), applied(2, 8)].concat());
        // Killed while it wrote: the transaction is missing.
        history.add(NodeId(3), &[&applied(1, 7)[..], &applied(2, 8)[..1]].concat());
        assert_eq!(history.contradictions(), []);
        history.add(NodeId(4), &[applied(1, 7), applied(2, 9)].concat());
        assert_eq!(history.contradictions().len(), 1);
        let hashed = |hash| Record::Hashed { shard: ShardId(1), index: LogIndex(2), hash };
        history.add(NodeId(1), &[hashed(3)]);
        history.add(NodeId(2), &[hashed(3)]);
        assert_eq!(history.contradictions().len(), 1);
        history.add(NodeId(3), &[hashed(4)]);
        assert_eq!(history.contradictions().len(), 2);
    }
}
