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

/// Runs `ip` with these arguments.
///
/// # Errors
/// With what it said, if it failed.
pub(super) fn run(args: &[&str]) -> Result<()> {
    quietly(
        Command::new("ip").args(args),
        &format!("ip {}", args.join(" ")),
    )
}

/// Runs a command inside a namespace.
///
/// # Errors
/// As for [`run`].
pub(super) fn exec(netns: &str, words: &[&str]) -> Result<()> {
    quietly(&mut enter(netns, words[0], &words[1..]), &words.join(" "))
}

/// A command that starts inside a namespace, without a mount namespace of its own (`ip netns exec` would
/// hide the control groups under /sys).
pub(super) fn enter<S: AsRef<std::ffi::OsStr>>(netns: &str, program: &str, args: &[S]) -> Command {
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net={}", path(netns).display()))
        .arg("--")
        .arg(program)
        .args(args);
    command
}

fn quietly(command: &mut Command, line: &str) -> Result<()> {
    let out = command
        .output()
        .with_context(|| format!("{line} could not be started"))?;
    if !out.status.success() {
        bail!(
            "{line} failed: {}",
            String::from_utf8_lossy(&out.stderr).trim()
        );
    }
    Ok(())
}
