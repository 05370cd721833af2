//! What the end-to-end tests share: finding the program under test, and running it with a limit.
//!
//! In: the `understudy` that cargo has built, and real servers. Out: what they printed, and how they ended.
//! The tests need root, and run one at a time.

pub mod crowd;
pub mod recording;

use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tempfile::TempDir;

/// Time for anything that a test runs.
pub const LIMIT: Duration = Duration::from_secs(60);

/// The program under test: `UNDERSTUDY_BIN`, or what lies beside this test in cargo's target directory.
///
/// # Errors
/// If there is none.
pub fn understudy() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("UNDERSTUDY_BIN") {
        return Ok(path.into());
    }
    let own = std::env::current_exe()?;
    let built = own
        .ancestors()
        .nth(2)
        .context("this test lies in no target directory")?
        .join("understudy");
    ensure!(
        built.exists(),
        "{} is not there: run cargo build first",
        built.display()
    );
    Ok(built)
}

/// How often tests of chance repeat: `UNDERSTUDY_REPEAT`, or once.
#[must_use]
pub fn repeats() -> u32 {
    number("UNDERSTUDY_REPEAT").unwrap_or(1)
}

/// What chooses the moments of as many losses: numbers from `UNDERSTUDY_FIRST` on, or from 1.
pub fn seeds() -> impl Iterator<Item = u64> {
    let first = number("UNDERSTUDY_FIRST").unwrap_or(1);
    (u64::from(first)..).take(repeats() as usize)
}

/// How many requests of each kind a server is sent that is recorded: `UNDERSTUDY_REQUESTS`, or a few.
#[must_use]
pub fn requests() -> u32 {
    number("UNDERSTUDY_REQUESTS").unwrap_or(5000)
}

/// Further options of `understudy run`, for machines that have much else to do: `UNDERSTUDY_OPTIONS`, or none.
#[must_use]
pub fn options() -> Vec<String> {
    let given = std::env::var("UNDERSTUDY_OPTIONS").unwrap_or_default();
    given.split_whitespace().map(str::to_owned).collect()
}

fn number(variable: &str) -> Option<u32> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Time for what such a server, its clients or its replay take.
#[must_use]
pub fn limit() -> Duration {
    LIMIT + Duration::from_millis(2) * requests()
}

/// How a program ended, and what it printed.
#[derive(Debug)]
pub struct Ended {
    /// Its status.
    pub status: ExitStatus,
    /// What it printed.
    pub stdout: Vec<u8>,
    /// What it said on standard error.
    pub stderr: String,
}

/// A program that runs; killed with its process group when dropped before its end.
#[derive(Debug)]
pub struct Running {
    what: String,
    group: Pid,
    ended: Receiver<std::io::Result<ExitStatus>>,
    stdout: Option<JoinHandle<Vec<u8>>>,
    stderr: Option<JoinHandle<Vec<u8>>>,
}

impl Running {
    /// Starts a command in a process group of its own, without standard input.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(command: &mut Command) -> Result<Self> {
        let what = format!("{command:?}");
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let mut child = command
            .spawn()
            .with_context(|| format!("{what} could not be started"))?;
        let (stdout, stderr) = (
            child.stdout.take().map(drain),
            child.stderr.take().map(drain),
        );
        let group = Pid::from_raw(child.id().cast_signed());
        Ok(Self {
            what,
            group,
            ended: wait(child),
            stdout,
            stderr,
        })
    }

    /// Its process number.
    #[must_use]
    pub const fn pid(&self) -> Pid {
        self.group
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// If it has not ended after `limit`; it is killed then, and what it has said is in the message.
    pub fn end(mut self, limit: Duration) -> Result<Ended> {
        let ended = self.ended.recv_timeout(limit);
        if ended.is_err() {
            let _ = killpg(self.group, Signal::SIGKILL);
        }
        let stdout = joined(self.stdout.take());
        let stderr = String::from_utf8_lossy(&joined(self.stderr.take())).into_owned();
        let Ok(status) = ended else {
            bail!(
                "{} has not ended after {limit:?}; it said: {stderr}",
                self.what
            )
        };
        Ok(Ended {
            status: status?,
            stdout,
            stderr,
        })
    }

    /// Waits until it accepts connections.
    ///
    /// # Errors
    /// If it does not within [`LIMIT`], or ends before.
    pub fn listens(&self, at: SocketAddr) -> Result<()> {
        self.comes_to(|| {
            TcpStream::connect(at)
                .map(drop)
                .with_context(|| format!("it does not listen on {at}"))
        })
    }

    /// Waits until it has made a file.
    ///
    /// # Errors
    /// If it does not within [`LIMIT`], or ends before.
    pub fn makes(&self, file: &Path) -> Result<()> {
        self.comes_to(|| {
            ensure!(file.exists(), "there is no {}", file.display());
            Ok(())
        })
    }

    /// Waits until `look` succeeds.
    fn comes_to(&self, look: impl Fn() -> Result<()>) -> Result<()> {
        let end = Instant::now() + LIMIT;
        while let Err(e) = look() {
            // Returns at once when the program ends, and otherwise leaves it the processor for a moment.
            if let Ok(status) = self.ended.recv_timeout(Duration::from_millis(5)) {
                return Err(e.context(format!("{} ended with {}", self.what, status?)));
            }
            if Instant::now() >= end {
                return Err(e.context(format!("{} still runs after {LIMIT:?}", self.what)));
            }
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Not waited for: it still runs, and the group's number is its own.
        if self.ended.try_recv().is_err() && self.stdout.is_some() && kill(self.group, None).is_ok()
        {
            let _ = killpg(self.group, Signal::SIGKILL);
            let _ = self.ended.recv_timeout(LIMIT);
        }
    }
}

/// Runs a command to its end.
///
/// # Errors
/// If it cannot be started, or has not ended after [`LIMIT`].
pub fn run(command: &mut Command) -> Result<Ended> {
    Running::start(command)?.end(LIMIT)
}

/// An address on loopback that nothing uses.
///
/// # Errors
/// If there is none.
pub fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

fn drain(mut from: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut all = Vec::new();
        // A pipe that breaks has said what it had to say.
        let _ = from.read_to_end(&mut all);
        all
    })
}

fn joined(reader: Option<JoinHandle<Vec<u8>>>) -> Vec<u8> {
    reader
        .and_then(|thread| thread.join().ok())
        .unwrap_or_default()
}

fn wait(mut child: Child) -> Receiver<std::io::Result<ExitStatus>> {
    let (sender, ended) = mpsc::channel();
    std::thread::spawn(move || sender.send(child.wait()));
    ended
}

/// A directory for what a test makes. With `UNDERSTUDY_KEEP`, it stays: what a backup has kept of a container that it
/// could not take over can be replayed then.
///
/// # Errors
/// If none can be made.
pub fn scratch() -> Result<TempDir> {
    let mut directory = TempDir::new()?;
    directory.disable_cleanup(std::env::var_os("UNDERSTUDY_KEEP").is_some());
    Ok(directory)
}

/// Builds a program of one C file.
///
/// # Errors
/// If it cannot be built.
pub fn compile(source: &Path, program: &Path) -> Result<()> {
    let built = Command::new("cc")
        .args(["-O1", "-pthread", "-o"])
        .args([program, source])
        .status()?;
    ensure!(built.success(), "{} cannot be built", source.display());
    Ok(())
}
