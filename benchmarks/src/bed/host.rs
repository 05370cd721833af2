//! One host: starting commands on it, cutting it off, ending everything on it.

use std::ffi::OsStr;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns};

use super::{ip, processes};

/// The host's interface to the common bridge.
pub const UPLINK: &str = "up0";

/// A network namespace, and what was started in it.
#[derive(Debug)]
pub struct Host {
    name: String,
    netns: String,
    address: Ipv4Addr,
    /// The command that gives others clocks of its own, if it has them.
    clocks: Vec<String>,
    /// Roots of the process trees on this host.
    pub(super) started: Mutex<Vec<i32>>,
}

/// A command running on a host; killed when dropped.
#[derive(Debug)]
pub struct Process {
    /// What was asked to run, for messages.
    what: String,
    /// Its pipes can be taken.
    pub child: Child,
}

impl Host {
    pub(super) fn new(name: &str, netns: &str, address: Ipv4Addr) -> Self {
        Self {
            name: name.to_owned(),
            netns: netns.to_owned(),
            address,
            clocks: Vec::new(),
            started: Mutex::new(Vec::new()),
        }
    }

    /// The same host, up for so many days longer than this machine.
    pub(super) fn up_for(mut self, days: u32) -> Self {
        let seconds = 24 * 60 * 60 * days;
        let words = [
            "unshare".to_owned(),
            "--time".to_owned(),
            format!("--monotonic={seconds}"),
            format!("--boottime={seconds}"),
        ];
        self.clocks = words.into();
        self
    }

    /// Its name in the bed.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name of its network namespace.
    #[must_use]
    pub fn netns(&self) -> &str {
        &self.netns
    }

    /// Its own address.
    #[must_use]
    pub const fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// A command that will run in this host's namespaces.
    pub fn command<S: AsRef<OsStr>>(&self, program: &str, args: &[S]) -> Command {
        let mut words: Vec<&OsStr> = self.clocks.iter().map(OsStr::new).collect();
        words.push(program.as_ref());
        words.extend(args.iter().map(AsRef::as_ref));
        ip::enter(&self.netns, &words)
    }

    /// Starts a command made by [`Host::command`], without standard input.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn spawn(&self, command: &mut Command) -> Result<Process> {
        let words: Vec<_> = command
            .get_args()
            .skip(ip::ENTERING + self.clocks.len())
            .map(|a| a.to_string_lossy().into_owned())
            .collect();
        let what = format!("{} on {}", words.join(" "), self.name);
        let child = command
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| format!("{what} could not be started"))?;
        self.roots().push(child.id().cast_signed());
        Ok(Process { what, child })
    }

    pub(super) fn roots(&self) -> std::sync::MutexGuard<'_, Vec<i32>> {
        self.started
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Runs `work` on a thread inside this host's namespace: the sockets it makes are this host's.
    ///
    /// # Errors
    /// If the namespace cannot be entered, or with what `work` returns.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let netns =
            File::open(ip::path(&self.netns)).with_context(|| format!("{} is gone", self.netns))?;
        std::thread::scope(|scope| {
            let entered = scope.spawn(move || {
                setns(&netns, CloneFlags::CLONE_NEWNET)
                    .context("the namespace could not be entered")?;
                work()
            });
            entered
                .join()
                .map_err(|_| anyhow!("a thread on {} panicked", self.name))?
        })
    }

    /// Waits until something accepts connections at `server`, as seen from this host.
    ///
    /// # Errors
    /// If `limit` passes before, or `process` (who ought to listen) ends.
    pub fn wait_for_listener(
        &self,
        server: SocketAddr,
        process: &mut Process,
        limit: Duration,
    ) -> Result<()> {
        let end = Instant::now() + limit;
        self.inside(|| {
            loop {
                let Err(e) = TcpStream::connect_timeout(&server, Duration::from_millis(200)) else {
                    return Ok(());
                };
                if let Some(status) = process.child.try_wait()? {
                    bail!(
                        "{} ended with {status} before it listened on {server}",
                        process.what
                    );
                }
                if Instant::now() >= end {
                    bail!("nothing accepts connections on {server} after {limit:?}: {e}");
                }
                // Refusals come at once: leave the processor to the one that is starting.
                std::thread::park_timeout(Duration::from_millis(5));
            }
        })
    }

    /// Takes the interface to the common bridge down or up.
    ///
    /// # Errors
    /// If `ip` fails.
    pub fn set_uplink(&self, up: bool) -> Result<()> {
        let direction = if up { "up" } else { "down" };
        ip::run(&format!("-n {} link set {UPLINK} {direction}", self.netns))
    }

    /// Kills every process of this host until none is left, and returns those that are still dying after
    /// ten seconds.
    pub(super) fn kill_all(&self) -> Vec<i32> {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let all = processes::of(&self.netns, &self.roots());
            if all.is_empty() || Instant::now() >= end {
                return all;
            }
            for pid in all {
                processes::kill(pid);
            }
            std::thread::park_timeout(Duration::from_millis(1));
        }
    }
}

impl Process {
    /// Its number.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// If it runs longer than `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() >= end {
                bail!("{} still runs after {limit:?}", self.what);
            }
            std::thread::park_timeout(Duration::from_millis(2));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
