//! `fault`: a protected redis under load is struck again and again, in every way, and nothing may come of it.
//!
//! What came of each is written down as it comes, so that a run that was broken off goes on where it was. What a failure
//! left behind stays beside it.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use clap::builder::PossibleValuesParser;
use indicatif::{ProgressBar, ProgressStyle};
use understudy_bench::fault::{self, KINDS, Kind, Outcome};
use understudy_bench::service::Protection;

use super::{Server, median};

/// The options of `fault`.
#[derive(Args)]
pub(crate) struct Fault {
    #[command(flatten)]
    server: Server,
    /// A kind of fault, as often as needed; all without
    #[arg(long = "kind", value_parser = PossibleValuesParser::new(KINDS.iter().map(|kind| kind.name)))]
    kinds: Vec<String>,
    /// How often each comes
    #[arg(long, default_value_t = 10)]
    count: u64,
    /// The first seed
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Where outcomes are written down, and failures leave what they had
    #[arg(long, default_value = "understudy-faults")]
    out: PathBuf,
    /// Say what the kinds are, and nothing else
    #[arg(long)]
    list: bool,
}

type Outcomes = BTreeMap<(String, u64), Outcome>;

pub(crate) fn run(options: &Fault) -> Result<ExitCode> {
    if options.list {
        for Kind { name, about, .. } in KINDS {
            println!("{name:<14}{about}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    let out = &options.out;
    fs::create_dir_all(out).with_context(|| format!("{} cannot be made", out.display()))?;
    let path = out.join("outcomes.jsonl");
    let mut known = read(&path)?;
    let wanted: Vec<(&Kind, u64)> = (options.from..options.from.saturating_add(options.count))
        .flat_map(|seed| KINDS.iter().map(move |kind| (kind, seed)))
        .filter(|(kind, _)| {
            options.kinds.is_empty() || options.kinds.iter().any(|k| k == kind.name)
        })
        .collect();
    let protection = Protection {
        understudy: options.server.understudy()?,
        options: options.server.options.clone(),
        ..Protection::default()
    };
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("{} cannot be written", path.display()))?;
    let style = "{elapsed_precise} [{bar:30}] {pos} of {len}, {eta} left{msg}";
    let bar =
        ProgressBar::new(wanted.len() as u64).with_style(ProgressStyle::with_template(style)?);
    let mut failed = 0;
    for (kind, seed) in &wanted {
        let key = (kind.name.to_owned(), *seed);
        if !known.contains_key(&key) {
            let directory = out.join(format!("{}-{seed}", kind.name));
            let outcome = fault::inject(kind, *seed, &protection, &directory)
                .with_context(|| format!("{} {seed}", kind.name))?;
            writeln!(file, "{}", serde_json::to_string(&outcome)?)?;
            if outcome.complaints.is_empty() {
                fs::remove_dir_all(&directory)?;
            } else {
                bar.println(told(&outcome, &directory));
            }
            known.insert(key.clone(), outcome);
        }
        failed += u64::from(!known[&key].complaints.is_empty());
        bar.set_message(format!(", {failed} failed"));
        bar.inc(1);
    }
    bar.finish_and_clear();
    println!(
        "fault         struck  went on  silence p50/max ms  lost  twice  wrong  unexplained  broken  frames of the old host"
    );
    for kind in KINDS {
        let struck = wanted.iter().filter(|(k, _)| k.name == kind.name);
        let outcomes = struck.filter_map(|(_, seed)| known.get(&(kind.name.to_owned(), *seed)));
        row(kind, &outcomes.collect::<Vec<_>>());
    }
    Ok(ExitCode::from(u8::from(failed > 0)))
}

/// What is known of an earlier run. A line that was cut off is made again.
fn read(path: &PathBuf) -> Result<Outcomes> {
    let Ok(text) = fs::read_to_string(path) else {
        return Ok(Outcomes::new());
    };
    let outcomes = text
        .lines()
        .filter_map(|line| serde_json::from_str::<Outcome>(line).ok());
    Ok(outcomes
        .map(|outcome| ((outcome.kind.clone(), outcome.seed), outcome))
        .collect())
}

/// A failure, where its evidence is, and what shows it again.
fn told(outcome: &Outcome, directory: &std::path::Path) -> String {
    let Outcome {
        kind,
        seed,
        complaints,
        ..
    } = outcome;
    format!(
        "{kind} {seed}: {}\n  kept in {}\n  again: understudy-bench fault --kind {kind} --from {seed} --count 1 --out again",
        complaints.join("; "),
        directory.display()
    )
}

fn row(kind: &Kind, outcomes: &[&Outcome]) {
    if outcomes.is_empty() {
        return;
    }
    let sum = |of: fn(&Outcome) -> u64| outcomes.iter().map(|o| of(o)).sum::<u64>();
    let well = outcomes.iter().filter(|o| o.complaints.is_empty()).count();
    let gaps = outcomes.iter().map(|o| o.gap_ms);
    println!(
        "{:<14}{:>7} {well:>8} {:>12.0}/{:<6.0} {:>5} {:>6} {:>6} {:>12} {:>7} {:>23}",
        kind.name,
        outcomes.len(),
        median(gaps.clone()),
        gaps.fold(0.0, f64::max),
        sum(|o| o.lost),
        sum(|o| o.twice),
        sum(|o| o.wrong),
        sum(|o| o.unexplained),
        sum(|o| o.broken),
        sum(|o| o.frames),
    );
}
