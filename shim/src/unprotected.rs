//! A bare run: the same container without recording, checkpoints or a gate. It is the baseline that
//! every figure is compared with.

use std::sync::Arc;

use crate::Error;
use crate::container::{Container, Isolation, Program, Spec};
use crate::control::{self, Handler, Role, Server, State, Status};
use crate::options::Options;
use crate::signals::{Signals, wait_passing};

/// Runs the command of `options` to its end, which [`crate::preflight`] has checked; see [`crate::run`].
pub(crate) fn run(options: &Options) -> Result<i32, Error> {
    let signals = Signals::block()?;
    let spec = Spec {
        mounts: Vec::new(),
        name: options.name.clone(),
        isolation: Isolation::Full,
        link: Some(options.link.clone()),
    };
    // Addresses stay random: nobody will have to find them again.
    let mut program = Program::new(options.command.clone());
    program.fixed_addresses = false;
    let prepared = Container::prepare(&spec, program)?;
    let link = &options.link;
    let handler = Bare {
        name: options.name.clone(),
        address: format!("{}/{}", link.address, link.prefix),
        pid: prepared.program_pid,
    };
    let directory = control::directory();
    let _server = Server::bind(&directory, &options.name, Role::Primary, Arc::new(handler))?;
    let mut container = prepared.start()?;
    Ok(wait_passing(&mut container, &signals)?.code())
}

/// What a bare container tells about itself.
struct Bare {
    name: String,
    address: String,
    pid: i32,
}

impl Handler for Bare {
    fn status(&self) -> Status {
        Status {
            name: self.name.clone(),
            role: Role::Primary,
            mode: "none".into(),
            epoch: 0,
            generation: 0,
            log_lag_bytes: 0,
            log_records: 0,
            log_bytes: 0,
            replay_ms_predicted: 0,
            pause_us_p50: 0,
            pause_us_p99: 0,
            backup: "none".into(),
            state: State::Unprotected,
            address: self.address.clone(),
            pid: self.pid,
        }
    }

    fn switchover(&self) -> Result<(), String> {
        Err(format!(
            "{:?} runs without a backup, so there is nobody to switch over to",
            self.name
        ))
    }
}
