//! The `ip` command.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Where named network namespaces are mounted.
pub(super) const DIR: &str = "/run/netns";

/// The file of a named network namespace.
pub(super) fn path(netns: &str) -> PathBuf {
    PathBuf::from(DIR).join(netns)
}

/// Runs `ip` with the words of this line.
///
/// # Errors
/// With what it said, if it failed.
pub(super) fn run(line: &str) -> Result<()> {
    let out = Command::new("ip").args(line.split_whitespace()).output();
    let out = out.with_context(|| format!("ip {line} could not be started"))?;
    if !out.status.success() {
        bail!(
            "ip {line} failed: {}",
            String::from_utf8_lossy(&out.stderr).trim()
        );
    }
    Ok(())
}

/// Words of [`enter`] before the command's own.
pub(super) const ENTERING: usize = 2;

/// A command that starts inside a namespace, without a mount namespace of its own (`ip netns exec` would
/// hide the control groups under /sys).
pub(super) fn enter<S: AsRef<std::ffi::OsStr>>(netns: &str, words: &[S]) -> Command {
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net={}", path(netns).display()))
        .arg("--")
        .args(words);
    command
}
