//! Breakpoints of the processor: a thread of its own stops at an address, and no byte of its program changes.
//!
//! Debug registers as ptrace(2) shows them in `struct user`; Intel's manual, volume 3, "Debug Registers".

use std::mem::offset_of;

use libc::{pid_t, user};

use super::{Result, request};

/// Where `struct user` has the first address, and what is enabled.
const ADDRESS: usize = offset_of!(user, u_debugreg);
const CONTROL: usize = ADDRESS + 7 * size_of::<u64>();
/// The first address, when an instruction there is about to be executed.
const ON: u64 = 1;

/// Lets a stopped thread run into SIGTRAP ([`Stop::Signal`](super::Stop::Signal)) before each instruction at an address.
/// It lasts until [`clear_break`], beyond detaching.
///
/// # Errors
/// When the thread is not stopped, the address is the kernel's, or another has all breakpoints of the processor.
pub fn break_at(tid: pid_t, address: u64) -> Result<()> {
    write(tid, CONTROL, 0)?;
    write(tid, ADDRESS, address)?;
    write(tid, CONTROL, ON)
}

/// Ends [`break_at`].
///
/// # Errors
/// When the thread is not stopped.
pub fn clear_break(tid: pid_t) -> Result<()> {
    write(tid, CONTROL, 0)
}

fn write(tid: pid_t, at: usize, value: u64) -> Result<()> {
    let value = usize::try_from(value).unwrap_or(usize::MAX);
    request(
        "setting a breakpoint",
        libc::PTRACE_POKEUSER,
        tid,
        at,
        value,
    )
    .map(drop)
}
