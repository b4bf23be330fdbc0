//! Memory as the protocol between a table's writer and its readers sees it: words that are loaded,
//! stored and fenced, and nothing else.
//!
//! The cell protocol ([`crate::cell`]), the lookup ([`crate::lookup`]) and the writer
//! ([`crate::table_writer`]) are generic over this. In a node the words lie in a mapped
//! [`Region`]; in the model check they are a checker's, so what is checked in every interleaving is
//! the code that runs.

use crate::region::{Region, draw_near};
use core::sync::atomic::{AtomicU64, Ordering, fence};

/// One word that several threads or processes use.
pub(crate) trait Word {
    fn load(&self, order: Ordering) -> u64;
    fn store(&self, value: u64, order: Ordering);
    /// A fence of the memory that this word lies in.
    fn fence(order: Ordering);
}

/// Memory that a table lies in.
pub(crate) trait Words {
    type Word: Word;

    fn words(&self) -> &[Self::Word];

    /// A hint that a word is wanted soon.
    fn prefetch(&self, at: usize);

    /// The same, of a word at hand.
    fn draw_near(word: &Self::Word);
}

impl Word for AtomicU64 {
    #[inline]
    fn load(&self, order: Ordering) -> u64 {
        self.load(order)
    }

    #[inline]
    fn store(&self, value: u64, order: Ordering) {
        self.store(value, order);
    }

    #[inline]
    fn fence(order: Ordering) {
        fence(order);
    }
}

impl Words for Region {
    type Word = AtomicU64;

    #[inline]
    fn words(&self) -> &[AtomicU64] {
        self.words()
    }

    #[inline]
    fn prefetch(&self, at: usize) {
        self.prefetch(at);
    }

    #[inline]
    fn draw_near(word: &AtomicU64) {
        draw_near(word);
    }
}
