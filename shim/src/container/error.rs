//! What can go wrong with a container.

use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use sys::cgroup::CgroupError;
use sys::netlink::NetlinkError;

/// A step inside the container, done by init or the program before its execve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Step {
    /// Putting descriptors on their numbers.
    Descriptors = 1,
    /// Leaving the caller's session.
    Session = 2,
    /// Leaving the caller's namespaces.
    Namespaces = 3,
    /// Mounting `/proc` and `/dev/shm` anew.
    Mounts = 4,
    /// Setting the host name.
    HostName = 5,
    /// Preparing to receive signals.
    Signals = 6,
    /// Forking a process.
    Fork = 7,
    /// Setting the last number given.
    LastNumber = 8,
    /// Understanding a request.
    Request = 9,
    /// Ending every process.
    Clear = 10,
    /// Letting the clocks of another host go on.
    Clocks = 11,
}

impl Step {
    /// All, for decoding.
    pub(super) const ALL: [Self; 11] = [
        Self::Descriptors,
        Self::Session,
        Self::Namespaces,
        Self::Mounts,
        Self::HostName,
        Self::Signals,
        Self::Fork,
        Self::LastNumber,
        Self::Request,
        Self::Clear,
        Self::Clocks,
    ];

    fn text(self) -> &'static str {
        match self {
            Self::Descriptors => "place descriptors",
            Self::Session => "start a session",
            Self::Namespaces => "make its namespaces (see `understudy doctor`)",
            Self::Mounts => "mount /proc and /dev/shm",
            Self::HostName => "set its host name",
            Self::Signals => "receive signals",
            Self::Fork => "fork a process",
            Self::LastNumber => "set the last process number",
            Self::Request => "understand a request",
            Self::Clear => "end its processes",
            Self::Clocks => "let another host's clocks go on",
        }
    }
}

/// Why a container could not be made or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No command.
    #[error("there is no command to run")]
    NoCommand,
    /// A command that is nowhere in PATH.
    #[error("cannot find the command {0:?}: give its path, or add its directory to PATH")]
    CommandNotFound(std::ffi::OsString),
    /// A file that is no program.
    #[error("cannot execute {path}: {source}", path = path.display())]
    Exec {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A string with a zero byte.
    #[error("the argument or variable {0:?} has a zero byte in it")]
    ZeroByte(std::ffi::OsString),
    /// A call about init failed on our side.
    #[error("cannot {action} the container's init: {source}")]
    Init {
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A step failed on the inside.
    #[error("the container cannot {step}: {source}", step = step.text())]
    Inside {
        /// Which.
        step: Step,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Init ended, or its process is not visible from here.
    #[error("the container's init is gone")]
    InitGone,
    /// What was killed does not end: it may be in an uninterruptible wait.
    #[error("the container's processes were killed and do not end")]
    NotCleared,
    /// No descriptor to be had.
    #[error("cannot make a descriptor for the container: {0}")]
    Descriptor(io::Error),
    /// The control group.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// No such bridge.
    #[error("there is no bridge {0:?}: make it with `ip link add {0} type bridge`")]
    BridgeMissing(String),
    /// A link of another kind.
    #[error("the link {0:?} is not a bridge")]
    NotABridge(String),
    /// A bridge that is down.
    #[error("the bridge {0:?} is down: take it up with `ip link set {0} up`")]
    BridgeDown(String),
    /// The address answers already.
    #[error("the address {address} is already taken by {holder}: choose another with --ip")]
    AddressTaken {
        /// The address.
        address: Ipv4Addr,
        /// Who answered: a hardware address, or this host.
        holder: String,
    },
    /// The host's end of the link exists.
    #[error("a container called {name:?} (link {link}) is already there: choose another --name")]
    NameTaken {
        /// The name asked for.
        name: String,
        /// The link's name that it leads to.
        link: String,
    },
    /// The network configuration.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// Anything else about the network.
    #[error("cannot {action}: {source}")]
    Network {
        /// What was tried.
        action: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl Error {
    pub(super) fn descriptor(error: impl Into<io::Error>) -> Self {
        Self::Descriptor(error.into())
    }

    pub(super) fn network(action: impl Into<String>, source: io::Error) -> Self {
        Self::Network {
            action: action.into(),
            source,
        }
    }
}
