//! What the backup keeps of one container: the log since the committed checkpoint, and that checkpoint.

mod chain;
mod log;
mod spill;
mod staging;

pub use chain::{Chain, Image};
pub use log::{LogStore, MAX_STREAMS, StreamRange};
pub use spill::Spill;
pub use staging::{Staging, Whole};

use std::io;
use std::path::PathBuf;

use crate::mirror::FilesError;

/// Why something cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Bytes of a stream are missing or come twice.
    #[error("stream {stream} goes on at position {found}, but position {expected} comes next")]
    Gap {
        /// The stream.
        stream: u32,
        /// What comes next.
        expected: u64,
        /// What came.
        found: u64,
    },
    /// A stream that would not end.
    #[error("stream {stream} has more bytes than a position can count")]
    Overflow {
        /// The stream.
        stream: u32,
    },
    /// More streams than can be kept.
    #[error("more than {MAX_STREAMS} streams in the log since the last checkpoint")]
    Streams,
    /// A position that is not kept.
    #[error(
        "stream {stream} is kept from position {start} to {end}, position {wanted} is not there"
    )]
    Absent {
        /// The stream.
        stream: u32,
        /// The position asked for.
        wanted: u64,
        /// The first kept.
        start: u64,
        /// The first that did not come yet.
        end: u64,
    },
    /// The disk under the state directory is full.
    #[error(
        "state directory {dir} is full, the log of the container cannot be kept: free some space or choose another with --state"
    )]
    StateFull {
        /// The directory.
        dir: PathBuf,
    },
    /// The state directory cannot be used otherwise.
    #[error("state directory {dir} cannot be used: {source}")]
    State {
        /// The directory.
        dir: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// A checkpoint that begins where none can.
    #[error("checkpoint {id} follows checkpoint {last}, but numbers must rise")]
    Number {
        /// Its number.
        id: u64,
        /// The one before.
        last: u64,
    },
    /// A change of a checkpoint that is not the committed one.
    #[error("checkpoint {id} changes checkpoint {base}, but {committed:?} is the committed one")]
    Base {
        /// Its number.
        id: u64,
        /// What it changes.
        base: u64,
        /// What is there.
        committed: Option<u64>,
    },
    /// A cut that names a stream twice or beyond its own count.
    #[error("the cut of checkpoint {id} is inconsistent at stream {stream}")]
    Cut {
        /// Its number.
        id: u64,
        /// The stream.
        stream: u32,
    },
    /// An image larger than the backup keeps.
    #[error("image of {len} bytes, more than the {max} that this backup keeps")]
    ImageTooLong {
        /// Its length.
        len: u64,
        /// The limit.
        max: u64,
    },
    /// A part without its beginning.
    #[error("a part of a checkpoint came where none was under way")]
    NotBegun,
    /// A part that does not follow the one before.
    #[error("a chunk for byte {found} of an image came where byte {expected} was due")]
    Chunk {
        /// Its offset.
        found: u64,
        /// What was due.
        expected: u64,
    },
    /// The image is not whole.
    #[error("checkpoint {id} ended after {found} of {expected} bytes")]
    Short {
        /// Its number.
        id: u64,
        /// Bytes that came.
        found: u64,
        /// Bytes announced.
        expected: u64,
    },
    /// The image is damaged.
    #[error(
        "checkpoint {id} is damaged: checksum {found:#010x}, but its bytes give {computed:#010x}"
    )]
    Checksum {
        /// Its number.
        id: u64,
        /// The checksum announced.
        found: u32,
        /// The checksum of the bytes.
        computed: u32,
    },
    /// The copies of the container's files.
    #[error("checkpoint {id} cannot be committed: {source}")]
    Files {
        /// Its number.
        id: u64,
        /// Why.
        source: FilesError,
    },
    /// The image does not fit the one before.
    #[error("checkpoint {id} cannot be applied: {reason}")]
    Image {
        /// Its number.
        id: u64,
        /// One sentence.
        reason: String,
    },
}
