//! `race`: servers whose threads race, lost again and again, with and without what helps against it.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use understudy_bench::bed::Bed;
use understudy_bench::race::{self, KINDS, Outcome};
use understudy_bench::service::Protection;

use super::Server;

/// The options of `race`.
#[derive(Args)]
pub(crate) struct Race {
    #[command(flatten)]
    server: Server,
    /// A kind of race, as often as needed; all without
    #[arg(long = "kind", value_parser = KINDS)]
    kinds: Vec<String>,
    /// Takeovers for each kind and mitigation
    #[arg(long, default_value_t = 10)]
    takeovers: u32,
    /// Number of the first of them: it chooses the moment of the loss
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// One request in so many races
    #[arg(long, default_value_t = 200)]
    one_in: u32,
    /// Connections, with a thread each
    #[arg(long, default_value_t = 8)]
    connections: u64,
    /// Print what the backup said of each service that was lost
    #[arg(long)]
    show_lost: bool,
    /// A mitigation, as often as needed; all without
    #[arg(long = "with", value_parser = MITIGATIONS.map(|m| m.name))]
    with: Vec<String>,
}

/// What is done against races.
struct Mitigation {
    name: &'static str,
    options: [&'static str; 4],
}

const MITIGATIONS: [Mitigation; 4] = [
    Mitigation {
        name: "none",
        options: ["--timing", "off", "--retry-budget", "1ms"],
    },
    Mitigation {
        name: "timing",
        options: ["--timing", "on", "--retry-budget", "1ms"],
    },
    Mitigation {
        name: "retries",
        options: ["--timing", "off", "--retry-budget", "2s"],
    },
    Mitigation {
        name: "both",
        options: ["--timing", "on", "--retry-budget", "2s"],
    },
];

/// How the takeovers of one kind went.
#[derive(Default)]
struct Tally {
    attempts: Vec<u32>,
    longest: Duration,
    lost: Vec<String>,
    wrong: Vec<String>,
}

pub(crate) fn run(options: &Race) -> Result<ExitCode> {
    let wanted = |given: &[String], name: &str| given.is_empty() || given.iter().any(|g| g == name);
    let directory = tempfile::tempdir()?;
    let program = race::compile(directory.path())?;
    println!("kind              with     recovered  of  attempts p50/max  longest answer  wrong");
    let mut wrong = 0;
    for kind in KINDS.iter().filter(|kind| wanted(&options.kinds, kind)) {
        for mitigation in MITIGATIONS.iter().filter(|m| wanted(&options.with, m.name)) {
            let mut tally = Tally::default();
            for seed in (options.first..).take(options.takeovers as usize) {
                let race = race::Race {
                    kind: (*kind).to_owned(),
                    one_in: options.one_in,
                    connections: options.connections,
                    seed,
                };
                let protection = Protection {
                    understudy: options.server.understudy()?,
                    options: options.server.options.clone(),
                    backup_options: mitigation.options.map(str::to_owned).to_vec(),
                };
                let (bed, own) = (Bed::new()?, tempfile::tempdir()?);
                let outcome = race::lose(&bed, own.path(), &program, &race, &protection)?;
                tally.add(outcome);
            }
            println!("{kind:<17} {:<8} {tally}", mitigation.name);
            for said in tally.lost.iter().filter(|_| options.show_lost) {
                println!("    lost: {}", said.trim().replace('\n', "\n          "));
            }
            for example in tally.wrong.iter().take(3) {
                println!("    wrong: {example}");
            }
            wrong += tally.wrong.len();
        }
    }
    Ok(ExitCode::from(u8::from(wrong > 0)))
}

impl Tally {
    fn add(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Recovered { attempts, longest } => {
                self.attempts.push(attempts);
                self.attempts.sort_unstable();
                self.longest = self.longest.max(longest);
            }
            Outcome::Lost(said) => self.lost.push(said),
            Outcome::Wrong(example) => self.wrong.push(example),
        }
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let recovered = self.attempts.len();
        let all = recovered + self.lost.len() + self.wrong.len();
        let median = self.attempts.get(recovered / 2).copied().unwrap_or(0);
        write!(
            f,
            "{recovered:>9} {all:>3} {median:>13}/{:<3} {:>12.0?} {:>6}",
            self.attempts.last().copied().unwrap_or(0),
            self.longest,
            self.wrong.len()
        )
    }
}
