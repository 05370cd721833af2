//! A takeover under way: what it may read, when it may go live, and what happens if it does not.

use std::sync::{Arc, PoisonError};

use stream::Nanos;

use super::{Guard, locked, send_due};
use crate::arbiter::{GoLiveError, Phase};
use crate::generation::{GenerationError, Reached};
use crate::store::Image;

/// A takeover under way. Dropped without going live, it is called off: the primary, if it still answers,
/// gets its lease and its acknowledgements again.
#[derive(Debug)]
pub struct Attempt<I: Image> {
    guard: Arc<Guard<I>>,
    generation: u64,
    /// The primary's last heartbeat before it.
    last_beat: u64,
    done: bool,
}

/// The primary was heard while it was being replaced: it was silent, and is not dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the primary is back: its heartbeat {beat} came")]
pub struct Back {
    /// The number of its last heartbeat.
    pub beat: u64,
}

/// Why an attempt cannot go live.
#[derive(Debug, thiserror::Error)]
pub enum LiveError {
    /// The arbiter forbids it.
    #[error(transparent)]
    Arbiter(#[from] GoLiveError),
    /// It could not be written down, so that a restart of the backup might let the old primary speak.
    #[error(transparent)]
    Generation(#[from] GenerationError),
}

impl<I: Image> Attempt<I> {
    /// The takeover that the guard's arbiter has just begun.
    pub(super) fn new(guard: Arc<Guard<I>>, generation: u64) -> Self {
        let last_beat = locked(&guard.watch).arbiter.last_beat();
        Self {
            guard,
            generation,
            last_beat,
            done: false,
        }
    }

    /// The generation that the container will go live under.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The container.
    #[must_use]
    pub fn guard(&self) -> &Arc<Guard<I>> {
        &self.guard
    }

    /// From when on the container may go live.
    #[must_use]
    pub fn clear_at(&self) -> Nanos {
        locked(&self.guard.watch).arbiter.clear_at()
    }

    /// Waits until the last promise to the primary has ended: the fence.
    pub fn wait_until_clear(&self) {
        let mut watch = locked(&self.guard.watch);
        loop {
            let left = watch.arbiter.clear_at().since(Nanos::now());
            if left.is_zero() {
                return;
            }
            let waited = self.guard.watch_moved.wait_timeout(watch, left);
            watch = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Fails if the primary was heard since the takeover began, unless it said that it will not speak. The last moment
    /// at which a takeover can be called off without a trace is before anything is sent; the sooner it is, the sooner the
    /// primary gets its lease again.
    ///
    /// # Errors
    /// [`Back`]: the attempt is to be dropped.
    pub fn confirm(&self) -> Result<(), Back> {
        self.guard.is_silent_since(self.last_beat)
    }

    /// The container goes live; every older generation is refused for good. Answers the generation.
    ///
    /// # Errors
    /// [`LiveError`], with the attempt, which may be tried again or dropped.
    pub fn go_live(mut self) -> Result<u64, (Self, LiveError)> {
        match self.try_live() {
            Ok(generation) => {
                self.done = true;
                Ok(generation)
            }
            Err(e) => Err((self, e)),
        }
    }

    fn try_live(&self) -> Result<u64, LiveError> {
        let mut watch = locked(&self.guard.watch);
        let watch = &mut *watch;
        let now = Nanos::now();
        // On disk first: between the two, a crash leaves both copies mute, not both alive.
        if now >= watch.arbiter.clear_at()
            && watch.arbiter.phase() == Phase::TakingOver
            && let Some(file) = &mut watch.generation_file
        {
            file.set(Reached {
                generation: self.generation,
                run: self.guard.hello.run,
            })?;
        }
        Ok(watch.arbiter.go_live(now)?)
    }
}

impl<I: Image> Drop for Attempt<I> {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let due = {
            let mut watch = locked(&self.guard.watch);
            watch.arbiter.revoke();
            watch.detector.rearm(Nanos::now());
            watch.reported = false;
            watch.due()
        };
        // A log connection that fails is noticed, and reported, by the thread that reads it.
        let _ = send_due(due);
    }
}
