//! Sets up what is shown: redis on the primary, and, if protected, its understudy on the backup.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use understudy_bench::bed::Bed;
use understudy_bench::service::{Protection, Service, redis};

use crate::process::{cargo, run};

const PORT: u16 = 6379;
/// Options of `understudy run`.
const OPTIONS: [&str; 6] = ["--name", "demo", "--heartbeat", "10ms", "--detect", "50ms"];

/// Cargo's target directory, in which this program lies.
///
/// # Errors
/// If it lies somewhere else.
pub(super) fn target() -> Result<PathBuf> {
    let own = std::env::current_exe().context("this program does not know where it lies")?;
    let target = own
        .parent()
        .and_then(Path::parent)
        .context("this program lies in no target directory")?;
    Ok(target.to_path_buf())
}

/// Builds what is needed and starts redis.
///
/// # Errors
/// If it cannot be built, or does not come up.
pub(super) fn set(bed: &Bed, unprotected: bool) -> Result<Service> {
    let target = target()?;
    let directory = target.join("demo");
    if directory.exists() {
        fs::remove_dir_all(&directory)
            .with_context(|| format!("{} could not be emptied", directory.display()))?;
    }
    if unprotected {
        return Service::unprotected(bed, &directory, &redis(PORT), PORT);
    }
    run(&mut cargo(&["build", "--release"]))?;
    let understudy = target.join("release/understudy");
    ensure!(
        understudy.exists(),
        "cargo build --release has not made {}",
        understudy.display()
    );
    let protection = Protection {
        understudy,
        options: OPTIONS.map(str::to_owned).to_vec(),
        ..Protection::default()
    };
    Service::protected(bed, &directory, &protection, &redis(PORT), PORT)
}
