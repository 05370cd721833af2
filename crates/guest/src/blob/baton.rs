//! The baton: where the operator asks for it (`--serial`), only the thread that has it runs the program.
//!
//! What threads do to one another without a lock or a call that is recorded (locks of a language's own, flags, counters) is
//! in no log. Where no two of them run at once, the order of their records tells it all: what a thread does between two
//! records comes behind the records that are older, and before those that are younger. Replay keeps to that ([`crate::pace`]).
//!
//! A thread has the baton before its record gets its time, and until it comes to its next call, or sleeps for a lock. One
//! that goes on without having made a record makes one if another has had the baton since ([`kind::BATON`]).
//!
//! It is not waited for endlessly: a thread may run for long between two calls, or look for a flag that another is to set.
//! After [`PATIENCE`] another takes the baton, and both run.

use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};

use eventlog::record::{Header, kind};
use guest::abi::{Baton, ThreadBlock, flag};

use crate::log::{self, Mode};
use crate::thread::control;
use crate::{dispatch, pace, raw};

/// Cycles for which one waits that has the baton and makes no call: some fifty milliseconds, for it may have no processor.
const PATIENCE: u64 = 150_000_000;
/// Looks before one sleeps that waits, and how long it sleeps before it looks again, nanoseconds.
const LOOKS: u32 = 300;
const NAP_NS: u64 = 50_000;
/// Cycles that the thread that had it last gives others who wait for it.
const COURTESY: u64 = 5_000;

/// Whether one thread runs at a time.
#[inline(always)]
pub(crate) fn is_asked_for() -> bool {
    control().flags.load(Relaxed) & flag::SERIAL != 0
}

/// Before a record of the calling thread gets its time.
#[inline(always)]
pub(crate) fn take(t: &ThreadBlock) {
    if is_asked_for() {
        taken(t);
    }
}

/// Before the calling thread does what may take long.
#[inline(always)]
pub(crate) fn leave(t: &ThreadBlock) {
    if is_asked_for() {
        let baton = &control().baton;
        let me = t.tid.load(Relaxed);
        let had = baton.owner.compare_exchange(me, 0, SeqCst, Relaxed).is_ok();
        if had && baton.asleep.load(SeqCst) != 0 {
            raw::futex_wake(&baton.owner, 1);
        }
    }
}

/// The calling thread is about to wait, wherever it is.
#[cold]
pub(crate) fn leave_to_wait() {
    if is_asked_for() && log::now() == Mode::Record {
        leave(crate::thread::current());
    }
}

/// All leave it, for a checkpoint: whoever goes on then says so in its log, so that the image's threads do it in turn.
#[cold]
pub(crate) fn leave_at_cut(t: &ThreadBlock) {
    leave(t);
    control().baton.last.store(0, Release);
}

/// Before the program runs on.
#[inline(always)]
pub(crate) fn go_on(t: &ThreadBlock) {
    if is_asked_for() {
        again(t);
    }
}

fn again(t: &ThreadBlock) {
    match log::now() {
        Mode::Record => {
            let mut got = taken(t);
            while got == Got::Asked {
                dispatch::hold_if_asked(t);
                got = taken(t);
            }
            if got == Got::Behind {
                let header = Header {
                    kind: kind::BATON,
                    result: t.unlogged.load(Relaxed).cast_signed(),
                    ..Header::default()
                };
                log::emit(t, header);
            }
        }
        Mode::Replay => {
            let come_to = t.unlogged.load(Relaxed).cast_signed();
            if let Some(next) = log::peek(t)
                && next.header.kind == kind::BATON
                && next.header.result <= come_to
            {
                pace::arrive(t);
                next.finish();
            }
        }
        _ => {}
    }
}

/// What came of an attempt to get the baton.
#[derive(PartialEq, Eq)]
enum Got {
    /// The thread has it, and nobody had it since this thread did.
    Still,
    /// It has it behind another.
    Behind,
    /// It does not have it: the host asks it to stop.
    Asked,
}

fn taken(t: &ThreadBlock) -> Got {
    let (baton, me) = (&control().baton, t.tid.load(Relaxed));
    if me == 0 || baton.owner.load(Relaxed) == me {
        return Got::Still;
    }
    let get = || baton.owner.compare_exchange(0, me, Acquire, Relaxed);
    if baton.waiting.load(Relaxed) != 0 && baton.last.load(Relaxed) == me {
        let began = raw::cycles();
        while baton.last.load(Relaxed) == me && raw::cycles() - began < COURTESY {
            core::hint::spin_loop();
        }
    }
    if get().is_err() {
        baton.waiting.fetch_add(1, AcqRel);
        let is_asked = !wait(t, baton, me, get);
        baton.waiting.fetch_sub(1, AcqRel);
        if is_asked {
            return Got::Asked;
        }
    }
    baton.passed.fetch_add(1, Relaxed);
    match baton.last.swap(me, AcqRel) {
        last if last == me => Got::Still,
        _ => Got::Behind,
    }
}

/// Waits for it; false if the host asks the thread to stop: nobody runs the program then, and the thread may have a record
/// to make before.
fn wait(t: &ThreadBlock, baton: &Baton, me: u32, get: impl Fn() -> Result<u32, u32>) -> bool {
    let (mut began, mut looks, mut passed) = (raw::cycles(), 0, 0);
    while let Err(owner) = get() {
        if t.stop.load(Relaxed) != 0 {
            return false;
        }
        // Each that has it has that time for itself.
        let now = baton.passed.load(Relaxed);
        if now != passed {
            (began, passed) = (raw::cycles(), now);
        }
        if raw::cycles().saturating_sub(began) > PATIENCE {
            baton.owner.store(me, Release);
            return true;
        }
        looks += 1;
        if looks < LOOKS {
            core::hint::spin_loop();
        } else {
            // The one that has it may need this processor.
            baton.asleep.fetch_add(1, SeqCst);
            if owner != 0 {
                raw::futex_wait_for(&baton.owner, owner, NAP_NS);
            }
            baton.asleep.fetch_sub(1, SeqCst);
            looks = 0;
        }
    }
    true
}
