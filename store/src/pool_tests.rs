//! A slot's pool against a model that knows each port.

use super::*;
use crate::limits::PORT_HOLD_DOWN_MS;
use crate::types::PoolId;
use proptest::prelude::*;

fn spec(slots: u32, blocks_per_holder_max: u16) -> PoolSpec {
    let addresses = vec![Ipv4Addr::new(198, 19, 0, 1), Ipv4Addr::new(198, 19, 0, 2)];
    PoolSpec::new(PoolId(0), addresses, slots, blocks_per_holder_max).unwrap()
}

fn wish(holder: u8, protocol: u8, like_port: u16) -> Take {
    Take { pool: PoolId(0), protocol, holder: [holder; 16], like_port }
}

fn port(endpoint: [u8; 6]) -> u16 {
    u16::from_be_bytes([endpoint[4], endpoint[5]])
}

#[test]
fn parity_is_kept_while_there_is_room_and_then_given_up() {
    let spec = spec(1008, 1);
    let mut pool = SlotPool::new(&spec, SlotId(0));
    assert_eq!(pool.counts().blocks, 2);
    let mut seen = std::collections::BTreeSet::new();
    for i in 0..64 {
        let got = pool.take(&spec, &wish(1, 17, 5000), 0, i * 77_777).unwrap();
        assert!(seen.insert(got), "given twice");
        assert_eq!(port(got).is_multiple_of(2), i < 32, "port {i}");
    }
    assert_eq!(pool.take(&spec, &wish(1, 17, 5000), 0, 3), Err(Refusal::QuotaReached));
    assert_eq!(port(pool.take(&spec, &wish(1, 6, 5001), 0, 5).unwrap()) % 2, 1);
    pool.take(&spec, &wish(2, 1, 1), 0, 5).unwrap();
    assert_eq!(pool.take(&spec, &wish(3, 17, 1), 0, 5), Err(Refusal::PoolEmpty));
    assert_eq!(pool.take(&spec, &wish(3, 47, 1), 0, 5), Err(Refusal::Malformed));
}

#[test]
fn a_returned_port_rests_and_its_block_is_free_after_it() {
    let spec = spec(2016, 1);
    let mut pool = SlotPool::new(&spec, SlotId(7));
    let got = pool.take(&spec, &wish(1, 6, 1), 1000, 9).unwrap();
    assert!(pool.owns(&spec, 6, got) && !SlotPool::new(&spec, SlotId(8)).owns(&spec, 6, got));
    assert_eq!(pool.give_back(&spec, 17, got, 1000), None, "it is no UDP port");
    assert_eq!(pool.give_back(&spec, 6, got, 1000), Some(1000 + PORT_HOLD_DOWN_MS));
    assert_eq!(pool.give_back(&spec, 6, got, 1000), None, "twice");
    for _ in 0..63 {
        assert_ne!(pool.take(&spec, &wish(1, 6, 1), 1000, 9).unwrap(), got);
    }
    let until = 1000 + PORT_HOLD_DOWN_MS;
    assert_eq!(pool.take(&spec, &wish(1, 6, 1), until - 1, 9), Err(Refusal::QuotaReached));
    assert_eq!(pool.take(&spec, &wish(1, 6, 1), until, 9), Ok(got));
}

#[test]
fn a_holder_stays_on_one_address_while_it_can() {
    let spec = spec(1, 100);
    let mut pool = SlotPool::new(&spec, SlotId(0));
    let first = pool.take(&spec, &wish(1, 17, 2), 0, 1 << 40 | 12345).unwrap();
    for seed in 0..1000_u64 {
        let got =
            pool.take(&spec, &wish(1, 17, 2), 0, seed.wrapping_mul(0x9e37_79b9_7f4a)).unwrap();
        assert_eq!(got[..4], first[..4]);
    }
}

proptest! {
    #[test]
    fn no_port_has_two_holders_and_none_is_lost(
        steps in prop::collection::vec((0_u8..10, 0_u8..4, any::<u16>(), any::<u64>()), 1..400),
    ) {
        let spec = spec(400, 2);
        let mut pool = SlotPool::new(&spec, SlotId(3));
        let mut live: Vec<(u8, u8, [u8; 6])> = Vec::new();
        let mut resting: Vec<(u64, u8, [u8; 6])> = Vec::new();
        let mut now = 0;
        for (what, holder, like, seed) in steps {
            now += seed % 20_000;
            let protocol = [6, 17, 1][usize::from(like % 3)];
            match what {
                0..6 => if let Ok(got) =
                    pool.take(&spec, &wish(holder, protocol, like), now, seed)
                {
                    resting.retain(|(until, ..)| *until > now);
                    prop_assert!(!live.iter().any(|(_, p, e)| (*p, *e) == (protocol, got)));
                    prop_assert!(!resting.iter().any(|(_, p, e)| (*p, *e) == (protocol, got)));
                    if what == 0 {
                        let before = pool.clone();
                        pool.undo_take(&spec, protocol, got);
                        let again = pool.take(&spec, &wish(holder, protocol, like), now, seed);
                        prop_assert_eq!(again, Ok(got));
                        prop_assert_eq!(&pool, &before);
                    }
                    live.push((holder, protocol, got));
                },
                _ if !live.is_empty() => {
                    let (_, protocol, got) = live.swap_remove(seed as usize % live.len());
                    let until = now + PORT_HOLD_DOWN_MS;
                    prop_assert_eq!(pool.give_back(&spec, protocol, got, now), Some(until));
                    resting.push((now + PORT_HOLD_DOWN_MS, protocol, got));
                }
                _ => {}
            }
            pool.wake(now);
            resting.retain(|(until, ..)| *until > now);
            let counts = pool.counts();
            prop_assert_eq!(counts.live, live.len() as u64);
            prop_assert_eq!(counts.resting, resting.len() as u64);
        }
        let (blocks, rest) = pool.parts();
        let (blocks, rest) = (blocks.collect(), rest.clone());
        let copy = SlotPool::new(&spec, SlotId(3)).with_parts(blocks, rest);
        prop_assert_eq!(copy.as_ref(), Some(&pool));
        pool.wake(u64::MAX);
        for (_, protocol, got) in live {
            pool.give_back(&spec, protocol, got, 0);
        }
        pool.wake(u64::MAX);
        prop_assert_eq!(pool, SlotPool::new(&spec, SlotId(3)));
    }
}
