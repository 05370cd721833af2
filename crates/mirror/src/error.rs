//! What can go wrong.

use std::fmt::Display;
use std::io;
use std::path::PathBuf;

use eventlog::change::MAX_WRITTEN;

/// Why a copy could not be opened, or a change not be applied to it.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    /// A directory for a copy is not there.
    #[error("{} cannot be opened as the copy of {}: {source}", .copy.display(), .path.escape_ascii())]
    Copy {
        /// The directory here.
        copy: PathBuf,
        /// Its path in the container.
        path: Vec<u8>,
        /// What the system says.
        source: io::Error,
    },
    /// A change failed.
    #[error("the copy of {} cannot be {attempted}: {source}", .path.escape_ascii())]
    Failed {
        /// What was to be done.
        attempted: &'static str,
        /// With what, by its path in the container.
        path: Vec<u8>,
        /// What the system says.
        source: io::Error,
    },
    /// Something got a name in a copy, but it is not in any copy.
    #[error("{} became {}, but there is no copy of it", .from.escape_ascii(), .path.escape_ascii())]
    ComesFromOutside {
        /// Its path outside.
        from: Vec<u8>,
        /// Its path in a copied directory.
        path: Vec<u8>,
    },
    /// A name was changed in a way that is not known.
    #[error("the copy of {} cannot be renamed with the unknown flags {flags:#x}", .from.escape_ascii())]
    RenameFlags {
        /// The old name.
        from: Vec<u8>,
        /// Flags of renameat2(2).
        flags: u32,
    },
    /// More was written at once than a change may carry.
    #[error("{len} bytes for the copy of {} are more than {MAX_WRITTEN}", .path.escape_ascii())]
    TooLong {
        /// The file.
        path: Vec<u8>,
        /// How many bytes.
        len: usize,
    },
}

/// Why a walk ended early.
#[derive(Debug, thiserror::Error)]
pub enum WalkError<E: Display> {
    /// Something could not be read.
    #[error("{} cannot be read: {source}", .path.escape_ascii())]
    Read {
        /// Its path in the container.
        path: Vec<u8>,
        /// What the system says.
        source: io::Error,
    },
    /// Whoever is told the changes had enough.
    #[error("a change cannot be passed on: {0}")]
    Told(E),
}
