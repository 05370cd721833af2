//! What goes into a container and what comes out of it.

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::path::PathBuf;

use sys::namespaces::pidfd_signal;

use super::{Error, Link};

/// What the container does not share with its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// Everything: process numbers, mounts (a copy of the caller's, detached, with `/proc` and `/dev/shm` made anew), host
    /// name, IPC objects, and a network with nothing but `lo` and, if asked for, the link `eth0`. What `run` and the
    /// backup use.
    Full,
    /// The same with the caller's network: what `record` and `replay` use.
    ButNetwork,
}

/// What a container is made of, beside its program.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Its name: host name inside, part of the names of link and control group. Letters, digits,
    /// `.`, `_` and `-`.
    pub name: String,
    /// What it does not share.
    pub isolation: Isolation,
    /// Its link to a bridge; only with [`Isolation::Full`].
    pub link: Option<Link>,
    /// Directories that it has in places of others: where they lie, and where it has them.
    pub mounts: Vec<(PathBuf, PathBuf)>,
}

/// What runs in it.
#[derive(Debug)]
pub struct Program {
    /// The command and its arguments; searched for in PATH if it has no slash.
    pub command: Vec<OsString>,
    /// Its whole environment; the caller's own without.
    pub environment: Option<Vec<(OsString, OsString)>>,
    /// Descriptors it starts with and their numbers. Standard input, output and error are the
    /// caller's where this does not name them; nothing else is inherited.
    pub descriptors: Vec<(OwnedFd, RawFd)>,
    /// Whether its addresses are the same in every run.
    pub fixed_addresses: bool,
}

impl Program {
    /// The command with the caller's environment and standard descriptors, at fixed addresses.
    #[must_use]
    pub fn new(command: Vec<OsString>) -> Self {
        Self {
            command,
            environment: None,
            descriptors: Vec::new(),
            fixed_addresses: true,
        }
    }
}

/// How a container's program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It exited with this code.
    Exited(i32),
    /// This signal ended it.
    Signaled(i32),
    /// The whole container was killed from outside, init included.
    Lost,
}

impl Ended {
    /// The code a shell would show: 128 and the signal's number where a signal ended it.
    #[must_use]
    pub fn code(self) -> i32 {
        match self {
            Self::Exited(code) => code,
            Self::Signaled(signal) => 128 + signal,
            Self::Lost => 128 + libc::SIGKILL,
        }
    }
}

/// An empty process in a container: a copy of init that sleeps and waits to be filled.
#[derive(Debug)]
pub struct Empty {
    /// In the caller's numbering.
    pub pid: i32,
    /// In the container's.
    pub number: i32,
    /// Stands for it.
    pub pidfd: OwnedFd,
}

/// Sends signals to the program of a container, from any thread, for as long as it lives.
#[derive(Debug)]
pub struct Signaller(pub(super) OwnedFd);

impl Signaller {
    /// Sends one. A program that is gone is no error.
    pub fn send(&self, signal: i32) -> Result<(), Error> {
        match pidfd_signal(self.0.as_fd(), signal) {
            Err(source) if source.raw_os_error() != Some(libc::ESRCH) => Err(Error::Init {
                action: "signal the program of",
                source,
            }),
            _ => Ok(()),
        }
    }
}
