//! The bits by which guests tell that a connection's counters moved.

use std::sync::atomic::Ordering::{AcqRel, Relaxed};

use guest::abi::MAX_CONNS;
use sys::arena::Arena;

/// Entries whose counters moved since the last look, in order. The bits are taken as the iterator goes.
#[derive(Debug)]
pub struct Touched<'a> {
    arena: &'a Arena,
    word: usize,
    left: u64,
}

impl<'a> Touched<'a> {
    /// A look at all entries.
    #[must_use]
    pub const fn new(arena: &'a Arena) -> Self {
        Self {
            arena,
            word: 0,
            left: 0,
        }
    }
}

impl Iterator for Touched<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        while self.left == 0 {
            let word = self.arena.control().touched.get(self.word)?;
            self.word += 1;
            if word.load(Relaxed) != 0 {
                self.left = word.swap(0, AcqRel);
            }
        }
        let bit = self.left.trailing_zeros() as usize;
        self.left &= self.left - 1;
        let index = (self.word - 1) * 64 + bit;
        debug_assert!(index < MAX_CONNS, "the last word belongs to the table");
        Some(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest::abi::mode;

    #[test]
    fn every_bit_is_seen_once() {
        let arena = Arena::new(mode::RECORD, 0).unwrap();
        for index in [0, 63, 64, 700, MAX_CONNS - 1] {
            arena.control().touched[index / 64].fetch_or(1 << (index % 64), Relaxed);
        }
        assert_eq!(
            Touched::new(&arena).collect::<Vec<_>>(),
            [0, 63, 64, 700, MAX_CONNS - 1]
        );
        assert_eq!(Touched::new(&arena).next(), None);
    }
}
