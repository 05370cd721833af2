//! A backup whose state directory is full.

use std::process::Command;

use understudy_tests::run;

use crate::ground::{Backup, Ground};

/// Starts a backup whose state directory is a small file system that a file fills: its own mount, gone with it.
fn backup_with_full_disk(ground: &Ground) -> Backup<'_> {
    let state = ground.path("state");
    std::fs::create_dir(&state).unwrap();
    let at = ground.backup_address();
    let line = format!("backup --listen {at} --bridge br0 --insecure --state .");
    let understudy = ground.understudy("backup", &line);
    let words: Vec<_> = understudy.get_args().skip(2).collect();
    let script = "mount -t tmpfs -o size=64k none \"$0\" && cd \"$0\" || exit 9
        dd if=/dev/zero of=filler bs=4k 2>/dev/null
        exec \"$@\"";
    let mut command = ground.command("backup", "unshare --mount sh -c");
    command.arg(script).arg(&state).args(words);
    ground.start_backup(command)
}

#[test]
fn a_full_disk_is_told_to_both_sides_and_free_again() {
    let ground = Ground::new();
    let backup = backup_with_full_disk(&ground);
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
