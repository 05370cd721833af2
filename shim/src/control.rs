//! The control socket: what a running container tells about itself and lets itself be told.
//!
//! A UNIX socket per container in [`directory`], for root alone. One connection, one request: a line
//! of JSON each way, [`Request`] and [`Answer`]. A line over 64 KiB or slower than a second ends the
//! connection.

mod client;
pub(crate) mod line;
mod server;

use std::env;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use client::{ask, find, list};
pub use server::{Handler, Server};

/// Bytes of the longest line.
const LINE_MAX: u64 = 64 << 10;
/// How long a line may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where the sockets are: `/run/understudy`, or what `UNDERSTUDY_RUN_DIR` names.
#[must_use]
pub fn directory() -> PathBuf {
    let given = env::var_os("UNDERSTUDY_RUN_DIR").filter(|given| !given.is_empty());
    given.map_or_else(|| PathBuf::from("/run/understudy"), PathBuf::from)
}

/// Which side of a pair a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Runs the container.
    Primary,
    /// Stands by for it, or hosts it after a takeover.
    Backup,
}

impl Role {
    /// The name of the socket of a container; primary and backup may share a machine.
    fn socket(self, directory: &Path, name: &str) -> PathBuf {
        directory.join(match self {
            Self::Primary => format!("{name}.sock"),
            Self::Backup => format!("{name}.backup.sock"),
        })
    }
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Request {
    /// How it is.
    Status,
    /// Hand over to the backup now.
    Switchover,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// To [`Request::Status`].
    Status(Box<Status>),
    /// What was asked for has been done.
    Done,
    /// It cannot be done: one sentence.
    Refused(String),
}

/// What a container's process does at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Being made; not protected yet, output is held.
    Starting,
    /// Runs bare, as asked.
    Unprotected,
    /// A backup has a committed checkpoint and follows the log.
    Protected,
    /// The backup is lost and output is held.
    Stalled,
    /// A backup that waits.
    Standby,
    /// A backup that is taking over.
    Takeover,
    /// A backup that has taken over and hosts the container.
    Live,
}

/// How a container is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Its name.
    pub name: String,
    /// Which side answers.
    pub role: Role,
    /// `hybrid`, `checkpoint` or `active`; `none` for a bare one.
    pub mode: String,
    /// Number of the newest committed checkpoint; 0 before the first.
    pub epoch: u64,
    /// The pair's generation: one more with each takeover.
    pub generation: u64,
    /// Log that was made but not acknowledged.
    pub log_lag_bytes: u64,
    /// Records of the log since the start, and their bytes, without the frames around them on their way.
    pub log_records: u64,
    /// See [`Self::log_records`].
    pub log_bytes: u64,
    /// How long a replay would take now.
    pub replay_ms_predicted: u64,
    /// Median pause of the recent checkpoints, in microseconds.
    pub pause_us_p50: u64,
    /// 99th percentile of the same.
    pub pause_us_p99: u64,
    /// Where the other side is, `IP:PORT`; `none` without one.
    pub backup: String,
    /// What it does.
    pub state: State,
    /// The container's address.
    pub address: String,
    /// Its first process, in the numbering of the host that answers; 0 without one.
    pub pid: i32,
}

/// Why a control socket cannot be had or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nobody by that name.
    #[error("no container called {name:?} runs here: `understudy status` lists those that do")]
    NotFound {
        /// The name.
        name: String,
    },
    /// Somebody by that name.
    #[error("a container called {name:?} already runs here: choose another --name")]
    Taken {
        /// The name.
        name: String,
    },
    /// The socket.
    #[error("cannot {action} the control socket {path}: {source}", path = path.display())]
    Socket {
        /// What was tried.
        action: &'static str,
        /// The socket, or its directory.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// An answer that makes no sense.
    #[error("the control socket {path} does not speak this version's language: {source}", path = path.display())]
    Malformed {
        /// The socket.
        path: PathBuf,
        /// What was wrong with it.
        source: serde_json::Error,
    },
}

impl Error {
    fn socket(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Socket {
            action,
            path,
            source,
        }
    }
}
