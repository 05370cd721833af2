//! `cargo xtask test`: every check in turn, and a closing summary.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::process::{cargo, run};
use crate::{bpf, licences, packages, pages, toolchain};

/// One check: its name, and what runs it.
type Check = (&'static str, fn() -> Result<()>);

const CHECKS: &[Check] = &[
    ("packages", || {
        packages::install(&[packages::DEMO, packages::TESTS])
    }),
    ("toolchain", toolchain::install_for_tests),
    ("format", || run(&mut cargo(&["fmt", "--all", "--check"]))),
    ("lints", lints),
    ("licences", licences::check),
    ("system-call page", || pages::syscalls(true)),
    ("BPF object", || bpf::run(true)),
    ("build", || run(&mut cargo(&["build", "--workspace"]))),
    ("tests", || {
        run(&mut cargo(&[
            "test",
            "--workspace",
            "--exclude",
            "understudy-tests",
        ]))
    }),
    // These share the machine's processors and time what they see: one at a time.
    ("end-to-end tests", || {
        run(&mut cargo(&[
            "test",
            "-p",
            "understudy-tests",
            "--",
            "--test-threads=1",
        ]))
    }),
];

/// Of the workspace, and of what its build script builds for the inside of containers: no warning of that is shown.
fn lints() -> Result<()> {
    let denied = ["--", "-D", "warnings"];
    let workspace = ["clippy", "--workspace", "--all-targets"];
    run(&mut cargo(&[&workspace[..], &denied].concat()))?;
    let guest = [
        "clippy",
        "--package=guest",
        "--bin=understudy-guest",
        "--no-default-features",
        "--features=blob",
        "--target",
        toolchain::TARGET,
    ];
    run(&mut cargo(&[&guest[..], &denied].concat()))
}

/// Runs all checks, also behind one that failed, and prints a line for each at the end.
///
/// # Errors
/// If a check failed, or this is not root.
pub(crate) fn run_all() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the tests make network namespaces and containers: run them as root");
    }
    let mut verdicts = Vec::new();
    for (name, check) in CHECKS {
        println!("\n== {name}");
        let start = Instant::now();
        let verdict = check();
        if let Err(e) = &verdict {
            eprintln!("{name}: {e:#}");
        }
        verdicts.push((*name, verdict, start.elapsed()));
    }
    println!("\n== summary");
    for (name, verdict, took) in &verdicts {
        println!("{}", line(name, verdict, *took));
    }
    let failed = verdicts
        .iter()
        .filter(|(_, verdict, _)| verdict.is_err())
        .count();
    if failed != 0 {
        bail!("{failed} of {} checks failed", verdicts.len());
    }
    println!("all {} checks passed", verdicts.len());
    Ok(())
}

fn line(name: &str, verdict: &Result<()>, took: Duration) -> String {
    let seconds = took.as_secs_f64();
    match verdict {
        Ok(()) => format!("ok    {seconds:7.1} s  {name}"),
        Err(e) => format!("FAIL  {seconds:7.1} s  {name}: {e:#}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_check_says_why_on_its_line() {
        let said = line(
            "lints",
            &Err(anyhow::anyhow!("cargo ended with 101")),
            Duration::from_millis(1500),
        );
        assert_eq!(said, "FAIL      1.5 s  lints: cargo ended with 101");
        assert_eq!(
            line("lints", &Ok(()), Duration::ZERO),
            "ok        0.0 s  lints"
        );
    }
}
