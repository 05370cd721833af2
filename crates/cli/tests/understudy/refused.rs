//! Bad input: each ends in one sentence and a status.

use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

use crate::bed::{Bed, told, understudy};

/// Checks the status, that there is one line of the right form, and what it mentions.
fn assert_refused(case: &str, output: &Output, status: i32, mentions: &[&str]) {
    let text = told(output);
    assert_eq!(output.status.code(), Some(status), "{case}: {text}");
    assert_eq!(text.lines().count(), 1, "{case}: {text}");
    assert!(
        text.starts_with("understudy: ") && text.ends_with('\n'),
        "{case}: {text}"
    );
    for word in mentions {
        assert!(text.contains(word), "{case}: no {word:?} in {text}");
    }
    assert!(output.stdout.is_empty(), "{case}: {:?}", output.stdout);
}

#[test]
fn wrong_command_lines() {
    let run = "run --backup 10.9.0.2:7000 --ip 10.9.0.10/24 --bridge br0";
    let table: &[(&str, &[&str])] = &[
        ("", &["no command"]),
        ("dance", &["\"dance\"", "understudy help"]),
        ("--fast", &["\"--fast\""]),
        ("run --fast", &["\"--fast\""]),
        ("run", &["--backup", "missing"]),
        (
            "run --backup none --bridge br0 -- true",
            &["--ip", "missing"],
        ),
        (
            "run --backup nobody --ip 10.9.0.10/24 --bridge br0 -- true",
            &["\"nobody\"", "--backup", "IP:PORT"],
        ),
        (
            "run --backup none --ip 10.9.0.300/24 --bridge br0 -- true",
            &["\"10.9.0.300/24\"", "--ip"],
        ),
        (
            "run --backup none --ip 10.9.0.10 --bridge br0 -- true",
            &["\"10.9.0.10\"", "length"],
        ),
        (
            "run --backup none --ip 10.9.0.0/24 --bridge br0 -- true",
            &["\"10.9.0.0/24\""],
        ),
        (
            "run --backup none --ip 10.9.0.10/24 --bridge br0",
            &["no command to run", "`--`"],
        ),
        (
            "run --backup none --ip 10.9.0.10/24 --bridge br0 --",
            &["no command to run"],
        ),
        (
            "run --backup none --ip 10.9.0.10/24 --bridge br0 true",
            &["\"true\"", "`--`"],
        ),
        (
            "run --backup none --ip 10.9.0.10/24 --bridge br0 --name a/b -- true",
            &["\"a/b\"", "--name"],
        ),
        (
            "run --backup none --ip 10.9.0.10/24 --bridge br0 -- /",
            &["--name"],
        ),
        (&format!("{run} -- true"), &["--tls", "--insecure"]),
        (
            &format!("{run} --tls /tmp --insecure -- true"),
            &["--tls", "--insecure", "exclude"],
        ),
        (
            &format!("{run} --tls /no/where -- true"),
            &["/no/where", "keygen"],
        ),
        (
            &format!("{run} --insecure --insecure -- true"),
            &["--insecure", "twice"],
        ),
        (
            &format!("{run} --insecure --epoch 100 -- true"),
            &["\"100\"", "--epoch", "unit"],
        ),
        (
            &format!("{run} --insecure --epoch 1ms -- true"),
            &["\"1ms\"", "10ms to 10s"],
        ),
        (
            &format!("{run} --insecure --heartbeat fast -- true"),
            &["\"fast\"", "--heartbeat"],
        ),
        (
            &format!("{run} --insecure --heartbeat 50ms -- true"),
            &["--detect 50ms", "--heartbeat 50ms"],
        ),
        (
            &format!("{run} --insecure --mode best -- true"),
            &["\"best\"", "hybrid", "active"],
        ),
        (
            &format!("{run} --insecure --on-backup-loss cry -- true"),
            &["\"cry\"", "stall"],
        ),
        (
            &format!("{run} --insecure --mirror /no/where -- true"),
            &["--mirror /no/where"],
        ),
        (
            &format!("{run} --insecure --mirror /bin -- true"),
            &["--mirror /bin", "/usr/bin"],
        ),
        (
            &format!("{run} --insecure --mirror / -- true"),
            &["--mirror /", "directories"],
        ),
        (
            &format!("{run} --insecure --mirror /usr --mirror /usr/lib -- true"),
            &["--mirror /usr/lib", "/usr lie", "outer"],
        ),
        (&format!("{run} --insecure --epoch"), &["--epoch", "value"]),
        ("backup --insecure", &["--listen", "missing"]),
        ("backup --listen 10.9.0.2:0 --insecure", &["\"10.9.0.2:0\""]),
        ("backup --listen 127.0.0.1:7000", &["--tls", "--insecure"]),
        (
            "backup --listen 127.0.0.1:7000 --insecure --bridge a/b",
            &["\"a/b\""],
        ),
        ("status a b", &["\"b\""]),
        ("switchover", &["<NAME>", "missing"]),
        ("keygen", &["<DIR>", "missing"]),
        ("record -- true", &["--out", "missing"]),
        ("record --out /tmp/never-made", &["no command to run"]),
        ("replay", &["<DIR>", "missing"]),
        ("replay /no/where", &["/no/where"]),
        ("doctor now", &["\"now\""]),
    ];
    for (line, mentions) in table {
        assert_refused(line, &understudy(line), 2, mentions);
    }
}

#[test]
fn help_and_version_are_answers() {
    for line in ["help", "--help", "run --help", "--version"] {
        let output = understudy(line);
        assert!(
            output.status.success() && told(&output).is_empty(),
            "{line}"
        );
        assert!(!output.stdout.is_empty(), "{line}");
    }
}

#[test]
fn what_cannot_be_done_here() {
    let bed = Bed::new();
    let run = "run --ip 10.9.0.10/24 --backup";
    let table: &[(&str, i32, &[&str])] = &[
        (
            &format!("{run} none --bridge nowhere -- true"),
            1,
            &["\"nowhere\"", "ip link add"],
        ),
        (
            &format!("{run} none --bridge lo -- true"),
            1,
            &["\"lo\"", "not a bridge"],
        ),
        (
            &format!("{run} none --bridge br0 -- no-such-program"),
            1,
            &["no-such-program", "PATH"],
        ),
        (
            &format!("{run} none --bridge br0 -- /etc/passwd"),
            1,
            &["/etc/passwd", "Permission denied"],
        ),
        (
            &format!("{run} none --bridge br0 --gateway 192.0.2.1 -- true"),
            1,
            &["192.0.2.1"],
        ),
        (
            &format!("{run} 127.0.0.1:9 --bridge br0 --insecure -- true"),
            1,
            &["127.0.0.1:9", "cannot be reached"],
        ),
        (
            "run --ip 10.9.0.1/24 --backup none --bridge br0 -- true",
            1,
            &["10.9.0.1", "already taken"],
        ),
        (
            "backup --listen 127.0.0.1:7000 --insecure --bridge nowhere",
            1,
            &["\"nowhere\""],
        ),
        (
            "backup --listen 127.0.0.1:7000 --insecure --state /proc/no",
            1,
            &["/proc/no"],
        ),
        ("status nobody", 1, &["\"nobody\""]),
        ("switchover nobody", 1, &["\"nobody\""]),
    ];
    for (line, status, mentions) in table {
        assert_refused(
            line,
            &bed.understudy(line).output().unwrap(),
            *status,
            mentions,
        );
    }
    assert!(!bed.links().contains("us-"), "{}", bed.links());
}

#[test]
fn without_root() {
    // The user may not be able to reach the build directory: run a copy.
    let directory = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .tempdir()
        .unwrap();
    let copy = directory.path().join("understudy");
    std::fs::copy(env!("CARGO_BIN_EXE_understudy"), &copy).unwrap();
    let nobody = |line: &str| {
        let mut command = Command::new(&copy);
        command
            .args(line.split_whitespace())
            .uid(65534)
            .gid(65534)
            .output()
            .unwrap()
    };
    for line in [
        "run --backup none --ip 10.9.0.10/24 --bridge br0 -- true",
        "backup --listen 127.0.0.1:7000 --insecure",
        "record --out /tmp/never-made -- true",
    ] {
        assert_refused(line, &nobody(line), 1, &["root"]);
    }
    let doctor = nobody("doctor");
    assert_eq!(doctor.status.code(), Some(1));
    assert_eq!(told(&doctor).lines().count(), 1);
    let shown = String::from_utf8(doctor.stdout).unwrap();
    let missing = |name: &str| {
        shown
            .lines()
            .any(|l| l.starts_with("missing") && l.contains(name))
    };
    assert!(
        missing("root") && missing("tcp-repair") && missing("clone3-set-tid"),
        "{shown}"
    );
}
