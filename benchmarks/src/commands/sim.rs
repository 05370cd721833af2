//! `sim`: the protocol of the two hosts over a simulated network, seed after seed.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use clap::builder::PossibleValuesParser;
use understudy_bench::sim::{self, Plant, Tally};

/// The options of `sim`.
#[derive(Args)]
pub(crate) struct Sim {
    /// How many seeds
    #[arg(long, default_value_t = 100_000)]
    seeds: u64,
    /// The first of them
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// A mistake to make on purpose, to see it found
    #[arg(long, value_parser = PossibleValuesParser::new(Plant::ALL.map(|(name, _)| name)))]
    plant: Option<String>,
}

pub(crate) fn run(options: &Sim) -> Result<ExitCode> {
    let named = |name: &String| Plant::ALL.into_iter().find(|(known, _)| known == name);
    let plant = options
        .plant
        .as_ref()
        .and_then(named)
        .map(|(_, plant)| plant);
    let Some(end) = options.from.checked_add(options.seeds) else {
        bail!(
            "there are no {} seeds from {} on",
            options.seeds,
            options.from
        );
    };
    let mut all = Tally::default();
    for seed in options.from..end {
        match sim::run(seed, plant) {
            Ok(tally) => all += tally,
            Err(violation) => {
                println!("{violation}");
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    let Tally {
        live,
        revoked,
        restarted,
        died,
        committed,
        released,
    } = all;
    println!(
        "{} seeds without a violation: {died} primaries died, backups restarted {restarted} times, {live} takeovers \
         went live and {revoked} were called off, {committed} checkpoints were committed and the output of {released} \
         events left",
        options.seeds
    );
    Ok(ExitCode::SUCCESS)
}
