//! What is recorded of blocks of ports, over a change of owner.

use super::*;
use crate::transaction::Refusal;

/// R6888-14, R6888-12.
#[test]
fn every_block_is_recorded_once_when_it_is_given_and_once_when_it_is_free() {
    let mut shard = Shard::new(2, 200);
    for number in 0..60 {
        assert!(matches!(shard.write(&take(number)), Outcome::Committed(_)));
    }
    let mut refused = take(77);
    let Write::Put { ttl_s, .. } = &mut refused[2] else { unreachable!() };
    *ttl_s = u32::MAX;
    assert_eq!(shard.write(&refused), Outcome::Refused(Refusal::Malformed));
    let given = shard.work(false).blocks;
    let held = shard.replicas[0].pool_check().unwrap().blocks_held;
    assert!(held >= 5 && given.len() as u64 == held, "{held} blocks: {given:?}");
    assert!(given.iter().all(|record| record.is_given && record.pool == POOL));
    let mut blocks: Vec<_> = given.iter().map(|record| (record.first, record.holder)).collect();
    blocks.sort_unstable();
    assert!(blocks.windows(2).all(|pair| pair[0].0 != pair[1].0), "each once");
    // Ports that rest are their holder's still.
    shard.time_ms += 21_000;
    assert_eq!(shard.upkeep().len(), 60);
    assert_eq!(shard.work(false).blocks, []);
    // The owner dies before it has said that they are free.
    shard.time_ms += 120_000;
    shard.apply(vec![], vec![]);
    shard.change_owner(1);
    let free = shard.work(false).blocks;
    assert!(free.iter().all(|record| !record.is_given), "{free:?}");
    let mut freed: Vec<_> = free.iter().map(|record| (record.first, record.holder)).collect();
    freed.sort_unstable();
    assert_eq!(freed, blocks);
    assert_eq!(shard.work(false).blocks, [], "each once");
}
