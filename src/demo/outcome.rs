//! What became of every packet of a run: the record that two runs are compared by.
//!
//! A packet has one outcome for ever; an answer that comes a second time changes nothing.

use core::ops::Range;
use nearstate_nf_node::DropReason;
use nearstate_placement::Side;

/// What became of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Record {
    Pending,
    Left { side: Side, place: Range<usize> },
    Dropped(DropReason),
}

/// What became of a packet, with the bytes that left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome<'a> {
    /// Nothing is known of it.
    Pending,
    /// It left.
    Left {
        /// The side that it left on.
        side: Side,
        /// What left.
        frame: &'a [u8],
    },
    /// It did not.
    Dropped(DropReason),
}

/// The outcomes of a run, by packet number.
#[derive(Debug)]
pub(crate) struct Outcomes {
    records: Vec<Record>,
    bytes: Vec<u8>,
    pending: usize,
}

impl Outcomes {
    /// Nothing known of any of `packets` packets.
    pub(crate) fn new(packets: usize) -> Self {
        Self { records: vec![Record::Pending; packets], bytes: Vec::new(), pending: packets }
    }

    /// How many packets are pending.
    pub(crate) fn pending(&self) -> usize {
        self.pending
    }

    /// How many packets there are.
    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    /// The outcome of a packet.
    pub(crate) fn get(&self, number: u32) -> Outcome<'_> {
        match &self.records[number as usize] {
            Record::Pending => Outcome::Pending,
            Record::Left { side, place } => {
                Outcome::Left { side: *side, frame: &self.bytes[place.clone()] }
            }
            Record::Dropped(reason) => Outcome::Dropped(*reason),
        }
    }

    /// It left with these bytes.
    pub(crate) fn left(&mut self, number: u32, side: Side, frame: &[u8]) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(frame);
        self.settle(number, Record::Left { side, place: start..self.bytes.len() });
    }

    /// It was dropped.
    pub(crate) fn dropped(&mut self, number: u32, reason: DropReason) {
        self.settle(number, Record::Dropped(reason));
    }

    fn settle(&mut self, number: u32, record: Record) {
        let place = &mut self.records[number as usize];
        assert!(*place == Record::Pending, "packet {number} has an outcome already");
        *place = record;
        self.pending -= 1;
    }
}
