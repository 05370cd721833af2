//! Recorded and replayed: the replay prints what the recording did.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use understudy_tests::{recording, repeats};

use crate::{Built, none, well};

#[test]
fn what_is_recorded_is_replayed() {
    let built = Built::all();
    let mut failures = Vec::new();
    for round in 1..=repeats() {
        for program in &built.programs {
            if let Err(e) = twice(&built.path(program)) {
                failures.push((format!("{} {round}", program.name()), e));
            }
        }
    }
    none(&failures);
}

fn twice(program: &Path) -> Result<()> {
    let scratch = TempDir::new()?;
    let log = scratch.path().join("log");
    let command = program.display().to_string();
    let recorded = recording::record(&log, &[&command], scratch.path(), |_| {})?;
    well(&recorded).context("recorded")?;
    let replayed = recording::replay(&log)?;
    ensure!(
        replayed.status.success(),
        "replayed: {}, {}",
        replayed.status,
        replayed.stderr
    );
    recording::same(&recorded, &replayed)
}
