//! Owners are killed and stopped under load, and everything that anybody was told is checked
//! afterwards.
//!
//! A cluster of real processes on loopback, with the default timing; clients in each of them read
//! and write by all the ways there are and record what they ask and what they are told. The short
//! form runs with the other tests; `NEARSTATE_CHAOS=200` makes 200 kills and 200 pauses, and
//! `NEARSTATE_CHAOS_SEED` repeats a run's choices (what the system does in between is its own).
//!
//! The properties have the names that the design gives them. C1: each key is linearizable. C2: an
//! operation takes effect once. C3: nothing is told before a quorum has it. C4: what was
//! acknowledged stays. C5: no read is older than what was acknowledged before it began. C6: one
//! owner a term. C7: only intact values are told. R1: replicas that applied the same have the same.
//! `checks` and `linear` share no code with what they check.

#![expect(clippy::disallowed_methods, reason = "says how long it took")]

mod check_tests;
mod checks;
mod cluster;
mod dice;
mod history;
mod linear;
mod load;
mod machine;
mod record;
mod replay;
mod replica;

use checks::Violation;
use cluster::{Cluster, Fault, Faults};
use dice::Dice;
use history::History;
use nearstate_store::NodeId;
use nearstate_store::clock::wall_ms;
use std::time::Instant;

/// Kills, and pauses, of the short form.
const SHORT: u64 = 8;
/// Most operations whose outcome may be unknown: one of so many.
const UNKNOWN_ONE_OF: usize = 20;
/// Violations that are printed.
const SHOWN: usize = 20;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is to be a number, not {text:?}")))
}

/// As many kills as pauses (half of them long, a quarter amid a hand-over), and some hand-overs, in
/// random order.
fn plan(each: u64, dice: &mut Dice) -> Vec<Fault> {
    let mut plan = Vec::new();
    for turn in 0..each {
        plan.push(Fault::Kill);
        plan.push(match turn % 4 {
            0 => Fault::Pause,
            1 => Fault::PauseInHandOver,
            _ => Fault::LongPause,
        });
        if turn % 4 == 0 {
            plan.push(Fault::HandOver);
        }
    }
    dice.shuffle(&mut plan);
    plan
}

/// All checks, each with how many violations it found.
fn check(history: &History, voters: &[NodeId]) -> Vec<Violation> {
    let mut all = history.contradictions();
    let replayed = replay::replay(history);
    all.extend(replayed.violations.iter().cloned());
    all.extend(linear::check(history));
    all.extend(checks::once(history));
    all.extend(checks::released_after_commit(history, &replayed));
    all.extend(checks::acknowledged_stays(history, &replayed, voters));
    all.extend(checks::no_read_is_old(history, &replayed));
    all.extend(checks::one_owner(history));
    all.extend(checks::only_intact_values(history, &replayed));
    all
}

#[test]
fn owners_that_are_killed_or_stopped_break_no_promise() {
    let seed = number("NEARSTATE_CHAOS_SEED").unwrap_or_else(wall_ms);
    let each = number("NEARSTATE_CHAOS").unwrap_or(SHORT);
    println!("chaos: seed {seed}, {each} kills and {each} pauses of owners");
    let mut dice = Dice::new(seed);
    let began = Instant::now();
    let mut cluster = Cluster::form(dice.word()).unwrap();
    let plan = plan(each, &mut dice);
    for (done, fault) in plan.iter().enumerate() {
        if let Err(error) = cluster.strike(*fault) {
            panic!("{fault:?} after {done} others (seed {seed}): {error}");
        }
        if done % 50 == 49 {
            println!("chaos: {} of {}, {:.0?}", done + 1, plan.len(), began.elapsed());
        }
    }
    let voters = cluster.settle().unwrap();
    let faults = cluster.faults;
    let ran = began.elapsed();
    let history = History::read(cluster.records()).unwrap();
    let violations = check(&history, &voters);
    let Faults { kills, pauses, succeeded_pauses, hand_overs } = faults;
    println!(
        "chaos: seed {seed}: {kills} kills, {pauses} pauses (after {succeeded_pauses} another \
         owner), {hand_overs} hand-overs, in {ran:.0?}; checked in {:.0?}",
        began.elapsed() - ran
    );
    println!("chaos: {}", history.summary());
    println!("chaos: {} violations", violations.len());
    for Violation { property, text } in violations.iter().take(SHOWN) {
        println!("chaos: {property}: {text}");
    }
    if !violations.is_empty() {
        println!("chaos: the records are kept in {}", cluster.keep_records().display());
    }
    assert!(violations.is_empty(), "promises were broken (seed {seed}), see above");
    assert_eq!((faults.kills, faults.pauses), (each, each), "every fault counts");
    assert!(faults.succeeded_pauses > 0, "owners woke up with another one in their place");
    assert!(history.every_way_was_taken(), "reads of every kind: {}", history.summary());
    let (unknown, operations) = (history.unknown(), history.operations());
    assert!(unknown * UNKNOWN_ONE_OF <= operations, "{unknown} of {operations} are unknown");
}

#[test]
#[ignore = "one node of the cluster, in a process of its own: started by the other test"]
fn a_node() {
    // Started by hand it is nobody.
    let Ok(description) = std::env::var(replica::VARIABLE) else { return };
    replica::run(&description).unwrap();
}
