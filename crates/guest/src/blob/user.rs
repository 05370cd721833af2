//! The application's memory. A bad pointer gives [`Fault`], never a crash in the guest.
//!
//! Copies are single string instructions at known addresses; the SIGSEGV and SIGBUS handler ends one that
//! faulted (see [`recover`]).

use core::arch::global_asm;

/// The address is not mapped as needed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault;

global_asm!(
    ".globl user_copy",
    "user_copy:", // rdi: to, rsi: from, rdx: bytes; returns bytes not copied
    "mov rcx, rdx",
    ".globl user_copy_at",
    "user_copy_at:",
    "rep movsb",
    ".globl user_copy_end",
    "user_copy_end:",
    "mov rax, rcx",
    "ret",
);

unsafe extern "C" {
    fn user_copy(to: u64, from: u64, len: u64) -> u64;
    fn user_copy_at();
    fn user_copy_end();
}

/// Where a copy that faulted at `rip` goes on, if it was one.
pub(crate) fn recover(rip: u64) -> Option<u64> {
    (rip == user_copy_at as *const () as u64).then_some(user_copy_end as *const () as u64)
}

/// Copies between any two addresses of this process.
#[inline]
pub(crate) fn copy(to: u64, from: u64, len: u64) -> Result<(), Fault> {
    // SAFETY: the copy is one string instruction, and a fault in it ends it (`recover`); what it writes is
    // either memory that the application named for a call to fill or the guest's ring, neither of which
    // Rust references cover.
    if unsafe { user_copy(to, from, len) } == 0 {
        Ok(())
    } else {
        Err(Fault)
    }
}

/// Reads a plain value.
#[inline]
pub(crate) fn read<T: Plain>(from: u64) -> Result<T, Fault> {
    let mut value = core::mem::MaybeUninit::<T>::zeroed();
    copy(value.as_mut_ptr() as u64, from, size_of::<T>() as u64)?;
    // SAFETY: `Plain` types are valid for any bytes, and all bytes were written.
    Ok(unsafe { value.assume_init() })
}

/// Writes a plain value.
#[inline]
pub(crate) fn write<T: Plain>(to: u64, value: &T) -> Result<(), Fault> {
    copy(to, core::ptr::from_ref(value) as u64, size_of::<T>() as u64)
}

/// Length of the string at `from` with its terminating zero, or `limit` if that is nearer.
pub(crate) fn string_len(from: u64, limit: u64) -> Result<u64, Fault> {
    let mut n = 0;
    while n < limit {
        n += 1;
        if read::<u8>(from + n - 1)? == 0 {
            break;
        }
    }
    Ok(n)
}

/// Types for which every bit pattern is a value.
///
/// # Safety
/// The type has no padding, no references and no invalid values.
pub(crate) unsafe trait Plain: Copy {}
// SAFETY: integers and arrays of them.
unsafe impl Plain for u8 {}
// SAFETY: as above.
unsafe impl Plain for u16 {}
// SAFETY: as above.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for i32 {}
// SAFETY: as above.
unsafe impl Plain for u64 {}
// SAFETY: as above.
unsafe impl Plain for i64 {}
// SAFETY: as above.
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {}
