//! The host side of replay: the log is fed to the guests, divergence is found and explained.
//!
//! In: the streams of a log ([`Log`]) and a program that waits before its first execve (offline), with an
//! arena in replay mode among its descriptors. Out: the program's own output, regenerated, and a verdict
//! ([`Outcome`]) or a typed error that names the first event that differs.

mod divergence;
mod feed;
mod log;
mod offline;

pub use divergence::Divergence;
pub use log::{Log, LogError};
pub use offline::{Error, Outcome, Replay};
