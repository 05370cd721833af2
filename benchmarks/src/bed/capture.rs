//! Frames that a host sends, as tcpdump shows them.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Stdio};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::ip;

/// A running capture; ended when dropped.
#[derive(Debug)]
pub struct Capture {
    child: Child,
}

impl Capture {
    /// Captures what comes in at a port of the common bridge; returns when it does.
    pub(super) fn start(switch: &str, port: &str, filter: &str) -> Result<Self> {
        let words = [
            "tcpdump",
            "-l",
            "-n",
            "-p",
            "-Q",
            "in",
            "--immediate-mode",
            "-i",
            port,
            filter,
        ];
        let mut command = ip::enter(switch, &words);
        let started = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut capture = Self {
            child: started.context("tcpdump could not be started")?,
        };
        let mut said = BufReader::new(
            capture
                .child
                .stderr
                .take()
                .context("tcpdump has no standard error")?,
        );
        let mut all = String::new();
        while said.read_line(&mut all)? > 0 {
            if all.contains("listening on") {
                return Ok(capture);
            }
        }
        bail!("tcpdump on {port} ended: {}", all.trim())
    }

    /// Ends it; a line for each frame.
    ///
    /// # Errors
    /// If tcpdump printed no text.
    pub fn end(mut self) -> Result<Vec<String>> {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGINT)?;
        let mut text = String::new();
        if let Some(output) = &mut self.child.stdout {
            output
                .read_to_string(&mut text)
                .context("tcpdump printed no text")?;
        }
        Ok(text
            .lines()
            .filter(|line| !line.is_empty())
            .map(str::to_owned)
            .collect())
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
