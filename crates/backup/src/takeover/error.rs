//! Why a takeover did not come about.

use std::io;

use checkpointer::RestoreError;
use eventlog::codec::CodecError;
use eventlog::fold::{FoldError, SnapshotError};
use gate::GateError;
use replayer::{Incomplete, Standings};
use sys::memory::MemoryError;
use sys::ptrace::TraceError;
use sys::remote::RemoteError;

use crate::guard::{Back, LiveError};
use crate::store::StoreError;

/// Why a takeover did not come about.
#[derive(Debug, thiserror::Error)]
pub enum TakeoverError {
    /// The container around the process.
    #[error(transparent)]
    Container(#[from] shim::container::Error),
    /// The process could not be made.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// Replay did not come to the end of the log.
    #[error(transparent)]
    Replay(#[from] Incomplete<StoreError>),
    /// A section of the image or a record is damaged.
    #[error("{what} cannot be read: {source}")]
    Damaged {
        /// Which.
        what: &'static str,
        /// What is wrong.
        source: CodecError,
    },
    /// A section that an image must have is not there, or too short.
    #[error("the checkpoint has no {what}")]
    Missing {
        /// Which.
        what: &'static str,
    },
    /// The fold's snapshot.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The log cannot be folded.
    #[error(transparent)]
    Fold(#[from] FoldError),
    /// The log holds what is no record.
    #[error("stream {stream} of the log is malformed at position {position}")]
    Malformed {
        /// The stream.
        stream: u32,
        /// The position.
        position: u64,
    },
    /// The log.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Gate and sockets.
    #[error(transparent)]
    Gate(#[from] GateError),
    /// Tracing the process.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// Calls inside the process.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// The process's memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A process has threads after replay, but has ended, or has as far as the log tells.
    #[error("process {number} of the container has threads left after replay, and has ended")]
    Processes {
        /// Its number in the container.
        number: u32,
    },
    /// Programs that are executed in replay cannot be followed.
    #[error(transparent)]
    Follow(#[from] sys::follow::FollowError),
    /// The container may not speak.
    #[error(transparent)]
    Live(#[from] LiveError),
    /// It is not needed any more.
    #[error(transparent)]
    Back(#[from] Back),
    /// The kernel refused something.
    #[error("{what} failed: {source}")]
    Io {
        /// What.
        what: &'static str,
        /// Its answer.
        source: io::Error,
    },
    /// The copies of the container's files.
    #[error(transparent)]
    Files(#[from] crate::mirror::FilesError),
    /// A thread of ours ended by a panic.
    #[error("the thread that {what} panicked")]
    Panicked {
        /// What it did.
        what: &'static str,
    },
    /// Threads wait for one another, with log to go that others' replies rest on.
    #[error(
        "replay stopped in stream {stream} at position {position}, and clients may have seen what it did up to {end}: {standings}"
    )]
    Behind {
        /// The stream.
        stream: u32,
        /// How far its thread has come.
        position: u64,
        /// How far its log goes.
        end: u64,
        /// Where all stand.
        standings: Standings,
    },
    /// The program ended in replay.
    #[error("the container's program ended while it was replayed: {ended:?}")]
    Ended {
        /// How.
        ended: shim::container::Ended,
    },
    /// The process went away meanwhile.
    #[error("process {pid} of the container has ended during the takeover")]
    Gone {
        /// Its number.
        pid: i32,
    },
}

impl TakeoverError {
    /// Whether another attempt, timed otherwise, may end otherwise: not where checkpoint and log are the matter.
    #[must_use]
    pub fn may_come_right(&self) -> bool {
        !matches!(
            self,
            Self::Damaged { .. }
                | Self::Missing { .. }
                | Self::Snapshot(_)
                | Self::Malformed { .. }
                | Self::Store(_)
        )
    }

    /// Whether that other attempt can be made in the same container.
    pub(super) fn may_be_tried_here(&self) -> bool {
        // With its program, a container has ended; and none is needed where the primary is back.
        self.may_come_right()
            && !matches!(
                self,
                Self::Ended { .. } | Self::Container(_) | Self::Back(_)
            )
    }
}

pub(super) type Result<T> = std::result::Result<T, TakeoverError>;

/// An [`TakeoverError::Io`] for a step.
pub(super) fn io<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> TakeoverError {
    move |source| TakeoverError::Io {
        what,
        source: source.into(),
    }
}

/// A [`TakeoverError::Damaged`] for a part.
pub(super) fn damaged(what: &'static str) -> impl FnOnce(CodecError) -> TakeoverError {
    move |source| TakeoverError::Damaged { what, source }
}
