//! C1: whether the history of each key is linearizable, by the search of Wing and Gong with Lowe's
//! memory of what was tried.
//!
//! It knows only what clients were told, not the log. A write whose outcome its client never
//! learned may take effect at any time from when it was asked for, or never; a read that failed is
//! left out. Each key is checked alone, which is enough: a history is linearizable if each object's
//! is. The search is bounded by its steps: a history that takes more is not called good.

use crate::checks::Violation;
use crate::history::{History, Op};
use crate::record::{Action, OpId, Seen};
use nearstate_store::{Outcome, Time};
use std::collections::{BTreeMap, BTreeSet};

/// Steps of the search after which it is given up.
const STEPS_MAX: u64 = 20_000_000;

/// What a key holds: who wrote it.
type Held = Option<OpId>;

/// What a client did to a key, and what it was told.
#[derive(Clone, Copy, Debug)]
enum What {
    Read(Held),
    /// Told whether it took effect, if anything.
    Write(OpId, Action, Option<bool>),
}

/// An operation of a key's history.
#[derive(Clone, Copy, Debug)]
struct Call {
    from: Time,
    to: Time,
    what: What,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Linearizable,
    Not,
    GivenUp,
}

/// What a key holds after an operation, if the operation can have been told that on what was there
/// before.
fn step(held: Held, what: What) -> Option<Held> {
    match what {
        What::Read(seen) => (seen == held).then_some(held),
        What::Write(op, action, told) => {
            let (takes_effect, after) = match action {
                Action::Put => (true, Some(op)),
                Action::Create => (held.is_none(), Some(op)),
                Action::Swap(expected, _) => (held == Some(expected), Some(op)),
                Action::Delete => (held.is_some(), None),
            };
            let fits = told.is_none_or(|told| told == takes_effect);
            fits.then_some(if takes_effect { after } else { held })
        }
    }
}

/// Places of the list: 0 is its head, then each event.
struct Event {
    call: usize,
    /// Where the return of this call stands; `None` if this is one.
    returns: Option<usize>,
    before: usize,
    after: usize,
}

/// The events of a history in the order of time, as a list from which calls are taken.
struct Events(Vec<Event>);

const HEAD: usize = 0;
const END: usize = usize::MAX;

impl Events {
    fn new(calls: &[Call]) -> Self {
        // Of two events at one moment the call comes first: then they overlap.
        let mut order: Vec<(Time, bool, usize)> = calls
            .iter()
            .enumerate()
            .flat_map(|(at, call)| [(call.from, false, at), (call.to, true, at)])
            .collect();
        order.sort_unstable();
        let mut events = vec![Event { call: END, returns: None, before: END, after: END }];
        let mut called = vec![HEAD; calls.len()];
        for (_, is_return, call) in order {
            let (place, before) = (events.len(), events.len() - 1);
            events[before].after = place;
            events.push(Event { call, returns: None, before, after: END });
            if is_return {
                events[called[call]].returns = Some(place);
            } else {
                called[call] = place;
            }
        }
        Self(events)
    }

    fn unlink(&mut self, place: usize) {
        let (before, after) = (self.0[place].before, self.0[place].after);
        self.0[before].after = after;
        if after != END {
            self.0[after].before = before;
        }
    }

    fn link(&mut self, place: usize) {
        let (before, after) = (self.0[place].before, self.0[place].after);
        self.0[before].after = place;
        if after != END {
            self.0[after].before = place;
        }
    }

    /// Takes a call and its return out.
    fn lift(&mut self, call: usize, returns: usize) {
        self.unlink(call);
        self.unlink(returns);
    }

    /// Undoes the last lift.
    fn unlift(&mut self, call: usize, returns: usize) {
        self.link(returns);
        self.link(call);
    }
}

/// Which calls have been put in order.
type Done = Box<[u64]>;

fn flip(done: &mut Done, call: usize) {
    done[call / 64] ^= 1 << (call % 64);
}

fn search(calls: &[Call], steps_max: u64) -> Verdict {
    let mut events = Events::new(calls);
    let mut held: Held = None;
    let mut done: Done = vec![0; calls.len().div_ceil(64)].into();
    let mut tried: BTreeSet<(Done, Held)> = BTreeSet::new();
    let mut stack: Vec<(usize, usize, Held)> = Vec::new();
    let mut place = events.0[HEAD].after;
    let mut steps = 0;
    while events.0[HEAD].after != END {
        steps += 1;
        if steps > steps_max {
            return Verdict::GivenUp;
        }
        if place != END
            && let Event { call, returns: Some(returns), after, .. } = events.0[place]
        {
            let next = step(held, calls[call].what);
            flip(&mut done, call);
            if let Some(next) = next.filter(|next| tried.insert((done.clone(), *next))) {
                stack.push((place, returns, held));
                held = next;
                events.lift(place, returns);
                place = events.0[HEAD].after;
            } else {
                flip(&mut done, call);
                place = after;
            }
            continue;
        }
        // A return whose call could not be put anywhere before it: take back the last choice.
        let Some((taken, returns, before)) = stack.pop() else { return Verdict::Not };
        held = before;
        flip(&mut done, events.0[taken].call);
        events.unlift(taken, returns);
        place = events.0[taken].after;
    }
    Verdict::Linearizable
}

fn write_call(op: OpId, asked: &Op) -> Option<Call> {
    let Op { action, invoked, answered, .. } = *asked;
    let (to, told) = match answered {
        None => (Time(u64::MAX), None),
        Some((at, Outcome::Committed(_))) => (at, Some(true)),
        Some((at, Outcome::ConditionFailed(_))) => (at, Some(false)),
        // Had no effect; that it happened at all is another check's matter.
        Some((_, Outcome::Refused(_) | Outcome::Elsewhere(_))) => return None,
    };
    Some(Call { from: invoked, to, what: What::Write(op, action, told) })
}

/// See the module's text.
pub(crate) fn check(history: &History) -> Vec<Violation> {
    let mut keys: BTreeMap<_, Vec<Call>> = BTreeMap::new();
    for (op, asked) in &history.ops {
        keys.entry(asked.key).or_default().extend(write_call(*op, asked));
    }
    for (_, read) in &history.reads {
        let seen = match read.seen {
            Seen::Nothing => None,
            Seen::Entry(op, _) => Some(op),
            // Not a value at all: another check's matter.
            Seen::Nonsense => continue,
        };
        let call = Call { from: read.from, to: read.to, what: What::Read(seen) };
        keys.entry(read.key).or_default().push(call);
    }
    let verdicts = keys.iter().map(|(key, calls)| (key, calls, search(calls, STEPS_MAX)));
    let text = |(key, calls, verdict): (_, &Vec<Call>, Verdict)| {
        let calls = calls.len();
        match verdict {
            Verdict::Linearizable => None,
            Verdict::Not => Some(format!("{calls} operations of {key:?} are not linearizable")),
            Verdict::GivenUp => Some(format!("{calls} operations of {key:?} take too long")),
        }
    };
    let texts = verdicts.filter_map(text);
    texts.map(|text| Violation { property: "C1", text }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dice::Dice;
    use nearstate_store::Version;

    const A: OpId = OpId::new(1, 1);
    const B: OpId = OpId::new(1, 2);

    fn call(from: u64, to: u64, what: What) -> Call {
        Call { from: Time(from), to: Time(to), what }
    }

    fn put(op: OpId) -> What {
        What::Write(op, Action::Put, Some(true))
    }

    #[test]
    fn good_histories_are_told_from_bad_ones() {
        use Verdict::{Linearizable, Not};
        use What::{Read, Write};
        let unknown = Write(A, Action::Put, None);
        let swap = |told| Write(B, Action::Swap(A, Version(0)), Some(told));
        let table: &[(&str, &[Call], Verdict)] = &[
            ("nothing", &[], Linearizable),
            ("read", &[call(0, 1, put(A)), call(2, 3, Read(Some(A)))], Linearizable),
            ("read of nothing after a write", &[call(0, 1, put(A)), call(2, 3, Read(None))], Not),
            ("it overlaps", &[call(0, 3, put(A)), call(2, 4, Read(None))], Linearizable),
            ("it touches", &[call(0, 3, put(A)), call(3, 4, Read(None))], Linearizable),
            ("from the future", &[call(0, 1, Read(Some(A))), call(2, 3, put(A))], Not),
            (
                "stale after it was overwritten",
                &[call(0, 1, put(A)), call(2, 3, put(B)), call(4, 5, Read(Some(A)))],
                Not,
            ),
            (
                "back and forth",
                &[
                    call(0, 9, put(A)),
                    call(0, 9, put(B)),
                    call(1, 2, Read(Some(A))),
                    call(3, 4, Read(Some(B))),
                    call(5, 6, Read(Some(A))),
                ],
                Not,
            ),
            (
                "an unknown write that took effect late",
                &[
                    call(0, u64::MAX, unknown),
                    call(1, 2, put(B)),
                    call(3, 4, Read(Some(B))),
                    call(5, 6, Read(Some(A))),
                ],
                Linearizable,
            ),
            (
                "an unknown write that took effect twice",
                &[
                    call(0, u64::MAX, unknown),
                    call(1, 2, Read(Some(A))),
                    call(3, 4, put(B)),
                    call(5, 6, Read(Some(A))),
                ],
                Not,
            ),
            ("a swap", &[call(0, 1, put(A)), call(2, 3, swap(true))], Linearizable),
            ("a swap of nothing", &[call(0, 1, swap(true))], Not),
            ("a swap that had to succeed", &[call(0, 1, put(A)), call(2, 3, swap(false))], Not),
            (
                "two that created",
                &[
                    call(0, 9, Write(A, Action::Create, Some(true))),
                    call(0, 9, Write(B, Action::Create, Some(true))),
                ],
                Not,
            ),
            ("deleted nothing", &[call(0, 1, Write(A, Action::Delete, Some(true)))], Not),
        ];
        for (what, calls, verdict) in table {
            assert_eq!(search(calls, STEPS_MAX), *verdict, "{what}");
        }
        assert_eq!(search(&[call(0, 1, put(A))], 0), Verdict::GivenUp);
    }

    /// Tries every order, however slowly.
    fn linearizable_by_trying(calls: &[Call], held: Held) -> bool {
        let first_return = calls.iter().map(|call| call.to).min();
        let is_over = |call: &Call| call.to < Time(u64::MAX);
        !calls.iter().any(is_over)
            || (0..calls.len()).filter(|at| Some(calls[*at].from) <= first_return).any(|at| {
                let mut rest = calls.to_vec();
                let call = rest.remove(at);
                let never = !is_over(&call) && linearizable_by_trying(&rest, held);
                never
                    || step(held, call.what).is_some_and(|held| linearizable_by_trying(&rest, held))
            })
    }

    #[test]
    fn small_random_histories_get_the_verdict_of_trying_every_order() {
        let mut dice = Dice::new(11);
        let mut good = 0;
        for round in 0..20_000 {
            let calls: Vec<Call> = (0..5)
                .map(|serial| {
                    let from = dice.below(12);
                    let op = OpId::new(1, serial);
                    let told = Some(dice.below(2) == 0);
                    let seen = OpId::new(1, dice.below(5));
                    let what = match dice.below(6) {
                        0 => What::Read(None),
                        1 => What::Read(Some(seen)),
                        2 => What::Write(op, Action::Create, told),
                        3 => What::Write(op, Action::Swap(seen, Version(0)), told),
                        4 => What::Write(op, Action::Delete, told),
                        _ => put(op),
                    };
                    match (what, dice.below(5)) {
                        (What::Write(op, action, _), 0) => {
                            call(from, u64::MAX, What::Write(op, action, None))
                        }
                        _ => call(from, from + 1 + dice.below(6), what),
                    }
                })
                .collect();
            let expected = linearizable_by_trying(&calls, None);
            let verdict = search(&calls, STEPS_MAX);
            assert_eq!(verdict == Verdict::Linearizable, expected, "round {round}: {calls:?}");
            good += u32::from(expected);
        }
        assert!((1_000..19_000).contains(&good), "{good} of 20000 are good");
    }
}
