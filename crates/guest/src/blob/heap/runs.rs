//! Runs of free chunks: taken, given back, joined with their neighbours, returned to the kernel.
//!
//! Dirty runs hold old bytes and memory, clean ones neither; only runs of the same kind are joined, so that
//! memory goes back in large pieces and a clean run needs no zeroing. Behind `top` everything is clean.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::layout::{
    CHUNK, END_CHUNK, FIRST_CHUNK, STEP, Word, address, chunk, open_chunks, state,
};
use crate::raw::{self, nr};

/// Lists of free runs by length: 32 for exact lengths, then four to a doubling.
const BINS: usize = 128;
const EXACT: u32 = 32;
/// Runs looked at in one list before a longer one is taken.
const LOOKS: u32 = 64;
/// Dirty chunks that are always kept: 8 MiB.
const KEEP_DIRTY: u32 = 128;
/// And this part of the chunks in use.
const KEEP_PART: u32 = 8;
const MADV_DONTNEED: u64 = 4;

struct Bins {
    heads: [Word; BINS],
    /// Bit n: list n is not empty.
    map: [AtomicU64; BINS / 64],
}

impl Bins {
    const fn new() -> Self {
        Self {
            heads: [const { Word::new(0) }; BINS],
            map: [const { AtomicU64::new(0) }; BINS / 64],
        }
    }

    /// The first list from this one on that is not empty.
    fn from(&self, bin: usize) -> Option<usize> {
        (bin / 64..BINS / 64).find_map(|i| {
            let mask = if i == bin / 64 {
                u64::MAX << (bin % 64)
            } else {
                u64::MAX
            };
            let found = self.map[i].load(Relaxed) & mask;
            (found != 0).then(|| i * 64 + found.trailing_zeros() as usize)
        })
    }

    /// The last list that is not empty.
    fn last(&self) -> Option<usize> {
        (0..BINS / 64).rev().find_map(|i| {
            let found = self.map[i].load(Relaxed);
            (found != 0).then(|| i * 64 + 63 - found.leading_zeros() as usize)
        })
    }
}

const fn bin_of(run: u32) -> usize {
    if run <= EXACT {
        return run as usize - 1;
    }
    let log = 31 - run.leading_zeros();
    (EXACT + (log - 5) * 4 + ((run >> (log - 2)) & 3)) as usize
}

/// A run that was taken.
#[derive(Clone, Copy)]
pub(super) struct Taken {
    /// Its first chunk.
    pub(super) start: u32,
    /// Whether it reads as zeroes.
    pub(super) zero: bool,
}

/// The free chunks.
pub(super) struct Runs {
    dirty: Bins,
    clean: Bins,
    top: Word,
    /// Chunks before this one are accessible.
    open: Word,
    dirty_chunks: Word,
    used_chunks: Word,
}

impl Runs {
    pub(super) const fn new() -> Self {
        Self {
            dirty: Bins::new(),
            clean: Bins::new(),
            top: Word::new(FIRST_CHUNK),
            open: Word::new(FIRST_CHUNK),
            dirty_chunks: Word::new(0),
            used_chunks: Word::new(0),
        }
    }

    fn bins(&self, kind: u32) -> &Bins {
        if kind == state::DIRTY {
            &self.dirty
        } else {
            &self.clean
        }
    }

    fn insert(&self, start: u32, run: u32, kind: u32) {
        for end in [start, start + run - 1] {
            chunk(end).run.set(run);
            chunk(end).state.set(kind);
        }
        let bin = bin_of(run);
        let bins = self.bins(kind);
        let head = bins.heads[bin].get();
        chunk(start).prev.set(0);
        chunk(start).next.set(head);
        if head != 0 {
            chunk(head).prev.set(start);
        }
        bins.heads[bin].set(start);
        bins.map[bin / 64].fetch_or(1 << (bin % 64), Relaxed);
        if kind == state::DIRTY {
            self.dirty_chunks.set(self.dirty_chunks.get() + run);
        }
    }

    fn remove(&self, start: u32) {
        let c = chunk(start);
        let (run, kind, next, prev) = (c.run.get(), c.state.get(), c.next.get(), c.prev.get());
        let bin = bin_of(run);
        let bins = self.bins(kind);
        if next != 0 {
            chunk(next).prev.set(prev);
        }
        if prev == 0 {
            bins.heads[bin].set(next);
            if next == 0 {
                bins.map[bin / 64].fetch_and(!(1 << (bin % 64)), Relaxed);
            }
        } else {
            chunk(prev).next.set(next);
        }
        if kind == state::DIRTY {
            self.dirty_chunks.set(self.dirty_chunks.get() - run);
        }
    }

    /// A free run of at least this length.
    fn find(&self, run: u32, kind: u32) -> Option<u32> {
        let bins = self.bins(kind);
        let bin = bin_of(run);
        let mut at = bins.heads[bin].get();
        for _ in 0..LOOKS {
            if at == 0 {
                break;
            }
            if chunk(at).run.get() >= run {
                return Some(at);
            }
            at = chunk(at).next.get();
        }
        bins.from(bin + 1).map(|bin| bins.heads[bin].get())
    }

    /// Marks chunks as the application's.
    fn claim(&self, start: u32, run: u32) {
        for end in [start, start + run - 1] {
            chunk(end).run.set(run);
            chunk(end).state.set(state::TAKEN);
        }
    }

    /// Takes a run of this length. `None` if the region is full.
    pub(super) fn take(&self, run: u32) -> Option<Taken> {
        let taken = self
            .take_free(run)
            .or_else(|| self.take_top(run))
            .or_else(|| {
                self.purge(0);
                self.take_free(run).or_else(|| self.take_top(run))
            })?;
        self.claim(taken.start, run);
        self.used_chunks.set(self.used_chunks.get() + run);
        Some(taken)
    }

    fn take_free(&self, run: u32) -> Option<Taken> {
        [state::DIRTY, state::CLEAN].into_iter().find_map(|kind| {
            let start = self.find(run, kind)?;
            self.split(start, run);
            Some(Taken {
                start,
                zero: kind == state::CLEAN,
            })
        })
    }

    fn take_top(&self, run: u32) -> Option<Taken> {
        let start = self.top.get();
        if run > END_CHUNK - start || !self.reach(start + run) {
            return None;
        }
        self.top.set(start + run);
        Some(Taken { start, zero: true })
    }

    /// Sees to it that all chunks before this one are accessible: an eighth more at once, so that a growing
    /// heap seldom asks.
    fn reach(&self, end: u32) -> bool {
        let open = self.open.get();
        if end <= open {
            return true;
        }
        let ahead = (open - FIRST_CHUNK) / 8;
        let upto = end
            .saturating_add(ahead)
            .next_multiple_of(STEP)
            .min(END_CHUNK);
        let opened = open_chunks(open, upto);
        if opened {
            self.open.set(upto);
        }
        opened
    }

    /// Takes the first chunks out of a free run.
    fn split(&self, start: u32, run: u32) {
        let (have, kind) = (chunk(start).run.get(), chunk(start).state.get());
        self.remove(start);
        if have > run {
            self.insert(start + run, have - run, kind);
        }
    }

    /// Takes a run that begins at a multiple of `align` chunks.
    pub(super) fn take_aligned(&self, run: u32, align: u32) -> Option<Taken> {
        let taken = self.take(run.checked_add(align - 1)?)?;
        let start = taken.start.next_multiple_of(align);
        let (before, after) = (start - taken.start, taken.start + align - 1 - start);
        self.claim(start, run);
        if before != 0 {
            self.give(taken.start, before);
        }
        if after != 0 {
            self.give(start + run, after);
        }
        Some(Taken {
            start,
            zero: taken.zero,
        })
    }

    /// Gives a run back; it may hold anything.
    pub(super) fn give(&self, start: u32, run: u32) {
        self.used_chunks.set(self.used_chunks.get() - run);
        self.join(start, run, state::DIRTY);
        let most = KEEP_DIRTY + self.used_chunks.get() / KEEP_PART;
        if self.dirty_chunks.get() > most {
            self.purge(most / 2);
        }
    }

    fn join(&self, mut start: u32, mut run: u32, kind: u32) {
        if start > FIRST_CHUNK && chunk(start - 1).state.get() == kind {
            let before = chunk(start - 1).run.get();
            start -= before;
            run += before;
            self.remove(start);
        }
        if start + run < self.top.get() && chunk(start + run).state.get() == kind {
            let behind = chunk(start + run).run.get();
            self.remove(start + run);
            run += behind;
        }
        if kind == state::CLEAN && start + run == self.top.get() {
            self.top.set(start);
        } else {
            self.insert(start, run, kind);
        }
    }

    /// Makes dirty runs clean, the longest first, until no more than so many dirty chunks are left.
    fn purge(&self, most: u32) {
        while self.dirty_chunks.get() > most
            && let Some(bin) = self.dirty.last()
        {
            let start = self.dirty.heads[bin].get();
            let run = chunk(start).run.get();
            self.remove(start);
            let (at, len) = (address(start), u64::from(run) * CHUNK);
            if raw::call(nr::MADVISE, [at, len, MADV_DONTNEED, 0, 0, 0]) != 0 {
                // Locked memory stays: what a run is called must not depend on that.
                super::zero(at, len);
            }
            self.join(start, run, state::CLEAN);
        }
    }

    /// Makes a taken run longer where it lies. False if what follows is not free.
    pub(super) fn extend(&self, start: u32, run: u32) -> bool {
        let have = chunk(start).run.get();
        let (behind, more) = (start + have, run - have);
        if behind == self.top.get() {
            if self.take_top(more).is_none() {
                return false;
            }
        } else if chunk(behind).state.get() != state::TAKEN && chunk(behind).run.get() >= more {
            self.split(behind, more);
        } else {
            return false;
        }
        self.claim(start, run);
        self.used_chunks.set(self.used_chunks.get() + more);
        true
    }

    /// Makes a taken run shorter.
    pub(super) fn shorten(&self, start: u32, run: u32) {
        let have = chunk(start).run.get();
        self.claim(start, run);
        self.give(start + run, have - run);
    }
}
