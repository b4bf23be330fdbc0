//! Which flows have a packet parked, and who waits behind it.
//!
//! A parked packet *claims* keys: the first key of its way, and those that it writes. A later
//! packet whose first key is claimed waits in that claim's queue; when the holder is done, the
//! first of the queue holds the claim and is processed. So packets of one flow never overtake each
//! other, and nothing that hangs on an undecided change is processed before it is decided.
//!
//! **Invariant.** No two wait for each other: only a packet that has just come in ever joins a
//! queue, or one that holds claims of its flow and now wants that of a record, whose holders wait
//! for nobody (`fragments`).
//!
//! A hash table with chains in a fixed slab of claims; indexes into the parking place name packets.
//! Never allocates after it was made, never looks at a packet.

use nearstate_store::Key;

/// No claim, no packet: the end of a list.
const NONE: u32 = u32::MAX;
/// Keys that one packet claims so that others stay behind it: its first one, and a fragment's
/// record.
pub(super) const FIRST_KEYS: usize = 2;
/// Claims there is room for, for each packet that may be parked: these, and on average two of the
/// keys that it writes.
const CLAIMS_PER_PARKED: usize = FIRST_KEYS + 2;

#[derive(Clone, Copy, Debug)]
struct Claim {
    key: Key,
    holder: u32,
    first_waiter: u32,
    last_waiter: u32,
    /// In the chain of the key's bucket, or in the list of free claims.
    next_in_bucket: u32,
    /// Among the claims of the same holder.
    next_of_holder: u32,
}

/// See the module's text. Packets are named by their place in the parking place.
#[derive(Debug)]
pub(super) struct Claims {
    seed: u64,
    buckets: Box<[u32]>,
    claims: Box<[Claim]>,
    free: u32,
    used: usize,
    /// For each parked packet: the first of its claims.
    held_by: Box<[u32]>,
    /// For each parked packet: who waits behind the same claim after it.
    next_waiter: Box<[u32]>,
}

impl Claims {
    /// Claims for a parking place of this many places. The seed keeps senders from choosing keys
    /// that fall into one bucket.
    pub(super) fn new(places: usize, seed: u64) -> Self {
        let room = places * CLAIMS_PER_PARKED;
        assert!(room < NONE as usize, "claims are numbered by 32 bits");
        let empty = Claim {
            key: Key([0; 5]),
            holder: NONE,
            first_waiter: NONE,
            last_waiter: NONE,
            next_in_bucket: NONE,
            next_of_holder: NONE,
        };
        let mut claims = vec![empty; room].into_boxed_slice();
        for (next, claim) in (1..room as u32).zip(claims.iter_mut()) {
            claim.next_in_bucket = next;
        }
        Self {
            seed,
            buckets: vec![NONE; room.next_power_of_two()].into_boxed_slice(),
            claims,
            free: if room == 0 { NONE } else { 0 },
            used: 0,
            held_by: vec![NONE; places].into_boxed_slice(),
            next_waiter: vec![NONE; places].into_boxed_slice(),
        }
    }

    /// Whether nothing is claimed: the question that costs every packet something.
    pub(super) const fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Claims not in use.
    pub(super) const fn room(&self) -> usize {
        self.claims.len() - self.used
    }

    fn bucket(&self, key: &Key) -> usize {
        let mut hash = self.seed;
        for word in key.0 {
            let wide = u128::from(hash ^ word) * 0x9e37_79b9_7f4a_7c15_u128;
            hash = (wide >> 64) as u64 ^ wide as u64;
        }
        hash as usize & (self.buckets.len() - 1)
    }

    fn find(&self, key: &Key) -> Option<u32> {
        let mut at = self.buckets[self.bucket(key)];
        while at != NONE {
            let claim = &self.claims[at as usize];
            if claim.key == *key {
                return Some(at);
            }
            at = claim.next_in_bucket;
        }
        None
    }

    /// Whether some packet has claimed this key.
    pub(super) fn is_held(&self, key: &Key) -> bool {
        !self.is_empty() && self.find(key).is_some()
    }

    /// Claims a key for a parked packet. If it is claimed already, or there is no room, nothing
    /// happens: for a first key the caller knows that neither is so.
    pub(super) fn claim(&mut self, key: &Key, holder: u32) {
        if self.free == NONE || self.is_held(key) {
            return;
        }
        let at = self.free;
        let bucket = self.bucket(key);
        let claim = &mut self.claims[at as usize];
        self.free = claim.next_in_bucket;
        *claim = Claim {
            key: *key,
            holder,
            first_waiter: NONE,
            last_waiter: NONE,
            next_in_bucket: self.buckets[bucket],
            next_of_holder: self.held_by[holder as usize],
        };
        self.buckets[bucket] = at;
        self.held_by[holder as usize] = at;
        self.used += 1;
    }

    /// Puts a packet at the end of the queue of a claimed key.
    pub(super) fn wait(&mut self, key: &Key, waiter: u32) {
        let at = self.find(key).expect("only who has found a key held waits for it");
        let claim = &mut self.claims[at as usize];
        assert!(claim.holder != waiter, "nobody waits for itself");
        self.next_waiter[waiter as usize] = NONE;
        if claim.last_waiter == NONE {
            claim.first_waiter = waiter;
        } else {
            self.next_waiter[claim.last_waiter as usize] = waiter;
        }
        claim.last_waiter = waiter;
    }

    /// The holder is done: each of its claims goes to the first who waits for it, who is named to
    /// `heir`, or ends.
    pub(super) fn release(&mut self, holder: u32, mut heir: impl FnMut(u32)) {
        let mut at = core::mem::replace(&mut self.held_by[holder as usize], NONE);
        while at != NONE {
            let next = self.claims[at as usize].next_of_holder;
            match self.pass_on(at) {
                Some(new_holder) => heir(new_holder),
                None => self.remove(at),
            }
            at = next;
        }
    }

    fn pass_on(&mut self, at: u32) -> Option<u32> {
        let claim = &mut self.claims[at as usize];
        let heir = claim.first_waiter;
        if heir == NONE {
            return None;
        }
        claim.first_waiter = self.next_waiter[heir as usize];
        if claim.first_waiter == NONE {
            claim.last_waiter = NONE;
        }
        claim.holder = heir;
        claim.next_of_holder = core::mem::replace(&mut self.held_by[heir as usize], at);
        Some(heir)
    }

    fn remove(&mut self, at: u32) {
        let bucket = self.bucket(&self.claims[at as usize].key);
        let after = self.claims[at as usize].next_in_bucket;
        if self.buckets[bucket] == at {
            self.buckets[bucket] = after;
        } else {
            let mut before = self.buckets[bucket];
            while self.claims[before as usize].next_in_bucket != at {
                before = self.claims[before as usize].next_in_bucket;
            }
            self.claims[before as usize].next_in_bucket = after;
        }
        self.claims[at as usize].next_in_bucket = self.free;
        self.free = at;
        self.used -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, VecDeque};

    fn key(number: u64) -> Key {
        Key([1, number, 0, 0, 0])
    }

    #[derive(Clone, Debug)]
    enum Step {
        Claim { key: u64, packet: u32 },
        Wait { key: u64, packet: u32 },
        Release { packet: u32 },
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..12u64, 0..8u32).prop_map(|(key, packet)| Step::Claim { key, packet }),
            (0..12u64, 0..8u32).prop_map(|(key, packet)| Step::Wait { key, packet }),
            (0..8u32).prop_map(|packet| Step::Release { packet }),
        ]
    }

    proptest! {
        /// The model: for each key a queue whose head holds it.
        #[test]
        fn claims_are_queues(steps in proptest::collection::vec(step(), 1..200), seed: u64) {
            let mut claims = Claims::new(8, seed);
            let mut model: BTreeMap<u64, VecDeque<u32>> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Claim { key: k, packet } => {
                        let waits = model.values().any(|q| q.iter().skip(1).any(|p| *p == packet));
                        if waits { continue; }
                        claims.claim(&key(k), packet);
                        model.entry(k).or_insert_with(|| [packet].into());
                    }
                    Step::Wait { key: k, packet } => {
                        // Only a packet that holds nothing and waits for nothing joins a queue.
                        if model.values().any(|q| q.contains(&packet)) { continue; }
                        if let Some(queue) = model.get_mut(&k) {
                            claims.wait(&key(k), packet);
                            queue.push_back(packet);
                        }
                    }
                    Step::Release { packet } => {
                        let mut heirs = vec![];
                        claims.release(packet, |heir| heirs.push(heir));
                        let mut expected: Vec<u32> = vec![];
                        for queue in model.values_mut().filter(|q| q[0] == packet) {
                            queue.pop_front();
                            expected.extend(queue.front());
                        }
                        model.retain(|_, queue| !queue.is_empty());
                        heirs.sort_unstable();
                        expected.sort_unstable();
                        prop_assert_eq!(heirs, expected);
                    }
                }
                for number in 0..12 {
                    prop_assert_eq!(claims.is_held(&key(number)), model.contains_key(&number));
                }
                prop_assert_eq!(claims.is_empty(), model.is_empty());
            }
        }
    }

    #[test]
    fn a_claim_that_finds_no_room_is_forgotten() {
        let mut claims = Claims::new(1, 0);
        for number in 0..9 {
            claims.claim(&key(number), 0);
        }
        assert_eq!(claims.room(), 0);
        assert!(claims.is_held(&key(3)) && !claims.is_held(&key(4)));
        claims.release(0, |_| panic!("nobody waits"));
        assert!(claims.is_empty());
    }
}
