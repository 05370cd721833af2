//! Hosts to start the program on, and what must be true of them afterwards.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use understudy_bench::bed::{BRIDGE, Bed, Process};
use understudy_tests::{Ended, LIMIT, Running, run, understudy};

/// Port of the backup.
pub(crate) const PORT: u16 = 7400;
/// Last byte of the container's address.
const CONTAINER: u8 = 10;

/// Three hosts, and directories of their own for what the program keeps.
pub(crate) struct Ground {
    pub(crate) bed: Bed,
    scratch: TempDir,
    understudy: String,
}

impl Ground {
    pub(crate) fn new() -> Self {
        let (bed, scratch) = (Bed::new().unwrap(), TempDir::new().unwrap());
        for name in ["temporary", "primary", "backup"] {
            fs::create_dir(scratch.path().join(name)).unwrap();
        }
        let understudy = understudy().unwrap().display().to_string();
        Self {
            bed,
            scratch,
            understudy,
        }
    }

    /// A file or directory of this test.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// Where the backup listens.
    pub(crate) fn backup_address(&self) -> SocketAddr {
        SocketAddr::from((self.bed.host("backup").unwrap().address(), PORT))
    }

    /// Arguments of a run with this backup, up to the command.
    pub(crate) fn run_line(&self, security: &str) -> String {
        let (backup, ip) = (self.backup_address(), self.bed.address(CONTAINER));
        format!("run --name bad --backup {backup} --ip {ip}/24 --bridge {BRIDGE} {security} --")
    }

    /// Makes keys; the flag that names them.
    pub(crate) fn keys(&self, name: &str) -> String {
        let keys = self.path(name).display().to_string();
        let made = run(Command::new(&self.understudy).args(["keygen", &keys])).unwrap();
        assert!(made.status.success(), "{made:?}");
        format!("--tls {keys}")
    }

    /// The program on a host, its arguments split at blanks.
    pub(crate) fn understudy(&self, host: &str, line: &str) -> Command {
        self.command(host, &format!("{} {line}", self.understudy))
    }

    /// Any program on a host, in the same surroundings.
    pub(crate) fn command(&self, host: &str, line: &str) -> Command {
        let words: Vec<&str> = line.split_whitespace().collect();
        let mut command = self.bed.host(host).unwrap().command(words[0], &words[1..]);
        self.surround(&mut command, host);
        command
    }

    /// Gives a command this ground's directories.
    pub(crate) fn surround(&self, command: &mut Command, host: &str) {
        command
            .env("UNDERSTUDY_RUN_DIR", self.path(host))
            .env("TMPDIR", self.path("temporary"))
            .current_dir(self.scratch.path());
    }

    /// Runs a command of the primary to its end; nothing of it may be there then.
    pub(crate) fn ended(&self, command: &mut Command) -> Ended {
        let links = links(&self.bed, "primary");
        let running = Running::start(command).unwrap();
        let pid = running.pid().as_raw();
        let ended = running.end(LIMIT).unwrap();
        self.assert_clean("primary", pid, &format!("{command:?}"));
        assert_eq!(links, self.links("primary"), "{command:?}: {ended:?}");
        ended
    }

    /// Runs a command that must fail with this status and one sentence that mentions all of these.
    pub(crate) fn refused(&self, command: &mut Command, status: i32, mentions: &[&str]) -> String {
        let ended = self.ended(command);
        let (case, said) = (format!("{command:?}"), ended.stderr.clone());
        assert_eq!(ended.status.code(), Some(status), "{case}: {said}");
        assert!(ended.stdout.is_empty(), "{case}: {:?}", ended.stdout);
        assert_sentence(&case, &said, mentions);
        said
    }

    /// As [`Self::refused`] with status 1, for a line of arguments on the primary.
    pub(crate) fn fails(&self, line: &str, mentions: &[&str]) -> String {
        self.refused(&mut self.understudy("primary", line), 1, mentions)
    }

    /// The links of a host.
    pub(crate) fn links(&self, host: &str) -> Vec<String> {
        links(&self.bed, host)
    }

    /// No process, control group, socket or temporary file of a program that ran as `pid` on `host` is there.
    pub(crate) fn assert_clean(&self, host: &str, pid: i32, case: &str) {
        let own = format!("UNDERSTUDY_RUN_DIR={}", self.path(host).display());
        assert_eq!(processes_with(&own), Vec::<String>::new(), "{case}");
        assert_eq!(control_groups(pid), Vec::<PathBuf>::new(), "{case}");
        for directory in [host, "temporary"] {
            assert_eq!(entries(&self.path(directory)), 0, "{case}: {directory}");
        }
    }

    /// Starts a backup with these arguments; returns when it listens.
    pub(crate) fn backup(&self, arguments: &str) -> Backup<'_> {
        let (at, state) = (self.backup_address(), self.path("state"));
        let state = state.display();
        let line = format!("backup --listen {at} --bridge {BRIDGE} --state {state} {arguments}");
        self.start_backup(self.understudy("backup", &line))
    }

    /// Starts a backup by a command made elsewhere.
    pub(crate) fn start_backup(&self, mut command: Command) -> Backup<'_> {
        let links = self.links("backup");
        let log = self.path("backup.log");
        let said = File::create(&log).unwrap();
        let host = self.bed.host("backup").unwrap();
        let process = host.spawn(command.stdout(Stdio::null()).stderr(said));
        let mut process = process.unwrap();
        let up = host.wait_for_listener(self.backup_address(), &mut process, LIMIT);
        let said = fs::read_to_string(&log).unwrap();
        assert!(up.is_ok(), "{up:?}: {said}");
        Backup {
            ground: self,
            process,
            links,
            log,
        }
    }
}

/// A backup that runs; killed when dropped.
pub(crate) struct Backup<'a> {
    ground: &'a Ground,
    process: Process,
    links: Vec<String>,
    log: PathBuf,
}

impl Backup<'_> {
    pub(crate) fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// Waits until it has said a line that mentions all of these, and gives that line.
    pub(crate) fn says(&self, mentions: &[&str]) -> String {
        wait_for(|| {
            let said = fs::read_to_string(&self.log).unwrap();
            let line = |line: &&str| mentions.iter().all(|word| line.contains(word));
            let found = said.lines().find(line).map(str::to_owned);
            found.ok_or_else(|| format!("no {mentions:?} in: {said}"))
        })
    }

    /// Waits until it has let go of everything that it held for a container.
    pub(crate) fn holds_nothing(&self) {
        wait_for(|| {
            let now = self.ground.links("backup");
            let same = now == self.links && control_groups(self.pid()).is_empty();
            same.then_some(())
                .ok_or_else(|| format!("{now:?}, {:?}", control_groups(self.pid())))
        });
    }

    /// Still serves: a run with these arguments comes to its own end.
    pub(crate) fn serves(&self, security: &str) {
        let line = self.ground.run_line(security);
        let mut command = self.ground.understudy("primary", &line);
        let ended = self.ground.ended(command.args(["sh", "-c", "exit 7"]));
        assert_eq!(ended.status.code(), Some(7), "{}", ended.stderr);
    }

    /// Tells it to end; gives all it has said.
    pub(crate) fn end(mut self) -> String {
        kill(Pid::from_raw(self.pid()), Signal::SIGTERM).unwrap();
        let status = self.process.wait(LIMIT).unwrap();
        let said = fs::read_to_string(&self.log).unwrap();
        assert!(status.success(), "{status}: {said}");
        self.ground.assert_clean("backup", self.pid(), "the backup");
        assert_eq!(self.links, self.ground.links("backup"));
        said
    }
}

/// One line of the right form that mentions all of these.
pub(crate) fn assert_sentence(case: &str, said: &str, mentions: &[&str]) {
    assert_eq!(said.lines().count(), 1, "{case}: {said}");
    assert!(said.starts_with("understudy: "), "{case}: {said}");
    assert!(!said.contains("panicked"), "{case}: {said}");
    for word in mentions {
        assert!(said.contains(word), "{case}: no {word:?} in {said}");
    }
    println!("{}", said.trim_end());
}

/// Waits until `look` finds something; its error is what is wrong so far.
pub(crate) fn wait_for<T>(look: impl Fn() -> Result<T, String>) -> T {
    let end = Instant::now() + LIMIT;
    loop {
        match look() {
            Ok(found) => return found,
            Err(wrong) => assert!(Instant::now() < end, "{wrong}"),
        }
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

fn links(bed: &Bed, host: &str) -> Vec<String> {
    let words = ["-o", "link", "show"];
    let shown = run(&mut bed.host(host).unwrap().command("ip", &words)).unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    let name = |line: &str| line.split(": ").nth(1).map(str::to_owned);
    shown.lines().filter_map(name).collect()
}

/// Commands of the processes that have this variable, as `NAME=VALUE`.
fn processes_with(variable: &str) -> Vec<String> {
    let holds = |directory: &Path| {
        let bytes = fs::read(directory.join("environ")).unwrap_or_default();
        bytes
            .split(|byte| *byte == 0)
            .any(|entry| entry == variable.as_bytes())
    };
    let all = fs::read_dir("/proc").unwrap().flatten();
    all.map(|entry| entry.path())
        .filter(|directory| holds(directory))
        .filter_map(|directory| fs::read_to_string(directory.join("comm")).ok())
        .collect()
}

/// The control groups that the program running as `pid` has made.
fn control_groups(pid: i32) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let places = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (place, kind) = (fields.next()?, fields.next()?);
        kind.starts_with("cgroup")
            .then(|| Path::new(place).join("understudy"))
    });
    let groups = places.flat_map(|place| fs::read_dir(place).into_iter().flatten().flatten());
    groups
        .map(|entry| entry.path())
        .filter(|path| path.display().to_string().ends_with(&format!("-{pid}")))
        .collect()
}

fn entries(directory: &Path) -> usize {
    fs::read_dir(directory).map_or(0, Iterator::count)
}
