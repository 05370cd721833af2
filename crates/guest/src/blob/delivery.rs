//! Where signals are delivered and recorded: before and behind calls, in functions of locks and clocks, at the ends of
//! handlers, and in loops without any of them. In replay: where the log says.

use core::sync::atomic::Ordering::Relaxed;

use eventlog::record::{Header, SIGNAL_AT_PLACE, kind};
use guest::abi::ThreadBlock;

use crate::dispatch::hold_if_asked;
use crate::entry::{self, Regs};
use crate::log::{self, Mode};
use crate::signals::{
    SA_RESTART, SIGINFO_LEN, UNMASKED, bit, block_all, kernel_mask, let_in, restore, send_again,
    set_kernel_mask, set_mask_behind, unblock,
};
use crate::{replayed_signals, starved, tables};

/// Before a call: delivers a signal that waits, if this is the point for it; the call then begins anew.
#[inline(always)]
pub(crate) fn at_entry(t: &ThreadBlock, regs: &Regs, unlogged: bool) {
    match log::now() {
        Mode::Record | Mode::Live => {
            let_in(t);
            if t.pending.load(Relaxed) != 0 {
                deliver_before(t, regs);
            }
        }
        Mode::Replay => {
            if let Some(next) = log::peek(t)
                && next.header.kind == kind::SIGNAL
                && next.header.hash == BEFORE
                && (!unlogged || t.unlogged.load(Relaxed) >= next.header.result.cast_unsigned())
            {
                replay(t, next);
                raise(t, regs, true);
            }
        }
    }
}

/// `hash` of a signal's record when it was delivered before a call that then began anew, or at the end of one that left
/// a record.
const BEFORE: u16 = 0;
/// The same at the end of a call that left no record.
const AT_EXIT: u16 = 1;
/// The same in a function that leaves a record without a call (of a lock, a clock): before that record.
const AT_LOCK: u16 = 2;
/// The same at the end of another signal's handler, whose mask had kept it back.
const AT_HANDLER: u16 = 3;

/// In a function that leaves a record without a call, before that record or a sleep: delivers what waits, in the
/// function's frame. Whether a call that sleeps ends by it (the action has no `SA_RESTART`).
#[inline]
pub(crate) fn at_lock(t: &ThreadBlock) -> bool {
    match log::now() {
        Mode::Record | Mode::Live => {
            let_in(t);
            t.pending.load(Relaxed) != 0 && deliver_here(t)
        }
        Mode::Replay => replay_here(t),
    }
}

#[cold]
fn deliver_here(t: &ThreadBlock) -> bool {
    let mut ends = false;
    while t.pending.load(Relaxed) != 0 {
        record(t, AT_LOCK);
        ends |= raise_here(t);
    }
    ends
}

fn replay_here(t: &ThreadBlock) -> bool {
    let mut ends = false;
    while let Some(next) = log::peek(t)
        && next.header.kind == kind::SIGNAL
        && next.header.hash == AT_LOCK
    {
        replay(t, next);
        ends |= raise_here(t);
    }
    ends
}

/// Has the kernel deliver the waiting signal on the spot, before this returns.
#[cold]
fn raise_here(t: &ThreadBlock) -> bool {
    let action = tables::of(t).action(t.pending.load(Relaxed) as usize);
    let mask = queue(t);
    set_kernel_mask(mask);
    action.0[1] & SA_RESTART == 0
}

/// Behind `rt_sigprocmask`, which leaves no record: a signal that it let through is delivered before it
/// returns (POSIX).
pub(crate) fn at_exit_of_mask(t: &ThreadBlock, regs: &Regs) {
    match log::now() {
        Mode::Record | Mode::Live => {
            if t.pending.load(Relaxed) == 0 {
                return;
            }
            record(t, AT_EXIT);
        }
        Mode::Replay if replays_behind_calls(t, AT_EXIT) => {}
        Mode::Replay => {
            if !is_over(t) || t.pending.load(Relaxed) == 0 {
                return;
            }
        }
    }
    raise(t, regs, false)
}

/// Logs the waiting signal as one that came before the call, and delivers it.
pub(crate) fn deliver_before(t: &ThreadBlock, regs: &Regs) -> ! {
    record(t, BEFORE);
    raise(t, regs, true)
}

/// Behind a call: delivers the signal that its record announced; live, any that waits. `regs.rax` is the result.
pub(crate) fn at_exit(t: &ThreadBlock, regs: &Regs) {
    let follows = t.follows.swap(0, Relaxed) != 0;
    let waits = log::now() == Mode::Live && t.pending.load(Relaxed) != 0;
    if !follows && !waits {
        return;
    }
    match log::now() {
        Mode::Replay => match log::take(t, kind::SIGNAL) {
            Some(taken) => replay(t, taken),
            // Live by now. What the call has sent to its own thread comes before it returns.
            None if t.pending.load(Relaxed) == 0 => return,
            None => {}
        },
        Mode::Record | Mode::Live => record(t, BEFORE),
    }
    raise(t, regs, false)
}

fn record(t: &ThreadBlock, hash: u16) {
    record_with(t, hash, 0, 0);
}

/// As [`record`], with so many bytes behind the siginfo.
fn record_with(t: &ThreadBlock, hash: u16, more: u64, len: u64) {
    if log::now() == Mode::Record {
        let header = Header {
            kind: kind::SIGNAL,
            hash,
            result: t.unlogged.load(Relaxed).cast_signed(),
            payload_len: (SIGINFO_LEN + len) as u32,
            ..Header::default()
        };
        let mut w = log::begin(t, header);
        w.bytes(t.signal.as_ptr() as u64, SIGINFO_LEN);
        w.bytes(more, len);
        w.commit(false);
    }
}

/// Replays the log's next signal, if it was delivered at such a place and behind as many calls without a record.
fn replays_behind_calls(t: &ThreadBlock, hash: u16) -> bool {
    let next = log::peek(t).filter(|next| {
        let calls = next.header.result.cast_unsigned();
        next.header.kind == kind::SIGNAL
            && next.header.hash == hash
            && calls == t.unlogged.load(Relaxed)
    });
    next.map(|next| replay(t, next)).is_some()
}

fn replay(t: &ThreadBlock, taken: log::Taken<'_>) {
    let was_kept = t.pending.load(Relaxed) != 0;
    let info = t.signal.as_ptr() as u64;
    let _ = taken.get(0, info, SIGINFO_LEN);
    taken.finish();
    let signal = t.signal[0].load(Relaxed) as u32;
    t.pending.store(signal, Relaxed);
    if was_kept {
        replayed_signals::was_kept(t, signal, info, || send_again(t, signal, info));
    }
}

/// Replay, where the log has no signal for the caller: whether it has ended for it, and one waits that would be delivered
/// here. It has not come to this place before the end then; replay is over when this answers.
fn is_over(t: &ThreadBlock) -> bool {
    let over = log::peek(t).is_none() && replayed_signals::one_waits(t);
    if over {
        log::await_end(t);
    }
    over
}

/// Sends the waiting signal to this thread and leaves the hook so that it arrives with the application's
/// registers in place.
fn raise(t: &ThreadBlock, regs: &Regs, again: bool) -> ! {
    t.intended.store(0, Relaxed);
    t.done.store(0, Relaxed);
    let mask = queue(t);
    t.exit_mask.store(mask, Relaxed);
    entry::leave_delivering(regs, again)
}

/// Sends the waiting signal to this thread, with all others kept back: it comes with the mask that is returned.
fn queue(t: &ThreadBlock) -> u64 {
    block_all();
    starved::unwatch(t);
    let signal = t.pending.swap(0, Relaxed);
    t.delivering.store(signal, Relaxed);
    let info = t.signal.as_ptr() as u64;
    if log::now() == Mode::Replay {
        // One that is pending already is the one.
        replayed_signals::make_pending(t, signal, info, || send_again(t, signal, info));
    } else {
        send_again(t, signal, info);
    }
    kernel_mask(t) & !bit(signal as usize) & !UNMASKED
}

/// A signal that the handler's mask kept back is delivered where the handler returns to, as the kernel does it.
pub(crate) fn at_end_of_handler(t: &ThreadBlock, context: u64) {
    uncut(t, || handler_ends(t, context));
}

/// Makes steps on the application's stack that no checkpoint may come between.
fn uncut(t: &ThreadBlock, steps: impl FnOnce()) {
    t.inside.store(1, Relaxed);
    steps();
    t.inside.store(0, Relaxed);
    hold_if_asked(t);
}

fn handler_ends(t: &ThreadBlock, context: u64) {
    t.unlogged.fetch_add(1, Relaxed);
    match log::now() {
        Mode::Record | Mode::Live => {
            unblock(t);
            block_all();
            if t.pending.load(Relaxed) == 0 {
                return;
            }
            record(t, AT_HANDLER);
        }
        Mode::Replay if replays_behind_calls(t, AT_HANDLER) => {}
        Mode::Replay if is_over(t) => {
            block_all();
            if t.pending.load(Relaxed) == 0 {
                return restore(t, context);
            }
        }
        Mode::Replay => return starved::at_handlers_end(t, context),
    }
    let mask = queue(t);
    set_mask_behind(context, mask);
}

/// In the application's own code, in front of the instruction that the frame shows: delivers the waiting signal, or, in
/// replay, the log's next.
pub(crate) fn deliver_at(t: &ThreadBlock, context: u64, place: u64) {
    uncut(t, || delivered_at(t, context, place));
}

fn delivered_at(t: &ThreadBlock, context: u64, place: u64) {
    if log::now() == Mode::Replay {
        match log::take(t, kind::SIGNAL) {
            Some(taken) => replay(t, taken),
            None => return,
        }
    } else {
        record_with(t, SIGNAL_AT_PLACE, place, starved::PLACE_LEN);
    }
    let mask = queue(t);
    set_mask_behind(context, mask);
}
