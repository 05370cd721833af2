//! Authenticated, encrypted, framed connections between primary and backup, and what the primary knows of
//! the backup's answers: the acknowledged position and the lease.
//!
//! In: runs of records from the recorder, checkpoints as opaque bytes, the boot-time clock. Out: frames on
//! the wire; at the primary, the highest acknowledged drain ([`ack`]) and the time until which output may
//! leave ([`lease`]). Nothing here decides about takeover, and nothing here looks into a record.
//!
//! A primary opens up to four connections to its backup, told apart by [`hello::Channel`]:
//!
//! * the *log*: [`log`], the hot path: batches of records one way, acknowledgements the other;
//! * *heartbeats*: [`heartbeat`], on a thread of their own;
//! * *checkpoints*: [`checkpoint`], committed whole or not at all;
//! * *control*: [`control`], questions and answers.
//!
//! Connections are plain blocking sockets ([`transport`]) with rustls on top ([`keys`]): an acknowledgement
//! that goes through an executor costs a wake-up more. Everything from the wire is bounded and checked;
//! [`fuzz`] names the entries a fuzzer calls.
#![forbid(unsafe_code)]

pub mod ack;
pub mod checkpoint;
pub mod clock;
pub mod connect;
pub mod control;
pub mod error;
pub mod fuzz;
pub mod heartbeat;
pub mod hello;
pub mod keys;
pub mod lease;
pub mod log;
pub mod transport;

pub use clock::{Clocks, Nanos};
pub use error::StreamError;
