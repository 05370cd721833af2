//! `understudy backup`: stand by for primaries.

use std::net::SocketAddr;
use std::path::PathBuf;

use shim::options::Security;
use shim::preflight;

use super::security;
use crate::arguments::BackupArguments;
use crate::failure::Failure;

/// What a backup is asked to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// Where primaries connect to.
    pub(crate) listen: SocketAddr,
    /// The bridge of containers it takes over; the primary's name for it without.
    pub(crate) bridge: Option<String>,
    /// Where checkpoints and logs are kept.
    pub(crate) state: PathBuf,
    /// How the stream is protected.
    pub(crate) security: Security,
}

pub(crate) fn run(arguments: BackupArguments) -> Result<i32, Failure> {
    let options = options(arguments)?;
    preflight::root()?;
    preflight::features(|_| true)?;
    if let Some(bridge) = &options.bridge {
        shim::container::check_bridge(bridge)?;
    }
    std::fs::create_dir_all(&options.state).map_err(|source| {
        let state = options.state.display();
        Failure::new(format!(
            "cannot make --state {state}: {source}; name a directory you can write"
        ))
    })?;
    Err(Failure::new(format!(
        "standing by at {} is not part of this build",
        options.listen
    )))
}

fn options(arguments: BackupArguments) -> Result<Options, Failure> {
    Ok(Options {
        listen: arguments.listen,
        bridge: arguments.bridge,
        state: arguments.state,
        security: security(arguments.security)?,
    })
}
