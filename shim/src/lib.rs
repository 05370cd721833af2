//! The primary's runtime: one container, and everything that is wired around it.
//!
//! In: what `understudy run` was asked for ([`options::Options`]). Out: a program that runs in a
//! container of its own ([`container`]), watched and steered over a control socket ([`control`]).

pub mod container;
pub mod control;
pub mod fuzz;
pub mod options;
pub mod preflight;
mod protected;
pub mod signals;
mod unprotected;

pub use protected::{BUILD, host_traits};

/// Runs a command in a container, protected or bare, and gives the exit code a shell would show.
///
/// Call it before the process has other threads: signals to the process go to the command.
pub fn run(options: &options::Options) -> Result<i32, Error> {
    preflight::check(options)?;
    match &options.protection {
        None => unprotected::run(options),
        Some(protection) => protected::run(options, protection),
    }
}

/// Why a run could not start or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Found before anything was made.
    #[error(transparent)]
    Preflight(#[from] preflight::Error),
    /// The container.
    #[error(transparent)]
    Container(#[from] container::Error),
    /// The control socket.
    #[error(transparent)]
    Control(#[from] control::Error),
    /// Shared memory, descriptors, namespaces.
    #[error("setting up the container failed: {0}")]
    Arena(std::io::Error),
    /// A switch of the command line that is not served yet.
    #[error("{what} is not part of this build: leave it out")]
    Unbuilt {
        /// The switch.
        what: &'static str,
    },
    /// The mirrored directories cannot be copied.
    #[error("the files of --mirror cannot be copied: {0}")]
    Files(String),
    /// The container has no link to put a gate on.
    #[error("the container has no network link")]
    NoLink,
    /// A process of the container that its shared memory names is not there.
    #[error("the container has no process {pid}")]
    NoProcess {
        /// Its number inside.
        pid: u32,
    },
    /// The container went live on the backup.
    #[error(
        "the container went live on the backup as generation {generation}: this copy of it has been ended"
    )]
    Fenced {
        /// The generation there.
        generation: u64,
    },
    /// The guest could not be injected.
    #[error(transparent)]
    Follow(#[from] sys::follow::FollowError),
    /// The connection to the backup.
    #[error(transparent)]
    Stream(#[from] stream::StreamError),
    /// The keys.
    #[error(transparent)]
    Keys(#[from] stream::error::KeyError),
    /// A message that cannot be encoded.
    #[error(transparent)]
    Codec(#[from] eventlog::codec::CodecError),
    /// The gate.
    #[error(transparent)]
    Gate(#[from] gate::GateError),
    /// Output that contradicts itself.
    #[error(transparent)]
    Output(#[from] gate::OutputError),
    /// A checkpoint that was not taken.
    #[error(transparent)]
    Checkpoint(#[from] checkpointer::CheckpointError),
    /// The log cannot be folded.
    #[error(transparent)]
    Fold(#[from] eventlog::fold::FoldError),
    /// The log cannot be folded up to a cut.
    #[error(transparent)]
    Feed(#[from] eventlog::fold::FeedError<std::convert::Infallible>),
    /// A thread was cut where its log has half a record.
    #[error("stream {stream} ends inside a record")]
    CutShort {
        /// The stream.
        stream: u32,
    },
    /// The fold's snapshot.
    #[error(transparent)]
    Snapshot(#[from] eventlog::fold::SnapshotError),
    /// The image.
    #[error(transparent)]
    Image(#[from] eventlog::image::ImageError),
}

impl Error {
    fn descriptor(source: nix::errno::Errno) -> Self {
        Self::Arena(source.into())
    }
}
