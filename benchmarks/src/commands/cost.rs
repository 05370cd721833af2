//! `cost`: what recording and checkpoints take from the processors for each request, of several servers, alternating with
//! the same without them.
//!
//! In a round, the server runs in all ways side by side, and one at a time is asked, for a slice of time; who is asked
//! first changes from turn to turn. Each slice is compared with that of the same turn without Understudy: a machine that
//! is slower for some seconds, or one process that lies better in memory than the other, is in both or averages out.
//!
//! All ways are sent the same requests at the same times, one by one, well below what they could serve. Closed-loop load
//! at full speed would compare different things: how many requests a server finds when it wakes, which decides what each
//! costs, would depend on how late its answers are. `sleeps` shows whether it is the same: about one for each.
//! The server has a processor for itself; everything else shares the other one.
//!
//! Without protection a server's own `write` carries its answers through the network's stack and, on one machine, up to
//! the waiting client. Protected, that is the shim's work, so that the server's time alone flatters. Hence the column
//! `primary`, which has both together, and a second pair: `plain` and `recorded`, which show what recording costs a
//! server that sends for itself.

mod table;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use tempfile::TempDir;
use understudy_bench::bed::Bed;
use understudy_bench::exchange::{self, Exchange};
use understudy_bench::processor::{Reading, bind, memory};
use understudy_bench::servers;
use understudy_bench::service::{Service, redis};
use understudy_bench::steady::Load;

use super::{PORT, Server};
use table::{Row, Sample, Way};

/// The processor of the server, and that of everything else.
const SERVER: usize = 1;
const REST: usize = 0;
/// Longest time between checkpoints that `understudy run` accepts: a turn in which one comes while recording alone is
/// measured does not count.
const NO_EPOCH: Duration = Duration::from_secs(10);
/// A slice that serves less than this part of the rate is told of.
const KEPT: f64 = 0.98;

/// The options of `cost`.
#[derive(Args)]
pub(crate) struct Cost {
    #[command(flatten)]
    server: Server,
    /// A server, as often as needed; all without
    #[arg(long = "of", value_parser = TARGETS.map(|t| t.name))]
    of: Vec<String>,
    /// How often the servers are started anew
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// How often each is asked in a round
    #[arg(long, default_value_t = 20)]
    turns: u32,
    /// For how many seconds
    #[arg(long, default_value_t = 0.25)]
    slice: f64,
    /// Seconds of load of the same kind before each of them
    #[arg(long, default_value_t = 0.05)]
    warm: f64,
    /// Requests a second
    #[arg(long, default_value_t = 5000)]
    rate: u32,
    /// Connections that the requests go over in turn
    #[arg(long, default_value_t = 32)]
    connections: usize,
    /// Print one JSON object for each server instead of tables
    #[arg(long)]
    json: bool,
}

/// A server to measure.
struct Target {
    name: &'static str,
    /// The name of its processes.
    process: &'static str,
    port: u16,
    /// Its command line; its files are put into the directory.
    prepare: fn(&Path) -> Result<Vec<String>>,
    /// What is asked first, and what over and over.
    exchanges: fn() -> (Vec<Exchange>, Vec<Exchange>),
}

const TARGETS: [Target; 4] = [
    Target {
        name: "redis",
        process: "redis-server",
        port: PORT,
        prepare: |_| Ok(redis(PORT)),
        exchanges: exchange::redis,
    },
    Target {
        name: "memcached",
        process: "memcached",
        port: servers::MEMCACHED_PORT,
        prepare: |_| Ok(servers::memcached()),
        exchanges: exchange::memcached,
    },
    Target {
        name: "lighttpd",
        process: "lighttpd",
        port: servers::LIGHTTPD_PORT,
        prepare: servers::lighttpd,
        exchanges: || (Vec::new(), exchange::web()),
    },
    Target {
        name: "nginx",
        process: "nginx",
        port: servers::NGINX_PORT,
        prepare: |directory| servers::nginx(directory, Some(2)),
        exchanges: || (Vec::new(), exchange::web()),
    },
];

pub(crate) fn run(options: &Cost) -> Result<ExitCode> {
    // What is started from here on inherits it.
    bind(&[std::process::id().cast_signed()], REST)?;
    for target in &TARGETS {
        if options.of.is_empty() || options.of.iter().any(|name| name == target.name) {
            let rows = rounds(options, target)?;
            if options.json {
                println!("{}", table::json(target.name, &rows)?);
            } else {
                println!(
                    "{}, medians of {} rounds of {} turns; processor time is µs for each request",
                    target.name, options.rounds, options.turns
                );
                table::print(&rows);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn seconds(number: f64) -> Result<Duration> {
    Duration::try_from_secs_f64(number).with_context(|| format!("{number} is no number of seconds"))
}

fn rounds(options: &Cost, target: &Target) -> Result<Vec<Row>> {
    let mut all: Vec<Vec<Sample>> = vec![Vec::new(); Way::ALL.len()];
    for _ in 0..options.rounds {
        let mut running = Vec::new();
        for way in Way::ALL {
            running.push(Running::start(options, target, way)?);
        }
        for number in 0..options.turns as usize {
            let turn = turn(options, target, &mut running, number)?;
            for (samples, sample) in all.iter_mut().zip(turn.unwrap_or_default()) {
                samples.push(sample);
            }
        }
    }
    Ok(table::rows(&all))
}

/// Asks each server once; what each took, in the order of [`Way::ALL`], if the turn counts.
fn turn(
    options: &Cost,
    target: &Target,
    running: &mut [Running],
    number: usize,
) -> Result<Option<Vec<Sample>>> {
    let mut samples = vec![Sample::default(); running.len()];
    let mut counts = true;
    for offset in 0..running.len() {
        let index = (number + offset) % running.len();
        let one = &mut running[index];
        let sample = one
            .measure(options, target)
            .with_context(|| one.said(target))?;
        let wanted = f64::from(options.rate) * KEPT;
        if sample.rate < wanted {
            eprintln!(
                "{} {}: only {:.0} requests a second: the machine has too much else to do, or --rate is too high",
                target.name,
                one.way.name(),
                sample.rate
            );
        }
        counts &= one.way != Way::Log || sample.epochs == 0.0;
        samples[index] = sample;
    }
    Ok(counts.then_some(samples))
}

/// A server, run in one way, and its client.
struct Running {
    way: Way,
    load: Load,
    service: Service,
    bed: Bed,
    _files: TempDir,
}

impl Running {
    fn start(options: &Cost, target: &Target, way: Way) -> Result<Self> {
        let (bed, files) = (Bed::new()?, tempfile::tempdir()?);
        let command = (target.prepare)(files.path())?;
        let directory = files.path().join("service");
        let understudy = options.server.understudy()?;
        let port = target.port;
        let plain = |command: &[String]| Service::unprotected(&bed, &directory, command, port);
        let protected = |more: &[String]| {
            let server = &options.server;
            server.protected_at(&bed, &directory, &command, port, more)
        };
        let service = match way {
            Way::Plain => plain(&command)?,
            Way::Recorded => plain(&recorded(&understudy, files.path(), &command))?,
            Way::Contained => Service::contained(&bed, &directory, &understudy, &command, port)?,
            Way::Log => protected(&["--epoch".into(), format!("{}s", NO_EPOCH.as_secs())])?,
            Way::Checkpoints => protected(&[])?,
        };
        let (first, over) = (target.exchanges)();
        let connect = || Load::connect(service.address, options.connections, first, over);
        let load = bed.host("client")?.inside(connect)?;
        Ok(Self {
            way,
            load,
            service,
            bed,
            _files: files,
        })
    }

    /// Why it may have failed.
    fn said(&self, target: &Target) -> String {
        format!(
            "{} {}: understudy run said: {}; understudy backup said: {}; takeover: {:?}",
            target.name,
            self.way.name(),
            self.service.said("run").trim(),
            self.service.said("backup").trim(),
            self.service.takeover()
        )
    }

    fn look(&self, options: &Cost, target: &Target) -> Result<Look> {
        let (primary, backup) = (self.bed.host("primary")?, self.bed.host("backup")?);
        let understudy = options.server.understudy()?;
        let understudy = understudy.file_name().unwrap_or_default().to_string_lossy();
        // As much of a name as the kernel keeps.
        let understudy: String = understudy.chars().take(15).collect();
        let server = primary.processes_named(target.process);
        ensure!(!server.is_empty(), "no {} runs", target.process);
        let log = if self.way.has_backup() {
            let status = options
                .server
                .status(&self.bed, &self.service, target.process)?;
            [
                status.number("epoch")?,
                status.number("log_records")?,
                status.number("log_bytes")?,
            ]
        } else {
            [0; 3]
        };
        bind(&server, SERVER)?;
        Ok(Look {
            server: Reading::of(&server),
            memory: memory(&server),
            shim: Reading::of(&primary.processes_named(&understudy)),
            backup: Reading::of(&backup.processes_named(&understudy)),
            log,
        })
    }

    /// Asks it for a slice of time.
    fn measure(&mut self, options: &Cost, target: &Target) -> Result<Sample> {
        self.look(options, target)?;
        self.load.run(options.rate, seconds(options.warm)?)?;
        let before = self.look(options, target)?;
        let served = self.load.run(options.rate, seconds(options.slice)?)?;
        let after = self.look(options, target)?;
        let [epochs, records, bytes] = [0, 1, 2].map(|n| after.log[n] - before.log[n]);
        ensure!(self.service.takeover().is_none(), "there was a takeover");
        let each = |total: u64| total as f64 / served.answers as f64;
        let us = |now: &Reading, then: &Reading| each(now.since(then).ns) / 1e3;
        Ok(Sample {
            rate: served.rate(),
            server: us(&after.server, &before.server),
            sleeps: each(after.server.since(&before.server).sleeps),
            shim: us(&after.shim, &before.shim),
            backup: us(&after.backup, &before.backup),
            records: each(records),
            bytes: each(bytes),
            epochs: epochs as f64,
            memory: after.memory as f64 / f64::from(1 << 20),
        })
    }
}

/// The command under `understudy record`.
fn recorded(understudy: &Path, directory: &Path, command: &[String]) -> Vec<String> {
    let path = |path: PathBuf| path.display().to_string();
    let words = [
        path(understudy.to_path_buf()),
        "record".to_owned(),
        "--out".to_owned(),
        path(directory.join("recording")),
        "--".to_owned(),
    ];
    words.into_iter().chain(command.iter().cloned()).collect()
}

/// What all processes have taken, and how long the log is.
struct Look {
    server: Reading,
    /// The server's memory, bytes.
    memory: u64,
    shim: Reading,
    backup: Reading,
    /// Epoch, records and bytes of the log.
    log: [u64; 3],
}
