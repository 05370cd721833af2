//! `understudy backup`: stand by for primaries, and go on with their containers.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use backup::Server;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use shim::options::Security;
use shim::preflight;
use shim::signals::Signals;
use stream::keys;

use super::security;
use crate::arguments::{BackupArguments, FailureArgument, RetryArguments};
use crate::failure::Failure;

mod hosting;

use hosting::{Hosting, Manner};

/// Where the state directory has containers that could not be taken over.
const FAILED: &str = "failed";
/// Log kept in memory for each container; what goes beyond is written to the state directory.
const LOG_CAP: u64 = 512 << 20;
/// The largest image taken.
const IMAGE_CAP: u64 = 64 << 30;
/// Containers at once.
const MAX_CONTAINERS: usize = 64;

/// What a backup is asked to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// Where primaries connect to.
    pub(crate) listen: SocketAddr,
    /// The bridge of containers it takes over; the primary's name for it without.
    pub(crate) bridge: Option<String>,
    /// Where checkpoints and logs are kept.
    pub(crate) state: PathBuf,
    /// How often takeovers are tried.
    pub(crate) retry: RetryArguments,
    /// What becomes of a container whose takeovers all fail.
    pub(crate) on_failure: FailureArgument,
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
    stand_by(options)
}

fn options(arguments: BackupArguments) -> Result<Options, Failure> {
    Ok(Options {
        listen: arguments.listen,
        bridge: arguments.bridge,
        state: arguments.state,
        retry: arguments.retry,
        on_failure: arguments.on_replay_failure,
        security: security(arguments.security)?,
    })
}

fn stand_by(options: Options) -> Result<i32, Failure> {
    let signals = Signals::block()?;
    let keys = match &options.security {
        Security::Insecure => keys::Security::Insecure,
        Security::Tls(directory) => keys::Security::load(directory)?,
    };
    let settings = backup::Options {
        security: keys,
        state: Some(options.state.clone()),
        log_cap: LOG_CAP,
        image_cap: IMAGE_CAP,
        max_containers: MAX_CONTAINERS,
        host: shim::host_traits()?,
    };
    let (tell, events) = std::sync::mpsc::channel();
    let server = Server::bind(
        options.listen,
        settings,
        |_| backup::takeover::Checkpoint::new(),
        tell,
    )?;
    let stop = Arc::new(AtomicBool::new(false));
    let handle = server.handle();
    let manner = Manner {
        bridge: options.bridge,
        retry: options.retry,
        on_failure: options.on_failure,
        failed: options.state.join(FAILED),
    };
    let mut hosting = Hosting::new(manner, server.handle(), Arc::clone(&stop));
    let serving = thread::Builder::new()
        .name("listen".into())
        .spawn(move || server.run())?;
    let watched = Arc::clone(&stop);
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || watch(&signals, &watched))?;
    while !stop.load(Ordering::Acquire) && !serving.is_finished() {
        hosting.serve(&events);
    }
    handle.stop();
    hosting.end();
    match serving.join() {
        Ok(ended) => ended?,
        Err(_) => return Err(Failure::new("the listening thread panicked")),
    }
    Ok(0)
}

/// Sets `stop` at the first signal that asks for an end.
fn watch(signals: &Signals, stop: &AtomicBool) {
    loop {
        let mut wanted = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut wanted, PollTimeout::NONE);
        while let Some(signal) = signals.take() {
            if matches!(signal, libc::SIGTERM | libc::SIGINT | libc::SIGQUIT) {
                stop.store(true, Ordering::Release);
                return;
            }
        }
    }
}
