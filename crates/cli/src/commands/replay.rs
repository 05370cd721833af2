//! `understudy replay`: run a recording again, or what was kept of a takeover that failed.

mod kept;

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::sync::Arc;

use guest::abi::{ARENA_FD, REPLAY_STDERR_FD, REPLAY_STDOUT_FD, flag, mode};
use replayer::{Log, Outcome, Replay};
use shim::container::{Container, Isolation, Program, Spec};
use shim::preflight::RECORDING;
use sys::arena::Arena;

use super::existing_directory;
use super::record::kernel_release;
use crate::arguments::ReplayArguments;
use crate::failure::Failure;

pub(crate) fn run(arguments: ReplayArguments) -> Result<i32, Failure> {
    let directory = arguments.directory;
    existing_directory(
        &directory,
        "replay",
        "name one that `understudy record --out` made",
    )?;
    if backup::evidence::is_kept_in(&directory) {
        return kept::run(&directory, arguments.retry);
    }
    shim::preflight::root()?;
    shim::preflight::features(|feature| RECORDING.contains(&feature.name))?;
    let log = Log::read(&directory)?;
    log.check_kernel(&kernel_release()?)?;
    let text = |bytes: &Vec<u8>| OsString::from_vec(bytes.clone());
    std::env::set_current_dir(text(&log.meta.directory))?;
    let serial = if log.meta.serial { flag::SERIAL } else { 0 };
    let arena = Arc::new(Arena::new(mode::REPLAY, flag::TIMED | serial)?);
    let mut program = Program::new(log.meta.command.iter().map(text).collect());
    program.environment = Some(
        log.meta
            .environment
            .iter()
            .map(|(k, v)| (text(k), text(v)))
            .collect(),
    );
    program.descriptors = vec![
        (arena.file().try_clone_to_owned()?, ARENA_FD),
        (
            std::io::stdout().as_fd().try_clone_to_owned()?,
            REPLAY_STDOUT_FD,
        ),
        (
            std::io::stderr().as_fd().try_clone_to_owned()?,
            REPLAY_STDERR_FD,
        ),
    ];
    let spec = Spec {
        mounts: Vec::new(),
        name: format!("replay-{}", std::process::id()),
        isolation: Isolation::ButNetwork,
        link: None,
    };
    let prepared = Container::prepare(&spec, program)?;
    let (init, number) = (prepared.init_pid, prepared.program_pid);
    let (recorded, signaller) = (log.status, sys::namespaces::pidfd_open(init)?);
    let kill = move || {
        // It may have ended by itself.
        let _ = sys::namespaces::pidfd_signal(signaller.as_fd(), libc::SIGKILL);
    };
    let replay = Replay::begin(log, arena, init, number, kill)?;
    let mut container = prepared.open_gate()?;
    container.started()?;
    replay.started()?;
    let ended = container.wait()?;
    drop(container);
    Ok(match replay.finish(ended.code())? {
        Outcome::Ended => ended.code(),
        Outcome::LogEnd => recorded,
    })
}
