//! `understudy record` and `understudy replay` of a command, and what both must print.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use crate::{Ended, Running, limit, understudy};

/// Bytes that are shown of what differs.
const SHOWN: usize = 80;

/// Records `command`, which runs in `directory`, with `drive` acting as its clients; the log goes to `log`. However
/// it ended.
///
/// # Errors
/// If it cannot be started, or has not ended in time.
pub fn record(
    log: &Path,
    command: &[&str],
    directory: &Path,
    drive: impl FnOnce(&Running),
) -> Result<Ended> {
    // Whoever runs the tests may ignore signals, as nohup does.
    let mut recorder = Command::new("env");
    recorder
        .arg("--default-signal")
        .arg(understudy()?)
        .args(["record", "--out"])
        .arg(log)
        .arg("--")
        .args(command)
        .current_dir(directory);
    let running = Running::start(&mut recorder)?;
    drive(&running);
    running.end(limit())
}

/// Replays a log. However it ended.
///
/// # Errors
/// If it cannot be started, or has not ended in time.
pub fn replay(log: &Path) -> Result<Ended> {
    let mut replay = Command::new(understudy()?);
    Running::start(replay.arg("replay").arg(log))?.end(limit())
}

/// Holds two runs to have printed the same, to the byte.
///
/// # Errors
/// If they have not: with what was printed where they differ.
pub fn same(recorded: &Ended, replayed: &Ended) -> Result<()> {
    let (a, b) = (&recorded.stdout, &replayed.stdout);
    let same = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    let near = |bytes: &[u8]| {
        let shown = same.min(bytes.len())..bytes.len().min(same + SHOWN);
        bytes[shown].escape_ascii().to_string()
    };
    ensure!(
        a == b,
        "of {} and {} bytes the first {same} are equal, then \"{}\" and \"{}\"",
        a.len(),
        b.len(),
        near(a),
        near(b)
    );
    Ok(())
}
