//! `understudy-bench`: load by hand, and figures about protected servers on a bed of network namespaces.

mod commands;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use commands::{compare, cost, fault, load, pause, race, sim, soak};

#[derive(Parser)]
#[command(
    name = "understudy-bench",
    about = "Load that notices everything, and what protection costs",
    version
)]
struct Command {
    #[command(subcommand)]
    command: Subcommands,
}

#[derive(Subcommand)]
enum Subcommands {
    /// Load a redis server, check every reply, read everything back, print what was seen as JSON
    Load(load::Load),
    /// Latency, throughput and processor time of redis with and without protection, alternating
    Compare(compare::Compare),
    /// Processor time of servers for each request, recorded, protected and not, alternating
    Cost(cost::Cost),
    /// A protected redis under load, struck in every way again and again: nothing may come of it
    Fault(fault::Fault),
    /// How long checkpoints stop redis, as seen by a thread that spins inside it
    Pause(pause::Pause),
    /// A protected redis under steady load for a long time: takeovers that should not be, growing memory
    Soak(soak::Soak),
    /// Servers whose threads race, lost again and again, with and without what helps against it
    Race(race::Race),
    /// The two hosts' protocol over a simulated network that loses, delays and repeats, seed after seed
    Sim(sim::Sim),
}

fn main() -> ExitCode {
    let done = match Command::parse().command {
        Subcommands::Load(options) => load::run(&options),
        Subcommands::Fault(options) => fault::run(&options),
        Subcommands::Compare(options) => compare::run(&options),
        Subcommands::Cost(options) => cost::run(&options),
        Subcommands::Pause(options) => pause::run(&options),
        Subcommands::Soak(options) => soak::run(&options),
        Subcommands::Race(options) => race::run(&options),
        Subcommands::Sim(options) => sim::run(&options),
    };
    done.unwrap_or_else(|e| {
        eprintln!("understudy-bench: {e:#}");
        ExitCode::from(2)
    })
}
