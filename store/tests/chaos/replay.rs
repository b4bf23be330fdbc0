//! The log applied once more, by a model of some lines: what each key held from which transaction
//! to which, and what each transaction had to answer.
//!
//! A shard's version counts its mutations from its first entry on, so the model knows every version
//! too. What the machine answered otherwise is a violation.

use crate::checks::Violation;
use crate::history::{History, Op};
use crate::record::{Action, KeyNumber, OpId};
use nearstate_store::{LogIndex, Outcome, ShardId, Version};
use std::collections::BTreeMap;

/// What a key held from one transaction on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) holds: Option<(OpId, Version)>,
    /// Who made it so; `None` before the first.
    pub(crate) by: Option<OpId>,
}

/// Where an operation was decided first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Decision {
    pub(crate) at: (ShardId, LogIndex),
    pub(crate) outcome: Outcome,
    /// The span of its key that it found (if it changed nothing) or began.
    pub(crate) span: usize,
}

/// See the module's text.
#[derive(Clone, Debug, Default)]
pub(crate) struct Replayed {
    pub(crate) spans: BTreeMap<KeyNumber, Vec<Span>>,
    pub(crate) decisions: BTreeMap<OpId, Decision>,
    pub(crate) violations: Vec<Violation>,
}

const NOTHING: Span = Span { holds: None, by: None };

impl Replayed {
    /// The span of a key in which it held what an operation wrote.
    pub(crate) fn span_of(&self, key: KeyNumber, held: (OpId, Version)) -> Option<usize> {
        let decision = self.decisions.get(&held.0)?;
        let span = self.spans.get(&key)?.get(decision.span)?;
        (span.holds == Some(held)).then_some(decision.span)
    }

    /// What the keys of a shard hold in the end.
    pub(crate) fn end(&self, shard: ShardId) -> BTreeMap<KeyNumber, (OpId, Version)> {
        let of_shard = self.spans.iter().filter(|(key, _)| key.shard() == shard);
        of_shard.filter_map(|(key, spans)| Some((*key, spans.last()?.holds?))).collect()
    }

    fn wrong(&mut self, property: &'static str, text: String) {
        self.violations.push(Violation { property, text });
    }
}

/// Whether an action takes effect on what is there.
fn takes_effect(action: Action, holds: Option<(OpId, Version)>) -> bool {
    match action {
        Action::Put => true,
        Action::Create => holds.is_none(),
        Action::Swap(expected, version) => holds == Some((expected, version)),
        Action::Delete => holds.is_some(),
    }
}

/// Applies the whole log.
pub(crate) fn replay(history: &History) -> Replayed {
    let mut replayed = Replayed::default();
    let mut mutations: BTreeMap<ShardId, u64> = BTreeMap::new();
    for (at, entry) in &history.log {
        for (op, outcome) in &entry.decided {
            let Some(asked) = history.ops.get(op) else {
                replayed.wrong("C2", format!("{op:?} is in the log and nobody asked for it"));
                continue;
            };
            if let Some(before) = replayed.decisions.get(op).copied() {
                if before.outcome != *outcome {
                    let text = format!("{op:?} was {:?}, and {outcome:?} again", before.outcome);
                    replayed.wrong("C2", text);
                }
                continue;
            }
            decide(&mut replayed, (*op, asked), *at, *outcome, mutations.entry(at.0).or_default());
        }
    }
    replayed
}

fn decide(
    replayed: &mut Replayed,
    (op, asked): (OpId, &Op),
    at: (ShardId, LogIndex),
    outcome: Outcome,
    mutations: &mut u64,
) {
    if asked.key.shard() != at.0 {
        replayed.wrong("C2", format!("{op:?} is in the log of {}, not of its key's shard", at.0));
    }
    let spans = replayed.spans.entry(asked.key).or_insert_with(|| vec![NOTHING]);
    let takes_effect = takes_effect(asked.action, spans[spans.len() - 1].holds);
    if takes_effect {
        *mutations += 1;
        let version = Version(*mutations);
        let holds = (asked.action != Action::Delete).then_some((op, version));
        spans.push(Span { holds, by: Some(op) });
    }
    let span = spans.len() - 1;
    let expected =
        if takes_effect { Outcome::Committed(at.1) } else { Outcome::ConditionFailed(0) };
    if outcome != expected {
        let text = format!("{op:?} was {outcome:?} at {at:?}, by the log it is {expected:?}");
        replayed.wrong("C2", text);
    }
    replayed.decisions.insert(op, Decision { at, outcome, span });
}
