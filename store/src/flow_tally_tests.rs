//! What packets are counted by, from the owner that counts to every replica.

use super::*;

/// Packets and bytes that a replica knows of.
fn totals(machine: &FlowMachine, key: &Key) -> (u64, u64) {
    let Value([.., packets, bytes]) = machine.table.get(key).unwrap().value;
    (packets, bytes)
}

#[test]
fn what_was_counted_is_told_within_its_time_and_adds_up_at_every_replica() {
    let mut shard = Shard::new(2, 100);
    let keys: Vec<Key> = (1..60).map(|number| key(ALONE, number)).collect();
    for key in &keys {
        shard.write(&[put(*key, 800)]);
    }
    shard.write(&[put(key(ALONE, 60), 0)]);
    let version = shard.replicas[1].table.get(&keys[0]).unwrap().version;
    let (passes, mut most) = (u64::from(TALLY_PASSES), 0);
    for round in 1..=3 {
        for (number, key) in (1..).zip(&keys) {
            assert!(shard.counted_packet(key, Tally::packet(100)));
            assert!(shard.counted_packet(key, Tally::packet(number)));
        }
        assert!(shard.counted_packet(&key(ALONE, 60), Tally::packet(1)), "endless ones count too");
        // A pass ends at the first look after its time.
        for _ in 0..passes * 6 {
            shard.time_ms += SOFT.within_ms / 5;
            let work = shard.work(true);
            most = most.max(work.seen.len());
            shard.propose(work);
        }
        for machine in &shard.replicas {
            for (number, key) in (1..).zip(&keys) {
                assert_eq!(totals(machine, key), (2 * round, round * (100 + number)));
            }
            assert_eq!(totals(machine, &key(ALONE, 60)), (round, round));
        }
        assert_eq!(shard.work(true).seen, [], "once");
    }
    assert!(most < keys.len() / 2, "they are told a part at a time: {most}");
    assert_eq!(shard.replicas[1].table.get(&keys[0]).unwrap().version, version, "no new version");
    assert_eq!(shard.replicas[0].state_hash(), shard.replicas[1].state_hash());
    // A value that is put anew, by somebody who knew older totals, leaves them as they are.
    shard.write(&[put(keys[0], 800)]);
    assert_eq!(totals(&shard.replicas[1], &keys[0]), (6, 303));
    // Gone, and made again: it counts from the start.
    shard.write(&[Write::Delete(keys[0])]);
    shard.write(&[put(keys[0], 800)]);
    assert_eq!(totals(&shard.replicas[1], &keys[0]), (0, 0));
}

#[test]
fn an_owner_that_is_about_to_go_tells_everything_and_one_that_dies_loses_what_it_had_not_told() {
    let mut shard = Shard::new(2, 100);
    shard.write(&[put(key(ALONE, 1), 800), put(key(ALONE, 2), 800)]);
    assert!(shard.counted_packet(&key(ALONE, 1), Tally::packet(70)));
    let clock = UpkeepClock { time_ms: shard.time_ms, now: shard.now(0), term: Term(1) };
    let mut work = Upkeep { tells_all_from: Some(0), ..Upkeep::new() };
    shard.replicas[0].upkeep(&clock, &mut work);
    assert!(!work.is_more, "a small table is looked through at once");
    shard.propose(work);
    assert!(shard.counted_packet(&key(ALONE, 2), Tally::packet(90)));
    shard.change_owner(1);
    assert_eq!(totals(&shard.replicas[1], &key(ALONE, 1)), (1, 70));
    assert_eq!(totals(&shard.replicas[1], &key(ALONE, 2)), (0, 0));
    // What cannot wait is told in the next pass, whichever it is.
    assert!(shard.counted_packet(&key(ALONE, 2), Tally::new(u64::MAX, 5)));
    let told = (0..12).any(|_| {
        shard.time_ms += SOFT.within_ms / 5;
        shard.work(true).seen.iter().any(|note| note.tally.is_large())
    });
    assert!(told);
}
