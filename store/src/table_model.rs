//! The protocol between a table's writer and its readers, in every order that the memory model
//! allows: the production code of [`crate::cell`], [`crate::lookup`] and [`crate::table_writer`]
//! over a model checker's memory.
//!
//! A checker tries every interleaving and every value that a load may see, so the words that differ
//! in a scenario are few: one word of the key, one of the value in each line. All others are zero
//! throughout, which is checked. Preemptions are bounded; for more than the ordinary tests try:
//! `LOOM_MAX_PREEMPTIONS=3 cargo test --release -p nearstate-store model`.
//! What is checked: a reader never gets a value that nobody wrote, and never misses a key that is
//! there all the time. (That it gets any answer is not: it asks again.)

use super::*;
use crate::cell::Torn;
use crate::key::Value;
use crate::layout::Hasher;
use crate::types::{SlotId, Version};
use loom::sync::atomic::AtomicU64 as Checked;
use loom::thread;
use std::sync::Arc;
use std::sync::atomic::AtomicU64 as Unchecked;

const CAPACITY: u32 = 8;
const HASH_KEY: u64 = 7;
/// The home of the keys that move.
const HOME: u32 = 2;

enum ModelWord {
    /// Zero throughout.
    Zero,
    /// Counts that no lookup reads.
    Count(Unchecked),
    Checked(Checked),
}

impl Word for ModelWord {
    fn load(&self, order: Ordering) -> u64 {
        match self {
            Self::Zero => 0,
            Self::Count(word) => word.load(order),
            Self::Checked(word) => word.load(order),
        }
    }

    fn store(&self, value: u64, order: Ordering) {
        match self {
            Self::Zero => assert_eq!(value, 0, "this word differs: it has to be checked"),
            Self::Count(word) => word.store(value, order),
            Self::Checked(word) => word.store(value, order),
        }
    }

    fn fence(order: Ordering) {
        loom::sync::atomic::fence(order);
    }
}

struct ModelMemory(Vec<ModelWord>);

impl Words for ModelMemory {
    type Word = ModelWord;

    fn words(&self) -> &[ModelWord] {
        &self.0
    }

    fn prefetch(&self, _: usize) {}

    fn draw_near(_: &Self::Word) {}
}

fn layout() -> Layout {
    Layout::new(CAPACITY).unwrap()
}

/// A writer over memory in which these cells are checked, and the words that lookups of keys of
/// [`HOME`] read.
fn writer(cells: &[u32]) -> Writer<ModelMemory> {
    let layout = layout();
    let mut words: Vec<ModelWord> = (0..layout.words).map(|_| ModelWord::Zero).collect();
    for at in [header::ENTRIES, header::OVERFLOW, header::DISPLACEMENTS] {
        words[at] = ModelWord::Count(Unchecked::new(0));
    }
    let mut checked = vec![Layout::moves_word(HOME), Layout::tag_word(HOME)];
    for cell in cells {
        let at = layout.cells_at + *cell as usize * cell::CELL_WORDS;
        // Two versions, a word of the key, a word of the value in each line.
        checked.extend([0, 1, 6, 8, 9].map(|word| at + word));
        checked.push(Layout::tag_word(*cell));
        if *cell >= layout.overflow_first {
            let home = layout.cells_at + HOME as usize * cell::CELL_WORDS;
            checked.extend([layout.flags_at + (HOME / 64) as usize, home]);
        }
    }
    checked.sort_unstable();
    checked.dedup();
    for at in checked {
        words[at] = ModelWord::Checked(Checked::new(0));
    }
    let view = View { memory: Arc::new(ModelMemory(words)), layout, hasher: Hasher::new(HASH_KEY) };
    Writer::new(view)
}

/// Two keys of [`HOME`] with one tag: the hardest case to tell apart.
fn keys() -> (Key, Key) {
    let hasher = Hasher::new(HASH_KEY);
    let key = |number: u64| Key([1 | number << 32, 0, 0, 0, 0]);
    let of_home = (0..).map(key).filter(|key| layout().home(hasher.hash(key)) == HOME);
    let first = of_home.clone().next().unwrap();
    let same_tag = |key: &Key| tag(hasher.hash(key)) == tag(hasher.hash(&first));
    let second = of_home.skip(1).find(same_tag).unwrap();
    (first, second)
}

fn content(key: Key, number: u64) -> Content {
    let value = Value([number, 0, number, 0, 0, 0, 0, 0]);
    Content { key, entry: Entry { value, version: Version(0), slot: SlotId(0) } }
}

impl Writer<ModelMemory> {
    fn place(&mut self, at: u32, content: Content) {
        let tag = tag(self.view.hash(&content.key));
        self.occupy(at, HOME, tag, content);
        self.entries += 1;
        *self.place_of_slot(content.entry.slot) += 1;
    }
}

/// The number of a value, if it is one that somebody wrote.
fn number(entry: &Entry) -> u64 {
    assert_eq!(entry.value.0[0], entry.value.0[2], "torn: {entry:?}");
    entry.value.0[0]
}

/// A lookup's number, if it came to an answer; the key is there all the time.
fn present(view: &View<ModelMemory>, key: &Key, verified: bool) -> Option<u64> {
    match view.look(key, view.hash(key), verified) {
        Ok(found) => Some(number(&found.expect("a key that is there was missed").1)),
        Err(Torn::BeingWritten) => None,
        Err(Torn::Checksum) => panic!("a stable cell does not fit its checksum"),
    }
}

/// Checks a scenario with so many preemptions, unless the environment asks for another number.
fn check(preemptions: usize, scenario: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound.get_or_insert(preemptions);
    model.check(scenario);
}

#[test]
fn a_value_that_is_written_over_is_the_old_or_the_new_one_and_never_goes_back() {
    check(2, || {
        let (key, _) = keys();
        let mut writer = writer(&[HOME]);
        writer.place(HOME, content(key, 1));
        let view = writer.view.clone();
        let reader = thread::spawn(move || {
            let first = present(&view, &key, true);
            let second = present(&view, &key, false);
            for number in first.iter().chain(&second) {
                assert!((1..=2).contains(number), "nobody wrote {number}");
            }
            assert!(first.is_none() || second.is_none() || first <= second, "back in time");
        });
        writer.put(content(key, 2)).unwrap();
        reader.join().unwrap();
    });
}

#[test]
fn a_key_that_is_moved_is_never_missed_whichever_way() {
    for (from, to) in [(HOME, HOME + 2), (HOME + 2, HOME)] {
        check(2, move || {
            let (key, _) = keys();
            let mut writer = writer(&[from, to]);
            writer.place(from, content(key, 1));
            let view = writer.view.clone();
            let reader = thread::spawn(move || {
                let found = present(&view, &key, false);
                assert!(matches!(found, None | Some(1)), "nobody wrote {found:?}");
            });
            writer.displace(from, to);
            reader.join().unwrap();
        });
    }
}

#[test]
fn a_key_whose_cell_another_one_takes_is_neither_missed_nor_mistaken() {
    // The longest one: with two preemptions it takes half a minute.
    check(1, || {
        let (key, other) = keys();
        let mut writer = writer(&[HOME, HOME + 2]);
        writer.place(HOME, content(key, 1));
        let view = writer.view.clone();
        let reader = thread::spawn(move || {
            let found = present(&view, &key, false);
            assert!(matches!(found, None | Some(1)), "another's value: {found:?}");
        });
        writer.displace(HOME, HOME + 2);
        writer.place(HOME, content(other, 2));
        reader.join().unwrap();
    });
}

#[test]
fn a_remembered_cell_is_believed_only_for_what_it_holds_itself() {
    check(2, || {
        let (key, other) = keys();
        let mut writer = writer(&[HOME]);
        writer.place(HOME, content(key, 1));
        let view = writer.view.clone();
        let reader = thread::spawn(move || {
            if let Some(entry) = view.entry_at(HOME, &key, true) {
                assert_eq!(number(&entry), 1);
            }
        });
        writer.vacate(HOME);
        writer.place(HOME, content(other, 2));
        reader.join().unwrap();
    });
}

#[test]
fn a_key_that_comes_back_from_the_overflow_area_is_never_missed() {
    check(2, || {
        let (key, _) = keys();
        let overflow = layout().buckets_of(HOME).next().unwrap();
        let mut writer = writer(&[HOME + 1, overflow]);
        let tag = tag(writer.view.hash(&key));
        writer.put_in_overflow(HOME, tag, content(key, 1)).unwrap();
        let view = writer.view.clone();
        let reader = thread::spawn(move || {
            let found = present(&view, &key, false);
            assert!(matches!(found, None | Some(1)), "nobody wrote {found:?}");
        });
        writer.relocate(overflow, HOME + 1, HOME);
        reader.join().unwrap();
    });
}

#[test]
fn a_key_that_goes_and_comes_is_absent_or_whole() {
    check(2, || {
        let (key, _) = keys();
        let mut writer = writer(&[HOME]);
        writer.place(HOME, content(key, 1));
        let view = writer.view.clone();
        let reader = thread::spawn(move || {
            if let Ok(Some((cell, entry))) = view.look(&key, view.hash(&key), false) {
                assert_eq!(cell, HOME);
                assert!((1..=2).contains(&number(&entry)));
            }
        });
        writer.remove(&key).unwrap();
        writer.put(content(key, 2)).unwrap();
        reader.join().unwrap();
    });
}
