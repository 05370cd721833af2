//! Signals for threads that do not come to the guest: loops without a call in them, which only a handler ends.
//!
//! While a signal waits, a timer looks after the thread. Where it finds it in the application's own code for long, it
//! steps through the code: when place and registers come back to what they were, one round of the loop is like another,
//! and the signal is delivered there. Its record says where. Replay steps from the guest's exit on until it comes there;
//! in which round does not matter, unless the loop counts its rounds in memory.
//!
//! A loop that counts in a register, or a long calculation, does not come back: it gets the signal when it is over.

use core::sync::atomic::Ordering::Relaxed;

use eventlog::record::{SIGNAL_AT_PLACE, kind};
use guest::abi::{BLOB_BASE, BLOB_MAX, ThreadBlock, failure};

use crate::log::{self, Mode};
use crate::raw::{self, nr};
use crate::{delivery, signals, user, vdso};

/// How long a signal waits before the first look, and between two: nanoseconds.
const WAITS: u64 = 200_000_000;
const AGAIN: u64 = 500_000_000;
/// Instructions that a loop has at most.
const STEPS: u32 = 20_000;
/// Instructions after which replay gives up finding the place.
const SEARCH: u32 = REPLAYED | 10_000_000;
/// In the number of steps: they are replay's.
const REPLAYED: u32 = 1 << 31;

const TRAP_FLAG: u64 = 0x100;
/// Bytes of a place in a record: the general registers as the kernel's frame has them, the instruction pointer, and one
/// bit for each register that the loop changes. The others may hold what the guest left there, and tell nothing.
pub(crate) const PLACE_LEN: u64 = REGISTERS_LEN + 8;
const REGISTERS_LEN: u64 = 17 * 8;
/// Where the frame has them, and the flags.
const REGISTERS_AT: u64 = 40;
const FLAGS_AT: u64 = 40 + 17 * 8;
const RIP: usize = 16;
const CHANGING: usize = 17;

/// Looks after a thread for which a signal waits.
pub(crate) fn watch(t: &ThreadBlock) {
    const SIGEV_THREAD_ID: u64 = 4;
    const SIGTRAP: u64 = 5;
    const CLOCK_MONOTONIC: u64 = 1;
    if t.timer.load(Relaxed) != 0 {
        return;
    }
    let mut id = 0_u32;
    let mut event = [0_u64; 8];
    event[1] = SIGTRAP | SIGEV_THREAD_ID << 32;
    event[2] = u64::from(t.tid.load(Relaxed));
    let args = [
        CLOCK_MONOTONIC,
        event.as_ptr() as u64,
        (&raw mut id) as u64,
        0,
        0,
        0,
    ];
    if raw::call(nr::TIMER_CREATE, args) < 0 {
        return;
    }
    t.timer.store(id + 1, Relaxed);
    let setting = [0, AGAIN, 0, WAITS];
    let args = [u64::from(id), 0, setting.as_ptr() as u64, 0, 0, 0];
    raw::call(nr::TIMER_SETTIME, args);
}

/// No signal waits any more.
pub(crate) fn unwatch(t: &ThreadBlock) {
    t.steps.store(0, Relaxed);
    let timer = t.timer.swap(0, Relaxed);
    if timer != 0 {
        raw::call(nr::TIMER_DELETE, [u64::from(timer - 1), 0, 0, 0, 0, 0]);
    }
}

/// The host calls a thread that it takes for one in a loop: in replay, where the log goes on with a signal for it, and when
/// replay is over.
pub(crate) fn called(t: &ThreadBlock, context: u64) {
    if !is_outside(t, context) {
        return;
    }
    if log::now() == Mode::Replay {
        if is_expected(t) {
            step(context, true);
        }
        return;
    }
    signals::go_live_outside(t, context);
    look(t, context);
}

/// The timer has fired.
pub(crate) fn look(t: &ThreadBlock, context: u64) {
    if t.pending.load(Relaxed) == 0 || log::now() == Mode::Replay || !is_outside(t, context) {
        return;
    }
    let _ = user::copy(place(t), context + REGISTERS_AT, REGISTERS_LEN);
    t.place[CHANGING].store(1 << RIP, Relaxed);
    t.steps.store(STEPS, Relaxed);
    step(context, true);
}

/// Whether the thread was in the application's own code.
fn is_outside(t: &ThreadBlock, context: u64) -> bool {
    let rip = user::read::<u64>(context + REGISTERS_AT + 8 * RIP as u64).unwrap_or(BLOB_BASE);
    let in_guest = t.inside.load(Relaxed) != 0
        || t.hook_sp.load(Relaxed) != t.hook_top.load(Relaxed)
        || (BLOB_BASE..BLOB_BASE + BLOB_MAX).contains(&rip);
    !in_guest && !vdso::contains(rip)
}

/// The thread has made one instruction.
pub(crate) fn stepped(t: &ThreadBlock, context: u64) {
    let left = t.steps.load(Relaxed);
    if left == 0 {
        return step(context, false);
    }
    let replaying = log::now() == Mode::Replay;
    if replaying && left & REPLAYED == 0 && !is_expected(t) {
        // The image was taken in a search that found nothing.
        t.steps.store(0, Relaxed);
        return step(context, false);
    }
    let left = t.steps.load(Relaxed);
    t.steps.store(left - 1, Relaxed);
    let changed = changed(t, context);
    let changing = &t.place[CHANGING];
    if !replaying {
        changing.fetch_or(changed, Relaxed);
    }
    if changed & changing.load(Relaxed) == 0 && is_outside(t, context) {
        step(context, false);
        return delivery::deliver_at(t, context, place(t));
    }
    let is_last = left & !REPLAYED <= 1;
    if is_last && replaying {
        log::diverge(t, failure::CALL, u64::from(kind::SIGNAL), 0);
    }
    if is_last || !replaying && t.pending.load(Relaxed) == 0 {
        t.steps.store(0, Relaxed);
        step(context, false);
    }
}

/// Replay: the thread is about to leave the guest. Whether it has to be stepped, for a signal that was delivered before
/// it came again.
pub(crate) fn is_expected(t: &ThreadBlock) -> bool {
    if log::now() != Mode::Replay {
        return false;
    }
    let Some(next) = log::peek(t) else {
        return false;
    };
    let wanted = next.header.kind == kind::SIGNAL
        && next.header.hash == SIGNAL_AT_PLACE
        && next.header.result.cast_unsigned() == t.unlogged.load(Relaxed);
    if wanted {
        let _ = next.get(signals::SIGINFO_LEN, place(t), PLACE_LEN);
        t.steps.store(SEARCH, Relaxed);
    }
    wanted
}

/// The flags with which a hook is left.
pub(crate) fn flags(t: &ThreadBlock, flags: u64) -> u64 {
    if is_expected(t) {
        flags | TRAP_FLAG
    } else {
        flags
    }
}

/// As [`flags`], for functions that return to the application.
#[inline]
pub(crate) fn at_return(t: &ThreadBlock) {
    if is_expected(t) {
        // SAFETY: sets the trap flag alone; the trap behind it goes to the guest's own handler.
        unsafe {
            core::arch::asm!("pushfq", "or qword ptr [rsp], 0x100", "popfq");
        }
    }
}

/// As [`flags`], for handlers that return.
pub(crate) fn at_handlers_end(t: &ThreadBlock, context: u64) {
    if is_expected(t) {
        step(context, true);
    }
}

fn step(context: u64, on: bool) {
    let flags = user::read::<u64>(context + FLAGS_AT).unwrap_or(0);
    let flags = if on {
        flags | TRAP_FLAG
    } else {
        flags & !TRAP_FLAG
    };
    let _ = user::write(context + FLAGS_AT, &flags);
}

fn place(t: &ThreadBlock) -> u64 {
    t.place.as_ptr() as u64
}

/// The registers that hold something else than at the place.
fn changed(t: &ThreadBlock, context: u64) -> u64 {
    let differs = |index: usize| {
        let now = user::read::<u64>(context + REGISTERS_AT + 8 * index as u64);
        !now.is_ok_and(|now| now == t.place[index].load(Relaxed))
    };
    // The instruction pointer differs most often; what else does is of interest while it is recorded.
    if log::now() == Mode::Replay && differs(RIP) {
        return 1 << RIP;
    }
    let all = (0..=RIP).filter(|index| differs(*index));
    all.fold(0, |changed, index| changed | 1 << index)
}
