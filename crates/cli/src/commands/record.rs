//! `understudy record`: run a command and record it.

use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use eventlog::recording::Meta;
use guest::abi::{ARENA_FD, flag, mode};
use recorder::offline::Recording;
use shim::container::{Container, Isolation, Program, Spec};
use shim::preflight::RECORDING;
use shim::signals::{Signals, wait_passing};
use sys::arena::Arena;

use super::command;
use crate::arguments::RecordArguments;
use crate::failure::Failure;

pub(crate) fn run(arguments: RecordArguments) -> Result<i32, Failure> {
    let command = command(arguments.command)?;
    shim::preflight::root()?;
    shim::preflight::features(|feature| RECORDING.contains(&feature.name))?;
    let signals = Signals::block()?;
    let meta = Meta {
        command: command.iter().map(|a| a.as_bytes().to_vec()).collect(),
        environment: std::env::vars_os()
            .map(|(k, v)| (k.as_bytes().to_vec(), v.as_bytes().to_vec()))
            .collect(),
        directory: std::env::current_dir()?.as_os_str().as_bytes().to_vec(),
        kernel: kernel_release()?,
        serial: arguments.serial,
    };
    let arena = Arc::new(Arena::new(
        mode::RECORD,
        if arguments.serial { flag::SERIAL } else { 0 },
    )?);
    let mut program = Program::new(command);
    program
        .descriptors
        .push((arena.file().try_clone_to_owned()?, ARENA_FD));
    let spec = Spec {
        mounts: Vec::new(),
        name: format!("record-{}", std::process::id()),
        isolation: Isolation::ButNetwork,
        link: None,
    };
    let prepared = Container::prepare(&spec, program)?;
    let (init, number) = (prepared.init_pid, prepared.program_pid);
    let recording = Recording::begin(&arguments.out, &meta, arena, init, number)?;
    let mut container = prepared.open_gate()?;
    let started = container.started().map_err(Failure::from);
    if let Err(failure) = started.and_then(|()| Ok(recording.started()?)) {
        drop(container);
        recording.abandon();
        return Err(failure);
    }
    let status = wait_passing(&mut container, &signals)?.code();
    drop(container);
    recording.finish(status)?;
    Ok(status)
}

/// What `uname -r` prints.
pub(super) fn kernel_release() -> Result<String, Failure> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/osrelease")?
        .trim()
        .to_owned())
}
