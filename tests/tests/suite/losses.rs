//! Through a loss: several programs in one container, each with a client of its own that has it take turns, stand, and
//! go on, and that notices nothing but a silence.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Barrier;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, anyhow, bail, ensure};
use understudy_bench::bed::Bed;
use understudy_bench::rng::Rng;
use understudy_bench::service::{Loss, Protection, Service};
use understudy_tests::{crowd, options, repeats, scratch, understudy};

use crate::table::Program;
use crate::{Built, none};

/// Programs in one container.
const TOGETHER: usize = 3;
const FIRST_PORT: u16 = 7001;
/// Time for anything that a client waits for.
const PATIENCE: Duration = Duration::from_secs(20);
/// Turns that each program takes before the loss may come, the width of that range, and turns behind it.
const BEFORE: u64 = 10;
const RANGE: u64 = 30;
const AFTER: u64 = 20;
/// Checkpoints that must be committed of programs that stand.
const EPOCHS: u64 = 2;

/// What programs do when the loss comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    AtWork,
    Standing,
}

#[test]
fn programs_at_work() {
    all_survive(State::AtWork);
}

#[test]
fn programs_that_stand() {
    all_survive(State::Standing);
}

fn all_survive(state: State) {
    let built = Built::all();
    let mut failures = Vec::new();
    for seed in 1..=u64::from(repeats()) {
        for group in built.programs.chunks(TOGETHER) {
            let outcome = survive(&built, group, state, seed);
            let failed = outcome.unwrap_or_else(|e| vec![("all of them".to_owned(), e)]);
            failures.extend(failed.into_iter().map(|(name, e)| {
                let names: Vec<_> = group.iter().map(|program| program.name()).collect();
                (format!("{name} ({} {seed})", names.join(", ")), e)
            }));
        }
    }
    none(&failures);
}

/// Takes a group through a loss; what failed in it.
fn survive(
    built: &Built,
    group: &[&Program],
    state: State,
    seed: u64,
) -> Result<Vec<(String, Error)>> {
    let (bed, scratch) = (Bed::new()?, scratch()?);
    // In a directory of their own, of which the backup has a copy.
    let files = scratch.path().canonicalize()?.join("files");
    std::fs::create_dir(&files)?;
    let mut options = options();
    options.extend(["--mirror".to_owned(), files.display().to_string()]);
    let protection = Protection {
        understudy: understudy()?,
        options,
        ..Protection::default()
    };
    let ports = FIRST_PORT..;
    let commands: Vec<_> = group
        .iter()
        .zip(ports.clone())
        .map(|(program, port)| format!("{} {port} &", built.path(program).display()))
        .collect();
    let script = format!(
        "cd {} && {{ {} wait; }}",
        files.display(),
        commands.join(" ")
    );
    let command = ["sh", "-c", &script].map(str::to_owned);
    let directory = scratch.path().join("service");
    let service = Service::protected(&bed, &directory, &protection, &command, FIRST_PORT)?;
    let scene = Scene {
        bed: &bed,
        service: &service,
        state,
        met: Barrier::new(group.len() + 1),
        turns: AtomicU64::new(0),
    };
    std::thread::scope(|scope| {
        let clients: Vec<_> = group
            .iter()
            .zip(ports)
            .map(|(program, port)| {
                let at = SocketAddr::new(service.address.ip(), port);
                let scene = &scene;
                (program.name(), scope.spawn(move || scene.client(at)))
            })
            .collect();
        let lost = scene.lose(group.len() as u64, seed);
        let mut failures = Vec::new();
        for (name, client) in clients {
            let outcome = client.join().map_err(|_| anyhow!("the client panicked"))?;
            if let Err(e) = outcome {
                failures.push((name.to_owned(), e));
            }
        }
        match lost {
            Ok(line) if failures.is_empty() => println!("{state:?} {seed}: {line}"),
            Ok(line) => failures.push(("beside it".to_owned(), scene.said(&line))),
            Err(e) => failures.push(("beside it".to_owned(), scene.said(&format!("{e:#}")))),
        }
        Ok(failures)
    })
}

/// A container and its clients.
struct Scene<'a> {
    bed: &'a Bed,
    service: &'a Service,
    state: State,
    /// Where all clients and the one who strikes meet: when all stand, and when all was lost and found again. A client
    /// that fails meets the others all the same.
    met: Barrier,
    turns: AtomicU64,
}

impl Scene<'_> {
    fn said(&self, what: &str) -> Error {
        let (run, backup) = (self.service.said("run"), self.service.said("backup"));
        anyhow!("{what}; the programs said: {run}; the backup said: {backup}")
    }

    /// A client's part, from before the loss to behind it.
    fn client(&self, at: SocketAddr) -> Result<()> {
        let inside = || {
            let began = Client::begin(at).and_then(|mut client| {
                match self.state {
                    State::AtWork => {}
                    State::Standing => client.takes_turns(BEFORE / 2)?,
                }
                if self.state == State::Standing {
                    client.ask("stand")?;
                }
                Ok(client)
            });
            self.met.wait();
            let mut client = began?;
            match self.state {
                State::AtWork => {
                    while self.service.takeover().is_none() {
                        client.ask("turn")?;
                        self.turns.fetch_add(1, Relaxed);
                    }
                }
                State::Standing => {
                    self.service.await_takeover(PATIENCE)?;
                    client.ask("go on")?;
                }
            }
            client.takes_turns(AFTER)?;
            client.ask("stand")?;
            client.ask("go on")?;
            client.takes_turns(1)
        };
        self.bed.host("client")?.inside(inside)
    }

    /// Strikes when all are at work, or stand; the backup's line.
    fn lose(&self, clients: u64, seed: u64) -> Result<String> {
        self.met.wait();
        let mut rng = Rng::new(seed, 0);
        match self.state {
            State::AtWork => {
                let turns = (BEFORE + rng.below(RANGE)) * clients;
                wait_until("the clients stand still", || {
                    Ok(self.turns.load(Relaxed) >= turns)
                })?;
            }
            State::Standing => {
                let epochs = self.epoch()? + EPOCHS;
                wait_until("no checkpoint is committed", || Ok(self.epoch()? >= epochs))?;
            }
        }
        ensure!(self.service.takeover().is_none(), "nothing was lost yet");
        self.service.lose(self.bed, Loss::Shim, &mut rng)?;
        self.service.await_takeover(PATIENCE)
    }

    /// The newest checkpoint that the backup has committed.
    fn epoch(&self) -> Result<u64> {
        let primary = self.bed.host("primary")?;
        let words = ["status", "sh", "--json"];
        let said = self
            .service
            .command(primary, &understudy()?, &words)
            .output()?;
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        let (_, behind) = said
            .split_once("\"epoch\":")
            .with_context(|| format!("no epoch in {said:?}"))?;
        let number: String = behind.chars().take_while(char::is_ascii_digit).collect();
        Ok(number.parse()?)
    }
}

fn wait_until(what: &str, mut look: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while !look()? {
        if Instant::now() >= end {
            bail!("{what}");
        }
        std::thread::park_timeout(Duration::from_millis(2));
    }
    Ok(())
}

/// The client of one program.
struct Client {
    reader: BufReader<TcpStream>,
    turns: u64,
}

impl Client {
    /// Connects as soon as the program listens.
    fn begin(at: SocketAddr) -> Result<Self> {
        let end = Instant::now() + PATIENCE;
        loop {
            match crowd::connect(at) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(PATIENCE))?;
                    let (reader, turns) = (BufReader::new(stream), 0);
                    return Ok(Self { reader, turns });
                }
                Err(e) if Instant::now() >= end => return Err(e),
                Err(_) => std::thread::park_timeout(Duration::from_millis(5)),
            }
        }
    }

    fn takes_turns(&mut self, turns: u64) -> Result<()> {
        (0..turns).try_for_each(|_| self.ask("turn"))
    }

    /// Asks for something; the answer repeats it, with how many turns the program has taken.
    fn ask(&mut self, what: &str) -> Result<()> {
        let what = what.to_owned();
        let asked = || format!("\"{what}\" behind {} turns", self.turns);
        self.reader
            .get_ref()
            .write_all(format!("{what}\n").as_bytes())
            .with_context(asked)?;
        let mut line = String::new();
        let read = self.reader.read_line(&mut line);
        let asked = || format!("\"{what}\" behind {} turns", self.turns);
        ensure!(read.with_context(asked)? > 0, "{}: no answer", asked());
        self.turns += u64::from(what == "turn");
        ensure!(
            line.starts_with(&format!("{what} {} ", self.turns)),
            "asked for \"{what}\", turn {}, it answers {line:?}",
            self.turns
        );
        Ok(())
    }
}
