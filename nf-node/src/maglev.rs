//! Maglev tables: which backend a hash belongs to (Eisenbud et al., NSDI 2016, section 3.4).
//!
//! Each backend has its own order of all places of the table, made from a hash of its endpoint. In
//! turns, each takes the first place of its order that is still free, until the table is full. So
//! shares are even, and when a backend goes, nearly all places of the others stay what they were.
//! A backend of smaller weight leaves out turns.
//!
//! The table is a function of the set of backends alone: every node builds the same one, whatever
//! the order in which its configuration lists them.

use crate::siphash::{HashKey, siphash};
use nearstate_store::Endpoint;

/// Places of a table unless told otherwise; a prime, a hundred times the backends that are usual.
pub const TABLE_SIZE: u32 = 65_537;
/// Places a table may have.
pub const TABLE_SIZE_MAX: u32 = 1_000_003;
/// Backends one table may have.
pub const BACKENDS_MAX: usize = 1024;

// The two hashes of a backend that its order is made of. Any two keys will do; they must not
// change.
const OFFSET_KEY: HashKey = HashKey(0x4e65_6172_7374_6174, 1);
const SKIP_KEY: HashKey = HashKey(0x4e65_6172_7374_6174, 2);

const FREE: u16 = u16::MAX;
const _: () = assert!(BACKENDS_MAX < FREE as usize, "no backend's number is that of a free place");

/// A backend as a table sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Which backend.
    pub endpoint: Endpoint,
    /// Its share in relation to the others'; 0 for none.
    pub weight: u16,
}

/// A backend's order of the places, and its turns.
struct Turn {
    number: u16,
    next: u64,
    skip: u64,
    weight: u32,
    credit: u32,
}

/// A table.
#[derive(Clone, Debug)]
pub struct Maglev {
    /// The number of the backend of each place. Empty if no backend has any weight.
    table: Box<[u16]>,
}

impl Maglev {
    /// The table of these backends. Numbers that it gives are places in `backends`.
    ///
    /// # Panics
    /// If `size` is not a usable size or there are too many backends: configurations are checked
    /// before they come here.
    #[must_use]
    pub fn new(backends: &[Share], size: u32) -> Self {
        assert!(is_usable_size(size), "a table's size is a prime within the limits");
        assert!(backends.len() <= BACKENDS_MAX, "backends are bounded");
        let mut turns = turns(backends, u64::from(size));
        let Some(heaviest) = turns.iter().map(|turn| turn.weight).max() else {
            return Self { table: Box::default() };
        };
        let mut table = vec![FREE; size as usize].into_boxed_slice();
        let mut free = size;
        // Each round, the heaviest backend takes a place: the loop ends.
        while free > 0 {
            for turn in &mut turns {
                turn.credit += turn.weight;
                if turn.credit < heaviest || free == 0 {
                    continue;
                }
                turn.credit -= heaviest;
                take_place(&mut table, turn);
                free -= 1;
            }
        }
        Self { table }
    }

    /// The number of the backend that this hash belongs to; `None` if no backend has any weight.
    #[must_use]
    pub fn choose(&self, hash: u64) -> Option<usize> {
        let size = self.table.len() as u64;
        let place = hash.checked_rem(size)?;
        Some(usize::from(self.table[place as usize]))
    }
}

/// Whether a table may have this many places: with a prime, each order visits every place.
#[must_use]
pub fn is_usable_size(size: u32) -> bool {
    let is_prime = size > 2 && !size.is_multiple_of(2) && {
        let mut divisors = (3u32..).step_by(2).take_while(|d| d * d <= size);
        divisors.all(|d| !size.is_multiple_of(d))
    };
    is_prime && (1009..=TABLE_SIZE_MAX).contains(&size)
}

/// The backends that have weight, in the order of their endpoints.
fn turns(backends: &[Share], size: u64) -> Vec<Turn> {
    let mut order: Vec<usize> = (0..backends.len()).filter(|at| backends[*at].weight > 0).collect();
    order.sort_unstable_by_key(|at| backends[*at].endpoint);
    let turn = |at: usize| {
        let bytes = backends[at].endpoint.to_bytes();
        Turn {
            number: at as u16,
            next: siphash(OFFSET_KEY, &bytes) % size,
            skip: siphash(SKIP_KEY, &bytes) % (size - 1) + 1,
            weight: u32::from(backends[at].weight),
            credit: 0,
        }
    };
    order.into_iter().map(turn).collect()
}

fn take_place(table: &mut [u16], turn: &mut Turn) {
    let size = table.len() as u64;
    loop {
        let place = turn.next as usize;
        turn.next = (turn.next + turn.skip) % size;
        if table[place] == FREE {
            table[place] = turn.number;
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backends(weights: &[u16]) -> Vec<Share> {
        let share = |(at, weight): (usize, &u16)| Share {
            endpoint: Endpoint::v4([10, 0, 1, at as u8], 8080),
            weight: *weight,
        };
        weights.iter().enumerate().map(share).collect()
    }

    /// How many places each backend has.
    fn places(table: &Maglev, backends: usize) -> Vec<u32> {
        let mut places = vec![0; backends];
        for number in &table.table {
            places[usize::from(*number)] += 1;
        }
        places
    }

    #[test]
    fn equal_backends_have_equal_shares() {
        for count in [1, 2, 3, 10, 100] {
            let table = Maglev::new(&backends(&vec![1; count]), TABLE_SIZE);
            let places = places(&table, count);
            let (least, most) = (places.iter().min().unwrap(), places.iter().max().unwrap());
            assert!(most - least <= 1, "{count} backends: {least} to {most} places");
        }
    }

    #[test]
    fn shares_follow_the_weights_within_two_percent() {
        let weights = [1, 2, 3, 10, 0, 100];
        let table = Maglev::new(&backends(&weights), TABLE_SIZE);
        let sum: u32 = weights.iter().map(|w| u32::from(*w)).sum();
        for (weight, places) in weights.iter().zip(places(&table, weights.len())) {
            let fair = f64::from(TABLE_SIZE) * f64::from(*weight) / f64::from(sum);
            assert!(
                (f64::from(places) - fair).abs() <= fair * 0.02 + 1.0,
                "weight {weight}: {places} places, {fair:.0} would be fair"
            );
        }
    }

    #[test]
    fn when_one_of_n_goes_few_places_of_the_others_change() {
        for count in [3, 10, 50] {
            let all = backends(&vec![1; count]);
            let before = Maglev::new(&all, TABLE_SIZE);
            let gone = count / 2;
            let mut drained = all.clone();
            drained[gone].weight = 0;
            let after = Maglev::new(&drained, TABLE_SIZE);
            let moved = before
                .table
                .iter()
                .zip(&after.table)
                .filter(|(old, new)| usize::from(**old) != gone && old != new)
                .count();
            assert!(after.table.iter().all(|number| usize::from(*number) != gone));
            let percent = moved * 100 / TABLE_SIZE as usize;
            assert!(percent <= 3, "{count} backends: {percent} % of the places moved for nothing");
        }
    }

    #[test]
    fn the_table_does_not_depend_on_the_order_of_the_list() {
        let forth = backends(&[1, 5, 2, 7]);
        let back: Vec<_> = forth.iter().rev().copied().collect();
        let (a, b) = (Maglev::new(&forth, 4099), Maglev::new(&back, 4099));
        for hash in 0..4099 {
            let (x, y) = (a.choose(hash).unwrap(), b.choose(hash).unwrap());
            assert_eq!(forth[x].endpoint, back[y].endpoint, "place {hash}");
        }
    }

    #[test]
    fn a_table_built_by_another_version_is_the_same() {
        // Kept from the first version. If this fails, nodes of two versions would disagree.
        let table = Maglev::new(&backends(&[1, 1, 2]), 1009);
        let head: Vec<_> = (0..16).map(|hash| table.choose(hash).unwrap()).collect();
        assert_eq!(head, KEPT_HEAD);
    }

    const KEPT_HEAD: [usize; 16] = [0, 0, 0, 0, 1, 2, 2, 2, 2, 2, 2, 1, 2, 0, 2, 2];

    #[test]
    fn without_weight_nothing_is_chosen() {
        assert_eq!(Maglev::new(&[], TABLE_SIZE).choose(7), None);
        assert_eq!(Maglev::new(&backends(&[0, 0]), TABLE_SIZE).choose(7), None);
    }

    #[test]
    fn sizes_are_primes_within_the_limits() {
        for good in [1009, 65_537, TABLE_SIZE_MAX] {
            assert!(is_usable_size(good), "{good}");
        }
        for bad in [0, 1, 2, 3, 251, 1010, 1011, 65_535, 65_536, 1_000_033] {
            assert!(!is_usable_size(bad), "{bad}");
        }
    }
}
