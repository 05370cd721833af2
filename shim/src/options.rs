//! What a protected container is asked to be: the meaning of `understudy run`'s command line.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::container::Link;

/// When output is released, and whether the backup replays meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Released when the log is acknowledged; replayed on failure.
    Hybrid,
    /// Released when the epoch's checkpoint is acknowledged; never replayed.
    Checkpoint,
    /// Released when the log is acknowledged; replayed continuously, muted.
    Active,
}

impl Mode {
    /// Its name on the command line and in `status`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Hybrid => "hybrid",
            Self::Checkpoint => "checkpoint",
            Self::Active => "active",
        }
    }
}

/// What to do when the backup is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnBackupLoss {
    /// Hold all output until a backup is there again.
    Stall,
    /// Go on unprotected, once the loss is confirmed.
    Continue,
}

/// How the stream between the hosts is protected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Security {
    /// Mutually authenticated and encrypted with the keys in this directory.
    Tls(PathBuf),
    /// Neither.
    Insecure,
}

/// A backup to protect with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Protection {
    /// Where it listens.
    pub backup: SocketAddr,
    /// How to talk to it.
    pub security: Security,
    /// Directories whose files it keeps, too.
    pub mirrors: Vec<PathBuf>,
    /// When output is released.
    pub mode: Mode,
    /// Time between checkpoints.
    pub epoch: Duration,
    /// Time between heartbeats.
    pub heartbeat: Duration,
    /// Silence after which the other side counts as lost; longer than `heartbeat`.
    pub detect: Duration,
    /// What to do without it.
    pub on_backup_loss: OnBackupLoss,
    /// One thread of the container runs at a time.
    pub serial: bool,
    /// Bridges flood what is for the container, so that the backup hears it, too.
    pub tap: bool,
}

/// One container to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Its name: letters, digits, `.`, `_` and `-`, at most 64, the first a letter or digit.
    pub name: String,
    /// The command and its arguments.
    pub command: Vec<OsString>,
    /// Its address and bridge.
    pub link: Link,
    /// The protection; without it the container runs bare, as the baseline of every comparison.
    pub protection: Option<Protection>,
}
