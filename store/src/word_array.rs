//! Many words of one thread, reached at random: zeroed, and on huge pages where the kernel gives
//! some, so that reaching one costs a cache miss and not a walk through page tables as well.
//!
//! For what stands beside a table, by cell. It shares nothing with other threads or processes.

use crate::region::draw_bytes_near;
use memmap2::{Advice, MmapMut, MmapOptions};
use std::io;

const WORD: usize = size_of::<u64>();

/// See the module's text.
#[derive(Debug)]
pub(crate) struct WordArray(MmapMut);

impl WordArray {
    /// So many words, all 0. Their memory is taken now: with huge pages, the first write to each
    /// page zeroes two megabytes, and would do so in the middle of a commit.
    ///
    /// # Errors
    /// If the system gives no address space.
    pub(crate) fn zeroed(words: usize) -> io::Result<Self> {
        let map = MmapOptions::new().len(words.max(1) * WORD).map_anon()?;
        // Without huge pages it is only slower, and so it is if pages come as they are touched
        // (before Linux 5.14).
        let _ = map.advise(Advice::HugePage);
        let _ = map.advise(Advice::PopulateWrite);
        Ok(Self(map))
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len() / WORD
    }

    #[inline]
    pub(crate) fn get(&self, at: u32) -> u64 {
        u64::from_ne_bytes(self.0.as_chunks().0[at as usize])
    }

    #[inline]
    pub(crate) fn set(&mut self, at: u32, word: u64) {
        self.0.as_chunks_mut().0[at as usize] = word.to_ne_bytes();
    }

    /// Draws a word near; nothing happens if there is none.
    #[inline]
    pub(crate) fn prefetch(&self, at: u32) {
        if let Some(bytes) = self.0.get(at as usize * WORD..) {
            draw_bytes_near(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_zero_and_then_what_they_were_set_to() {
        let mut array = WordArray::zeroed(3).unwrap();
        assert_eq!(array.len(), 3);
        array.set(1, u64::MAX - 1);
        assert_eq!([0, 1, 2].map(|at| array.get(at)), [0, u64::MAX - 1, 0]);
        array.prefetch(1);
        array.prefetch(1000);
    }
}
