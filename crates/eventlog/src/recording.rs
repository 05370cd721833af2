//! An offline recording: what its first frame says about it, and the number of the stream that says how it
//! ended. Its bytes are [`crate::frame::file`]'s.

use serde::{Deserialize, Serialize};

/// Name of the log inside its directory.
pub const LOG_NAME: &str = "log";

/// The stream of the recorder itself: one record of kind EXIT, with the status of the whole recording.
pub const OWN_STREAM: u32 = 0;

/// What a recording says about itself, besides its records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// The program and its arguments, as bytes.
    pub command: Vec<Vec<u8>>,
    /// Its environment.
    pub environment: Vec<(Vec<u8>, Vec<u8>)>,
    /// Its working directory.
    pub directory: Vec<u8>,
    /// The kernel's release, as `uname -r` says: replay on another one is refused.
    pub kernel: String,
    /// Whether one thread ran at a time.
    pub serial: bool,
}
