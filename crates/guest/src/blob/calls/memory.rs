//! The memory map: its changes are made on both sides, in one recorded order.

use core::sync::atomic::Ordering::Release;

use guest::abi::{
    ARENA_BASE, ARENA_LEN, BLOB_BASE, HEAP_BASE, HEAP_LEN, MAX_THREADS, STACKS_BASE, STACKS_LEN,
    THREAD_LEN, THREADS_BASE, ThreadBlock,
};
use sysabi::Syscall;

use crate::dispatch::{self, wrong_result};
use crate::entry::Regs;
use crate::log::{self, Mode};
use crate::order::{self, MEMORY};
use crate::patch;
use crate::raw;
use crate::shapes::Shape;
use crate::{stacks, tables};

const MMAP: u16 = 9;
const MPROTECT: u16 = 10;
const PKEY_MPROTECT: u16 = 329;
const MREMAP: u16 = 25;
const BRK: u16 = 12;
const MAP_PRIVATE: u64 = 2;
const MAP_TYPE: u64 = 0xf;
const MAP_FIXED: u64 = 0x10;
const MAP_ANONYMOUS: u64 = 0x20;
const MAP_FIXED_NOREPLACE: u64 = 0x10_0000;
const MREMAP_MAYMOVE: u64 = 1;
const MREMAP_FIXED: u64 = 2;
const PROT_EXEC: u64 = 4;

/// mmap, munmap, mprotect, mremap, brk.
pub(crate) fn ordered(t: &ThreadBlock, regs: &Regs, row: &'static Syscall) -> i64 {
    let args = regs.args();
    if touches_own(row.nr, &args) {
        return -raw::EINVAL;
    }
    let Some(shape) = Shape::of(row, args) else {
        return -raw::EINVAL;
    };
    if log::now() == Mode::Replay
        && let Some(taken) = log::take(t, row.nr)
    {
        shape.check(&taken);
        let (result, version) = (taken.header.result, taken.header.version);
        if version == 0 {
            taken.finish();
            return result;
        }
        if order::await_turn(t, &MEMORY, version) {
            taken.finish();
            repeat(t, row.nr, &args, result);
            MEMORY.version.store(version, Release);
            return result;
        }
        // Replay ended while this change waited for one that never came: nobody saw it, so it is made now.
    }
    let held = order::lock(t, &MEMORY);
    let result = raw::call(regs.rax, args);
    let changed = !(-4095..0).contains(&result);
    let version = if changed { held.stamp() } else { 0 };
    if changed {
        adopt(row.nr, &args, result);
    }
    // While nobody else can make a change: no log has a later one without this.
    if log::now() == Mode::Record {
        dispatch::record(t, &shape, result, version);
    }
    drop(held);
    result
}

/// Makes a logged change again, at the logged place.
fn repeat(t: &ThreadBlock, call: u16, args: &[u64; 6], result: i64) {
    let mut again = *args;
    let at = result.cast_unsigned();
    match call {
        MMAP => {
            again[0] = at;
            again[3] = (args[3] & !MAP_FIXED_NOREPLACE) | MAP_FIXED;
            let is_file = again[3] & MAP_ANONYMOUS == 0
                && tables::of(t).kind(again[4]) != tables::Kind::Memory;
            if is_file && again[3] & MAP_TYPE != MAP_PRIVATE {
                // A shared mapping of a file must not write to the file while it is only replayed.
                again[3] = (again[3] & !MAP_TYPE) | MAP_PRIVATE;
            }
        }
        MREMAP if at != args[0] => {
            again[3] = MREMAP_MAYMOVE | MREMAP_FIXED | (args[3] & !(MREMAP_MAYMOVE | MREMAP_FIXED));
            again[4] = at;
        }
        _ => {}
    }
    let got = raw::call(u64::from(call), again);
    if got != result {
        wrong_result(t, result, got);
    }
    adopt(call, args, result);
}

/// Patches code that was just mapped, under the map's lock: nobody runs it yet.
fn adopt(call: u16, args: &[u64; 6], result: i64) {
    if call == MMAP && args[2] & PROT_EXEC != 0 && args[3] & MAP_ANONYMOUS == 0 {
        let start = result.cast_unsigned();
        patch::adopt_text(start, start + args[1].next_multiple_of(4096));
    }
}

/// `mlockall`: locks pages when they are first used, or it would fill the heap's whole reserve.
pub(crate) fn lock_all(t: &ThreadBlock, regs: &mut Regs, row: &'static Syscall) -> i64 {
    const ALL: u64 = 3; // MCL_CURRENT, MCL_FUTURE
    const MCL_ONFAULT: u64 = 4;
    let asked = regs.rdi;
    if asked & ALL != 0 {
        regs.rdi |= MCL_ONFAULT;
    }
    let result = dispatch::executed(t, regs, row);
    regs.rdi = asked;
    result
}

/// The guest's own address space is not there for the application.
fn touches_own(call: u16, args: &[u64; 6]) -> bool {
    const OWN: [(u64, u64); 4] = [
        (BLOB_BASE, THREADS_BASE + MAX_THREADS as u64 * THREAD_LEN),
        (ARENA_BASE, ARENA_BASE + ARENA_LEN),
        (HEAP_BASE, HEAP_BASE + HEAP_LEN),
        (STACKS_BASE, STACKS_BASE + STACKS_LEN),
    ];
    let overlaps = |at: u64, len: u64| {
        OWN.iter()
            .any(|&(a, b)| at < b && at.saturating_add(len) > a)
    };
    match call {
        BRK => false,
        // A block of the heap is the application's to protect.
        MPROTECT | PKEY_MPROTECT if (HEAP_BASE..HEAP_BASE + HEAP_LEN).contains(&args[0]) => {
            args[1] > HEAP_BASE + HEAP_LEN - args[0]
        }
        // A thread's stack is the application's to protect, and to map anew (runtimes place guard pages so).
        MPROTECT | PKEY_MPROTECT if stacks::is_one(args[0], args[1]) => false,
        MMAP if stacks::is_one(args[0], args[1]) => false,
        MMAP => args[3] & (MAP_FIXED | MAP_FIXED_NOREPLACE) != 0 && overlaps(args[0], args[1]),
        MREMAP => {
            overlaps(args[0], args[1])
                || (args[3] & MREMAP_FIXED != 0 && overlaps(args[4], args[2]))
        }
        _ => overlaps(args[0], args[1]),
    }
}
