//! The host side of replay: the log is fed to the guests, divergence is found and explained.
//!
//! In, offline: the streams of a log ([`Log`]) and a program that waits before its first execve, with an
//! arena in replay mode among its descriptors. Out: the program's own output, regenerated, and a verdict
//! ([`Outcome`]) or a typed error that names the first event that differs.
//!
//! In, at a takeover: the streams that a backup has kept ([`Source`]) and a process restored from an image.
//! Out: all its threads at the ends of their logs ([`to_log_end`]), or the same kind of error.

mod divergence;
mod feed;
mod live;
mod log;
mod offline;
mod standing;
mod standstill;
mod verdict;

pub use divergence::Divergence;
pub use feed::{Seen, Source};
pub use live::{Incomplete, to_log_end};
pub use log::{Log, LogError};
pub use offline::{Error, Outcome, Replay};
pub use standing::{Doing, Standing, Standings};
pub use verdict::{AllLeft, Left};
