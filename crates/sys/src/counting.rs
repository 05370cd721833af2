//! An allocator that counts, for tests and fuzzers that hold a decoder to its bound of memory.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

/// The system's allocator, with what each thread holds counted. To be a program's `#[global_allocator]`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counting;

/// The most bytes that the calling thread held during `work` beyond what it held before. Always 0 where
/// [`Counting`] is not the program's allocator.
pub fn peak_of(work: impl FnOnce()) -> usize {
    let before = LIVE.get();
    PEAK.set(before);
    work();
    usize::try_from(PEAK.get() - before).unwrap_or(0)
}

/// Counts so many bytes more or, below zero, less. What a thread frees for another is below zero too.
fn count(bytes: isize) {
    let now = LIVE.get() + bytes;
    LIVE.set(now);
    PEAK.set(PEAK.get().max(now));
}

/// A size as a difference: no layout is longer than `isize::MAX`.
const fn signed(size: usize) -> isize {
    size.cast_signed()
}

// SAFETY: every call is handed to the system's allocator as it came. Counting neither allocates nor panics:
// the counters are constants without a destructor, so they are there from a thread's first to its last
// allocation, and no sum of live sizes leaves the address space.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(signed(layout.size()));
        // SAFETY: the caller's promise about `layout` is the system's requirement.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(signed(layout.size()));
        // SAFETY: as for `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(signed(new_size) - signed(layout.size()));
        // SAFETY: the caller's promise about all three is the system's requirement; `ptr` is the system's,
        // since this allocator gives out no other.
        unsafe { System.realloc(ptr, layout, new_size) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count(-signed(layout.size()));
        // SAFETY: as for `realloc`.
        unsafe { System.dealloc(ptr, layout) }
    }
}
