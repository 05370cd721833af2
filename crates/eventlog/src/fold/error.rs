//! Why a record cannot be folded.

use super::{Pid, StreamId};
use crate::payload::Malformed;

/// Why a record cannot be folded.
#[derive(Debug, thiserror::Error)]
pub enum FoldError {
    /// The payload is not one of this call.
    #[error("record {record} of stream {stream} is malformed: {source}")]
    Payload {
        /// The stream.
        stream: StreamId,
        /// Number of the record in it, from 1.
        record: u64,
        /// What is wrong.
        source: Malformed,
    },
    /// A call whose arguments the fold needs came without them.
    #[error("record {record} of stream {stream} has no arguments, which call {nr} needs")]
    NoArguments {
        /// The stream.
        stream: StreamId,
        /// Number of the record in it, from 1.
        record: u64,
        /// The call.
        nr: u16,
    },
    /// A number that is no call of the kernel.
    #[error("record {record} of stream {stream} names call {nr}, which does not exist")]
    UnknownCall {
        /// The stream.
        stream: StreamId,
        /// Number of the record in it, from 1.
        record: u64,
        /// The number.
        nr: i64,
    },
    /// A stream that neither a clone nor the host has announced.
    #[error("stream {stream} belongs to no known thread")]
    UnknownStream {
        /// The stream.
        stream: StreamId,
    },
    /// The first record of a thread that no clone made yet.
    #[error("stream {stream} begins with thread {tid}, which no process has made")]
    Unplaced {
        /// The stream.
        stream: StreamId,
        /// The thread.
        tid: i64,
    },
    /// A process that is not there.
    #[error("process {pid} does not exist")]
    NoProcess {
        /// The process.
        pid: Pid,
    },
    /// A bound was reached.
    #[error("too many {what}, the most is {most}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The bound.
        most: u64,
    },
}
