//! The Debian packages that tests and demo use: installs what is missing, and starts no service.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process;

/// What the demo needs.
pub(crate) const DEMO: &[&str] = &["gcc", "iproute2", "libc6-dev", "redis-server", "util-linux"];
/// What the tests need beside [`DEMO`].
pub(crate) const TESTS: &[&str] = &[
    "clang",
    "libbpf-dev",
    "lighttpd",
    "llvm",
    "memcached",
    "mosquitto",
    "musl-tools",
    "nginx-light",
    "python3",
    "redis-tools",
    "tcpdump",
    "wrk",
];

/// Invoked by package scripts before they start a service; 101 forbids it.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Installs those of `wanted` that are missing; touches nothing, network included, if none is.
///
/// # Errors
/// If something is missing and this is not root, or apt-get fails.
pub(crate) fn install(wanted: &[&[&str]]) -> Result<()> {
    let missing: Vec<&str> = wanted
        .iter()
        .copied()
        .flatten()
        .copied()
        .filter(|name| !installed(name))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "these packages are missing and only root can install them: {}",
            missing.join(" ")
        );
    }
    println!("installing {}", missing.join(" "));
    let _no_services = NoServices::new()?;
    if apt_get(&["install", "-y", "--no-install-recommends"], &missing).is_ok() {
        return Ok(());
    }
    // The package lists of a fresh machine are empty or old.
    apt_get(&["update"], &[])?;
    apt_get(&["install", "-y", "--no-install-recommends"], &missing)
}

fn installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["-W", "-f=${db:Status-Status}", package])
        .output()
        .is_ok_and(|out| out.status.success() && out.stdout == b"installed")
}

fn apt_get(args: &[&str], packages: &[&str]) -> Result<()> {
    process::run(
        Command::new("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["-q", "-o", "DPkg::Lock::Timeout=300"])
            .args(args)
            .args(packages),
    )
}

/// While it lives, packages that are installed start no service.
struct NoServices {
    /// The policy is ours to remove.
    ours: bool,
}

impl NoServices {
    fn new() -> Result<Self> {
        match fs::File::create_new(POLICY) {
            Err(e) if e.kind() == ErrorKind::AlreadyExists => return Ok(Self { ours: false }),
            Err(e) => return Err(e).context(format!("{POLICY} could not be written")),
            Ok(_) => {}
        }
        let guard = Self { ours: true };
        fs::write(POLICY, "#!/bin/sh\nexit 101\n")
            .context(format!("{POLICY} could not be written"))?;
        fs::set_permissions(Path::new(POLICY), fs::Permissions::from_mode(0o755))?;
        Ok(guard)
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours {
            let _ = fs::remove_file(POLICY);
        }
    }
}
