//! Each check on a small history that is good, and on the same with one lie in it.

use crate::check;
use crate::history::History;
use crate::record::{Action, KeyNumber, OpId, ReadRecord, Record, Seen, Way};
use nearstate_store::{LogIndex, NodeId, Outcome, Term, Time, Version};
use std::collections::BTreeSet;

const KEY: KeyNumber = KeyNumber(4);
const A: OpId = OpId::new(1, 1);
const B: OpId = OpId::new(2, 1);
const C: OpId = OpId::new(3, 1);
/// Asked for, and never answered.
const D: OpId = OpId::new(4, 1);
const NODES: [NodeId; 3] = [NodeId(1), NodeId(2), NodeId(3)];

type Story = Vec<(NodeId, Record)>;

fn committed(index: u64) -> Outcome {
    Outcome::Committed(LogIndex(index))
}

/// An operation that the first of two nodes put into the log, where it is `outcome`: asked for at
/// `at`, received one and two later, applied three later, answered five later.
fn operation(
    op: OpId,
    action: Action,
    at: u64,
    (term, index): (u64, u64),
    outcome: Outcome,
) -> Story {
    let (first, second) = if term == 1 { (NODES[0], NODES[2]) } else { (NODES[1], NODES[0]) };
    let (payload, shard, key) = (index * 1000, KEY.shard(), KEY);
    let mut story = vec![
        (NODES[1], Record::Invoked { at: Time(at), op, key, action }),
        (first, Record::Received { at: Time(at + 1), payload }),
        (second, Record::Received { at: Time(at + 2), payload }),
        (NODES[1], Record::Answered { at: Time(at + 5), op, outcome: Some(outcome) }),
    ];
    for (node, delay) in [(first, 3), (second, 8), (NODES[2], 9)].iter().take(3) {
        let (at, index, term) = (Time(at + delay), LogIndex(index), Term(term));
        story.push((*node, Record::Applied { at, shard, index, term, payload }));
        story.push((*node, Record::Decided { op, outcome }));
    }
    story
}

fn read(node: NodeId, (from, to): (u64, u64), way: Way, seen: Seen, term: u64) -> (NodeId, Record) {
    let (from, to, term) = (Time(from), Time(to), Term(term));
    (node, Record::Read(ReadRecord { from, to, key: KEY, way, seen, term }))
}

/// Node 1 owns the shard in term 1, node 2 in term 2. A puts, B swaps it, C creates in vain.
fn story() -> Story {
    let shard = KEY.shard();
    let swap = Action::Swap(A, Version(1));
    let mut story = vec![
        (NODES[0], Record::Owner { at: Time(1), shard, term: Term(1) }),
        (NODES[1], Record::Owner { at: Time(45), shard, term: Term(2) }),
        (NODES[2], Record::Leader { at: Time(46), shard, term: Term(2), leader: NODES[1] }),
        (NODES[1], Record::Invoked { at: Time(90), op: D, key: KEY, action: Action::Delete }),
        read(NODES[2], (2, 3), Way::Tcp, Seen::Nothing, 0),
        read(NODES[1], (20, 21), Way::Mapped, Seen::Entry(A, Version(1)), 1),
        read(NODES[1], (70, 71), Way::Local, Seen::Entry(B, Version(2)), 2),
    ];
    // The owner of before was too late with the same payload.
    story.push((NODES[0], Record::Received { at: Time(48), payload: 4000 }));
    for node in NODES {
        story.push((NodeId(0), Record::Promoted { at: Time(0), node }));
    }
    story.extend(operation(A, Action::Put, 10, (1, 1), committed(1)));
    story.extend(operation(B, swap, 30, (1, 2), committed(2)));
    story.extend(operation(C, Action::Create, 50, (2, 4), Outcome::ConditionFailed(0)));
    for node in NODES {
        story.push((node, Record::Final { key: KEY, op: B, version: Version(2) }));
        story.push((node, Record::FinalEnd { shard, applied: LogIndex(4), entries: 1 }));
        // The other shard is empty.
        let shard = KeyNumber(KEY.0 + 1).shard();
        story.push((node, Record::FinalEnd { shard, applied: LogIndex(0), entries: 0 }));
    }
    story
}

/// The properties that are broken.
fn broken(story: &Story) -> BTreeSet<&'static str> {
    let mut history = History::default();
    for node in (0..4).map(NodeId) {
        let records: Vec<Record> =
            story.iter().filter(|(of, _)| *of == node).map(|(_, record)| *record).collect();
        history.add(node, &records);
    }
    check(&history, &NODES).into_iter().map(|violation| violation.property).collect()
}

/// Changes the records that a function knows.
fn change(story: &mut Story, of: impl Fn(NodeId, Record) -> Option<Record>) {
    let mut changed = 0;
    for (node, record) in story {
        if let Some(new) = of(*node, *record) {
            (*record, changed) = (new, changed + 1);
        }
    }
    assert!(changed > 0, "the lie is told");
}

fn change_read(story: &mut Story, begins: u64, lie: impl Fn(ReadRecord) -> ReadRecord) {
    change(story, |_, record| match record {
        Record::Read(read) if read.from == Time(begins) => Some(Record::Read(lie(read))),
        _ => None,
    });
}

fn change_received(story: &mut Story, index: u64, of: NodeId, at: u64) {
    change(story, |node, record| match record {
        Record::Received { payload, .. } if node == of && payload == index * 1000 => {
            Some(Record::Received { at: Time(at), payload })
        }
        _ => None,
    });
}

#[test]
fn a_good_history_breaks_nothing() {
    assert_eq!(broken(&story()), BTreeSet::new());
}

type Lie = fn(&mut Story);

/// What is said, which checks have to find it, and how it is said.
const LIES: &[(&str, &[&str], Lie)] = &[
    ("a read that is old", &["C1", "C5"], |story| {
        change_read(story, 70, |read| ReadRecord { seen: Seen::Entry(A, Version(1)), ..read });
    }),
    ("a read of nothing that is old", &["C1", "C5"], |story| {
        change_read(story, 70, |read| ReadRecord { seen: Seen::Nothing, ..read });
    }),
    ("a read of what nobody has asked for yet", &["C1", "C3", "C5"], |story| {
        change_read(story, 20, |read| ReadRecord { seen: Seen::Entry(B, Version(2)), ..read });
    }),
    ("an answer that is not the log's", &["C1", "C2"], |story| {
        change(story, |_, record| match record {
            Record::Answered { at, op: C, .. } => {
                Some(Record::Answered { at, op: C, outcome: Some(committed(4)) })
            }
            _ => None,
        });
    }),
    ("a retry that takes effect again", &["C2", "C4"], |story| {
        let (shard, term, payload) = (KEY.shard(), Term(2), 7000);
        let (at, index) = (Time(60), LogIndex(5));
        story.push((NODES[1], Record::Applied { at, shard, index, term, payload }));
        story.push((NODES[1], Record::Decided { op: A, outcome: committed(5) }));
    }),
    ("an outcome that the log's order does not give", &["C1", "C2"], |story| {
        change(story, |_, record| match record {
            Record::Decided { op: C, .. } => Some(Record::Decided { op: C, outcome: committed(4) }),
            Record::Answered { at, op: C, .. } => {
                Some(Record::Answered { at, op: C, outcome: Some(committed(4)) })
            }
            _ => None,
        });
    }),
    ("an operation that nobody asked for", &["C2"], |story| {
        change(story, |_, record| match record {
            Record::Invoked { at, op: C, key, action } => {
                Some(Record::Invoked { at, op: OpId::new(9, 9), key, action })
            }
            _ => None,
        });
    }),
    ("an answer before a quorum had it", &["C3"], |story| {
        change_received(story, 2, NODES[2], 36);
    }),
    ("a quorum with one who has no vote yet", &["C3"], |story| {
        change(story, |_, record| match record {
            Record::Promoted { node, .. } if node == NODES[2] => {
                Some(Record::Promoted { at: Time(40), node })
            }
            _ => None,
        });
    }),
    ("a read before anybody applied it", &["C3"], |story| {
        change_read(story, 20, |read| ReadRecord { from: Time(11), to: Time(12), ..read });
    }),
    ("an answer that is in no log", &["C4"], |story| {
        let outcome = Some(Outcome::ConditionFailed(0));
        story.push((NODES[1], Record::Answered { at: Time(95), op: D, outcome }));
    }),
    ("a voter that has lost an entry", &["C4"], |story| {
        story.retain(|(node, record)| !matches!(record, Record::Final { .. }) || *node != NODES[2]);
    }),
    ("a voter with an entry that nobody wrote", &["C4"], |story| {
        change(story, |node, record| match record {
            Record::FinalEnd { shard, applied, entries: 1 } if node == NODES[0] => {
                Some(Record::FinalEnd { shard, applied, entries: 2 })
            }
            _ => None,
        });
    }),
    ("a voter that is behind", &["C4"], |story| {
        change(story, |node, record| match record {
            Record::FinalEnd { shard, entries: 1, .. } if node == NODES[0] => {
                Some(Record::FinalEnd { shard, applied: LogIndex(3), entries: 1 })
            }
            _ => None,
        });
    }),
    ("two owners of one term", &["C6"], |story| {
        let owner = Record::Owner { at: Time(47), shard: KEY.shard(), term: Term(2) };
        story.push((NODES[2], owner));
    }),
    ("an owner whose term does not rise", &["C6"], |story| {
        let owner = Record::Owner { at: Time(47), shard: KEY.shard(), term: Term(1) };
        story.push((NODES[0], owner));
    }),
    ("an entry that its term's owner did not write", &["C6"], |story| {
        story.retain(|(node, record)| {
            !matches!(record, Record::Received { payload: 4000, .. }) || *node != NODES[1]
        });
        story.push((NODES[2], Record::Received { at: Time(51), payload: 4000 }));
    }),
    ("an entry that was applied before its owner had it", &["C3", "C6"], |story| {
        change_received(story, 4, NODES[1], 54);
    }),
    ("a term that falls in the log", &["C6"], |story| {
        change(story, |_, record| match record {
            Record::Applied { at, shard, index: LogIndex(1), payload, .. } => {
                let (index, term) = (LogIndex(1), Term(2));
                Some(Record::Applied { at, shard, index, term, payload })
            }
            _ => None,
        });
    }),
    ("a read in place by who is not the owner", &["C6"], |story| {
        change_read(story, 70, |read| ReadRecord { term: Term(1), ..read });
    }),
    ("a value that is nobody's", &["C7"], |story| {
        change_read(story, 20, |read| ReadRecord { seen: Seen::Nonsense, ..read });
    }),
    ("a value with another's version", &["C7"], |story| {
        change_read(story, 20, |read| ReadRecord { seen: Seen::Entry(A, Version(2)), ..read });
    }),
];

#[test]
fn each_lie_is_found_by_the_checks_it_concerns() {
    for (what, expected, lie) in LIES {
        let mut story = story();
        lie(&mut story);
        let broken = broken(&story);
        let expected: BTreeSet<&str> = expected.iter().copied().collect();
        assert!(expected.is_subset(&broken), "{what}: {broken:?}, not {expected:?}");
        assert!(broken.len() <= expected.len() + 1, "{what}: {broken:?}, only {expected:?}");
    }
}
