//! Where the parts of the heap lie, and its size classes.
//!
//! The region is cut into chunks of 64 KiB. A chunk holds blocks of one class, or is part of a large block, or
//! is free; what is known about it lies at the region's start, before the first chunk that is handed out.

use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};

use guest::abi::{HEAP_BASE, HEAP_LEN, MAX_THREADS, THREAD_LEN, THREADS_BASE};

use crate::raw::{self, nr};

/// Bytes of a chunk are two to this power.
pub(super) const CHUNK_SHIFT: u32 = 16;
/// Bytes of a chunk.
pub(super) const CHUNK: u64 = 1 << CHUNK_SHIFT;
/// One above the last chunk.
pub(super) const END_CHUNK: u32 = (HEAP_LEN >> CHUNK_SHIFT) as u32;

/// Chunks that become accessible at once, at least (16 MiB); their descriptions fill whole pages.
pub(super) const STEP: u32 = 256;

/// Offset of the threads' caches.
const CACHES_AT: u64 = 0;
/// Bytes kept for one cache.
pub(super) const CACHE_LEN: u64 = 1024;
/// Offset of the byte for each chunk that says what [`free`](super::free) may find there.
const USES_AT: u64 = 1 << 20;
/// Offset of the chunks' descriptions.
const CHUNKS_AT: u64 = 1 << 27;
/// The first chunk that is handed out.
pub(super) const FIRST_CHUNK: u32 =
    ((CHUNKS_AT + END_CHUNK as u64 * size_of::<Chunk>() as u64) >> CHUNK_SHIFT) as u32;

const _: () = assert!((STEP as usize * size_of::<Chunk>()).is_multiple_of(4096));
const _: () = assert!(FIRST_CHUNK.is_multiple_of(STEP) && END_CHUNK.is_multiple_of(STEP));
const _: () =
    assert!(MAX_THREADS as u64 * CACHE_LEN <= USES_AT && USES_AT + END_CHUNK as u64 <= CHUNKS_AT);

/// Number of classes; they count from 1.
pub(super) const CLASSES: usize = 52;
/// Largest block that lies in a chunk with others.
pub(super) const SMALL_MAX: u64 = 32 << 10;
/// In place of a class: a large block begins here.
pub(super) const LARGE: u8 = u8::MAX;
/// In place of a class: no block begins here.
pub(super) const NONE: u8 = 0;

/// Blocks of one size.
pub(super) struct Class {
    /// Bytes of a block.
    pub(super) size: u32,
    /// 2³² / size, rounded up: `n` is a multiple of the size if `n * reciprocal` modulo 2³² is below it.
    pub(super) reciprocal: u32,
    /// Blocks that a thread keeps at most.
    pub(super) most: u32,
}

/// The classes by number; number 0 is none.
pub(super) static CLASS: [Class; CLASSES + 1] = {
    let mut table = [const {
        Class {
            size: 0,
            reciprocal: 0,
            most: 0,
        }
    }; CLASSES + 1];
    let mut i = 1;
    while i <= CLASSES {
        let size = class_size(i as u32);
        let most = (CHUNK as u32) / size;
        let most = if most > 128 {
            128
        } else if most < 4 {
            4
        } else {
            most
        };
        table[i] = Class {
            size,
            reciprocal: u32::MAX / size + 1,
            most,
        };
        i += 1;
    }
    table
};

/// Steps of 16 to 128, then eight to a doubling up to 1024, then four.
const fn class_size(class: u32) -> u32 {
    if class <= 8 {
        return class * 16;
    }
    let (first, steps, base) = if class <= 32 {
        (9, 8, 128)
    } else {
        (33, 4, 1024)
    };
    let base = base << ((class - first) / steps);
    base + base / steps * ((class - first) % steps + 1)
}

/// The smallest class for a size in units of 16 bytes.
static CLASS_FOR: [u8; SMALL_MAX as usize / 16 + 1] = {
    let mut table = [1; SMALL_MAX as usize / 16 + 1];
    let mut class = 1;
    let mut i = 1;
    while i < table.len() {
        if i as u32 * 16 > class_size(class) {
            class += 1;
        }
        table[i] = class as u8;
        i += 1;
    }
    table
};

/// The smallest class that holds so many bytes, at most [`SMALL_MAX`].
#[inline(always)]
pub(super) fn class_for(size: u64) -> usize {
    usize::from(CLASS_FOR[(size as usize).div_ceil(16) % CLASS_FOR.len()])
}

/// A word of the heap's books. One thread at a time changes it: its owner, or whoever has the centre's turn.
pub(super) struct Word(AtomicU32);

impl Word {
    pub(super) const fn new(value: u32) -> Self {
        Self(AtomicU32::new(value))
    }

    #[inline(always)]
    pub(super) fn get(&self) -> u32 {
        self.0.load(Relaxed)
    }

    #[inline(always)]
    pub(super) fn set(&self, value: u32) {
        self.0.store(value, Relaxed);
    }
}

/// As [`Word`], of eight bytes.
pub(super) struct Wide(AtomicU64);

impl Wide {
    #[inline(always)]
    pub(super) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }

    #[inline(always)]
    pub(super) fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }
}

/// What is known about a chunk. For a run of chunks the first one tells; `run` and `state` are in the last
/// one, too, so that a neighbour finds them.
#[repr(C)]
pub(super) struct Chunk {
    /// Neighbours in the list of free runs, or of chunks with free blocks; 0 for none.
    pub(super) next: Word,
    pub(super) prev: Word,
    /// Chunks of the run.
    pub(super) run: Word,
    /// One of [`state`].
    pub(super) state: Word,
    /// Small blocks: how many are with threads.
    pub(super) used: Word,
    /// Small blocks: bytes that were ever cut into blocks.
    pub(super) cut: Word,
    /// Small blocks: the first free one; a large block: its usable bytes.
    pub(super) value: Wide,
}

/// Values of [`Chunk::state`].
pub(super) mod state {
    /// Part of the application's memory.
    pub(in super::super) const TAKEN: u32 = 0;
    /// Free, may hold old bytes.
    pub(in super::super) const DIRTY: u32 = 1;
    /// Free, reads as zeroes and takes no memory.
    pub(in super::super) const CLEAN: u32 = 2;
}

/// The description of a chunk.
#[inline(always)]
pub(super) fn chunk(index: u32) -> &'static Chunk {
    let at = HEAP_BASE + CHUNKS_AT + u64::from(index % END_CHUNK) * size_of::<Chunk>() as u64;
    // SAFETY: descriptions of all chunks lie in the heap's region, which is mapped for the process' whole life
    // and zero at first, a valid value; they hold atomics only.
    unsafe { &*(at as *const Chunk) }
}

/// Class of the blocks in a chunk, [`LARGE`] or [`NONE`].
#[inline(always)]
pub(super) fn use_of(index: u32) -> &'static AtomicU8 {
    let at = HEAP_BASE + USES_AT + u64::from(index % END_CHUNK);
    // SAFETY: as for `chunk`.
    unsafe { &*(at as *const AtomicU8) }
}

fn open(offset: u64, len: u64) -> bool {
    const PROT_RW: u64 = 3;
    raw::call(nr::MPROTECT, [HEAP_BASE + offset, len, PROT_RW, 0, 0, 0]) == 0
}

/// Makes the caches and the bytes of [`use_of`] accessible.
pub(super) fn open_head() {
    if !open(CACHES_AT, USES_AT + u64::from(END_CHUNK) - CACHES_AT) {
        raw::abort(crate::PANIC_STATUS);
    }
}

/// Makes chunks and their descriptions accessible; both numbers are multiples of [`STEP`].
pub(super) fn open_chunks(from: u32, to: u32) -> bool {
    let described = |index: u32| CHUNKS_AT + u64::from(index) * size_of::<Chunk>() as u64;
    let begins = |index: u32| u64::from(index) << CHUNK_SHIFT;
    open(described(from), described(to) - described(from))
        && open(begins(from), begins(to) - begins(from))
}

/// Address of a chunk.
pub(super) fn address(index: u32) -> u64 {
    HEAP_BASE + (u64::from(index) << CHUNK_SHIFT)
}

/// The chunk of an address in the region.
#[inline(always)]
pub(super) fn chunk_of(address: u64) -> u32 {
    ((address - HEAP_BASE) >> CHUNK_SHIFT) as u32
}

/// Whether an address lies in the region.
#[inline(always)]
pub(super) fn contains(address: u64) -> bool {
    address.wrapping_sub(HEAP_BASE) < HEAP_LEN
}

/// Where the cache of the thread with this block lies.
pub(super) fn cache_address(block: u64) -> u64 {
    HEAP_BASE + CACHES_AT + (block - THREADS_BASE) / THREAD_LEN * CACHE_LEN
}

/// Reads a word of a free block.
#[inline(always)]
pub(super) fn peek(at: u64) -> u64 {
    // SAFETY: the callers have found `at` in a free block of the heap's region, which is mapped for the
    // process' whole life; nobody else uses a free block.
    unsafe { (*(at as *const AtomicU64)).load(Relaxed) }
}

/// Writes a word of a free block.
#[inline(always)]
pub(super) fn poke(at: u64, value: u64) {
    // SAFETY: as for `peek`.
    unsafe { (*(at as *const AtomicU64)).store(value, Relaxed) }
}
