//! Joins that do not wait for ever: whether the thread had ended is up to the kernel's timing, so it is recorded, before
//! what has ended is joined: a checkpoint may be taken on either side of the record.
//!
//! `pthread_clockjoin_np` is not here: it begins with a branch, so that its original cannot be called.

use core::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed},
};

use eventlog::record::kind;
use guest::abi::ThreadBlock;

use crate::locks::{self, CLOCK_REALTIME, Until};
use crate::log::{self, Mode};
use crate::symbols::{Function, Library};
use crate::{delivery, raw};

static TRY_JOIN: Function<extern "C" fn(u64, u64) -> i32> = Function::unknown();
static TIMED_JOIN: Function<extern "C" fn(u64, u64, u64) -> i32> = Function::unknown();
static JOIN: Function<extern "C" fn(u64, u64) -> i32> = Function::unknown();

/// Replaces the functions that this library has; `wrap` as in [`crate::stacks::adopt`].
pub(crate) fn adopt(library: &Library, wrap: impl Fn(u64, u64) -> Option<u64>) {
    if JOIN.is_known() || library.function(crate::heap::MARK).is_none() {
        return;
    }
    let Some(join) = library.function(b"pthread_join") else {
        return;
    };
    JOIN.set(join);
    if let Some(address) = library.function(b"pthread_tryjoin_np")
        && let Some(original) = wrap(address, try_join as *const () as u64)
    {
        TRY_JOIN.set(original);
    }
    if let Some(address) = library.function(b"pthread_timedjoin_np")
        && let Some(original) = wrap(address, timed_join as *const () as u64)
    {
        TIMED_JOIN.set(original);
    }
}

/// Where in what a `pthread_t` points to the word lies that the kernel clears when the thread has ended; 0 before the
/// first was made.
static ENDED_AT: AtomicU64 = AtomicU64::new(0);

/// A thread is made whose thread pointer, which is its `pthread_t`, and word to clear are these.
pub(crate) fn thread_begins(pointer: u64, ended: u64) {
    ENDED_AT.store(ended.wrapping_sub(pointer), Relaxed);
}

extern "C" fn try_join(thread: u64, result: u64) -> i32 {
    let offset = ENDED_AT.load(Relaxed);
    if offset == 0 {
        return TRY_JOIN.get()(thread, result);
    }
    let attempt = |t: &ThreadBlock| {
        let ended = locks::word(thread, offset).load(Acquire) == 0;
        let outcome = if ended { 0 } else { raw::EBUSY };
        locks::emit(t, kind::TRYLOCK, thread, outcome);
        outcome
    };
    let outcome = locks::inside(|t| logged(t, thread).unwrap_or_else(|| attempt(t)));
    join_if(outcome, thread, result)
}

extern "C" fn timed_join(thread: u64, result: u64, until: u64) -> i32 {
    let offset = ENDED_AT.load(Relaxed);
    if offset == 0 {
        return TIMED_JOIN.get()(thread, result, until);
    }
    let until = Until {
        clock: CLOCK_REALTIME,
        at: until,
    };
    let outcome = locks::inside(|t| await_end(t, thread, locks::word(thread, offset), until));
    join_if(outcome, thread, result)
}

/// Waits for the end of a thread; what comes of it.
fn await_end(t: &ThreadBlock, thread: u64, ended: &AtomicU32, until: Until) -> i64 {
    if ended.load(Relaxed) == t.tid.load(Relaxed) {
        return raw::EDEADLK;
    }
    loop {
        delivery::at_lock(t);
        if let Some(outcome) = logged(t, thread) {
            return outcome;
        }
        let number = ended.load(Acquire);
        let over = match number {
            0 => 0,
            _ => locks::sleep(t, ended, number, until),
        };
        if number == 0 || over != 0 {
            locks::emit(t, kind::TRYLOCK, thread, over);
            return over;
        }
    }
}

/// In replay: what the log says of an attempt.
fn logged(t: &ThreadBlock, thread: u64) -> Option<i64> {
    (log::now() == Mode::Replay)
        .then(|| locks::take(t, kind::TRYLOCK, thread))
        .flatten()
}

/// A thread that has ended is joined; in replay it may still have to end.
fn join_if(outcome: i64, thread: u64, result: u64) -> i32 {
    match outcome {
        0 => JOIN.get()(thread, result),
        failed => failed as i32,
    }
}
