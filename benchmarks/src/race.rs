//! Servers whose threads race on purpose, through the loss of `understudy run`.
//!
//! In: a kind of race, and how often it happens. Out: whether the server went on, after how many attempts, and whether
//! every client met the state that its answers had told of: each answer carries a hash over all that were before it on
//! its connection, and a server that went on from another past cannot know it.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::bed::Bed;
use crate::rng::Rng;
use crate::service::{Loss, Protection, Service, whereabouts};

/// The races that the server knows.
pub const KINDS: [&str; 7] = [
    "unlocked-counter",
    "double-checked",
    "flag",
    "statistics",
    "publication",
    "two-flags",
    "own-lock",
];

const SOURCE: &str = include_str!("racy.c");
const PORT: u16 = 7000;
/// Time for anything that is waited for.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(1);
/// A client looks so often whether it shall stop.
const WAIT: Duration = Duration::from_millis(100);
/// Answers to all clients together after which the loss may come at any moment, and the width of that range.
const BEFORE: u64 = 2000;
const RANGE: u64 = 8000;
/// Answers that must come after the takeover.
const AFTER: u64 = 3000;

/// One server, one loss.
#[derive(Clone, Debug)]
pub struct Race {
    /// One of [`KINDS`].
    pub kind: String,
    /// One request in so many races.
    pub one_in: u32,
    /// Connections, with a thread each.
    pub connections: u64,
    /// Chooses the moment of the loss.
    pub seed: u64,
}

/// How it went on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every client was served on, in the state that it knew.
    Recovered {
        /// Attempts of the takeover.
        attempts: u32,
        /// The longest that an answer took.
        longest: Duration,
    },
    /// The backup gave up, and said this.
    Lost(String),
    /// A client met another state, or its connection broke.
    Wrong(String),
}

/// Compiles the server into `directory`.
///
/// # Errors
/// If there is no compiler.
pub fn compile(directory: &Path) -> Result<PathBuf> {
    let (source, program) = (directory.join("racy.c"), directory.join("racy"));
    fs::write(&source, SOURCE)?;
    let mut cc = Command::new("cc");
    cc.args(["-O2", "-pthread", "-o"]).args([&program, &source]);
    let status = cc.status().context("cc could not be started")?;
    ensure!(status.success(), "cc failed on {}", source.display());
    Ok(program)
}

/// Starts the server, loads it, kills its `understudy run`, and sees what becomes of the clients. `directory` is made.
///
/// # Errors
/// If it does not come so far as to be lost.
pub fn lose(
    bed: &Bed,
    directory: &Path,
    program: &Path,
    race: &Race,
    protection: &Protection,
) -> Result<Outcome> {
    let command = [
        program.display().to_string(),
        race.kind.clone(),
        race.one_in.to_string(),
        PORT.to_string(),
    ];
    let service = Service::protected(bed, directory, protection, &command, PORT)?;
    let (done, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let client = |_| {
            let (service, done, stop) = (&service, &done, &stop);
            scope.spawn(move || {
                let connect = || Client::connect(service.address);
                bed.host("client")?.inside(connect)?.run(done, stop)
            })
        };
        let clients: Vec<_> = (0..race.connections).map(client).collect();
        let seen = under_load(bed, &service, race.seed, &done);
        stop.store(true, Relaxed);
        let mut longest = Duration::ZERO;
        let mut wrong = None;
        for client in clients {
            match client.join().map_err(|_| anyhow!("a client panicked"))? {
                Ok(took) => longest = longest.max(took),
                Err(error) => wrong = Some(format!("{error:#}")),
            }
        }
        Ok(match (seen, wrong) {
            (Ok(None), _) => Outcome::Lost(service.said("backup")),
            (Ok(Some(attempts)), None) => Outcome::Recovered { attempts, longest },
            (Ok(_), Some(wrong)) => Outcome::Wrong(format!(
                "{wrong}; the backup said: {}",
                service.said("backup")
            )),
            (Err(error), Some(wrong)) => Outcome::Wrong(format!("{error:#}; {wrong}")),
            (Err(error), None) => return Err(error),
        })
    })
}

/// The loss, and how the backup came out of it: after how many attempts, if it took over.
fn under_load(bed: &Bed, service: &Service, seed: u64, done: &AtomicU64) -> Result<Option<u32>> {
    let mut rng = Rng::new(seed, 0);
    wait_for(done, BEFORE + rng.below(RANGE))?;
    // A busy machine may have been silent for too long before, and was taken for lost then.
    if service.takeover().is_none() {
        service.lose(bed, Loss::Shim, &mut rng)?;
    }
    let end = Instant::now() + PATIENCE;
    let line = loop {
        if let Some(line) = service.takeover() {
            break line;
        }
        // It says last what it has kept of it.
        let said = service.said("backup");
        if said.contains("are kept: ") || said.contains("are not kept: ") {
            return Ok(None);
        }
        ensure!(
            Instant::now() < end,
            "the backup does not come to an end; it has said: {}; where its threads are:\n{}",
            service.said("backup"),
            whereabouts(bed.host("backup")?)
        );
        std::thread::sleep(LOOK);
    };
    wait_for(done, done.load(Relaxed) + AFTER)?;
    let attempts = line
        .rsplit_once("attempts=")
        .and_then(|(_, n)| n.parse().ok());
    Ok(Some(
        attempts.with_context(|| format!("no attempts in {line:?}"))?,
    ))
}

fn wait_for(done: &AtomicU64, answers: u64) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while done.load(Relaxed) < answers {
        ensure!(Instant::now() < end, "the clients stand still");
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// One connection, and the hash over what it was answered.
struct Client {
    reader: BufReader<TcpStream>,
    chain: u64,
}

impl Client {
    fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(WAIT))?;
        stream.set_nodelay(true)?;
        Ok(Self {
            reader: BufReader::new(stream),
            chain: 0xcbf2_9ce4_8422_2325,
        })
    }

    /// Requests until `stop`, counted; the longest that one took.
    fn run(mut self, done: &AtomicU64, stop: &AtomicBool) -> Result<Duration> {
        let mut longest = Duration::ZERO;
        while !stop.load(Relaxed) {
            let began = Instant::now();
            self.reader.get_ref().write_all(b"next\n")?;
            let Some(line) = self.line(stop)? else {
                break;
            };
            self.check(&line)?;
            longest = longest.max(began.elapsed());
            done.fetch_add(1, Relaxed);
        }
        Ok(longest)
    }

    /// The next line; `None` if it does not come before `stop`.
    fn line(&mut self, stop: &AtomicBool) -> Result<Option<String>> {
        let mut line = String::new();
        while !stop.load(Relaxed) {
            match self.reader.read_line(&mut line) {
                Ok(0) => bail!("the connection was closed"),
                Ok(_) => return Ok(Some(line)),
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(None)
    }

    fn check(&mut self, line: &str) -> Result<()> {
        let words: Vec<u64> = line
            .split_whitespace()
            .map_while(|word| u64::from_str_radix(word, 16).ok())
            .collect();
        let [value, chain] = words[..] else {
            bail!("the answer {line:?} is no answer");
        };
        let before = self.chain;
        self.chain = (before ^ value).wrapping_mul(0x0100_0000_01b3);
        ensure!(
            chain == self.chain,
            "another past: behind {before:x}, the server's answer is {line:?}, the client's hash {:x}",
            self.chain
        );
        Ok(())
    }
}
