//! The memory functions of the C library, replaced so that replay finds every block at its recorded address.
//!
//! glibc's own allocator picks arenas by who holds which lock at the moment. Here each thread keeps free
//! blocks of its own ([`cache`]), and only moves of many blocks between it and the [`centre`], and large
//! blocks, touch what threads share; these have one order, which is recorded once there is a second thread.
//! So every address follows from each thread's own calls and that order.
//!
//! All memory comes from one region, reserved at injection and opened in steps: a checkpoint looks through
//! what is open, used or not. Pointers that are not in it were handed out by
//! the loader's own allocator, before the C library was there; they are left alone.

mod cache;
mod centre;
mod layout;
mod runs;

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use guest::abi::ThreadBlock;

use crate::locks::Replacement;
use crate::order::Held;
use crate::{raw, symbols, user};
use layout::{CHUNK, CLASS, CLASSES, LARGE, SMALL_MAX, chunk, chunk_of, class_for, use_of};

/// The functions that are replaced, in the library that has [`MARK`].
pub(crate) static FUNCTIONS: &[Replacement] = &[
    Replacement {
        name: b"malloc",
        function: malloc as *const (),
    },
    Replacement {
        name: b"free",
        function: free as *const (),
    },
    Replacement {
        name: b"calloc",
        function: calloc as *const (),
    },
    Replacement {
        name: b"realloc",
        function: realloc as *const (),
    },
    Replacement {
        name: b"memalign",
        function: memalign as *const (),
    },
    Replacement {
        name: b"aligned_alloc",
        function: memalign as *const (),
    },
    Replacement {
        name: b"posix_memalign",
        function: posix_memalign as *const (),
    },
    Replacement {
        name: b"valloc",
        function: valloc as *const (),
    },
    Replacement {
        name: b"pvalloc",
        function: pvalloc as *const (),
    },
    Replacement {
        name: b"malloc_usable_size",
        function: malloc_usable_size as *const (),
    },
];

/// A function that glibc alone has: other allocators bring a `malloc` of their own, which stays.
pub(crate) const MARK: &[u8] = b"gnu_get_libc_version";

/// Exit status of a process that freed something that is no block, or wrote over a free one.
const CORRUPT_STATUS: u64 = 98;

const ALIGNMENT: u64 = 16;
const PAGE: u64 = 4096;
/// Large blocks from this length on get room behind them when `realloc` has to move them.
const GROWING: u64 = 4 * CHUNK;

/// Ends the process: going on would hand out memory that is in use.
#[cold]
fn corrupt() -> ! {
    raw::abort(CORRUPT_STATUS)
}

#[cold]
fn no_memory() -> u64 {
    symbols::set_errno(raw::ENOMEM as i32);
    0
}

/// In a fresh image, before its first thread block is claimed.
pub(crate) fn init() {
    layout::open_head();
}

/// Gives a claimed thread block its cache, empty.
pub(crate) fn attach(t: &ThreadBlock) {
    let at = layout::cache_address(t.this.load(Relaxed));
    t.heap.store(at, Relaxed);
    cache::at_address(at).clear();
}

/// Before a child is made. One that shares memory with a running parent makes the heap's order count; one in
/// memory of its own is made in a turn, so that its copy is the same in replay.
pub(crate) fn before_clone(t: &ThreadBlock, shares: bool, vfork: bool) -> Option<Held<'static>> {
    if !shares {
        return centre::turn(t);
    }
    if !vfork {
        centre::share();
    }
    None
}

/// A child that shares its parent's memory while the parent waits uses the parent's cache.
pub(crate) fn lend(from: &ThreadBlock, to: &ThreadBlock) {
    to.heap.store(from.heap.load(Relaxed), Relaxed);
}

/// In a fork child: it is alone. What other threads' caches held stays unused.
pub(crate) fn after_fork() {
    centre::reset();
}

/// A thread ends: what it kept is everybody's.
pub(crate) fn thread_exits(t: &ThreadBlock) {
    let at = t.heap.load(Relaxed);
    if at == layout::cache_address(t.this.load(Relaxed)) {
        cache::at_address(at).flush(t);
    }
}

#[inline(always)]
extern "C" fn malloc(size: u64) -> u64 {
    if size > SMALL_MAX {
        return large(size, ALIGNMENT, false).map_or_else(no_memory, |made| made.at);
    }
    let block = cache::mine().take(class_for(size.max(1)));
    if block == 0 { no_memory() } else { block }
}

#[cold]
#[inline(never)]
fn large(size: u64, align: u64, spare: bool) -> Option<centre::Made> {
    centre::chunks_for(size)?;
    centre::with(|centre| centre.make_large(size, align, spare))
}

extern "C" fn free(at: u64) {
    if !layout::contains(at) {
        return;
    }
    let class = use_of(chunk_of(at)).load(Relaxed);
    if usize::from(class).wrapping_sub(1) >= CLASSES {
        return free_large(at);
    }
    let class = usize::from(class);
    if !begins_block(at, class) || !cache::mine().put(class, at) {
        corrupt();
    }
}

#[cold]
#[inline(never)]
fn free_large(at: u64) {
    centre::with(|centre| centre.drop_large(at));
}

#[inline(always)]
fn begins_block(at: u64, class: usize) -> bool {
    let offset = (at % CHUNK) as u32;
    offset.wrapping_mul(CLASS[class].reciprocal) < CLASS[class].reciprocal
}

extern "C" fn calloc(count: u64, size: u64) -> u64 {
    let Some(bytes) = count.checked_mul(size) else {
        return no_memory();
    };
    if bytes > SMALL_MAX {
        return match large(bytes, ALIGNMENT, false) {
            Some(made) => {
                if !made.zero {
                    zero(made.at, bytes);
                }
                made.at
            }
            None => no_memory(),
        };
    }
    let at = malloc(bytes);
    if at != 0 {
        zero(at, bytes.next_multiple_of(ALIGNMENT));
    }
    at
}

/// Writes zeroes; the length is rounded down to whole words.
fn zero(at: u64, len: u64) {
    const LOOP_MAX: u64 = 256;
    if len > LOOP_MAX {
        // SAFETY: the memory is a block that nobody has yet, or free chunks.
        unsafe { core::ptr::write_bytes(at as *mut u8, 0, len as usize) };
        return;
    }
    for word in (at..at + len).step_by(8) {
        layout::poke(word, 0);
    }
}

/// Bytes that can be used at a block's start. Ends the process if none starts there.
fn usable(at: u64) -> u64 {
    let index = chunk_of(at);
    match use_of(index).load(Relaxed) {
        LARGE if at.is_multiple_of(CHUNK) => chunk(index).value.get(),
        class
            if usize::from(class).wrapping_sub(1) < CLASSES
                && begins_block(at, usize::from(class)) =>
        {
            u64::from(CLASS[usize::from(class)].size)
        }
        _ => corrupt(),
    }
}

extern "C" fn malloc_usable_size(at: u64) -> u64 {
    if layout::contains(at) { usable(at) } else { 0 }
}

extern "C" fn realloc(at: u64, size: u64) -> u64 {
    if at == 0 {
        return malloc(size);
    }
    if size == 0 {
        free(at);
        return 0;
    }
    if !layout::contains(at) {
        return adopt(at, size);
    }
    let have = usable(at);
    if have <= SMALL_MAX {
        let stays = size <= have && (size > have / 2 || class_for(size) == class_for(have));
        return if stays {
            at
        } else {
            moved(at, have, size, false)
        };
    }
    if size > SMALL_MAX && resized(at, have, size) {
        return at;
    }
    moved(at, have, size, size >= GROWING && size > have)
}

/// Changes a large block's length in place if that can be done.
fn resized(at: u64, have: u64, size: u64) -> bool {
    let index = chunk_of(at);
    let run = u64::from(chunk(index).run.get());
    let Some(want) = centre::chunks_for(size).map(u64::from) else {
        return false;
    };
    // Room behind it stays while it grows; a shrinking block gives back what makes a difference.
    if want <= run && (size >= have || (run - want) * 4 < run) {
        centre::set_usable(index, size);
        return true;
    }
    centre::with(|centre| centre.resize_large(at, size))
}

fn moved(at: u64, have: u64, size: u64, spare: bool) -> u64 {
    let to = if spare {
        large(size, ALIGNMENT, true).map_or_else(no_memory, |made| made.at)
    } else {
        malloc(size)
    };
    if to != 0 {
        // SAFETY: both are whole blocks of the heap, which do not overlap; `have` bytes of the old one and
        // `size` of the new one can be used.
        unsafe {
            core::ptr::copy_nonoverlapping(at as *const u8, to as *mut u8, have.min(size) as usize)
        };
        free(at);
    }
    to
}

/// A block of the loader's: nobody knows its length, so what can be read is copied and it stays.
#[cold]
fn adopt(at: u64, size: u64) -> u64 {
    let to = malloc(size);
    if to != 0 {
        let _ = user::copy(to, at, size);
    }
    to
}

/// A block at a multiple of a power of two, 0 if there is no memory.
fn aligned(align: u64, size: u64) -> u64 {
    if align <= ALIGNMENT {
        return malloc(size);
    }
    if align < SMALL_MAX && size <= SMALL_MAX {
        // Chunks are aligned, so a class whose size is a multiple has aligned blocks only.
        let mut class = class_for(size.max(align));
        while u64::from(CLASS[class].size) % align != 0 {
            class += 1;
        }
        let block = cache::mine().take(class);
        return if block == 0 { no_memory() } else { block };
    }
    large(size.max(SMALL_MAX + 1), align, false).map_or_else(no_memory, |made| made.at)
}

extern "C" fn memalign(align: u64, size: u64) -> u64 {
    match align.checked_next_power_of_two() {
        Some(align) => aligned(align, size),
        None => {
            symbols::set_errno(raw::EINVAL as i32);
            0
        }
    }
}

extern "C" fn posix_memalign(to: u64, align: u64, size: u64) -> i32 {
    if !align.is_power_of_two() || !align.is_multiple_of(8) {
        return raw::EINVAL as i32;
    }
    let at = aligned(align, size);
    if at == 0 {
        return raw::ENOMEM as i32;
    }
    // SAFETY: the caller's variable for the pointer, which the C library would write in the same way.
    unsafe { (*(to as *const AtomicU64)).store(at, Relaxed) };
    0
}

extern "C" fn valloc(size: u64) -> u64 {
    aligned(PAGE, size)
}

extern "C" fn pvalloc(size: u64) -> u64 {
    match size.checked_next_multiple_of(PAGE) {
        Some(size) => aligned(PAGE, size.max(PAGE)),
        None => no_memory(),
    }
}
