//! Batches come out as they went in, and nothing else comes out.

use super::*;
use crate::key::{Address, Endpoint};
use crate::types::TenantId;
use proptest::prelude::*;

fn endpoint() -> impl Strategy<Value = Endpoint> {
    prop_oneof![
        (any::<[u8; 4]>(), any::<u16>()).prop_map(|(address, port)| Endpoint::v4(address, port)),
        (any::<[u8; 16]>(), any::<u16>())
            .prop_map(|(address, port)| Endpoint { address: Address::from_octets(address), port }),
    ]
}

fn key() -> impl Strategy<Value = Key> {
    (1_u8.., any::<u8>(), any::<u16>(), endpoint(), endpoint()).prop_map(
        |(kind, protocol, tenant, a, b)| Key::new(kind, protocol, TenantId(tenant), (a, b)),
    )
}

fn value() -> impl Strategy<Value = Value> {
    prop::array::uniform8(prop_oneof![Just(0), any::<u64>()]).prop_map(Value)
}

fn condition() -> impl Strategy<Value = Condition> {
    prop_oneof![
        key().prop_map(Condition::Absent),
        key().prop_map(Condition::Present),
        (key(), any::<u64>()).prop_map(|(key, version)| Condition::Version(key, Version(version))),
        (key(), any::<u64>()).prop_map(|(key, version)| Condition::Expired(key, Version(version))),
    ]
}

fn write() -> impl Strategy<Value = Write> {
    let place = || prop_oneof![Just(None), (0..64_u8).prop_map(Some)];
    let fill = (place(), place()).prop_map(|(key_at, value_at)| Fill { key_at, value_at });
    let take = (any::<u8>(), any::<u8>(), any::<[u8; 16]>(), any::<u16>()).prop_map(
        |(pool, protocol, holder, like_port)| {
            Write::Take(Take { pool: PoolId(pool), protocol, holder, like_port })
        },
    );
    prop_oneof![
        (key(), value(), fill, any::<u32>()).prop_map(|(key, value, fill, ttl_s)| Write::Put {
            key,
            value,
            fill,
            ttl_s
        }),
        key().prop_map(Write::Delete),
        key().prop_map(Write::Touch),
        (key(), any::<u8>(), any::<i64>()).prop_map(|(key, at, amount)| Write::Add {
            key,
            at,
            amount
        }),
        take,
        (any::<u8>(), any::<u8>(), any::<[u8; 6]>()).prop_map(|(pool, protocol, endpoint)| {
            Write::Return { pool: PoolId(pool), protocol, endpoint }
        }),
    ]
}

fn transaction() -> impl Strategy<Value = Transaction> {
    let conditions = prop::collection::vec(condition(), 0..=CONDITIONS_MAX);
    let writes = prop::collection::vec(write(), 0..=WRITES_MAX);
    // Numbers of all lengths.
    let number = || (any::<u64>(), 0..64_u32).prop_map(|(number, shift)| number >> shift);
    (number(), number(), any::<u16>(), conditions, writes).prop_map(
        |(client, serial, slot, conditions, writes)| Transaction {
            id: TransactionId { client, serial },
            slot: SlotId(slot),
            conditions: conditions.into_iter().collect(),
            writes: writes.into_iter().collect(),
        },
    )
}

/// The second of two transactions uses a key twice, so that it is named by its number.
fn batch() -> impl Strategy<Value = Batch> {
    let transactions = prop::collection::vec(transaction(), 0..6);
    let note = (key(), any::<u32>(), 0..1_u64 << 28, 0..1_u64 << 36).prop_map(
        |(key, age_ms, packets, bytes)| SeenNote { key, age_ms, tally: Tally::new(packets, bytes) },
    );
    let seen = prop::collection::vec(note, 0..4);
    (any::<u64>(), transactions, seen, key(), value()).prop_map(
        |(time_ms, mut transactions, seen, key, value)| {
            let mut again = empty_transaction();
            again.conditions.push(Condition::Absent(key));
            again.writes.push(Write::Put { key, value, fill: Fill::default(), ttl_s: 300 });
            transactions.push(again);
            Batch { time_ms, transactions, seen }
        },
    )
}

proptest! {
    #[test]
    fn batches_come_out_as_they_went_in(batch in batch()) {
        let bytes = encode_batch(&batch);
        prop_assert_eq!(check_batch(&bytes), Ok(()));
        prop_assert_eq!(decode_batch(&bytes), Ok(batch));
    }

    #[test]
    fn what_is_cut_or_longer_is_refused(batch in batch(), cut in any::<prop::sample::Index>()) {
        let mut bytes = encode_batch(&batch);
        let cut = cut.index(bytes.len());
        prop_assert_eq!(check_batch(&bytes[..cut]), Err(SHORT));
        bytes.push(0);
        prop_assert_eq!(check_batch(&bytes), Err(PayloadError::Batch("bytes follow its end")));
    }

    #[test]
    fn a_changed_byte_gives_another_batch_or_an_error(
        batch in batch(), at in any::<prop::sample::Index>(), bit in 0..8_u32,
    ) {
        let mut bytes = encode_batch(&batch);
        let at = at.index(bytes.len());
        bytes[at] ^= 1_u8 << bit;
        if let Ok(other) = decode_batch(&bytes) {
            prop_assert_eq!(decode_batch(&encode_batch(&other)), Ok(other));
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut bytes = bytes;
        let _ = decode_batch(&bytes);
        // Past the header.
        if let Some((head, _)) = bytes.split_first_chunk_mut::<HEADER>() {
            *head = [FORMAT, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 3, 0, 0, 0];
        }
        let _ = decode_batch(&bytes);
    }
}

#[test]
fn a_flow_of_one_entry_takes_few_bytes() {
    let ends = (Endpoint::v4([10, 0, 0, 1], 1234), Endpoint::v4([192, 0, 2, 1], 53));
    let key = Key::new(3, 17, TenantId(0), ends);
    let mut flow = empty_transaction();
    flow.id = TransactionId { client: 3 << 16 | 1, serial: 1_000_000 };
    flow.conditions.push(Condition::Absent(key));
    let mut value = Value::ZERO;
    (value.0[0], value.0[1]) = (0xff, 1);
    flow.writes.push(Write::Put { key, value, fill: Fill::default(), ttl_s: 300 });
    let mut bytes = Vec::new();
    encode_transaction(&flow, &mut bytes);
    assert_eq!(bytes.len(), 50);
}

#[test]
fn numbers_too_long_are_refused() {
    let mut bytes =
        encode_batch(&Batch { time_ms: 1, transactions: vec![empty_transaction()], seen: vec![] });
    let ten = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2];
    bytes.splice(HEADER..=HEADER, ten);
    assert_eq!(decode_batch(&bytes), Err(PayloadError::Batch("a number in it is too large")));
}
