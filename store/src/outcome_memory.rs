//! What came of each client's last transactions, so that a retry takes effect once.
//!
//! Replicated and bounded: the last [`OUTCOMES_PER_CLIENT`] serials of at most
//! [`OUTCOME_CLIENTS_MAX`] clients. A serial too old to be remembered is said to be forgotten:
//! whether it took effect is then unknown, and it is refused. When there are too many clients the
//! least recently active one is forgotten altogether; the bound is far above the pipes of a
//! cluster, and a client that starts anew takes a new number.

use crate::limits::{OUTCOME_CLIENTS_MAX, OUTCOMES_PER_CLIENT};
use crate::transaction::{Outcome, TransactionId};
use crate::types::SlotId;
use std::collections::BTreeMap;

/// What the memory knows of an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recall {
    /// Not seen: it may take effect.
    New,
    /// Decided before, with this outcome.
    Known(Outcome),
    /// Too old to be known.
    Forgotten,
}

#[derive(Clone, Debug)]
struct Client {
    /// Which turn of a client, of all turns, its last outcomes came in.
    used: u64,
    newest: u64,
    /// Serial `s` stands at `s % OUTCOMES_PER_CLIENT`; serial 0 is an empty place.
    ring: Box<[Remembered]>,
}

/// See the module's text.
#[derive(Clone, Debug, Default)]
pub struct OutcomeMemory {
    clients: BTreeMap<u64, Client>,
    /// Clients by when they were last active.
    by_use: BTreeMap<u64, u64>,
    uses: u64,
}

#[derive(Clone, Copy, Debug)]
struct Remembered {
    serial: u64,
    outcome: Outcome,
    /// Goes with the slot when that moves to another shard.
    slot: SlotId,
}

const EMPTY: Remembered =
    Remembered { serial: 0, outcome: Outcome::ConditionFailed(0), slot: SlotId(0) };

const fn place(serial: u64) -> usize {
    (serial % OUTCOMES_PER_CLIENT as u64) as usize
}

impl OutcomeMemory {
    /// What is known of an id.
    #[must_use]
    pub fn recall(&self, id: TransactionId) -> Recall {
        let Some(client) = self.clients.get(&id.client) else { return Recall::New };
        match client.ring[place(id.serial)] {
            Remembered { serial, outcome, .. } if serial == id.serial => Recall::Known(outcome),
            _ if id.serial.saturating_add(OUTCOMES_PER_CLIENT as u64) <= client.newest => {
                Recall::Forgotten
            }
            _ => Recall::New,
        }
    }

    /// Remembers what came of an id in another shard, unless something is known of it here.
    pub fn remember_late(&mut self, id: TransactionId, slot: SlotId, outcome: Outcome) {
        // A client has nothing under way that is so old: see `PipeLink`.
        if self.recall(id) == Recall::New {
            self.remember(id, slot, outcome);
        }
    }

    /// What is remembered of transactions of a slot.
    pub fn of_slot(&self, slot: SlotId) -> impl Iterator<Item = (TransactionId, Outcome)> + '_ {
        self.iter().filter(move |(_, of, _)| *of == slot).map(|(id, _, outcome)| (id, outcome))
    }

    /// Remembers what came of a new id (serial not 0) of a slot.
    pub fn remember(&mut self, id: TransactionId, slot: SlotId, outcome: Outcome) {
        assert!(id.serial != 0, "serials count from 1");
        let client = self.clients.entry(id.client).or_insert_with(|| Client {
            used: 0,
            newest: 0,
            ring: vec![EMPTY; OUTCOMES_PER_CLIENT].into_boxed_slice(),
        });
        client.newest = client.newest.max(id.serial);
        client.ring[place(id.serial)] = Remembered { serial: id.serial, outcome, slot };
        // Mostly a client's transactions follow each other, and it is the most recent one already.
        if client.used != 0 && client.used == self.uses {
            return;
        }
        self.uses += 1;
        self.by_use.remove(&client.used);
        client.used = self.uses;
        self.by_use.insert(self.uses, id.client);
        if self.clients.len() > OUTCOME_CLIENTS_MAX
            && let Some((_, oldest)) = self.by_use.pop_first()
        {
            self.clients.remove(&oldest);
        }
    }

    /// Clients remembered.
    #[must_use]
    pub fn clients(&self) -> usize {
        self.clients.len()
    }

    /// Everything remembered, the least recently active client first, its serials rising: given to
    /// [`OutcomeMemory::remember`] in this order it makes an equal memory.
    pub fn iter(&self) -> impl Iterator<Item = (TransactionId, SlotId, Outcome)> + '_ {
        self.by_use.values().flat_map(|number| {
            let client = &self.clients[number];
            // The place after the newest one's holds the oldest.
            let (newer, older) = client.ring.split_at(place(client.newest) + 1);
            older.iter().chain(newer).filter(|known| known.serial != 0).map(|known| {
                let id = TransactionId { client: *number, serial: known.serial };
                (id, known.slot, known.outcome)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::LogIndex;

    fn id(client: u64, serial: u64) -> TransactionId {
        TransactionId { client, serial }
    }

    #[test]
    fn outcomes_are_known_until_they_are_too_old() {
        let mut memory = OutcomeMemory::default();
        let last = OUTCOMES_PER_CLIENT as u64 + 10;
        for serial in 1..=last {
            if serial != 500 {
                assert_eq!(memory.recall(id(7, serial)), Recall::New);
                memory.remember(id(7, serial), SlotId(3), Outcome::Committed(LogIndex(serial)));
            }
        }
        for (serial, known) in [
            (1, Recall::Forgotten),
            (10, Recall::Forgotten),
            (11, Recall::Known(Outcome::Committed(LogIndex(11)))),
            (500, Recall::New),
            (last, Recall::Known(Outcome::Committed(LogIndex(last)))),
            (last + 1, Recall::New),
            (u64::MAX, Recall::New),
        ] {
            assert_eq!(memory.recall(id(7, serial)), known, "serial {serial}");
        }
        assert_eq!(memory.recall(id(8, 1)), Recall::New);
    }

    #[test]
    fn the_least_recently_active_client_makes_room() {
        let mut memory = OutcomeMemory::default();
        for client in 0..OUTCOME_CLIENTS_MAX as u64 {
            memory.remember(id(client, 1), SlotId(3), Outcome::ConditionFailed(0));
        }
        memory.remember(id(0, 2), SlotId(3), Outcome::ConditionFailed(1));
        memory.remember(id(9999, 1), SlotId(3), Outcome::ConditionFailed(2));
        assert_eq!(memory.clients(), OUTCOME_CLIENTS_MAX);
        assert_eq!(memory.recall(id(0, 2)), Recall::Known(Outcome::ConditionFailed(1)));
        assert_eq!(memory.recall(id(1, 1)), Recall::New);
        assert_eq!(memory.recall(id(2, 1)), Recall::Known(Outcome::ConditionFailed(0)));
    }

    #[test]
    fn a_copy_made_from_its_items_goes_on_like_the_original() {
        let mut memory = OutcomeMemory::default();
        for serial in 1..3000 {
            memory.remember(
                id(serial % 300, serial),
                SlotId(3),
                Outcome::ConditionFailed(serial as u8),
            );
        }
        let mut copy = OutcomeMemory::default();
        memory.iter().for_each(|(id, slot, outcome)| copy.remember(id, slot, outcome));
        assert!(memory.iter().eq(copy.iter()));
        for client in 1000..1100 {
            memory.remember(id(client, 1), SlotId(3), Outcome::ConditionFailed(0));
            copy.remember(id(client, 1), SlotId(3), Outcome::ConditionFailed(0));
        }
        assert!(memory.iter().eq(copy.iter()));
    }
}
