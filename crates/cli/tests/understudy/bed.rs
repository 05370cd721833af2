//! Running the program, with or without a network namespace that has a bridge.

use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A network namespace with a bridge `br0` at 10.9.0.1/24, and a directory for control sockets.
pub(crate) struct Bed {
    name: String,
    run: tempfile::TempDir,
}

impl Bed {
    pub(crate) fn new() -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("us-cli-{}-{number}", std::process::id());
        let bed = Self {
            name,
            run: tempfile::tempdir().unwrap(),
        };
        must(&["ip", "netns", "add", &bed.name]);
        must(&[
            "ip", "-n", &bed.name, "link", "add", "br0", "type", "bridge",
        ]);
        must(&["ip", "-n", &bed.name, "link", "set", "br0", "up"]);
        must(&["ip", "-n", &bed.name, "link", "set", "lo", "up"]);
        must(&[
            "ip",
            "-n",
            &bed.name,
            "addr",
            "add",
            "10.9.0.1/24",
            "dev",
            "br0",
        ]);
        bed
    }

    /// `understudy` inside, its arguments split at spaces.
    pub(crate) fn understudy(&self, line: &str) -> Command {
        let mut command = Command::new("ip");
        command.args([
            "netns",
            "exec",
            &self.name,
            env!("CARGO_BIN_EXE_understudy"),
        ]);
        command
            .args(line.split_whitespace())
            .env("UNDERSTUDY_RUN_DIR", self.run.path());
        command
    }

    /// Any other command inside.
    pub(crate) fn inside(&self, words: &[&str]) -> Output {
        Command::new("ip")
            .args(["netns", "exec", &self.name])
            .args(words)
            .output()
            .unwrap()
    }

    /// Where the control sockets are.
    pub(crate) fn run_directory(&self) -> &Path {
        self.run.path()
    }

    /// Names of the links inside.
    pub(crate) fn links(&self) -> String {
        String::from_utf8(self.inside(&["ip", "-o", "link"]).stdout).unwrap()
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["netns", "del", &self.name])
            .status();
    }
}

fn must(words: &[&str]) {
    let status = Command::new(words[0]).args(&words[1..]).status().unwrap();
    assert!(status.success(), "{words:?}: {status}");
}

/// `understudy` outside of any bed.
pub(crate) fn understudy(line: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_understudy"));
    command.args(line.split_whitespace()).output().unwrap()
}

/// Standard error as text.
pub(crate) fn told(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}
