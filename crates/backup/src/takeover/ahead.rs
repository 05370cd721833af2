//! The processes of a container in waiting: made at the first committed checkpoint, brought to each later one.
//!
//! A commit waits for a part of the work at most: the next part leaves the image to it.

use shim::container::Container;

use super::checkpoint::Checkpoint;
use super::error::Result;
use super::process::{Making, OpenFiles, Processes, Shared};
use crate::guard::Guard;

/// Pages brought over while commits wait: less than a millisecond's work.
const PAGES: usize = 512;
/// After each process that failed twice as many checkpoints pass without one as after that before; this many
/// doublings at most.
const DOUBLINGS: u32 = 12;

/// Processes that follow the committed checkpoints, or none.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    processes: Option<Making>,
    /// Number of the image that they are equal to.
    reached: Option<u64>,
    failures: u32,
    /// Number of the first image that processes are made for, after a failure.
    not_before: u64,
}

impl Ahead {
    /// Does a part of what lacks; true if there was something to do. Where it leaves the image to a commit,
    /// that one's end is told to the calling thread.
    pub(super) fn step(
        &mut self,
        container: &mut Container,
        shared: &Shared,
        guard: &Guard<Checkpoint>,
    ) -> bool {
        if guard.is_committing() {
            return false;
        }
        let mut committed = guard.image();
        let sequence = committed.image.program().sequence();
        if committed.begin.is_none() || self.reached == Some(sequence) || sequence < self.not_before
        {
            return false;
        }
        let advanced = self.advance(container, shared, &mut committed.image);
        // What ends a process takes long.
        drop(committed);
        match advanced {
            Ok(done) => self.reached = done.then_some(sequence),
            Err(error) => {
                let name = &guard.hello().name;
                tracing::warn!(name, %error, "the processes that stand by are of no use any more");
                self.processes = None;
                self.failures = DOUBLINGS.min(self.failures + 1);
                self.not_before = sequence + (1 << self.failures);
            }
        }
        true
    }

    fn advance(
        &mut self,
        container: &mut Container,
        shared: &Shared,
        checkpoint: &mut Checkpoint,
    ) -> Result<bool> {
        let processes = match self.processes.take() {
            Some(processes) => processes,
            None => Making::begin(true)?,
        };
        let processes = self.processes.insert(processes);
        processes.update(container, shared, checkpoint, PAGES)
    }

    /// What an attempt has left is cleared away but for this process, which serves the next, too.
    pub(super) fn template(&self) -> Option<i32> {
        self.processes.as_ref().and_then(Making::template)
    }

    /// Brings the processes to the checkpoint and lets them go: they replay. Without any, or where that fails, they
    /// are made now. `files` were open at the cut; threads with the numbers `late` stay stopped.
    pub(super) fn finish(
        &mut self,
        container: &mut Container,
        shared: &Shared,
        checkpoint: &mut Checkpoint,
        files: &OpenFiles,
        late: &[u32],
    ) -> Result<Processes> {
        if let Some(mut processes) = self.processes.take() {
            let (prepared, committed) = (processes.sequence(), checkpoint.program().sequence());
            let pages = processes.missing();
            tracing::debug!(prepared, committed, pages, "what is missing");
            match processes.finish(container, shared, checkpoint, files, late) {
                Ok(made) => {
                    self.processes = processes.template().map(|_| processes);
                    return Ok(made);
                }
                Err(error) => {
                    tracing::warn!(%error, "the processes that stood by cannot take over");
                }
            }
        }
        Making::begin(false)?.finish(container, shared, checkpoint, files, late)
    }
}
