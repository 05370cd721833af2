//! The time-stamp counter, which guests stamp their records with.

use core::arch::x86_64::{_mm_lfence, _rdtsc};

/// Cycles now. Everything before it in the program has happened, and nothing behind it (Intel's manual, RDTSC).
#[must_use]
pub fn now() -> u64 {
    // SAFETY: both have no preconditions in user mode, and SSE2 is part of x86-64.
    unsafe {
        _mm_lfence();
        let cycles = _rdtsc();
        _mm_lfence();
        cycles
    }
}
