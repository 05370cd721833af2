//! Pages of the documentation that are generated from code.

use std::fs;

use anyhow::{Context, Result, bail};

use crate::process::root;
use crate::syscalls;

const SYSCALLS: &str = "docs/SYSCALLS.md";

/// Writes the page of system calls, or with `check` compares it with what the table gives.
///
/// # Errors
/// If it cannot be read or written, or with `check`, differs.
pub(crate) fn syscalls(check: bool) -> Result<()> {
    let (path, text) = (root().join(SYSCALLS), syscalls::markdown());
    if !check {
        fs::write(&path, text).with_context(|| format!("{SYSCALLS} could not be written"))?;
        println!("wrote {SYSCALLS}");
        return Ok(());
    }
    let found =
        fs::read_to_string(&path).with_context(|| format!("{SYSCALLS} could not be read"))?;
    if found != text {
        let line = found
            .lines()
            .zip(text.lines())
            .take_while(|(a, b)| a == b)
            .count()
            + 1;
        bail!(
            "{SYSCALLS} is not what the table gives (from line {line} on): run cargo xtask syscalls"
        );
    }
    println!("{SYSCALLS} is what the table gives");
    Ok(())
}
