//! When the host is asked to look at what a thread wrote.
//!
//! A thread that serves many connections in a loop writes to all that were ready and then waits for events.
//! Asking the host after each write would have it ship one record at a time; so such a thread asks when it
//! waits again, or has written a good deal. Other threads ask at once. The host looks by itself once a
//! millisecond, whatever is asked.

use core::sync::atomic::Ordering::Relaxed;

use guest::abi::ThreadBlock;

use crate::ring;

/// A write's share of what may be left for later, and a read's: reads only open the peer's window.
pub(crate) const WRITE: u32 = 32;
pub(crate) const READ: u32 = 1;
/// Shares left for later at most: so many writes, and the host works beside the loop.
const MOST: u32 = 32 * WRITE;

/// The thread has something for the host.
#[inline(always)]
pub(crate) fn owe(t: &ThreadBlock, share: u32) {
    let owed = t.owed.load(Relaxed) + share;
    if t.loops.load(Relaxed) == 0 || owed >= MOST {
        pay(t);
    } else {
        t.owed.store(owed, Relaxed);
    }
}

/// Before every call.
#[inline(always)]
pub(crate) fn before(t: &ThreadBlock, call: u64) {
    if waits_for_events(call) {
        t.loops.store(1, Relaxed);
    }
    if t.owed.load(Relaxed) != 0 && !is_part_of_a_turn(call) {
        pay(t);
    }
}

#[inline(always)]
fn pay(t: &ThreadBlock) {
    t.owed.store(0, Relaxed);
    ring::wake_drainer();
}

#[inline(always)]
const fn waits_for_events(call: u64) -> bool {
    // poll, select, epoll_wait, pselect6, ppoll, epoll_pwait, epoll_pwait2
    matches!(call, 7 | 23 | 232 | 270 | 271 | 281 | 441)
}

/// What a loop does between two waits, without blocking as a rule.
#[inline(always)]
const fn is_part_of_a_turn(call: u64) -> bool {
    // read, write, close, readv, writev, fcntl, setsockopt, getsockopt
    // sendto, recvfrom, sendmsg, recvmsg, getsockname, getpeername, epoll_ctl, accept4
    matches!(
        call,
        0 | 1 | 3 | 19 | 20 | 44..=47 | 51 | 52 | 54 | 55 | 72 | 233 | 288
    )
}
