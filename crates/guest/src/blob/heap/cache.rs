//! A thread's own free blocks: what nearly every call finds and leaves them in.

use guest::abi::ThreadBlock;

use super::centre::{self, Chain};
use super::layout::{CACHE_LEN, CLASS, CLASSES, Wide, Word, peek, poke};

/// Free blocks of one class, the last freed first.
#[repr(C)]
pub(super) struct List {
    head: Wide,
    count: Word,
    /// Blocks it may hold; it grows from 0 to the class' most as it is used.
    limit: Word,
}

/// The lists of a thread, by class.
#[repr(C)]
pub(super) struct Cache {
    lists: [List; CLASSES + 1],
}

const _: () = assert!(size_of::<Cache>() as u64 <= CACHE_LEN);

/// In the second word of a free block, mixed with its address: tells a block that is freed twice.
const FREE: u64 = 0x9d5b_37f1_c60e_a842;

/// The calling thread's cache.
#[inline(always)]
pub(super) fn mine() -> &'static Cache {
    let at: u64;
    // SAFETY: gs points to the thread's block, whose field `heap` was set when the block was claimed.
    unsafe {
        core::arch::asm!("mov {}, gs:[{}]", out(reg) at, const core::mem::offset_of!(ThreadBlock, heap),
                         options(nostack, pure, readonly, preserves_flags));
    }
    at_address(at)
}

/// The cache at an address that `layout::cache_address` gave.
#[inline(always)]
pub(super) fn at_address(at: u64) -> &'static Cache {
    // SAFETY: caches lie in the heap's region, which is mapped for the process' whole life; zero is a valid
    // value, and all fields are atomics.
    unsafe { &*(at as *const Cache) }
}

impl Cache {
    /// A block of the class, 0 if there is no memory.
    #[inline(always)]
    pub(super) fn take(&self, class: usize) -> u64 {
        let list = &self.lists[class];
        let block = list.head.get();
        if block == 0 {
            return refill(list, class);
        }
        pop(list, block);
        block
    }

    /// Takes a block back; false if it was free already.
    #[inline(always)]
    pub(super) fn put(&self, class: usize, block: u64) -> bool {
        let list = &self.lists[class];
        if peek(block + 8) == block ^ FREE {
            return false;
        }
        poke(block + 8, block ^ FREE);
        poke(block, list.head.get());
        list.head.set(block);
        let count = list.count.get() + 1;
        list.count.set(count);
        if count > list.limit.get() {
            spill(list, class);
        }
        true
    }

    /// Forgets all blocks: the cache of a thread that begins.
    pub(super) fn clear(&self) {
        for list in &self.lists {
            list.head.set(0);
            list.count.set(0);
            list.limit.set(0);
        }
    }

    /// Gives all blocks to the centre: the thread ends.
    pub(super) fn flush(&self, t: &ThreadBlock) {
        centre::with_turn(t, |centre| {
            for (class, list) in self.lists.iter().enumerate().skip(1) {
                centre.drain(class, list.head.get());
            }
        });
        self.clear();
    }
}

#[inline(always)]
fn pop(list: &List, block: u64) {
    list.head.set(peek(block));
    list.count.set(list.count.get() - 1);
    poke(block + 8, 0);
}

/// Lets a list hold twice as much as before.
fn widen(list: &List, class: usize) -> u32 {
    let limit = (list.limit.get() * 2).clamp(2, CLASS[class].most);
    list.limit.set(limit);
    limit
}

#[cold]
#[inline(never)]
fn refill(list: &List, class: usize) -> u64 {
    let want = widen(list, class) / 2;
    let Chain { head, count } = centre::with(|centre| centre.fill(class, want));
    if head != 0 {
        list.head.set(head);
        list.count.set(count);
        pop(list, head);
    }
    head
}

/// The list is too long: its older half goes to the centre, unless it may still grow.
#[cold]
#[inline(never)]
fn spill(list: &List, class: usize) {
    let before = list.limit.get();
    let limit = widen(list, class);
    if limit > before {
        return;
    }
    let keep = limit / 2;
    let mut last = list.head.get();
    for _ in 1..keep {
        last = peek(last);
    }
    let rest = peek(last);
    poke(last, 0);
    list.count.set(keep);
    centre::with(|centre| centre.drain(class, rest));
}
