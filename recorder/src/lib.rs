//! The host side of recording: the guest is injected, its rings are drained.
//!
//! In: a program that waits before its first execve, with the arena as one of its descriptors. Out: its
//! event log, as runs of bytes of numbered streams ([`Sink`]), or as a file ([`offline`]). This room opens
//! no socket.

mod cut;
mod drain;
pub mod offline;

pub use drain::{Drainer, NAP, Sink};
