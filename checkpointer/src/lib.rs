//! Checkpoints of a running process: taken with a pause below a millisecond, kept, and restored.
//!
//! In: a process number, or the bytes of images. Out: images ([`eventlog::image`]), or a process that
//! stands where the image was cut, every thread stopped under trace.
//!
//! * [`Tree`] takes the checkpoints of all processes of a container at one cut, with a [`Checkpointer`] each.
//! * [`Checkpointer`] watches which pages a process writes and copies them while it runs (*rounds*); then
//!   it stops all threads, brings those that are inside the guest to a point where a cut is allowed,
//!   copies what is left and lets them go.
//! * [`ImageStore`] holds the newest state of a process, built from a full image and the differences
//!   that follow.
//! * [`restore`] makes a process from it, under the same numbers and at the same addresses; [`Prepared`]
//!   does most of that ahead, and follows the store until the process is needed.
//!
//! Nothing stays traced between checkpoints. All tracing of one process is done by one thread of ours,
//! which is in real time during the pause: a thread that shall stop, or come out of the guest, is given
//! priority 1 for so long, and must not keep its tracer waiting.
#![forbid(unsafe_code)]

mod build;
mod capture;
mod changes;
mod checkpoint;
mod facts;
mod kin;
pub mod names;
mod pending;
mod restore;
mod settle;
mod stop;
mod store;
mod tree;
mod waits;

pub use build::Capture;
pub use changes::Changes;
pub use checkpoint::{Checkpointer, Settings, Timing};
pub use restore::{
    ExtraMapping, MakeChild, Plan, Prepared, RestoreError, Restored, RestoredThread, restore,
};
pub use settle::Guest;
pub use stop::StoppedThread;
pub use store::{ImageStore, StoreError};
pub use tree::{Census, Tree, TreeCapture};

use std::io;

/// A checkpoint that was not taken. The process goes on as if none had been tried, and the next attempt
/// misses nothing.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file of the process, or a descriptor, could not be had.
    #[error("{what} of process {pid} failed: {source}")]
    Process {
        /// What was tried.
        what: &'static str,
        /// The process.
        pid: i32,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A tracing request failed.
    #[error(transparent)]
    Trace(#[from] sys::ptrace::TraceError),
    /// Work inside the process failed.
    #[error(transparent)]
    Remote(#[from] sys::remote::RemoteError),
    /// The process's memory could not be reached.
    #[error(transparent)]
    Memory(#[from] sys::memory::MemoryError),
    /// A thread did not reach a point where a cut is allowed in time: try again later.
    #[error("thread {tid} did not reach a clean point in {waited_us} µs")]
    Unsettled {
        /// The thread.
        tid: i32,
        /// How long it was waited for, microseconds.
        waited_us: u64,
    },
    /// The process has no thread that could be stopped.
    #[error("process {pid} has ended")]
    Gone {
        /// The process.
        pid: i32,
    },
    /// The first thread of a process has ended, and others go on.
    #[error(
        "the first thread of process {pid} has ended and others go on: that cannot be checkpointed"
    )]
    NoLeader {
        /// The process.
        pid: i32,
    },
    /// A process is just being made or executes a program: try again soon.
    #[error("process {pid} is being made, or executes another program")]
    Busy {
        /// The process.
        pid: i32,
    },
    /// Something in the directory of shared memory that cannot be made elsewhere.
    #[error(
        "/dev/shm/{name} cannot be checkpointed: it is no file, has no name in UTF-8, or holds too much that nobody maps"
    )]
    Named {
        /// Its name.
        name: String,
    },
    /// A mapping that cannot be rebuilt elsewhere.
    #[error("process {pid} maps {path}, which cannot be checkpointed")]
    Unsupported {
        /// The process.
        pid: i32,
        /// The mapping's name.
        path: String,
    },
}
