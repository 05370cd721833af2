//! What can be found wrong before anything is made.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use sys::features::{FEATURES, Feature};

use crate::container;
use crate::options::Options;

/// How long to wait for the backup to take a connection.
const PATIENCE: Duration = Duration::from_secs(2);
/// What a bare container needs; a protected one needs every feature.
const BARE: [&str; 4] = ["root", "namespaces", "cgroup", "veth-bridge"];
/// What a recording on one machine needs, and its replay.
pub const RECORDING: [&str; 7] = [
    "fsgsbase",
    "syscall-user-dispatch",
    "memfd",
    "ptrace-seize",
    "fixed-addresses",
    "thread-numbers",
    "cgroup",
];

/// Why a container cannot run here and now.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Not root.
    #[error("this must run as root: try sudo")]
    NotRoot,
    /// A kernel without something.
    #[error("this machine lacks {name} ({source}), which {purpose}; see `understudy doctor`")]
    Missing {
        /// The feature.
        name: &'static str,
        /// What it is for.
        purpose: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Nobody at the backup's address.
    #[error(
        "the backup {address} cannot be reached: {source}; start it with `understudy backup --listen {address}`"
    )]
    Unreachable {
        /// Where it should be.
        address: SocketAddr,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The bridge or the address.
    #[error(transparent)]
    Link(#[from] container::Error),
}

/// Checks privileges, kernel, bridge, address and backup, in this order.
pub fn check(options: &Options) -> Result<(), Error> {
    root()?;
    let all = options.protection.is_some();
    features(|feature| all || BARE.contains(&feature.name))?;
    options.link.check()?;
    let Some(protection) = &options.protection else {
        return Ok(());
    };
    let address = protection.backup;
    match TcpStream::connect_timeout(&address, PATIENCE) {
        Ok(_) => Ok(()),
        Err(source) => Err(Error::Unreachable { address, source }),
    }
}

/// Checks that this process is root's.
pub fn root() -> Result<(), Error> {
    if nix::unistd::geteuid().is_root() {
        Ok(())
    } else {
        Err(Error::NotRoot)
    }
}

/// Checks the kernel's features that `wanted` picks.
pub fn features(wanted: impl Fn(&Feature) -> bool) -> Result<(), Error> {
    for feature in FEATURES.iter().filter(|feature| wanted(feature)) {
        feature.probe().map_err(|source| Error::Missing {
            name: feature.name,
            purpose: feature.purpose,
            source,
        })?;
    }
    Ok(())
}
