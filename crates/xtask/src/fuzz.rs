//! `cargo xtask fuzz`: libFuzzer on every decoder in turn, and a closing summary.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::process::{cargo, output, root, run};

/// The workspace of the fuzzer.
const WORKSPACE: &str = "fuzz";
/// The program that it builds, in its target directory.
const PROGRAM: &str = "x86_64-unknown-linux-gnu/release/understudy-fuzz";
/// Memory of the whole process, in MiB. What one input may take is bound in the table of decoders.
const RSS_MIB: u32 = 512;
/// Seconds that one input may take: by the wall's clock, so that a busy machine must have its share.
const TIMEOUT: u32 = 120;

/// What is to be fuzzed, and for how long.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// How long each target runs
    #[arg(long, default_value_t = 600)]
    seconds: u32,
    /// Run this file alone, once
    #[arg(long, value_name = "FILE", requires = "target")]
    input: Option<PathBuf>,
    /// One target instead of all
    target: Option<String>,
}

/// How a target's run ended.
struct Verdict {
    target: String,
    /// libFuzzer's own figures: inputs tried, edges and features of coverage seen.
    executions: u64,
    edges: u64,
    features: u64,
    /// The file with the input that failed.
    failure: Option<PathBuf>,
}

/// Builds the fuzzer and runs it.
///
/// # Errors
/// If it cannot be built, a target is unknown, or an input failed.
pub(crate) fn run_all(options: &Options) -> Result<()> {
    let program = build()?;
    let names = targets(&program)?;
    let chosen: Vec<String> = match &options.target {
        Some(name) => {
            ensure!(
                names.contains(name),
                "there is no target {name:?}, only {}",
                names.join(", ")
            );
            vec![name.clone()]
        }
        None => names,
    };
    if let (Some(input), Some(target)) = (&options.input, chosen.first()) {
        let input = input
            .canonicalize()
            .with_context(|| format!("{} is not there", input.display()))?;
        return run(fuzzer(&program, target).arg(input));
    }
    let mut verdicts = Vec::new();
    for target in &chosen {
        println!("{target}: {} s", options.seconds);
        verdicts.push(fuzz(&program, target, options.seconds)?);
    }
    sum_up(&verdicts)
}

/// The fuzzer, built.
fn build() -> Result<PathBuf> {
    let target_dir = root().join("target/fuzz/build");
    run(cargo(&["build", "--release"])
        .current_dir(root().join(WORKSPACE))
        // The flags are in the workspace's own configuration.
        .env_remove("RUSTFLAGS")
        .env("CARGO_TARGET_DIR", &target_dir))?;
    Ok(target_dir.join(PROGRAM))
}

/// The names in its table.
fn targets(program: &Path) -> Result<Vec<String>> {
    let table = String::from_utf8(output(&mut Command::new(program))?)?;
    let names = table.lines().filter_map(|line| line.split('\t').next());
    Ok(names.map(str::to_owned).collect())
}

fn fuzzer(program: &Path, target: &str) -> Command {
    let mut fuzzer = Command::new(program);
    fuzzer.env("UNDERSTUDY_FUZZ", target).args([
        format!("-rss_limit_mb={RSS_MIB}"),
        format!("-timeout={TIMEOUT}"),
        format!("-report_slow_units={TIMEOUT}"),
    ]);
    fuzzer
}

fn fuzz(program: &Path, target: &str, seconds: u32) -> Result<Verdict> {
    let directory = root().join("target/fuzz").join(target);
    let [corpus, seeds] = ["corpus", "seeds"].map(|name| directory.join(name));
    for made in [&corpus, &seeds] {
        fs::create_dir_all(made).with_context(|| format!("{} is needed", made.display()))?;
    }
    let log = directory.join("log");
    let file = File::create(&log).with_context(|| format!("{} is needed", log.display()))?;
    let status = fuzzer(program, target)
        .env("UNDERSTUDY_SEEDS", &seeds)
        .args([
            format!("-max_total_time={seconds}"),
            format!("-artifact_prefix={}/", directory.display()),
            "-print_final_stats=1".to_owned(),
        ])
        .args([&corpus, &seeds])
        .stderr(file)
        .status()
        .context("the fuzzer could not be started")?;
    let said = fs::read(&log).context("the fuzzer's log is gone")?;
    let verdict = read(target, &String::from_utf8_lossy(&said));
    ensure!(
        status.success() || verdict.failure.is_some(),
        "{target} ended with {status}: see {}",
        log.display()
    );
    Ok(verdict)
}

/// What libFuzzer's log says of a run.
fn read(target: &str, log: &str) -> Verdict {
    let number = |text: Option<&str>| text.and_then(|word| word.parse().ok()).unwrap_or(0);
    let last = |name: &str| {
        let words = log.lines().rev().find_map(|line| {
            let (_, after) = line.split_once(name)?;
            after.split_whitespace().next()
        });
        number(words)
    };
    let failure = log.lines().find_map(|line| {
        line.split_once("Test unit written to ")
            .map(|(_, path)| PathBuf::from(path))
    });
    Verdict {
        target: target.to_owned(),
        executions: last("stat::number_of_executed_units:"),
        edges: last(" cov: "),
        features: last(" ft: "),
        failure,
    }
}

/// Prints a line for each target.
fn sum_up(verdicts: &[Verdict]) -> Result<()> {
    println!("\n== summary");
    for verdict in verdicts {
        println!("{}", line(verdict));
    }
    let failed = verdicts.iter().filter(|v| v.failure.is_some()).count();
    if failed != 0 {
        bail!("{failed} of {} targets failed", verdicts.len());
    }
    Ok(())
}

fn line(verdict: &Verdict) -> String {
    let Verdict {
        target,
        executions,
        edges,
        features,
        failure,
    } = verdict;
    let figures =
        format!("{target:<10} {executions:>12} inputs {edges:>6} edges {features:>6} features");
    match failure {
        None => format!("ok    {figures}"),
        Some(path) => format!("FAIL  {figures}: {}", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_and_the_failing_input_are_read_from_the_log() {
        let log = "#2\tINITED cov: 90 ft: 91 corp: 1/1b\n#500\tREDUCE cov: 227 ft: 787 corp: 3/9b\n\
                   artifact_prefix='x/'; Test unit written to x/crash-1\n\
                   stat::number_of_executed_units: 936339\n";
        let verdict = read("record", log);
        assert_eq!(
            (verdict.executions, verdict.edges, verdict.features),
            (936_339, 227, 787)
        );
        assert_eq!(verdict.failure, Some(PathBuf::from("x/crash-1")));
        assert!(line(&verdict).starts_with("FAIL  record "));
        assert!(read("record", "").failure.is_none());
    }
}
