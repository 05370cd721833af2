//! Joins that do not wait for ever: whether the thread had ended is up to the kernel's timing, so it is recorded.
//!
//! `pthread_clockjoin_np` is not here: it begins with a branch, so that its original cannot be called.

use eventlog::record::kind;

use crate::locks;
use crate::log::{self, Mode};
use crate::symbols::{Function, Library};

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

extern "C" fn try_join(thread: u64, result: u64) -> i32 {
    recorded(thread, result, || TRY_JOIN.get()(thread, result))
}

extern "C" fn timed_join(thread: u64, result: u64, until: u64) -> i32 {
    recorded(thread, result, || TIMED_JOIN.get()(thread, result, until))
}

/// Makes the attempt, or, in replay, does what the log says: a join that came about comes about again.
fn recorded(thread: u64, result: u64, attempt: impl FnOnce() -> i32) -> i32 {
    if log::now() == Mode::Replay
        && let Some(outcome) = locks::inside(|t| locks::take(t, kind::TRYLOCK, thread))
    {
        return match outcome {
            0 => JOIN.get()(thread, result),
            failed => failed as i32,
        };
    }
    let outcome = attempt();
    locks::inside(|t| locks::emit(t, kind::TRYLOCK, thread, i64::from(outcome)));
    outcome
}
