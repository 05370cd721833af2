//! The blob: records and replays the process it was injected into.
//!
//! In: system calls (from patched sites and from Syscall User Dispatch), vDSO calls, lock calls, signals.
//! Out: records in the thread's ring, or, in replay, the logged results.
//!
//! It is freestanding, linked at [`guest::abi::BLOB_BASE`], touches no vector register (the target is
//! soft-float), allocates nothing after injection and trusts no pointer of the application: user memory is
//! reached through [`user`] alone, which turns a fault into EFAULT.
#![no_std]
#![no_main]

mod backlog;
mod barriers;
mod baton;
mod calls;
mod connections;
mod debts;
mod delivery;
mod descriptors;
mod dispatch;
mod entry;
mod epoll;
mod exchanged;
mod hashes;
mod heap;
mod holds;
mod init;
mod jemalloc;
mod joins;
mod locks;
mod log;
mod onces;
mod order;
mod pace;
mod patch;
mod raw;
mod replayed_signals;
mod ring;
mod robust;
mod rwlocks;
mod semaphores;
mod sent_signals;
mod shapes;
mod signals;
mod spins;
mod stacks;
mod starved;
mod streams;
mod symbols;
mod tables;
mod thread;
mod unwinding;
mod user;
mod vdso;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    raw::abort(PANIC_STATUS)
}

/// Exit status of a process whose guest found an invariant of its own broken.
const PANIC_STATUS: u64 = 99;
