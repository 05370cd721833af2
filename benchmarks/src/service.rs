//! A server on the test bed: under `understudy`, or on its own for comparison.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::bed::{BRIDGE, Bed, Host, PREFIX, Process};
use crate::rng::Rng;

/// Port of the backup.
const BACKUP_PORT: u16 = 7400;
/// Last byte of the container's address.
const CONTAINER: u8 = 10;
/// Names the directory of control sockets.
const RUN_DIRECTORY: &str = "UNDERSTUDY_RUN_DIR";
/// The program's name.
const UNDERSTUDY: &str = "understudy";
/// What `understudy run` says when it has joined a further run of the backup.
const JOINED: &str = "the backup is back";
/// What `understudy status --json` has of a protected container.
const PROTECTED: &str = "\"state\":\"protected\"";
/// Time for a program to come up.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// The uplink, and every process of the primary, in random order.
    Host,
    /// The server's processes.
    Container,
    /// `understudy run`.
    Shim,
    /// `understudy backup`.
    Backup,
}

/// How a server is protected.
#[derive(Clone, Debug, Default)]
pub struct Protection {
    /// The program `understudy`.
    pub understudy: PathBuf,
    /// Further arguments of `understudy run`.
    pub options: Vec<String>,
    /// Further arguments of `understudy backup`.
    pub backup_options: Vec<String>,
}

/// A server, for as long as this lives.
#[derive(Debug)]
pub struct Service {
    /// Where clients find it.
    pub address: SocketAddr,
    /// What the programs say on standard error, and print, goes to files in here.
    pub directory: PathBuf,
    /// The name of the server's command.
    command: String,
    takeover: Arc<Mutex<Option<String>>>,
    /// The words that start the backup, and where it listens.
    backup: Option<(Vec<String>, SocketAddr)>,
    /// Ended in this order.
    processes: Vec<Process>,
    /// Further runs of the backup.
    later: Mutex<Vec<Process>>,
}

/// The arguments with which redis serves clients on other hosts, and keeps nothing.
#[must_use]
pub fn redis(port: u16) -> Vec<String> {
    let port = port.to_string();
    let words = [
        "redis-server",
        "--port",
        &port,
        "--bind",
        "0.0.0.0",
        "--protected-mode",
        "no",
        "--save",
        "",
    ];
    words.map(str::to_owned).to_vec()
}

/// Where in the kernel each thread of a process waits: its name, state, place, and the call that it makes.
fn threads(pid: i32) -> String {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    let all = tasks.into_iter().flatten().flatten().map(|task| {
        let read = |file| fs::read_to_string(task.path().join(file)).unwrap_or_default();
        let (name, stat, call) = (read("comm"), read("stat"), read("syscall"));
        let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.get(..1));
        let state = state.unwrap_or_default();
        format!(
            "{} {state} {} ({})",
            name.trim(),
            read("wchan"),
            call.trim()
        )
    });
    all.collect::<Vec<_>>().join(", ")
}

/// Where all threads of a host are.
#[must_use]
pub fn whereabouts(host: &Host) -> String {
    let all = host.processes().into_iter();
    all.map(|pid| format!("{pid}: {}", threads(pid)))
        .collect::<Vec<_>>()
        .join("\n")
}

impl Service {
    /// Starts `server` on the primary as it is; files go to `directory`, which is made.
    ///
    /// # Errors
    /// If it does not listen on `port` in time.
    pub fn unprotected(bed: &Bed, directory: &Path, server: &[String], port: u16) -> Result<Self> {
        let primary = bed.host("primary")?;
        let mut service = Self::new(
            SocketAddr::from((primary.address(), port)),
            directory,
            server,
        )?;
        let words: Vec<&str> = server.iter().skip(1).map(String::as_str).collect();
        let process = service.start(primary, &service.command.clone(), &words, "server")?;
        service.listening(bed.host("client")?, service.address, "server", process)?;
        Ok(service)
    }

    /// Starts `server` under `understudy run` on the primary, and `understudy backup` on the backup, with
    /// keys of their own; files go to `directory`, which is made.
    ///
    /// # Errors
    /// If one of them does not come up in time.
    pub fn protected(
        bed: &Bed,
        directory: &Path,
        protection: &Protection,
        server: &[String],
        port: u16,
    ) -> Result<Self> {
        let mut service = Self::new(
            SocketAddr::from((bed.address(CONTAINER), port)),
            directory,
            server,
        )?;
        let understudy = protection.understudy.display().to_string();
        let keys = directory.join("keys").display().to_string();
        let made = Command::new(&understudy).args(["keygen", &keys]).output();
        let made = made.with_context(|| format!("{understudy} could not be started"))?;
        let said = String::from_utf8_lossy(&made.stderr);
        ensure!(
            made.status.success(),
            "understudy keygen {keys} failed: {}",
            said.trim()
        );

        // As operators do: the directory is copied to the other host.
        let copy = directory.join("keys-copy").display().to_string();
        let copied = Command::new("cp").args(["-a", &keys, &copy]).status()?;
        ensure!(copied.success(), "{keys} could not be copied");

        let (primary, backup) = (bed.host("primary")?, bed.host("backup")?);
        let listen = SocketAddr::from((backup.address(), BACKUP_PORT));
        let (at, state) = (
            listen.to_string(),
            directory.join("state").display().to_string(),
        );
        let mut words = vec![
            "backup", "--listen", &at, "--bridge", BRIDGE, "--state", &state, "--tls", &keys,
        ];
        words.extend(protection.backup_options.iter().map(String::as_str));
        let mut process = service.start(backup, &understudy, &words, "backup")?;
        service.watch_for_takeover(&mut process);
        service.listening(primary, listen, "backup", process)?;
        words.insert(0, &understudy);
        service.backup = Some((words.into_iter().map(str::to_owned).collect(), listen));

        let ip = format!("{}/{PREFIX}", service.address.ip());
        let mut words = vec![
            "run", "--backup", &at, "--ip", &ip, "--bridge", BRIDGE, "--tls", &copy,
        ];
        words.extend(protection.options.iter().map(String::as_str));
        words.push("--");
        words.extend(server.iter().map(String::as_str));
        let process = service.start(primary, &understudy, &words, "run")?;
        service.listening(bed.host("client")?, service.address, "run", process)?;
        Ok(service)
    }

    /// Starts `server` under `understudy run --backup none`: the same container, unprotected.
    ///
    /// # Errors
    /// If it does not come up in time.
    pub fn contained(
        bed: &Bed,
        directory: &Path,
        understudy: &Path,
        server: &[String],
        port: u16,
    ) -> Result<Self> {
        let mut service = Self::new(
            SocketAddr::from((bed.address(CONTAINER), port)),
            directory,
            server,
        )?;
        let ip = format!("{}/{PREFIX}", service.address.ip());
        let mut words = vec![
            "run",
            "--backup",
            "none",
            "--ip",
            &ip,
            "--bridge",
            BRIDGE,
            "--insecure",
            "--",
        ];
        words.extend(server.iter().map(String::as_str));
        let process = service.start(
            bed.host("primary")?,
            &understudy.display().to_string(),
            &words,
            "run",
        )?;
        service.listening(bed.host("client")?, service.address, "run", process)?;
        Ok(service)
    }

    fn new(address: SocketAddr, directory: &Path, server: &[String]) -> Result<Self> {
        let command = server
            .first()
            .context("there is no command to run")?
            .clone();
        fs::create_dir_all(directory)
            .with_context(|| format!("{} could not be made", directory.display()))?;
        let directory = directory.to_path_buf();
        Ok(Self {
            address,
            directory,
            command,
            takeover: Arc::default(),
            backup: None,
            processes: Vec::new(),
            later: Mutex::default(),
        })
    }

    /// Starts a program; what it says goes to a file, but what the backup prints can be taken.
    fn start(&self, host: &Host, program: &str, words: &[&str], name: &str) -> Result<Process> {
        let path = self.log(name);
        // A later run of the backup goes on there.
        let log = fs::OpenOptions::new().create(true).append(true).open(&path);
        let log = log.with_context(|| format!("{} could not be made", path.display()))?;
        let output = if name == "backup" {
            Stdio::piped()
        } else {
            log.try_clone()?.into()
        };
        let mut command = self.command(host, Path::new(program), words);
        host.spawn(command.stdout(output).stderr(log))
    }

    /// Where the control sockets of a host are: hosts share the machine's file system.
    fn run_directory(&self, host: &Host) -> PathBuf {
        self.directory.join(format!("run-{}", host.name()))
    }

    /// A command on a host that finds this service's control sockets.
    pub fn command(&self, host: &Host, program: &Path, words: &[&str]) -> Command {
        let mut command = host.command(&program.display().to_string(), words);
        command.env(RUN_DIRECTORY, self.run_directory(host));
        command
    }

    /// Keeps a process, once it listens.
    fn listening(
        &mut self,
        seen_from: &Host,
        at: SocketAddr,
        name: &str,
        mut process: Process,
    ) -> Result<()> {
        if let Err(e) = seen_from.wait_for_listener(at, &mut process, PATIENCE) {
            let last = |name| {
                let said = self.said(name);
                let last = said.lines().rev().take(3).collect::<Vec<_>>();
                last.into_iter().rev().collect::<Vec<_>>().join("; ")
            };
            bail!(
                "{e:#}; its last words: {}; the backup's: {}; where its threads are: {}",
                last(name),
                last("backup"),
                threads(process.pid())
            );
        }
        self.processes.insert(0, process);
        Ok(())
    }

    /// Where a program's words go.
    fn log(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.log"))
    }

    /// Takes down the line that the backup prints when it has taken over.
    fn watch_for_takeover(&self, backup: &mut Process) {
        let Some(output) = backup.child.stdout.take() else {
            return;
        };
        let takeover = Arc::clone(&self.takeover);
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if line.starts_with("takeover ") {
                    *takeover.lock().unwrap_or_else(PoisonError::into_inner) = Some(line);
                }
            }
        });
    }

    /// The backup's line about its takeover, if it has printed one.
    #[must_use]
    pub fn takeover(&self) -> Option<String> {
        self.takeover
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Waits for the backup's line about its takeover, which comes after the first answers.
    ///
    /// # Errors
    /// If there is none after `limit`; with what the backup has said.
    pub fn await_takeover(&self, limit: Duration) -> Result<String> {
        let end = Instant::now() + limit;
        loop {
            if let Some(line) = self.takeover() {
                return Ok(line);
            }
            ensure!(Instant::now() < end, "no takeover: {}", self.said("backup"));
            std::thread::park_timeout(Duration::from_millis(2));
        }
    }

    /// Starts the backup again, as it was started before; it listens when this returns.
    ///
    /// # Errors
    /// If it does not.
    pub fn restart_backup(&self, bed: &Bed) -> Result<()> {
        let (words, listen) = self.backup.as_ref().context("there was no backup")?;
        let (program, words) = words.split_first().context("there was no backup")?;
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let backup = bed.host("backup")?;
        let end = Instant::now() + PATIENCE;
        // Of one that was killed the listener may go later than the process.
        let listens = || backup.inside(|| Ok(TcpStream::connect(*listen).is_ok()));
        while !backup.processes_named(UNDERSTUDY).is_empty() || listens()? {
            ensure!(Instant::now() < end, "the backup still runs");
            std::thread::park_timeout(Duration::from_millis(1));
        }
        let mut process = self.start(backup, program, &words, "backup")?;
        self.watch_for_takeover(&mut process);
        let primary = bed.host("primary")?;
        primary.wait_for_listener(*listen, &mut process, PATIENCE)?;
        self.later().push(process);
        Ok(())
    }

    fn later(&self) -> MutexGuard<'_, Vec<Process>> {
        self.later.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the container is protected by a further run of the backup.
    ///
    /// # Errors
    /// If it is not after `limit`; with what has been said.
    pub fn await_protected_again(&self, bed: &Bed, limit: Duration) -> Result<()> {
        let (words, _) = self.backup.as_ref().context("there was no backup")?;
        let program = words.first().context("there was no backup")?;
        let primary = bed.host("primary")?;
        let name = self.command.rsplit('/').next().unwrap_or_default();
        let is_protected = || {
            let words = ["status", name, "--json"];
            let said = self.command(primary, Path::new(program), &words).output()?;
            let said = String::from_utf8_lossy(&said.stdout).into_owned();
            Ok::<_, anyhow::Error>(said.contains(PROTECTED))
        };
        let end = Instant::now() + limit;
        while !self.said("run").contains(JOINED) || !is_protected()? {
            let (backup, run) = (self.said("backup"), self.said("run"));
            ensure!(
                Instant::now() < end,
                "the container is not protected; the backup said: {backup}; the primary: {run}"
            );
            std::thread::park_timeout(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Asks what was started last, the server or `understudy run`, to end (SIGTERM), and waits for it.
    ///
    /// # Errors
    /// If it still runs after `limit`.
    pub fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        let last = self.processes.first_mut().context("nothing was started")?;
        kill(Pid::from_raw(last.pid()), Signal::SIGTERM)?;
        last.wait(limit)
    }

    /// Waits for the end of what was started last, the server or `understudy run`.
    ///
    /// # Errors
    /// If it still runs after `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.processes
            .first_mut()
            .context("nothing was started")?
            .wait(limit)
    }

    /// What a program has said so far: `backup`, `run` or `server`.
    #[must_use]
    pub fn said(&self, name: &str) -> String {
        fs::read_to_string(self.log(name)).unwrap_or_default()
    }

    /// Strikes; returns when the first blow fell.
    ///
    /// # Errors
    /// If there is nothing to strike, or it survives.
    pub fn lose(&self, bed: &Bed, loss: Loss, rng: &mut Rng) -> Result<Instant> {
        let primary = bed.host("primary")?;
        let host = match loss {
            Loss::Backup => bed.host("backup")?,
            _ => primary,
        };
        let name: String = match loss {
            Loss::Host => return primary.lose(rng),
            Loss::Container => self
                .command
                .rsplit('/')
                .next()
                .unwrap_or_default()
                .chars()
                .take(15)
                .collect(),
            Loss::Shim | Loss::Backup => UNDERSTUDY.to_owned(),
        };
        let mut all = host.processes_named(&name);
        ensure!(
            !all.is_empty(),
            "no process named {name} runs on the {}",
            host.name()
        );
        rng.shuffle(&mut all);
        let start = Instant::now();
        for pid in all {
            // One that has gone by itself is lost, too.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        Ok(start)
    }
}
