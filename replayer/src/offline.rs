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

use crate::divergence::Divergence;
use crate::feed::Feeder;
use crate::log::Log;

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
    #[error(
        "replay stands still: {idle} of {threads} threads wait, {consumed} of {total} bytes of the log were consumed, nothing for {seconds} s"
    )]
    Stalled {
        /// Threads that wait for the log or for their turn.
        idle: usize,
        /// Threads that live.
        threads: usize,
        /// Bytes consumed by the threads that live.
        consumed: u64,
        /// Bytes in the log.
        total: u64,
        /// How long.
        seconds: u64,
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

/// A replay that makes no progress for so long is stopped.
const STALL: Duration = Duration::from_secs(10);
/// Rounds without work before the feeder sleeps.
const SPINS: u32 = 200;
const NAP: Duration = Duration::from_micros(50);

/// A replay under way.
#[derive(Debug)]
pub struct Replay {
    follower: Follower,
    feed: JoinHandle<Result<Outcome, Error>>,
    stop: Arc<AtomicBool>,
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
            let outcome = feed(
                &log,
                &arena,
                Feeder::new(&arena, &log, Some(requests)),
                &flag,
            );
            kill();
            if arena.control().flags.load(Acquire) & flag::TIMED == 0 {
                tracing::info!("the order of time was given up");
            }
            outcome
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

    /// The container has ended: the verdict.
    ///
    /// # Errors
    /// [`Error`].
    pub fn finish(self) -> Result<Outcome, Error> {
        self.stop.store(true, Release);
        let outcome = self.feed.join().map_err(|_| Error::Panicked)??;
        self.follower.error().map_or(Ok(outcome), |e| Err(e.into()))
    }
}

fn feed(
    log: &Log,
    arena: &Arena,
    mut feeder: Feeder<'_, Log>,
    stop: &AtomicBool,
) -> Result<Outcome, Error> {
    let mut last = (Instant::now(), 0);
    let mut idle_rounds = 0;
    loop {
        let Ok(seen) = feeder.round();
        if let Some(divergence) = Divergence::reported(arena.control(), log) {
            return Err(Error::Diverged(Box::new(divergence)));
        }
        if stop.load(Acquire) {
            return Ok(Outcome::Ended);
        }
        if seen.progress || seen.consumed != last.1 {
            last = (Instant::now(), seen.consumed);
            idle_rounds = 0;
            continue;
        }
        idle_rounds += 1;
        let waited = last.0.elapsed();
        if seen.threads > 0 && seen.idle() == seen.threads && waited > Duration::from_millis(500) {
            return Ok(Outcome::LogEnd);
        }
        if waited > STALL {
            let (idle, threads, consumed) = (seen.idle(), seen.threads, seen.consumed);
            return Err(Error::Stalled {
                idle,
                threads,
                consumed,
                total: log.len(),
                seconds: waited.as_secs(),
            });
        }
        if idle_rounds > SPINS {
            thread::sleep(NAP);
        }
    }
}
