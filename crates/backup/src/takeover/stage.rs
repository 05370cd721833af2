//! Where attempts replay: a container without a program, and processes that stand by for one.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::{Arc, OnceLock};
use std::thread;

use eventlog::record::{Records, kind};
use guest::abi::{MAX_SLOTS, slot};
use replayer::{Incomplete, Source, Standings, to_log_end};
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
use super::process::{OpenFiles, Processes, Shared};
use super::search::Search;
use super::timing::Timing;
use super::{arena, late, names, spinning};
use crate::guard::{Back, Guard};
use crate::store::StreamRange;

/// Whether the container is needed here, where it is replayed: fails once its primary is back.
pub(super) type IsNeeded<'a> = dyn Fn() -> std::result::Result<(), Back> + Sync + 'a;

/// What is replayed behind a checkpoint.
pub(super) struct Past<'a> {
    /// Files that were open at the cut.
    pub(super) files: &'a OpenFiles,
    pub(super) log: &'a Log,
}

/// Whoever wants a container.
pub(super) struct Director<'a> {
    pub(super) is_needed: &'a IsNeeded<'a>,
    /// Hears of each attempt that failed, by its number.
    pub(super) tell: &'a mut dyn FnMut(u32, &TakeoverError),
}

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

    /// Attempts, as `search` times them and as many as it allows, until one has replayed to the end of the log. `director`
    /// hears of each that failed before there is another.
    pub(super) fn replay(
        &mut self,
        checkpoint: &mut Checkpoint,
        past: &Past<'_>,
        search: &mut Search,
        clock: &mut Clock,
        director: &mut Director<'_>,
    ) -> Result<Processes> {
        loop {
            let (timing, mut held) = (search.timing(), Vec::new());
            let needed = director.is_needed;
            match self.attempt(checkpoint, past, &timing, &mut held, clock, needed) {
                Err(error) if error.may_be_tried_here() && search.may_go_on() => {
                    clock.step("leave the log");
                    needed()?;
                    (director.tell)(search.number(), &error);
                    search.failed(&error, &held, checkpoint, past.log);
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
        if template.is_none() {
            self.ahead = Ahead::default();
        }
        self.container.clear(template)?;
        names::clear(self.container.init_pid())?;
        if template.is_some() {
            return arena::clear(&self.shared.arena);
        }
        self.shared = Shared::new()?;
        Ok(())
    }

    /// Finishes the processes and lets them replay to the end of the log; tells what came of its holds.
    fn attempt(
        &mut self,
        checkpoint: &mut Checkpoint,
        &Past { files, log }: &Past<'_>,
        timing: &Timing,
        held: &mut Vec<Held>,
        clock: &mut Clock,
        is_needed: &IsNeeded<'_>,
    ) -> Result<Processes> {
        is_needed()?;
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
        let called_off = OnceLock::new();
        let ended = || match is_needed() {
            Ok(()) => has_ended(&self.container),
            Err(back) => called_off.set(back).is_ok(),
        };
        is_needed()?;
        let caller = Some(follower.caller());
        let arena = &*shared.arena;
        let to_end = || to_log_end(arena, log, caller, init, ended, timing.stall);
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
        let seen = match (replayed, called_off.into_inner()) {
            (_, Some(back)) => return Err(back.into()),
            (Err(Incomplete::Ended), None) => {
                let ended = self.container.wait()?;
                return Err(TakeoverError::Ended { ended });
            }
            (other, None) => other?,
        };
        tracing::debug!(?seen, "replayed");
        complete(&self.shared.arena, log)?;
        clock.step("replay");
        Ok(processes)
    }
}

/// Checks that no thread stopped short of what clients may have seen: it would go on from another past.
fn complete(arena: &Arena, log: &Log) -> Result<()> {
    let ranges: BTreeMap<u32, StreamRange> = log.streams().map(|r| (r.stream, r)).collect();
    for ring in (0..MAX_SLOTS).map(|index| arena.slot(index)) {
        if matches!(
            ring.state.load(Acquire),
            slot::FREE | slot::CLAIMED | slot::DONE
        ) {
            continue;
        }
        let (stream, position) = (ring.stream.load(Acquire), ring.tail.load(Acquire));
        let Some(range) = ranges.get(&stream) else {
            continue;
        };
        if position < range.settled || may_have_been_seen(log, range, position)? {
            return Err(TakeoverError::Behind {
                stream,
                position,
                end: range.drained,
                standings: Standings::of(arena, log),
            });
        }
    }
    Ok(())
}

/// Whether clients may have seen something of what a stream has from `position` on.
fn may_have_been_seen(log: &Log, range: &StreamRange, position: u64) -> Result<bool> {
    let mut bytes = Vec::new();
    let left = range.drained.saturating_sub(position);
    log.read(range.stream, position, left as usize, &mut bytes)?;
    Ok(does_something(&bytes))
}

/// Whether there is a record of something that a thread has done. Of the last drain, which may have been acknowledged,
/// nothing like that may be missing; only what a thread got to know of the order of locks and of the time, and has done
/// nothing with, may come about in another way. (So much it can lack itself: see
/// [`LogStore::mark_drain`](crate::store::LogStore::mark_drain).)
fn does_something(records: &[u8]) -> bool {
    Records::new(records).any(|record| {
        let kind = record.map(|record| record.header.kind);
        !matches!(
            kind,
            Ok(kind::LOCK
                | kind::TRYLOCK
                | kind::CONDWAIT
                | kind::CLOCK
                | kind::GETCPU
                | kind::BATON)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use eventlog::record::Header;

    fn log(kinds: &[u16]) -> Vec<u8> {
        let record = |kind: &u16| {
            let header = Header {
                kind: *kind,
                ..Header::default()
            };
            let (bytes, len) = header.encode();
            bytes[..len].to_vec()
        };
        kinds.iter().flat_map(record).collect()
    }

    #[test]
    fn output_must_have_been_made_again_and_the_order_of_locks_need_not() {
        const READ: u16 = 0;
        assert!(!does_something(&log(&[])));
        assert!(!does_something(&log(&[
            kind::LOCK,
            kind::CLOCK,
            kind::LOCK
        ])));
        assert!(does_something(&log(&[kind::LOCK, kind::OUTPUT])));
        assert!(does_something(&log(&[READ])));
        assert!(does_something(&[0xff; 7]), "damaged");
    }
}
