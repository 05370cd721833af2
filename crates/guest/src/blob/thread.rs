//! Thread blocks: one for each thread, found through gs.

use core::arch::{asm, naked_asm};
use core::sync::atomic::{
    AtomicU64,
    Ordering::{Relaxed, Release},
};

use eventlog::record::kind;
use guest::abi::{
    ARENA_BASE, Control, INHERIT_AT, INHERIT_FDS, MAX_THREADS, SLOTS_AT, Slot, THREAD_LEN,
    THREADS_BASE, ThreadBlock, slot,
};

use crate::raw::{self, nr};
use crate::ring::Ring;

/// Bit n: block n is taken.
static TAKEN: [AtomicU64; MAX_THREADS / 64] = [const { AtomicU64::new(0) }; MAX_THREADS / 64];

/// The calling thread's block.
#[inline(always)]
pub(crate) fn current() -> &'static ThreadBlock {
    let p: *const ThreadBlock;
    // SAFETY: gs points to the thread's block from its injection or birth on; the block is mapped for the
    // process' whole life and holds atomics only.
    unsafe {
        asm!("mov {}, gs:[0]", out(reg) p, options(nostack, pure, readonly, preserves_flags));
        &*p
    }
}

/// The arena's control page.
#[inline(always)]
pub(crate) fn control() -> &'static Control {
    // SAFETY: the arena is mapped at its address for the process' whole life and holds atomics only.
    unsafe { &*(ARENA_BASE as *const Control) }
}

/// A ring's header.
#[inline(always)]
pub(crate) fn slot_of(index: u32) -> &'static Slot {
    // SAFETY: as for `control`; indices come from `claim_slot` and are below `MAX_SLOTS`.
    unsafe {
        &*((ARENA_BASE + SLOTS_AT + u64::from(index) * size_of::<Slot>() as u64) as *const Slot)
    }
}

/// The table through which the slot's process hands its descriptors to its next image.
pub(crate) fn inherited(slot: u32) -> &'static [core::sync::atomic::AtomicU32; INHERIT_FDS] {
    let at = ARENA_BASE + INHERIT_AT + u64::from(slot) * INHERIT_FDS as u64 * 4;
    // SAFETY: as for `slot_of`.
    unsafe { &*(at as *const [core::sync::atomic::AtomicU32; INHERIT_FDS]) }
}

/// Takes a free ring for a new thread and gives it the next stream number.
pub(crate) fn claim_slot() -> Option<u32> {
    use core::sync::atomic::Ordering::AcqRel;
    for index in 0..guest::abi::MAX_SLOTS as u32 {
        let s = slot_of(index);
        if s.state.load(Relaxed) == slot::FREE
            && s.state
                .compare_exchange(slot::FREE, slot::CLAIMED, AcqRel, Relaxed)
                .is_ok()
        {
            s.head.store(0, Relaxed);
            s.tail.store(0, Relaxed);
            // Its thread says who it is; until then it is nobody the last one was.
            for word in [&s.end, &s.tid, &s.pid, &s.lent] {
                word.store(0, Relaxed);
            }
            s.request.store(0, Relaxed);
            s.consumer_asleep.store(0, Relaxed);
            s.producer_asleep.store(0, Relaxed);
            control().slots.fetch_max(index + 1, AcqRel);
            control().claims.fetch_add(1, AcqRel);
            return Some(index);
        }
    }
    None
}

/// Replay: the number of the thread whose log a stream is, as its first record says; `None` if there is no record.
pub(crate) fn born_in(stream: u32) -> Option<i64> {
    let index = claim_slot()?;
    let ring = slot_of(index);
    ring.stream.store(stream, Relaxed);
    ring.state.store(slot::LIVE, Release);
    let first = Ring::at(index).first();
    // The host, which feeds it, gives it back.
    ring.state.store(slot::DONE, Release);
    first
        .filter(|header| header.kind == kind::BIRTH)
        .map(|header| header.result)
}

/// Faults in the ring's pages, so that no record waits for one.
pub(crate) fn prefault(index: u32) {
    const MADV_POPULATE_WRITE: u64 = 23;
    raw::call(
        nr::MADVISE,
        [
            crate::ring::base(index),
            guest::abi::RING_LEN,
            MADV_POPULATE_WRITE,
            0,
            0,
            0,
        ],
    );
}

/// Takes a free block and gives it its hook stack.
pub(crate) fn claim_block() -> Option<&'static ThreadBlock> {
    for index in 0..MAX_THREADS {
        let bit = 1 << (index % 64);
        if TAKEN[index / 64].load(Relaxed) & bit == 0
            && TAKEN[index / 64].fetch_or(bit, Relaxed) & bit == 0
        {
            return Some(set_up(index));
        }
    }
    None
}

fn set_up(index: usize) -> &'static ThreadBlock {
    let at = THREADS_BASE + index as u64 * THREAD_LEN;
    // SAFETY: the region of all blocks is mapped at injection; the bit just taken makes this one ours.
    let block = unsafe { &*(at as *const ThreadBlock) };
    let top = at + THREAD_LEN - 64;
    block.this.store(at, Relaxed);
    block.hook_sp.store(top, Relaxed);
    block.hook_top.store(top, Relaxed);
    crate::heap::attach(block);
    for word in [
        &block.mask,
        &block.exit_mask,
        &block.unlogged,
        &block.inside,
        &block.stop,
        &block.why,
        &block.position,
        &block.tsc,
        &block.stream_held,
    ] {
        word.store(0, Relaxed);
    }
    for word in [
        &block.tid,
        &block.pid,
        &block.tables,
        &block.pending,
        &block.delivering,
        &block.follows,
    ] {
        word.store(0, Relaxed);
    }
    crate::exchanged::forget(block);
    block
}

/// Gives a block back that no thread runs on.
pub(crate) fn release_block(block: &ThreadBlock) {
    let index = index_of(block);
    TAKEN[index / 64].fetch_and(!(1 << (index % 64)), Relaxed);
}

/// Whether the calling thread is the only one of its address space.
pub(crate) fn alone() -> bool {
    TAKEN
        .iter()
        .map(|word| word.load(Relaxed).count_ones())
        .sum::<u32>()
        == 1
}

fn index_of(block: &ThreadBlock) -> usize {
    ((block.this.load(Relaxed) - THREADS_BASE) / THREAD_LEN) as usize
}

/// After a fork: the other threads' blocks are nobody's in the child.
pub(crate) fn keep_only(block: &ThreadBlock) {
    let index = index_of(block);
    for (word, taken) in TAKEN.iter().enumerate() {
        taken.store(
            if word == index / 64 {
                1 << (index % 64)
            } else {
                0
            },
            Relaxed,
        );
    }
}

/// Ends the calling thread and gives its block back in its last instructions, which use no stack.
pub(crate) fn exit_thread(status: u64) -> ! {
    let index = index_of(current());
    let word = core::ptr::from_ref(&TAKEN[index / 64]) as u64;
    // SAFETY: nothing runs on this thread afterwards; signals are blocked by the caller.
    unsafe { leave(word, !(1_u64 << (index % 64)), status) }
}

#[unsafe(naked)]
unsafe extern "C" fn leave(word: u64, mask: u64, status: u64) -> ! {
    naked_asm!(
        "lock and qword ptr [rdi], rsi",
        "mov rdi, rdx",
        "mov eax, 60",
        "syscall",
        "ud2"
    )
}

/// Points gs at a block.
pub(crate) fn set_gs(block: &ThreadBlock) {
    // SAFETY: FSGSBASE is on wherever the injector accepts the host; nothing but the guest uses gs.
    unsafe {
        asm!("wrgsbase {}", in(reg) block.this.load(Relaxed), options(nostack, preserves_flags))
    }
}
