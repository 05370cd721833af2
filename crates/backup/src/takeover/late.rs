//! Threads that start late: see [`Start`].

use std::sync::atomic::Ordering::Acquire;
use std::time::{Duration, Instant};

use guest::abi::slot;
use sys::arena::Arena;
use sys::ptrace;
use sys::threads::find_thread;

use super::holds::{has_come, is_lost, rings};
use super::timing::Start;

/// Looks at which all others wait until that is taken for true.
const LOOKS: u32 = 10;
/// One is let go in any case when nobody has taken a record for so long: others may wait for it.
const PATIENCE: Duration = Duration::from_millis(30);

/// The numbers in the container of the threads that start late.
pub(super) fn numbers(arena: &Arena, starts: &[Start]) -> Vec<u32> {
    let late = |stream: u32| starts.iter().any(|start| start.stream == stream);
    let rings = rings(arena).filter(|ring| late(ring.stream.load(Acquire)));
    rings.map(|ring| ring.tid.load(Acquire)).collect()
}

/// Threads that are stopped, traced by the calling thread, and not let go yet.
pub(super) struct Late<'a> {
    arena: &'a Arena,
    init: i32,
    left: Vec<Start>,
    /// At how many looks in a row all others waited.
    idle: u32,
    /// Records taken, and when that was seen to change.
    moves: (u32, Instant),
}

impl<'a> Late<'a> {
    /// Those of an attempt. `init` is the container's first process.
    pub(super) fn new(arena: &'a Arena, init: i32, starts: &[Start]) -> Self {
        Self {
            arena,
            init,
            left: starts.to_vec(),
            idle: 0,
            moves: (0, Instant::now()),
        }
    }

    /// Lets those go whose time has come.
    pub(super) fn look(&mut self) {
        if self.left.is_empty() {
            return;
        }
        let moves = self.arena.control().moves.load(Acquire);
        if moves != self.moves.0 {
            self.moves = (moves, Instant::now());
        }
        self.idle = if self.others_wait() { self.idle + 1 } else { 0 };
        let (all_wait, in_vain) = (self.idle > LOOKS, self.moves.1.elapsed() > PATIENCE);
        let (go, left): (Vec<Start>, Vec<Start>) = self.left.iter().partition(|start| {
            in_vain
                || start.behind.map_or(all_wait, |(stream, position)| {
                    self.has_done(stream, position)
                })
        });
        self.left = left;
        go.into_iter().for_each(|start| self.let_go(start));
    }

    fn has_done(&self, stream: u32, position: u64) -> bool {
        let ring = rings(self.arena).find(|ring| ring.stream.load(Acquire) == stream);
        // One that is gone has done all of it.
        ring.is_none_or(|ring| has_come(ring, position) || is_lost(ring))
    }

    fn others_wait(&self) -> bool {
        let is_late = |stream| self.left.iter().any(|start| start.stream == stream);
        let mut others = rings(self.arena).filter(|ring| !is_late(ring.stream.load(Acquire)));
        others.all(|ring| ring.state.load(Acquire) != slot::LIVE)
    }

    fn let_go(&self, start: Start) {
        let mut rings = rings(self.arena);
        let ring = rings.find(|ring| ring.stream.load(Acquire) == start.stream);
        let thread = ring.and_then(|ring| find_thread(self.init, ring.tid.load(Acquire)));
        if let Some((_, tid)) = thread
            && let Err(error) = ptrace::detach(tid, 0)
        {
            tracing::debug!(?start, %error, "a thread that starts late is gone");
        }
    }
}

impl Drop for Late<'_> {
    /// Nobody is traced behind it.
    fn drop(&mut self) {
        for start in std::mem::take(&mut self.left) {
            self.let_go(start);
        }
    }
}
