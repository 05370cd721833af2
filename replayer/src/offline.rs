//! Replaying a recording from its first exec to its end.

use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool,
    Ordering::{Acquire, Release},
};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use guest::abi::flag;
use sys::arena::Arena;
use sys::follow::{FollowError, Follower};
use sys::threads::{Activity, activity};

use crate::divergence::Divergence;
use crate::feed::Feeder;
use crate::log::Log;
use crate::standing::{Standing, Standings, standings};
use crate::standstill::Standstill;
use crate::verdict::{self, AllLeft, Left};

/// Why a replay failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program could not be followed.
    #[error(transparent)]
    Follow(#[from] FollowError),
    /// It did something else than the log says.
    #[error("{0}")]
    Diverged(Box<Divergence>),
    /// Nothing happened for too long.
    #[error("replay stands still, nothing for {} ms: {standings}", still.as_millis())]
    Stalled {
        /// How long.
        still: Duration,
        /// Where its threads stand.
        standings: Standings,
    },
    /// The log ends, and the program does not.
    #[error(
        "the log ends before the program, which ended with status {status} when it was recorded: {standings}"
    )]
    Unfinished {
        /// The recorded status.
        status: i32,
        /// Where its threads stand.
        standings: Standings,
    },
    /// The program ends, and the log does not, or says that it ended otherwise.
    #[error(
        "the program ended with status {status} in replay, with {left}, where stream 0 says at position 0 that it ended with {recorded}"
    )]
    Left {
        /// The status in replay.
        status: i32,
        /// The recorded status.
        recorded: i32,
        /// What is left.
        left: AllLeft,
    },
    /// The replayer itself failed.
    #[error("the replayer's feed thread panicked")]
    Panicked,
}

/// How a replay ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The program ended by itself.
    Ended,
    /// Every thread came to the end of its log, as when the recorded program was killed.
    LogEnd,
}

/// Threads that all wait for the log or for their turns get neither any more after so long.
const SETTLE: Duration = Duration::from_millis(500);
/// A replay that makes no progress for so long is stopped.
const STALL: Duration = Duration::from_secs(10);
/// Rounds without work before the feeder sleeps.
const SPINS: u32 = 200;
const NAP: Duration = Duration::from_micros(50);

/// A replay under way.
#[derive(Debug)]
pub struct Replay {
    follower: Follower,
    feed: JoinHandle<Result<Stopped, Error>>,
    stop: Arc<AtomicBool>,
}

/// Why there is nothing more to feed.
#[derive(Debug)]
enum Stopped {
    /// The container has ended.
    Ended(Ended),
    /// As [`Outcome::LogEnd`].
    LogEnd,
}

/// What is known of a replay whose program has ended.
#[derive(Debug)]
struct Ended {
    recorded: i32,
    /// What threads that ended by themselves left of the log, and what all did.
    left: Vec<Left>,
    left_by_any: Vec<Left>,
}

impl Replay {
    /// Begins to replay: the program waits before its first execve, `arena` (in replay mode) is one of its
    /// descriptors. `kill` ends its container; it is called when the replay is over before the program is.
    /// `init` and `program` are host numbers.
    ///
    /// # Errors
    /// When the program cannot be traced.
    pub fn begin(
        log: Log,
        arena: Arc<Arena>,
        init: i32,
        program: i32,
        kill: impl Fn() + Send + 'static,
    ) -> Result<Self, Error> {
        let follower = Follower::attach(Arc::clone(&arena), init, program)?;
        let stop = Arc::new(AtomicBool::new(false));
        let (requests, flag) = (follower.caller(), Arc::clone(&stop));
        let feed = thread::Builder::new().name("feed".into()).spawn(move || {
            let stopped = feed(
                &log,
                &arena,
                Feeder::new(&arena, &log, Some(requests)),
                init,
                &flag,
            );
            kill();
            if arena.control().flags.load(Acquire) & flag::TIMED == 0 {
                tracing::info!("the order of time was given up");
            }
            stopped
        });
        Ok(Self {
            follower,
            feed: feed.map_err(FollowError::Thread)?,
            stop,
        })
    }

    /// Waits until the program's first image runs under the guest.
    ///
    /// # Errors
    /// When it could not be injected.
    pub fn started(&self) -> Result<(), Error> {
        Ok(self.follower.started()?)
    }

    /// The container has ended, its program with this status: the verdict.
    ///
    /// # Errors
    /// [`Error`].
    pub fn finish(self, status: i32) -> Result<Outcome, Error> {
        self.stop.store(true, Release);
        let stopped = self.feed.join().map_err(|_| Error::Panicked)??;
        if let Some(error) = self.follower.error() {
            return Err(error.into());
        }
        match stopped {
            Stopped::LogEnd => Ok(Outcome::LogEnd),
            Stopped::Ended(ended) => ended.verdict(status),
        }
    }
}

impl Ended {
    fn verdict(self, status: i32) -> Result<Outcome, Error> {
        let recorded = self.recorded;
        if status == recorded && self.left.is_empty() {
            return Ok(Outcome::Ended);
        }
        let left = AllLeft(if status == recorded {
            self.left
        } else {
            self.left_by_any
        });
        Err(Error::Left {
            status,
            recorded,
            left,
        })
    }
}

fn feed(
    log: &Log,
    arena: &Arena,
    mut feeder: Feeder<'_, Log>,
    init: i32,
    stop: &AtomicBool,
) -> Result<Stopped, Error> {
    let mut last = (Instant::now(), 0);
    let mut idle_rounds = 0;
    let mut standstill = Standstill::default();
    let stands = |number| activity(init, number) == Activity::Stands;
    loop {
        let Ok(seen) = feeder.round();
        // In this order: what a thread reported before the end must not be missed.
        let ended = stop.load(Acquire);
        if let Some(divergence) = Divergence::reported(arena.control(), log) {
            return Err(Error::Diverged(Box::new(divergence)));
        }
        if ended {
            let taken = feeder.taken();
            return Ok(Stopped::Ended(Ended {
                recorded: log.status,
                left: verdict::left(log, &taken, false),
                left_by_any: verdict::left(log, &taken, true),
            }));
        }
        if seen.progress || seen.consumed != last.1 {
            last = (Instant::now(), seen.consumed);
            idle_rounds = 0;
            continue;
        }
        idle_rounds += 1;
        let waited = last.0.elapsed();
        let is_idle = seen.threads > 0 && seen.idle() == seen.threads;
        if is_idle && waited > SETTLE && standstill.is_for_good(arena, &stands) {
            return at_rest(log, standings(arena, log), waited);
        }
        if waited > STALL {
            return Err(Error::Stalled {
                still: waited,
                standings: Standings::of(arena, log),
            });
        }
        if idle_rounds > SPINS {
            thread::sleep(NAP);
        }
    }
}

/// No thread can go on: that is the log's end only where a signal ended the program.
fn at_rest(log: &Log, standings: Vec<Standing>, still: Duration) -> Result<Stopped, Error> {
    let waits_in_vain = |standing: &Standing| !verdict::waits_for_the_killed(log, standing);
    if standings.iter().any(waits_in_vain) {
        let standings = Standings(standings);
        return Err(Error::Stalled { still, standings });
    }
    if verdict::by_signal(log.status) {
        return Ok(Stopped::LogEnd);
    }
    Err(Error::Unfinished {
        status: log.status,
        standings: Standings(standings),
    })
}
