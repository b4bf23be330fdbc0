//! Batches as bytes: what a log entry of a flow shard holds, and what travels to its replicas.
//!
//! ```text
//! batch        format 3, time_ms 8, notes 2, transactions 4, then each note and each transaction:
//! note         key, age_ms v, packets v, bytes v
//! transaction  client v, serial v, slot 2, conditions << 4 | writes 1, then each:
//! condition    kind 1, key, version 8 (only of kinds Version and Expired)
//! write        kind 1, then its fields
//! key          0..10: the key of that number in this transaction; else 0xf0 | form, and the key:
//!              4 bytes, endpoint a, endpoint b; form bit 0: a is IPv4, bit 1: b is (6 bytes each)
//! value        mask of words that are not zero 1, those words
//! v            a number in groups of 7 bits, low ones first
//! ```
//!
//! Numbers are little-endian. A flow of one IPv4 entry takes about fifty bytes, a fifth of its
//! fixed-size form; every replica copies, checks and keeps it, so that is what a commit costs.
//! Decoding is total: a transaction, or an error; counts are bounded before they are believed.

use crate::key::{ENDPOINT_V4, KEY_BYTES, KEY_ENDPOINT_A, KEY_ENDPOINT_B, Key, Value};
use crate::limits::{BATCH_BYTES_MAX, BATCH_TRANSACTIONS_MAX, SEEN_NOTES_MAX};
use crate::machine::PayloadError;
use crate::tally::Tally;
use crate::transaction::{
    Batch, CONDITIONS_MAX, Condition, Fill, SeenNote, Take, Transaction, TransactionId, WRITES_MAX,
    Write,
};
use crate::types::{PoolId, SlotId, Version};
use arrayvec::ArrayVec;

/// Version of this format.
const FORMAT: u8 = 3;
const HEADER: usize = 15;
/// Where the shard's time stands, in this and in the form of moves ([`crate::slot_move`]).
pub(crate) const STAMP_AT: usize = 1;
/// Above all numbers of keys.
const NEW_KEY: u8 = 0xf0;
/// The first bytes of an endpoint that is an IPv4 address.
const V4_HEAD: [u8; ENDPOINT_V4] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
const NO_FILL: u8 = 0xff;

type Keys = ArrayVec<Key, { CONDITIONS_MAX + WRITES_MAX }>;

/// A batch as it goes into a log entry. Its maker keeps to [`BATCH_TRANSACTIONS_MAX`],
/// [`SEEN_NOTES_MAX`] and [`BATCH_BYTES_MAX`]; [`check_batch`] refuses more.
#[must_use]
pub fn encode_batch(batch: &Batch) -> Vec<u8> {
    let mut out = batch_header(batch.time_ms, batch.seen.len(), batch.transactions.len()).to_vec();
    for note in &batch.seen {
        let mut encoder = Encoder { out: &mut out, keys: Keys::new() };
        encoder.key(&note.key);
        encoder.number(note.age_ms.into());
        encoder.number(note.tally.packets());
        encoder.number(note.tally.bytes());
    }
    for transaction in &batch.transactions {
        encode_transaction(transaction, &mut out);
    }
    out
}

/// The first bytes of a batch; as many notes and transactions are to follow.
pub(crate) fn batch_header(time_ms: u64, notes: usize, transactions: usize) -> [u8; HEADER] {
    let mut header = [FORMAT; HEADER];
    stamp(&mut header, time_ms);
    header[9..11].copy_from_slice(&(notes as u16).to_le_bytes());
    header[11..].copy_from_slice(&(transactions as u32).to_le_bytes());
    header
}

/// Sets the time of an entry.
pub(crate) fn stamp(payload: &mut [u8], time_ms: u64) {
    payload[STAMP_AT..STAMP_AT + 8].copy_from_slice(&time_ms.to_le_bytes());
}

/// Appends one transaction.
pub(crate) fn encode_transaction(transaction: &Transaction, out: &mut Vec<u8>) {
    let Transaction { id, slot, conditions, writes } = transaction;
    let mut encoder = Encoder { out, keys: Keys::new() };
    encoder.number(id.client);
    encoder.number(id.serial);
    encoder.out.extend_from_slice(&slot.0.to_le_bytes());
    encoder.out.push((conditions.len() << 4 | writes.len()) as u8);
    conditions.iter().for_each(|condition| encoder.condition(condition));
    writes.iter().for_each(|write| encoder.write(write));
}

struct Encoder<'a> {
    out: &'a mut Vec<u8>,
    keys: Keys,
}

impl Encoder<'_> {
    fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.out.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.out.push(number as u8);
    }

    fn key(&mut self, key: &Key) {
        if let Some(at) = self.keys.iter().position(|seen| seen == key) {
            self.out.push(at as u8);
            return;
        }
        self.keys.push(*key);
        let bytes = key.to_bytes();
        let (a, b) = (&bytes[KEY_ENDPOINT_A..KEY_ENDPOINT_B], &bytes[KEY_ENDPOINT_B..]);
        let is_v4 = |end: &[u8]| end[..ENDPOINT_V4] == V4_HEAD;
        let (a_v4, b_v4) = (is_v4(a), is_v4(b));
        self.out.push(NEW_KEY | u8::from(a_v4) | u8::from(b_v4) << 1);
        self.out.extend_from_slice(&bytes[..KEY_ENDPOINT_A]);
        self.out.extend_from_slice(if a_v4 { &a[ENDPOINT_V4..] } else { a });
        self.out.extend_from_slice(if b_v4 { &b[ENDPOINT_V4..] } else { b });
    }

    fn value(&mut self, value: &Value) {
        let used = |at: &usize| value.0[*at] != 0;
        let mask = (0..value.0.len()).filter(used).fold(0_u8, |mask, at| mask | 1 << at);
        self.out.push(mask);
        for word in value.0.iter().filter(|word| **word != 0) {
            self.out.extend_from_slice(&word.to_le_bytes());
        }
    }

    fn condition(&mut self, condition: &Condition) {
        match condition {
            Condition::Absent(key) => self.tagged(0, key),
            Condition::Present(key) => self.tagged(1, key),
            Condition::Version(key, version) => self.versioned(2, key, *version),
            Condition::Expired(key, version) => self.versioned(3, key, *version),
        }
    }

    fn versioned(&mut self, kind: u8, key: &Key, version: Version) {
        self.tagged(kind, key);
        self.out.extend_from_slice(&version.0.to_le_bytes());
    }

    fn tagged(&mut self, kind: u8, key: &Key) {
        self.out.push(kind);
        self.key(key);
    }

    fn write(&mut self, write: &Write) {
        match write {
            Write::Put { key, value, fill, ttl_s } => {
                self.tagged(0, key);
                self.value(value);
                self.out.push(fill.key_at.unwrap_or(NO_FILL));
                self.out.push(fill.value_at.unwrap_or(NO_FILL));
                self.number((*ttl_s).into());
            }
            Write::Delete(key) => self.tagged(1, key),
            Write::Touch(key) => self.tagged(2, key),
            Write::Add { key, at, amount } => {
                self.tagged(3, key);
                self.out.push(*at);
                self.out.extend_from_slice(&amount.to_le_bytes());
            }
            Write::Take(Take { pool, protocol, holder, like_port }) => {
                self.out.push(4);
                self.out.extend_from_slice(&pool.0.to_le_bytes());
                self.out.push(*protocol);
                self.out.extend_from_slice(holder);
                self.out.extend_from_slice(&like_port.to_le_bytes());
            }
            Write::Return { pool, protocol, endpoint } => {
                self.out.push(5);
                self.out.extend_from_slice(&pool.0.to_le_bytes());
                self.out.push(*protocol);
                self.out.extend_from_slice(endpoint);
            }
        }
    }
}

/// Reads a batch: all notes, then one transaction after the other.
#[derive(Clone, Debug)]
pub struct BatchReader<'a> {
    rest: &'a [u8],
    time_ms: u64,
    notes: usize,
    left: usize,
}

const SHORT: PayloadError = PayloadError::Batch("it is cut short");

impl<'a> BatchReader<'a> {
    /// Reads what stands before the transactions.
    ///
    /// # Errors
    /// If the bytes are no batch, or one that is too large.
    pub fn new(payload: &'a [u8]) -> Result<Self, PayloadError> {
        if payload.len() > BATCH_BYTES_MAX {
            let (count, limit) = (payload.len(), BATCH_BYTES_MAX);
            return Err(PayloadError::TooMany { count, limit });
        }
        let (header, rest) = payload.split_first_chunk::<HEADER>().ok_or(SHORT)?;
        let [format, t0, t1, t2, t3, t4, t5, t6, t7, n0, n1, count @ ..] = *header;
        if format != FORMAT {
            return Err(PayloadError::Batch("it has another format"));
        }
        let time_ms = u64::from_le_bytes([t0, t1, t2, t3, t4, t5, t6, t7]);
        let notes = usize::from(u16::from_le_bytes([n0, n1]));
        let left = u32::from_le_bytes(count) as usize;
        bounded(notes, SEEN_NOTES_MAX)?;
        bounded(left, BATCH_TRANSACTIONS_MAX)?;
        Ok(Self { rest, time_ms, notes, left })
    }

    /// The shard's time.
    #[must_use]
    pub const fn time_ms(&self) -> u64 {
        self.time_ms
    }

    /// Transactions that have not been read.
    #[must_use]
    pub const fn left(&self) -> usize {
        self.left
    }

    /// Reads the next note; `None` after the last one.
    ///
    /// # Errors
    /// If the bytes are none.
    pub fn read_note(&mut self) -> Result<Option<SeenNote>, PayloadError> {
        if self.notes == 0 {
            return Ok(None);
        }
        self.notes -= 1;
        let key = self.key(&mut Keys::new())?;
        let age_ms = self.small_number()?;
        let (packets, bytes) = (self.number()?, self.number()?);
        let tally = Tally::new(packets, bytes);
        if (tally.packets(), tally.bytes()) != (packets, bytes) {
            return Err(PayloadError::Batch("a number in it is too large"));
        }
        Ok(Some(SeenNote { key, age_ms, tally }))
    }

    /// Reads the next transaction in the place of another, once all notes are read; `false` after
    /// the last one.
    ///
    /// # Errors
    /// If the bytes are none, or some follow the last one.
    pub fn read_into(&mut self, into: &mut Transaction) -> Result<bool, PayloadError> {
        assert!(self.notes == 0, "notes are read first");
        if self.left == 0 {
            let ends = self.rest.is_empty();
            return if ends { Ok(false) } else { Err(PayloadError::Batch("bytes follow its end")) };
        }
        self.left -= 1;
        into.id = TransactionId { client: self.number()?, serial: self.number()? };
        into.slot = SlotId(u16::from_le_bytes(self.take()?));
        let [counts] = self.take()?;
        let (conditions, writes) = (usize::from(counts >> 4), usize::from(counts & 0xf));
        bounded(conditions, CONDITIONS_MAX)?;
        bounded(writes, WRITES_MAX)?;
        into.conditions.clear();
        into.writes.clear();
        let mut keys = Keys::new();
        for _ in 0..conditions {
            into.conditions.push(self.condition(&mut keys)?);
        }
        for _ in 0..writes {
            into.writes.push(self.write(&mut keys)?);
        }
        Ok(true)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], PayloadError> {
        let (bytes, rest) = self.rest.split_first_chunk::<N>().ok_or(SHORT)?;
        self.rest = rest;
        Ok(*bytes)
    }

    fn number(&mut self) -> Result<u64, PayloadError> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let [byte] = self.take()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                break;
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(PayloadError::Batch("a number in it is too large"))
    }

    fn small_number(&mut self) -> Result<u32, PayloadError> {
        let number = self.number()?;
        u32::try_from(number).map_err(|_| PayloadError::Batch("a number in it is too large"))
    }

    fn version(&mut self) -> Result<Version, PayloadError> {
        Ok(Version(u64::from_le_bytes(self.take()?)))
    }

    fn key(&mut self, keys: &mut Keys) -> Result<Key, PayloadError> {
        let [form] = self.take()?;
        if form < NEW_KEY {
            let seen = keys.get(usize::from(form)).copied();
            return seen.ok_or(PayloadError::Batch("it names a key that is not there"));
        }
        let mut bytes = [0; KEY_BYTES];
        bytes[..KEY_ENDPOINT_A].copy_from_slice(&self.take::<KEY_ENDPOINT_A>()?);
        for (bit, at) in [(1, KEY_ENDPOINT_A), (2, KEY_ENDPOINT_B)] {
            let end = &mut bytes[at..at + 18];
            if form & bit == 0 {
                end.copy_from_slice(&self.take::<18>()?);
            } else {
                end[..ENDPOINT_V4].copy_from_slice(&V4_HEAD);
                end[ENDPOINT_V4..].copy_from_slice(&self.take::<6>()?);
            }
        }
        let key = Key::from_bytes(&bytes);
        // Cannot be full: it has a place for each key of a transaction.
        keys.push(key);
        Ok(key)
    }

    fn value(&mut self) -> Result<Value, PayloadError> {
        let [mask] = self.take()?;
        let mut value = Value::ZERO;
        for (at, word) in value.0.iter_mut().enumerate() {
            if mask >> at & 1 == 1 {
                *word = u64::from_le_bytes(self.take()?);
            }
        }
        Ok(value)
    }

    fn condition(&mut self, keys: &mut Keys) -> Result<Condition, PayloadError> {
        match self.take()? {
            [0] => Ok(Condition::Absent(self.key(keys)?)),
            [1] => Ok(Condition::Present(self.key(keys)?)),
            [2] => Ok(Condition::Version(self.key(keys)?, self.version()?)),
            [3] => Ok(Condition::Expired(self.key(keys)?, self.version()?)),
            _ => Err(PayloadError::Batch("a condition of an unknown kind")),
        }
    }

    fn write(&mut self, keys: &mut Keys) -> Result<Write, PayloadError> {
        match self.take()? {
            [0] => {
                let (key, value) = (self.key(keys)?, self.value()?);
                let [key_at, value_at] = self.take()?;
                let place = |at: u8| (at != NO_FILL).then_some(at);
                let fill = Fill { key_at: place(key_at), value_at: place(value_at) };
                Ok(Write::Put { key, value, fill, ttl_s: self.small_number()? })
            }
            [1] => Ok(Write::Delete(self.key(keys)?)),
            [2] => Ok(Write::Touch(self.key(keys)?)),
            [3] => {
                let (key, [at]) = (self.key(keys)?, self.take()?);
                Ok(Write::Add { key, at, amount: i64::from_le_bytes(self.take()?) })
            }
            [4] => {
                let pool = PoolId(u8::from_le_bytes(self.take()?));
                let ([protocol], holder) = (self.take()?, self.take()?);
                let like_port = u16::from_le_bytes(self.take()?);
                Ok(Write::Take(Take { pool, protocol, holder, like_port }))
            }
            [5] => {
                let pool = PoolId(u8::from_le_bytes(self.take()?));
                let ([protocol], endpoint) = (self.take()?, self.take()?);
                Ok(Write::Return { pool, protocol, endpoint })
            }
            _ => Err(PayloadError::Batch("a write of an unknown kind")),
        }
    }
}

fn bounded(count: usize, limit: usize) -> Result<(), PayloadError> {
    if count > limit { Err(PayloadError::TooMany { count, limit }) } else { Ok(()) }
}

/// A transaction that says nothing, to be read into.
pub(crate) fn empty_transaction() -> Transaction {
    let id = TransactionId { client: 0, serial: 0 };
    Transaction { id, slot: SlotId(0), conditions: ArrayVec::new(), writes: ArrayVec::new() }
}

/// Whether these bytes are a batch.
///
/// # Errors
/// Says what is wrong with it.
pub fn check_batch(payload: &[u8]) -> Result<(), PayloadError> {
    let mut reader = BatchReader::new(payload)?;
    while reader.read_note()?.is_some() {}
    let mut transaction = empty_transaction();
    while reader.read_into(&mut transaction)? {}
    Ok(())
}

/// All of a batch.
///
/// # Errors
/// Says what is wrong with it.
pub fn decode_batch(payload: &[u8]) -> Result<Batch, PayloadError> {
    let mut reader = BatchReader::new(payload)?;
    let (time_ms, mut transactions, mut seen) = (reader.time_ms(), Vec::new(), Vec::new());
    while let Some(note) = reader.read_note()? {
        seen.push(note);
    }
    let mut transaction = empty_transaction();
    while reader.read_into(&mut transaction)? {
        transactions.push(transaction.clone());
    }
    Ok(Batch { time_ms, transactions, seen })
}

#[cfg(test)]
#[path = "batch_tests.rs"]
mod tests;
