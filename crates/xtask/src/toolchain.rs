//! What of the Rust toolchain the build needs beside the compiler: installs what is missing.
//!
//! rustup does this by itself from `rust-toolchain.toml`, but not where it was told to install nothing on
//! its own (`RUSTUP_AUTO_INSTALL=0`), nor for a toolchain that was there before the file asked for more.

use std::path::Path;

use anyhow::{Context, Result};

use crate::process;

/// The guest is built for it: no standard library, no vector registers.
pub(crate) const TARGET: &str = "x86_64-unknown-none";
/// Subcommands of cargo that the tests use, and rustup's names for what brings them.
const COMPONENTS: &[(&str, &str)] = &[("clippy", "clippy"), ("fmt", "rustfmt")];

/// Installs the target that the guest is built for, if it is missing.
///
/// # Errors
/// If it is missing and rustup cannot install it.
pub(crate) fn install() -> Result<()> {
    let mut rustc = process::command("rustc");
    rustc.args(["--print", "target-libdir", "--target", TARGET]);
    let directory = String::from_utf8(process::output(&mut rustc)?)?;
    if Path::new(directory.trim()).exists() {
        return Ok(());
    }
    rustup("target", TARGET)
}

/// As [`install`], and what the tests need beside it.
///
/// # Errors
/// As for [`install`].
pub(crate) fn install_for_tests() -> Result<()> {
    install()?;
    for (subcommand, component) in COMPONENTS {
        let version = process::cargo(&[subcommand, "--version"]).output();
        if !version.is_ok_and(|out| out.status.success()) {
            rustup("component", component)?;
        }
    }
    Ok(())
}

fn rustup(kind: &str, name: &str) -> Result<()> {
    println!("installing the Rust {kind} {name}");
    process::run(process::command("rustup").args([kind, "add", name]))
        .with_context(|| format!("the Rust {kind} {name} is missing and could not be installed"))
}
