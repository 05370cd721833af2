//! Replaying to the ends of the logs, where a takeover goes on.

use std::sync::atomic::Ordering::Acquire;
use std::thread;
use std::time::{Duration, Instant};

use guest::abi::{MAX_SLOTS, slot};
use sys::arena::Arena;
use sys::follow::Caller;
use sys::threads::{Activity, activity};

use crate::divergence::Divergence;
use crate::feed::{Feeder, Seen, Source};
use crate::standing::Standings;
use crate::standstill::Standstill;

/// Why replay did not come to the ends of the logs.
#[derive(Debug, thiserror::Error)]
pub enum Incomplete<E: std::error::Error> {
    /// The program did something else than the log says.
    #[error("{0}")]
    Diverged(Box<Divergence>),
    /// Nothing happened for too long.
    #[error(
        "replay stands still: {} of {} threads wait, nothing for {still:?}: {standings}", seen.idle(), seen.threads
    )]
    Stalled {
        /// What the last look found.
        seen: Seen,
        /// How long.
        still: Duration,
        /// Where its threads stand.
        standings: Standings,
    },
    /// Its threads have ended, or were killed.
    #[error("the container has ended in replay")]
    Ended,
    /// The log could not be read.
    #[error(transparent)]
    Source(E),
}

/// Threads that wait in calls that the log does not have are waited for so long, and nobody is asked before whether it
/// waits in vain.
const SETTLE: Duration = Duration::from_millis(3);
/// Threads that calculate with their logs consumed are waited for so long: what they do next is live.
const COMPUTES: Duration = Duration::from_millis(100);
/// Rounds without work before the feeder sleeps.
const SPINS: u32 = 20;
const NAP: Duration = Duration::from_micros(50);

/// Feeds the guests of `arena` from `source` until nothing can happen any more: each thread is at its
/// log's end, waits for a turn that does not come, or sleeps in a call of its own (or calculates for long) with its log
/// consumed.
/// `requests` hears of processes that are about to execute a program. `init` is the container's first process, in our
/// numbering; `ended` tells of one that stands still whether it is gone, or nobody needs it any more. A replay that makes
/// no progress for `stall` is stopped.
///
/// # Errors
/// [`Incomplete`].
pub fn to_log_end<S: Source>(
    arena: &Arena,
    source: &S,
    requests: Option<Caller>,
    init: i32,
    ended: impl Fn() -> bool,
    stall: Duration,
) -> Result<Seen, Incomplete<S::Error>> {
    let mut feeder = Feeder::new(arena, source, requests);
    let (mut since, mut consumed, mut rounds) = (Instant::now(), 0, 0);
    let mut standstill = Standstill::default();
    let sleeps = |number| activity(init, number) == Activity::Sleeps;
    let stands = |number| activity(init, number) == Activity::Stands;
    loop {
        let seen = feeder.round().map_err(Incomplete::Source)?;
        if let Some(divergence) = Divergence::reported(arena.control(), source) {
            return Err(Incomplete::Diverged(Box::new(divergence)));
        }
        if seen.threads == 0 && !seen.progress {
            return Err(Incomplete::Ended);
        }
        if seen.progress || seen.consumed != consumed {
            (since, consumed, rounds) = (Instant::now(), seen.consumed, 0);
            continue;
        }
        let still = since.elapsed();
        let is_over = seen.parked == seen.threads
            || still > SETTLE && rest_is_done(arena, &sleeps)
            || still > COMPUTES && rest_is_done(arena, &|_| true);
        if is_over && standstill.is_for_good(arena, &stands) {
            // One that has left the log since waits, too.
            return match Divergence::reported(arena.control(), source) {
                Some(divergence) => Err(Incomplete::Diverged(Box::new(divergence))),
                None => Ok(seen),
            };
        }
        if still > SETTLE && ended() {
            return Err(Incomplete::Ended);
        }
        if still > stall {
            return Err(Incomplete::Stalled {
                seen,
                still,
                standings: Standings::of(arena, source),
            });
        }
        rounds += 1;
        if rounds > SPINS {
            thread::sleep(NAP);
        }
    }
}

/// Whether every thread that is neither at its log's end nor waiting has consumed its log, and sleeps.
fn rest_is_done(arena: &Arena, sleeps: &impl Fn(u32) -> bool) -> bool {
    (0..MAX_SLOTS).map(|index| arena.slot(index)).all(|ring| {
        !matches!(ring.state.load(Acquire), slot::LIVE | slot::EARLY)
            || ring.end.load(Acquire) != 0
                && ring.tail.load(Acquire) == ring.head.load(Acquire)
                && sleeps(ring.tid.load(Acquire))
    })
}
