//! What the threads share: chunks with free blocks, large blocks, and the one order of changes to them.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

use eventlog::record::kind;
use guest::abi::{HEAP_BASE, Order, ThreadBlock};

use super::corrupt;
use super::layout::{
    CHUNK, CLASS, CLASSES, Chunk, LARGE, NONE, Word, address, chunk, chunk_of, contains, peek,
    poke, use_of,
};
use super::runs::Runs;
use crate::locks;
use crate::log::{self, Mode};
use crate::order::{self, Held};

/// Order of changes of the centre.
static ORDER: Order = Order {
    owner: AtomicU32::new(0),
    pad: AtomicU32::new(0),
    version: AtomicU64::new(0),
};
/// Whether this process has ever had a second thread: until then nobody else can see the order.
static SHARED: AtomicBool = AtomicBool::new(false);

static CENTRE: Centre = Centre {
    runs: Runs::new(),
    partial: [const { Word::new(0) }; CLASSES + 1],
};

/// A large block's memory: whole pages of its run count as usable.
const PAGE: u64 = 4096;

/// From now on there may be a second thread.
pub(super) fn share() {
    SHARED.store(true, Relaxed);
}

/// The calling thread is the only one again, and has the turn: a fork child's first steps.
pub(super) fn reset() {
    SHARED.store(false, Relaxed);
    ORDER.owner.store(0, Relaxed);
}

/// Takes the next turn on the centre, or, in replay, the logged one.
pub(super) fn turn(t: &ThreadBlock) -> Option<Held<'static>> {
    if !SHARED.load(Relaxed) {
        return None;
    }
    if log::now() == Mode::Replay
        && let Some(version) = locks::take(t, kind::LOCK, HEAP_BASE)
    {
        order::await_turn(t, &ORDER, version.cast_unsigned());
    }
    let held = order::lock(t, &ORDER);
    locks::emit(t, kind::LOCK, HEAP_BASE, held.stamp().cast_signed());
    Some(held)
}

/// Runs a change of the centre in its turn. Called by the application's thread, outside the hook.
pub(super) fn with<T>(body: impl FnOnce(&Centre) -> T) -> T {
    if !SHARED.load(Relaxed) {
        return body(&CENTRE);
    }
    locks::inside(|t| with_turn(t, body))
}

/// As [`with`], from inside the guest.
pub(super) fn with_turn<T>(t: &ThreadBlock, body: impl FnOnce(&Centre) -> T) -> T {
    let _held = turn(t);
    body(&CENTRE)
}

/// The shared part of the heap.
pub(super) struct Centre {
    runs: Runs,
    /// For each class, the first chunk that has free blocks or room for new ones.
    partial: [Word; CLASSES + 1],
}

/// Blocks linked by their first words; the last one's is 0.
#[derive(Clone, Copy)]
pub(super) struct Chain {
    /// The first block, 0 if there is none.
    pub(super) head: u64,
    /// How many.
    pub(super) count: u32,
}

/// A large block that was made.
pub(super) struct Made {
    /// Where it is.
    pub(super) at: u64,
    /// Whether it reads as zeroes.
    pub(super) zero: bool,
}

impl Centre {
    /// Up to `want` blocks of a class, in the order of their addresses if they are new.
    pub(super) fn fill(&self, class: usize, want: u32) -> Chain {
        let size = CLASS[class].size;
        let mut chain = Chain { head: 0, count: 0 };
        let mut tail = 0;
        while chain.count < want {
            let Some(index) = self.partial_chunk(class) else {
                break;
            };
            let c = chunk(index);
            while chain.count < want
                && let Some(block) = take_block(index, c, size)
            {
                if tail == 0 {
                    chain.head = block;
                } else {
                    poke(tail, block);
                }
                tail = block;
                chain.count += 1;
            }
            if is_full(c, size) {
                self.unlist(class, index);
            }
        }
        if tail != 0 {
            poke(tail, 0);
        }
        chain
    }

    /// A chunk of the class that can give a block.
    fn partial_chunk(&self, class: usize) -> Option<u32> {
        let first = self.partial[class].get();
        if first != 0 {
            return Some(first);
        }
        let start = self.runs.take(1)?.start;
        let c = chunk(start);
        c.used.set(0);
        c.cut.set(0);
        c.value.set(0);
        use_of(start).store(class as u8, Relaxed);
        self.list(class, start);
        Some(start)
    }

    fn list(&self, class: usize, index: u32) {
        let head = self.partial[class].get();
        chunk(index).prev.set(0);
        chunk(index).next.set(head);
        if head != 0 {
            chunk(head).prev.set(index);
        }
        self.partial[class].set(index);
    }

    fn unlist(&self, class: usize, index: u32) {
        let (next, prev) = (chunk(index).next.get(), chunk(index).prev.get());
        if next != 0 {
            chunk(next).prev.set(prev);
        }
        if prev == 0 {
            self.partial[class].set(next);
        } else {
            chunk(prev).next.set(next);
        }
    }

    /// Takes blocks of a class back.
    pub(super) fn drain(&self, class: usize, head: u64) {
        let size = CLASS[class].size;
        let mut block = head;
        while block != 0 {
            if !contains(block) {
                corrupt();
            }
            let next = peek(block);
            let index = chunk_of(block);
            let c = chunk(index);
            let offset = (block - address(index)) as u32;
            if usize::from(use_of(index).load(Relaxed)) != class
                || offset >= c.cut.get()
                || c.used.get() == 0
            {
                corrupt();
            }
            if is_full(c, size) {
                self.list(class, index);
            }
            poke(block, c.value.get());
            c.value.set(block);
            c.used.set(c.used.get() - 1);
            if c.used.get() == 0 {
                self.empty(class, index);
            }
            block = next;
        }
    }

    /// A chunk has no block in use any more: it goes, unless it is the class' only one with room.
    fn empty(&self, class: usize, index: u32) {
        let c = chunk(index);
        if c.next.get() == 0 && c.prev.get() == 0 {
            c.value.set(0);
            c.cut.set(0);
            return;
        }
        self.unlist(class, index);
        use_of(index).store(NONE, Relaxed);
        self.runs.give(index, 1);
    }

    /// Makes a large block at a multiple of `align` (a power of two), with room to grow if `spare`.
    pub(super) fn make_large(&self, bytes: u64, align: u64, spare: bool) -> Option<Made> {
        let run = chunks_for(bytes)?;
        let taken = if align > CHUNK {
            self.runs
                .take_aligned(run, u32::try_from(align / CHUNK).ok()?)?
        } else {
            let roomy = if spare { run + run / 2 } else { run };
            self.runs.take(roomy).or_else(|| self.runs.take(run))?
        };
        set_usable(taken.start, bytes);
        use_of(taken.start).store(LARGE, Relaxed);
        Some(Made {
            at: address(taken.start),
            zero: taken.zero,
        })
    }

    /// Takes a large block back.
    pub(super) fn drop_large(&self, at: u64) {
        let index = chunk_of(at);
        if !at.is_multiple_of(CHUNK) || use_of(index).swap(NONE, Relaxed) != LARGE {
            corrupt();
        }
        self.runs.give(index, chunk(index).run.get());
    }

    /// Gives a large block another length where it lies. False if it cannot be.
    pub(super) fn resize_large(&self, at: u64, bytes: u64) -> bool {
        let index = chunk_of(at);
        let Some(run) = chunks_for(bytes) else {
            return false;
        };
        let have = chunk(index).run.get();
        if run > have {
            if !self.runs.extend(index, run) {
                return false;
            }
        } else if run < have {
            self.runs.shorten(index, run);
        }
        set_usable(index, bytes);
        true
    }
}

/// Chunks of a large block.
pub(super) fn chunks_for(bytes: u64) -> Option<u32> {
    u32::try_from(bytes.div_ceil(CHUNK))
        .ok()
        .filter(|run| *run < super::layout::END_CHUNK)
}

/// Notes how many bytes of a large block can be used.
pub(super) fn set_usable(index: u32, bytes: u64) {
    chunk(index).value.set(bytes.next_multiple_of(PAGE));
}

fn is_full(c: &Chunk, size: u32) -> bool {
    c.value.get() == 0 && c.cut.get() + size > CHUNK as u32
}

fn take_block(index: u32, c: &Chunk, size: u32) -> Option<u64> {
    let freed = c.value.get();
    let block = if freed != 0 {
        if !contains(freed) || chunk_of(freed) != index {
            corrupt();
        }
        c.value.set(peek(freed));
        freed
    } else {
        let cut = c.cut.get();
        if cut + size > CHUNK as u32 {
            return None;
        }
        c.cut.set(cut + size);
        address(index) + u64::from(cut)
    };
    c.used.set(c.used.get() + 1);
    Some(block)
}
