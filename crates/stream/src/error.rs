//! What can go wrong with a connection, one sentence each.

use core::time::Duration;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use eventlog::codec::CodecError;
use eventlog::frame::{FrameError, Kind};

use crate::hello::Refusal;

/// Why a connection could not be made, or ended.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// Nobody answers at the address.
    #[error("cannot reach the backup at {addr}: {source}; start `understudy backup` there first")]
    Unreachable {
        /// The address.
        addr: SocketAddr,
        /// The kernel's reason.
        source: io::Error,
    },
    /// Cannot listen at the address.
    #[error("cannot listen at {addr}: {source}")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The kernel refused to read or write.
    #[error("{doing} {peer} failed: {source}")]
    Io {
        /// What was being done, up to the peer's address.
        doing: &'static str,
        /// The peer.
        peer: SocketAddr,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The peer closed the connection.
    #[error("{peer} closed the connection")]
    Closed {
        /// The peer.
        peer: SocketAddr,
    },
    /// The peer closed the connection before it said anything.
    #[error("{peer} connected and left without a word")]
    Silent {
        /// The peer.
        peer: SocketAddr,
    },
    /// The peer said nothing for so long.
    #[error("{peer} did not answer within {after:?} while {doing}")]
    Timeout {
        /// What was waited for.
        doing: &'static str,
        /// The peer.
        peer: SocketAddr,
        /// The limit.
        after: Duration,
    },
    /// The peer's key is not ours.
    #[error(
        "{peer} holds another key: copy one directory made by `understudy keygen` to both hosts"
    )]
    WrongKey {
        /// The peer.
        peer: SocketAddr,
    },
    /// Our side is encrypted, the peer's is not.
    #[error("{peer} does not encrypt: give both sides --tls DIR, or both --insecure")]
    PeerIsPlain {
        /// The peer.
        peer: SocketAddr,
    },
    /// The peer's side is encrypted, ours is not.
    #[error(
        "{peer} encrypts, but this side was given --insecure: give both sides --tls DIR, or both --insecure"
    )]
    PeerIsEncrypted {
        /// The peer.
        peer: SocketAddr,
    },
    /// TLS failed otherwise.
    #[error("encrypted connection to {peer} failed: {source}")]
    Tls {
        /// The peer.
        peer: SocketAddr,
        /// rustls's reason.
        source: rustls::Error,
    },
    /// The peer is of another version.
    #[error(
        "{peer} speaks protocol version {theirs}, this build speaks {ours}: use the same build on both hosts"
    )]
    Version {
        /// The peer.
        peer: SocketAddr,
        /// Its version.
        theirs: u16,
        /// Ours.
        ours: u16,
    },
    /// The peer is something else.
    #[error(
        "{peer} does not speak Understudy's protocol, it begins with \"{}\": is this the right address?",
        found.to_le_bytes().escape_ascii()
    )]
    Foreign {
        /// The peer.
        peer: SocketAddr,
        /// Its first four bytes.
        found: u32,
    },
    /// The peer sent bytes that are no frame.
    #[error("{peer} sent a bad frame: {source}")]
    Frame {
        /// The peer.
        peer: SocketAddr,
        /// What is wrong with it.
        source: FrameError,
    },
    /// The peer sent a message that does not decode, or ours does not encode.
    #[error("bad message to or from {peer}: {source}")]
    Message {
        /// The peer.
        peer: SocketAddr,
        /// What is wrong with it.
        source: CodecError,
    },
    /// The peer sent a frame that has no place here.
    #[error("{peer} sent a frame of kind {found:?} while {doing}")]
    Unexpected {
        /// What was going on.
        doing: &'static str,
        /// The peer.
        peer: SocketAddr,
        /// The frame's kind.
        found: Kind,
    },
    /// A frame of another generation than the connection was made for.
    #[error("{peer} sent a frame of generation {theirs} on a connection of generation {ours}")]
    Generation {
        /// The peer.
        peer: SocketAddr,
        /// The frame's.
        theirs: u64,
        /// The connection's.
        ours: u64,
    },
    /// A number that cannot come now.
    #[error("{peer} sent {what} {found} where {expected} was due")]
    Order {
        /// What the number counts.
        what: &'static str,
        /// The peer.
        peer: SocketAddr,
        /// The number.
        found: u64,
        /// What was due.
        expected: u64,
    },
    /// The backup does not want this primary.
    #[error("backup {peer} refuses: {refusal}")]
    Refused {
        /// The backup.
        peer: SocketAddr,
        /// Its reason.
        refusal: Refusal,
    },
    /// Keys cannot be made, written or read.
    #[error(transparent)]
    Keys(#[from] KeyError),
}

/// Why a directory of keys is of no use.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// It exists already.
    #[error("{path} exists already: choose another directory, or remove it first")]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A file cannot be read or written.
    #[error("key file {path} cannot be used: {source}; make keys with `understudy keygen DIR`")]
    File {
        /// The file.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// A file holds no certificate or key.
    #[error("{path} is not a key made by `understudy keygen`: {reason}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Others than the owner may read the private key.
    #[error("private key {path} has mode {mode:03o}, so that others can use it: chmod 600 it")]
    Readable {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Key generation failed.
    #[error("cannot generate a key: {0}")]
    Generate(#[from] rcgen::Error),
    /// rustls does not take the key.
    #[error("key in {path} cannot be used for TLS: {source}")]
    Rustls {
        /// The directory.
        path: PathBuf,
        /// rustls's reason.
        source: rustls::Error,
    },
}
