//! The process of a container in waiting: made at the first committed checkpoint, brought to each later one.
//!
//! A commit waits for a part of the work at most: the next part leaves the image to it.

use shim::container::Container;

use super::checkpoint::Checkpoint;
use super::error::Result;
use super::process::{Making, OpenFile, Process, Shared};
use crate::guard::Guard;

/// Pages brought over while commits wait: less than a millisecond's work.
const PAGES: usize = 512;
/// After each process that failed twice as many checkpoints pass without one as after that before; this many
/// doublings at most.
const DOUBLINGS: u32 = 12;

/// A process that follows the committed checkpoints, or none.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    process: Option<Making>,
    /// Number of the image that the process is equal to.
    reached: Option<u64>,
    failures: u32,
    /// Number of the first image that a process is made for, after a failure.
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
        let sequence = committed.image.store().sequence();
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
                tracing::warn!(name, %error, "the process that stands by is of no use any more");
                self.process = None;
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
        let process = match self.process.take() {
            Some(process) => process,
            None => Making::begin(container, checkpoint.store(), shared)?,
        };
        self.process.insert(process).update(checkpoint, PAGES)
    }

    /// Brings the process to the checkpoint and lets it go: it replays. Without one, or where that fails, it
    /// is made now. `files` were open at the cut.
    pub(super) fn finish(
        &mut self,
        container: &mut Container,
        shared: &Shared,
        checkpoint: &mut Checkpoint,
        files: &[OpenFile],
    ) -> Result<Process> {
        if let Some(process) = self.process.take() {
            let (prepared, committed) = (process.sequence(), checkpoint.store().sequence());
            tracing::debug!(
                prepared,
                committed,
                pages = process.missing(),
                "what is missing"
            );
            match process.finish(container, checkpoint, files) {
                Ok(process) => return Ok(process),
                Err(error) => {
                    tracing::warn!(%error, "the process that stood by cannot take over");
                }
            }
        }
        Making::begin(container, checkpoint.store(), shared)?.finish(container, checkpoint, files)
    }
}
