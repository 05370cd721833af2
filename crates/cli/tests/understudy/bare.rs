//! `understudy run --backup none` from start to end, `status`, `doctor`.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Stdio};

use crate::bed::{Bed, told, understudy};

const RUN: &str = "run --backup none --ip 10.9.0.10/24 --bridge br0 --name";

/// An `understudy run`; killed when dropped.
struct Running(Child);

impl Running {
    /// Starts a shell script in a container; the script's first line of output must be `ready`.
    fn start(bed: &Bed, name: &str, script: &str) -> (Self, BufReader<ChildStdout>) {
        let mut command = bed.understudy(&format!("{RUN} {name} -- sh -c"));
        let mut running = Self(command.arg(script).stdout(Stdio::piped()).spawn().unwrap());
        let mut output = BufReader::new(running.0.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        (running, output)
    }

    fn signal(&self, signal: nix::sys::signal::Signal) {
        // `ip netns exec` becomes the program, so the child is `understudy` itself.
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.0.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail after an orderly end.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn output_and_status_are_the_commands() {
    let bed = Bed::new();
    let run = |script: &str| {
        bed.understudy(&format!("{RUN} s -- sh -c"))
            .arg(script)
            .output()
            .unwrap()
    };
    let output = run("echo $$; hostname; echo complaint >&2; exit 9");
    assert_eq!(output.status.code(), Some(9));
    assert_eq!(
        (output.stdout.as_slice(), told(&output).as_str()),
        (&b"2\ns\n"[..], "complaint\n")
    );
    assert_eq!(run("kill -KILL $$").status.code(), Some(137));
    assert!(!bed.links().contains("us-"), "{}", bed.links());
}

#[test]
fn signals_are_passed_on_and_status_tells() {
    let bed = Bed::new();
    let script = "trap 'exit 6' TERM; echo ready; while :; do sleep 1000 & wait; done";
    let (mut running, _output) = Running::start(&bed, "web", script);
    // Nobody listens, so the container itself refuses.
    let knock = bed.inside(&["bash", "-c", "exec 3<>/dev/tcp/10.9.0.10/9"]);
    assert!(told(&knock).contains("refused"), "{}", told(&knock));
    let ask = |line: &str| {
        let output = bed.understudy(line).output().unwrap();
        assert!(output.status.success(), "{line}: {}", told(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    let one: serde_json::Value = serde_json::from_str(&ask("status web --json")).unwrap();
    let all: serde_json::Value = serde_json::from_str(&ask("status --json")).unwrap();
    assert_eq!(all, serde_json::json!([one]));
    for field in [
        "name",
        "role",
        "mode",
        "epoch",
        "generation",
        "log_lag_bytes",
        "log_records",
        "log_bytes",
        "replay_ms_predicted",
        "pause_us_p50",
        "pause_us_p99",
        "backup",
        "state",
    ] {
        assert!(one.get(field).is_some(), "{field}: {one}");
    }
    assert_eq!(
        (&one["name"], &one["state"]),
        (&"web".into(), &"unprotected".into())
    );
    assert!(ask("status web").contains("10.9.0.10/24"));
    assert_eq!(ask("status").lines().count(), 2);
    let refused = bed.understudy("switchover web").output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(told(&refused).contains("without a backup"));
    // The address and the name are both guarded while it runs.
    let taken = bed
        .understudy(&format!("{RUN} other -- true"))
        .output()
        .unwrap();
    assert!(told(&taken).contains("10.9.0.10 is already taken by the host with 02:75:0a:09:00:0a"));
    let line = "run --backup none --ip 10.9.0.11/24 --bridge br0 --name web -- true";
    let taken = bed.understudy(line).output().unwrap();
    assert!(
        told(&taken).contains("\"web\"") && taken.status.code() == Some(1),
        "{}",
        told(&taken)
    );
    running.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(running.0.wait().unwrap().code(), Some(6));
    assert_eq!(ask("status"), "no container runs here\n");
    assert_eq!(std::fs::read_dir(bed.run_directory()).unwrap().count(), 0);
}

#[test]
fn killing_understudy_kills_the_container_and_leaves_nothing() {
    let bed = Bed::new();
    let (mut running, mut output) =
        Running::start(&bed, "web", "echo ready; sleep 1000 & sleep 1000");
    running.signal(nix::sys::signal::Signal::SIGKILL);
    running.0.wait().unwrap();
    // The pipe ends when the last process that holds it is gone.
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    // A second start finds the name, the address and the link free. The link goes with its
    // namespace, which the kernel takes apart a little later.
    let next = loop {
        let next = bed
            .understudy(&format!("{RUN} web -- true"))
            .output()
            .unwrap();
        if !told(&next).contains("already") {
            break next;
        }
    };
    assert!(next.status.success(), "{}", told(&next));
    assert!(!bed.links().contains("us-"), "{}", bed.links());
}

#[test]
fn doctor_finds_everything_here() {
    let output = understudy("doctor");
    assert!(output.status.success(), "{}", told(&output));
    let shown = String::from_utf8(output.stdout).unwrap();
    let (features, notes): (Vec<_>, Vec<_>) =
        shown.lines().partition(|line| !line.starts_with("note "));
    assert_eq!(features.len(), sys::features::FEATURES.len());
    assert!(
        features.iter().all(|line| line.starts_with("ok ")),
        "{shown}"
    );
    let told_of = |what| notes.iter().any(|note| note.contains(what));
    assert!(told_of("shared-memory"), "{shown}");
}

#[test]
fn doctor_works_where_sys_is_covered() {
    // `ip netns exec` puts a fresh /sys over the old one, control groups and all.
    let bed = Bed::new();
    let output = bed.understudy("doctor").output().unwrap();
    assert!(output.status.success(), "{}", told(&output));
}

#[test]
fn help_into_a_closed_pipe_is_no_crash() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_understudy"))
        .arg("help")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(told(&output).is_empty(), "{}", told(&output));
}
