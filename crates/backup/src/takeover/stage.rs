//! Where attempts replay: a container without a program, and processes that stand by for one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::thread;

use guest::abi::{MAX_SLOTS, slot};
use replayer::{Incomplete, Standings, to_log_end};
use shim::container::{Container, Spec};
use sys::arena::Arena;
use sys::follow::Follower;

use super::ahead::Ahead;
use super::checkpoint::Checkpoint;
use super::clock::Clock;
use super::error::{Result, TakeoverError};
use super::holds::{self, Held};
use super::live::has_ended;
use super::log::Log;
use super::process::{self, OpenFiles, Processes, Shared};
use super::search::Search;
use super::timing::Timing;
use super::{arena, late, spinning};
use crate::guard::Guard;

/// A container without a program. Belongs to one thread, which traces.
#[derive(Debug)]
pub(super) struct Stage {
    // Before the container, which ends with all its processes.
    ahead: Ahead,
    pub(super) shared: Shared,
    pub(super) container: Container,
}

impl Stage {
    /// Makes it.
    pub(super) fn prepare(spec: &Spec) -> Result<Self> {
        Ok(Self {
            ahead: Ahead::default(),
            shared: Shared::new()?,
            container: Container::stand_by(spec)?,
        })
    }

    /// Does a part of what its processes lack of the committed checkpoint; true if there was something.
    pub(super) fn follow(&mut self, guard: &Guard<Checkpoint>) -> bool {
        self.ahead.step(&mut self.container, &self.shared, guard)
    }

    /// Attempts, as `search` times them and as many as it allows, until one has replayed to the end of the log. `between`
    /// hears of each that failed before there is another, and may call them off.
    pub(super) fn replay(
        &mut self,
        checkpoint: &mut Checkpoint,
        files: &OpenFiles,
        log: &Log,
        search: &mut Search,
        clock: &mut Clock,
        between: &mut dyn FnMut(u32, &TakeoverError) -> Result<()>,
    ) -> Result<Processes> {
        loop {
            let (timing, mut held) = (search.timing(), Vec::new());
            match self.attempt(checkpoint, files, log, &timing, &mut held, clock) {
                Err(error) if error.may_be_tried_here() && search.may_go_on() => {
                    clock.step("leave the log");
                    between(search.number(), &error)?;
                    search.failed(&error, &held, checkpoint, log);
                    self.clear()?;
                    clock.step("clear");
                }
                other => return other,
            }
        }
    }

    /// Ends what an attempt has left: the container is as it was before it.
    fn clear(&mut self) -> Result<()> {
        let template = self.ahead.template();
        if template.is_some() {
            self.container.clear(template)?;
            return arena::clear(&self.shared.arena);
        }
        self.ahead = Ahead::default();
        self.container.clear(None)?;
        self.shared = Shared::new()?;
        Ok(())
    }

    /// Finishes the processes and lets them replay to the end of the log; tells what came of its holds.
    fn attempt(
        &mut self,
        checkpoint: &mut Checkpoint,
        files: &OpenFiles,
        log: &Log,
        timing: &Timing,
        held: &mut Vec<Held>,
        clock: &mut Clock,
    ) -> Result<Processes> {
        arena::fill(&self.shared.arena, checkpoint)?;
        timing.set(&self.shared.arena);
        let init = self.container.init_pid();
        // Before they run: one may execute another program at once.
        let follower = Follower::of_restored(Arc::clone(&self.shared.arena), init)?;
        let (container, shared) = (&mut self.container, &self.shared);
        let late = late::numbers(&shared.arena, &timing.starts);
        let ahead = &mut self.ahead;
        let processes = ahead.finish(container, shared, checkpoint, files, &late)?;
        spinning::call(&spinning::expected(&shared.arena, log), init);
        clock.step("restore");
        let sleeps = |number| process::sleeps(init, number);
        let ended = || has_ended(&self.container);
        let caller = Some(follower.caller());
        let arena = &*shared.arena;
        let to_end = || to_log_end(arena, log, caller, sleeps, ended, timing.stall);
        let replayed = if timing.is_served() {
            let over = AtomicBool::new(false);
            thread::scope(|scope| {
                let replaying = scope.spawn(|| {
                    let replayed = to_end();
                    over.store(true, Release);
                    replayed
                });
                // Here, where those are traced that start late.
                *held = holds::serve(arena, init, timing, &over);
                replaying.join()
            })
            .map_err(|_| TakeoverError::Panicked { what: "replays" })?
        } else {
            to_end()
        };
        let seen = match replayed {
            Err(Incomplete::Ended) => {
                let ended = self.container.wait()?;
                return Err(TakeoverError::Ended { ended });
            }
            other => other?,
        };
        tracing::debug!(?seen, "replayed");
        complete(&self.shared.arena, log)?;
        clock.step("replay");
        Ok(processes)
    }
}

/// Checks that no thread stopped short of what can be replayed: it would go on from a past that clients have seen
/// the future of.
fn complete(arena: &Arena, log: &Log) -> Result<()> {
    let settled: BTreeMap<u32, u64> = log.streams().map(|r| (r.stream, r.settled)).collect();
    for ring in (0..MAX_SLOTS).map(|index| arena.slot(index)) {
        if matches!(
            ring.state.load(Acquire),
            slot::FREE | slot::CLAIMED | slot::DONE
        ) {
            continue;
        }
        let (stream, position) = (ring.stream.load(Acquire), ring.tail.load(Acquire));
        let settled = settled.get(&stream).copied().unwrap_or(0);
        if position < settled {
            return Err(TakeoverError::Behind {
                stream,
                position,
                settled,
                standings: Standings::of(arena, log),
            });
        }
    }
    Ok(())
}
