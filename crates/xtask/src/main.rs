//! Developer commands, run as `cargo xtask COMMAND` from anywhere in the workspace.
//!
//! In: the source tree and, for what runs real servers, root. Out: verdicts on the terminal, generated
//! files (`docs/SYSCALLS.md`, the gate's BPF object), and an exit status of zero only if all went well.

mod bpf;
mod checks;
mod demo;
mod fuzz;
mod licences;
mod packages;
mod pages;
mod process;
mod syscalls;
mod toolchain;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Developer commands of Understudy")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Everything that must hold before a change lands: format, lints, licences, generated files, tests
    Test,
    /// Protect a redis under load, kill its host, and draw what the clients see
    Demo(demo::Options),
    /// Give every decoder of bytes from outside to libFuzzer
    Fuzz(fuzz::Options),
    /// Build the gate's BPF object from its source
    Bpf {
        /// Change nothing; fail if the committed object is not the one that the source gives
        #[arg(long)]
        check: bool,
    },
    /// Write docs/SYSCALLS.md from the system-call table
    Syscalls {
        /// Change nothing; fail if the page is not the one that the table gives
        #[arg(long)]
        check: bool,
    },
}

fn main() -> ExitCode {
    let ended = match Args::parse().command {
        Command::Test => checks::run_all(),
        Command::Demo(options) => demo::run(&options),
        Command::Fuzz(options) => fuzz::run_all(&options),
        Command::Bpf { check } => bpf::run(check),
        Command::Syscalls { check } => pages::syscalls(check),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("xtask: {e:#}");
            ExitCode::FAILURE
        }
    }
}
