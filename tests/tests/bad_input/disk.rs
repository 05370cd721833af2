//! A backup whose state directory is full.

use std::fs::{self, File};
use std::process::{Command, Stdio};

use understudy_tests::run;

use crate::ground::{Backup, Ground, wait_for};

/// Starts a backup whose state directory is a small file system: its own mount, gone with it. This script runs
/// there first.
fn backup_with_small_disk<'a>(ground: &'a Ground, first: &str) -> Backup<'a> {
    let state = ground.path("state");
    fs::create_dir(&state).unwrap();
    let at = ground.backup_address();
    let line = format!("backup --listen {at} --bridge br0 --insecure --state .");
    let understudy = ground.understudy("backup", &line);
    let words: Vec<_> = understudy.get_args().skip(2).collect();
    let mount = "mount -t tmpfs -o size=64k none \"$0\" && cd \"$0\" || exit 9";
    let script = format!("{mount}; {first}; exec \"$@\"");
    let mut command = ground.command("backup", "unshare --mount sh -c");
    command.arg(script).arg(&state).args(words);
    ground.start_backup(command)
}

#[test]
fn a_full_disk_is_told_to_both_sides_and_free_again() {
    let ground = Ground::new();
    let backup = backup_with_small_disk(&ground, "dd if=/dev/zero of=filler bs=4k 2>/dev/null");
    let line = format!("{} true", ground.run_line("--insecure"));
    ground.fails(
        &line,
        &["refuses", "bad.generation", "No space left on device"],
    );
    backup.says(&["is refused", "bad.generation", "No space left on device"]);
    let mut rm = Command::new("nsenter");
    rm.args(["--mount", "--wd", "--target", &backup.pid().to_string()]);
    assert!(run(rm.args(["rm", "filler"])).unwrap().status.success());
    backup.serves("--insecure");
    backup.end();
}

#[test]
fn a_disk_that_is_full_later_holds_output_and_is_told_to_both_sides() {
    let ground = Ground::new();
    let backup = backup_with_small_disk(&ground, "true");
    // Half a gigabyte of log goes into memory first; no checkpoint takes it out.
    let line = ground.run_line("--insecure --epoch 10s");
    let line = format!("{line} dd if=/dev/zero of=/dev/null bs=64k count=20000");
    let mut command = ground.understudy("primary", &line);
    let said = ground.path("run.log");
    let primary = ground.bed.host("primary").unwrap();
    let log = File::create(&said).unwrap();
    let mut running = primary
        .spawn(command.stdout(Stdio::null()).stderr(log))
        .unwrap();
    backup.says(&["state directory . is full", "free some space"]);
    wait_for(|| {
        let said = fs::read_to_string(&said).unwrap();
        let held = said.contains("closed the connection; output is held");
        held.then_some(()).ok_or(said)
    });
    // It stalls, as it was told to: the container is there, and a takeover could still have it.
    assert!(running.child.try_wait().unwrap().is_none());
    drop(running);
    backup.end();
}
