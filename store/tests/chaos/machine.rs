//! The flow machine, and a record of everything that it is given and of what it answers.

use crate::record::{OpId, Record, Recorder, payload_name};
use nearstate_store::batch::BatchReader;
use nearstate_store::machine::{PayloadError, SnapshotError};
use nearstate_store::upkeep::{Upkeep, UpkeepClock};
use nearstate_store::{
    FlowMachine, LogIndex, Machine, Outcome, Reply, ShardId, SlotId, Term, Transaction,
    TransactionId, clock,
};
use std::sync::OnceLock;

/// After how many entries the state's hash is recorded; each costs a scan of the table.
const HASH_EVERY: u64 = 64;

/// [`Machine::check`] is a function without a machine: it finds this process's file here.
static RECEIVED: OnceLock<Recorder> = OnceLock::new();

/// See the module's text.
pub(crate) struct RecordingMachine {
    shard: ShardId,
    inner: FlowMachine,
    recorder: Recorder,
    term: Term,
}

impl RecordingMachine {
    pub(crate) fn new(shard: ShardId, inner: FlowMachine, recorder: Recorder) -> Self {
        RECEIVED.get_or_init(|| recorder.clone());
        Self { shard, inner, recorder, term: Term(0) }
    }
}

fn decided(payload: &[u8], reply: &Reply) -> Vec<(OpId, Outcome)> {
    let Reply::Outcomes(outcomes) = reply else { return Vec::new() };
    let mut reader = BatchReader::new(payload).expect("the payload was checked");
    while reader.read_note().expect("the payload was checked").is_some() {}
    let mut transaction = Transaction {
        id: TransactionId { client: 0, serial: 0 },
        slot: SlotId(0),
        conditions: Default::default(),
        writes: Default::default(),
    };
    let mut all = Vec::with_capacity(outcomes.len());
    for outcome in outcomes {
        let more = reader.read_into(&mut transaction).expect("the payload was checked");
        assert!(more, "one outcome for each transaction");
        all.push((OpId::new(transaction.id.client, transaction.id.serial), *outcome));
    }
    all
}

impl Machine for RecordingMachine {
    /// A leader checks what it is about to write, a follower what it is about to append: whoever
    /// has a payload has recorded it.
    fn check(payload: &[u8]) -> Result<(), PayloadError> {
        if let Some(recorder) = RECEIVED.get() {
            let at = clock::boot_now();
            recorder.write(&[Record::Received { at, payload: payload_name(payload) }]);
        }
        FlowMachine::check(payload)
    }

    fn enter(&mut self, index: LogIndex, term: Term) {
        self.term = term;
        self.inner.enter(index, term);
    }

    fn apply(&mut self, index: LogIndex, payload: &[u8]) -> Reply {
        let at = clock::boot_now();
        self.recorder.write(&[Record::Entered { at, shard: self.shard, index }]);
        let reply = self.inner.apply(index, payload);
        let (shard, term, payload_name) = (self.shard, self.term, payload_name(payload));
        let mut records = vec![Record::Applied { at, shard, index, term, payload: payload_name }];
        let decided = decided(payload, &reply);
        records.extend(decided.into_iter().map(|(op, outcome)| Record::Decided { op, outcome }));
        if index.0.is_multiple_of(HASH_EVERY) {
            records.push(Record::Hashed { shard, index, hash: self.inner.state_hash() });
        }
        self.recorder.write(&records);
        reply
    }

    fn time_ms(&self) -> u64 {
        self.inner.time_ms()
    }

    fn snapshot(&self) -> Vec<u8> {
        self.inner.snapshot()
    }

    fn install(&mut self, snapshot: &[u8]) -> Result<(), SnapshotError> {
        self.inner.install(snapshot)
    }

    fn upkeep(&mut self, clock: &UpkeepClock, work: &mut Upkeep) {
        self.inner.upkeep(clock, work);
    }

    fn state_hash(&self) -> u64 {
        self.inner.state_hash()
    }
}
