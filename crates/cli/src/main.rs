//! `understudy`: the one command users meet.
//!
//! In: a command line ([`arguments`]). Out: what the commands print, an exit status, and on failure one
//! sentence on standard error: what is wrong, with what value, and what to do. The work is done by the
//! other rooms; here it is only asked for.

mod arguments;
mod commands;
mod failure;
mod usage;
mod values;

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use arguments::{Arguments, Command};
use failure::Failure;

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) if usage::is_answer(&error) => {
            // Whoever asked for help and closed the pipe has read enough.
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        Err(error) => return Failure::usage(usage::sentence(&error)).report(),
    };
    let filter =
        EnvFilter::try_from_env("UNDERSTUDY_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
    match run(arguments.command) {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)),
        Err(failure) => failure.report(),
    }
}

fn run(command: Command) -> Result<i32, Failure> {
    match command {
        Command::Backup(arguments) => commands::backup::run(arguments),
        Command::Run(arguments) => commands::run::run(arguments),
        Command::Status(arguments) => commands::status::run(&arguments),
        Command::Switchover(arguments) => commands::switchover::run(&arguments),
        Command::Doctor => commands::doctor::run(),
        Command::Keygen(arguments) => commands::keygen::run(&arguments),
        Command::Record(arguments) => commands::record::run(arguments),
        Command::Replay(arguments) => commands::replay::run(arguments),
    }
}
