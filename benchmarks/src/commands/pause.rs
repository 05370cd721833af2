//! `pause`: how long checkpoints stop redis, seen from inside and told by `understudy status`.
//!
//! A thread that spins is preloaded into redis and put on a processor of its own; everything else shares the
//! other one. It tells stops from moments when others kept it from running by the kernel's count of context
//! switches. New mappings are watched from short stops of their own: of all stops, as many count as there were
//! epochs, the longest ones.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use understudy_bench::bed::Bed;
use understudy_bench::load::{self, Config, Mix};
use understudy_bench::service::{Service, redis};

use super::{PORT, Server};

/// The options of `pause`.
#[derive(Args)]
pub(crate) struct Pause {
    #[command(flatten)]
    server: Server,
    /// MiB of data
    #[arg(long, default_value_t = 100)]
    fill_mib: u64,
    /// How long 50 clients write
    #[arg(long, default_value_t = 30.0)]
    seconds: f64,
}

const SOURCE: &str = include_str!("spin.c");
/// Bytes of the board: its count, the clock's rate, and pairs of words.
const BOARD_LEN: u64 = 16 + (16 << 16);

pub(crate) fn run(options: &Pause) -> Result<ExitCode> {
    let bed = Bed::new()?;
    let directory = tempfile::tempdir()?;
    let library = directory.path().join("spin.so");
    compile(directory.path(), &library)?;
    let board_path = directory.path().join("board");
    let board = File::create_new(&board_path)?;
    board.set_len(BOARD_LEN)?;
    let mut command = vec![
        "env".to_owned(),
        format!("LD_PRELOAD={}", library.display()),
        format!("SPIN_FILE={}", board_path.display()),
    ];
    command.extend(redis(PORT));
    let service = options
        .server
        .protected_with(&bed, directory.path(), &command)?;
    place(&bed)?;
    let writes = Mix {
        get: 0,
        set: 1,
        incr: 0,
        push: 0,
    };
    let config = |seconds: f64, fill_mib| {
        Ok::<_, anyhow::Error>(Config {
            duration: Duration::try_from_secs_f64(seconds)?,
            closed: 50,
            mix: writes,
            value_len: 1024,
            fill_mib,
            ..Config::new(service.address)
        })
    };
    let load = |config: Config| bed.host("client")?.inside(|| load::run(&config, None));
    load(config(2.0, options.fill_mib)?)?;
    let first = word(&board, 0)?;
    let epoch = status(&bed, &service, options, "epoch")?;
    let (ticks, clock) = (word(&board, 8)?, Instant::now());
    load(config(options.seconds, 0)?)?;
    let epochs = status(&bed, &service, options, "epoch")? - epoch;
    let rate = (word(&board, 8)? - ticks) as f64 / clock.elapsed().as_secs_f64() / 1e6;
    let mut seen = gaps(&board, first, rate)?;
    let stops = seen.len();
    seen.sort_by(f64::total_cmp);
    seen.drain(..seen.len().saturating_sub(epochs as usize));
    ensure!(!seen.is_empty(), "the thread that spins saw no stop");
    let percentile = |p: f64| seen[((seen.len() - 1) as f64 * p) as usize];
    println!(
        "seen inside: {stops} stops in {epochs} epochs, the longest {}: p50 {:.0} µs, p90 {:.0} µs, p99 {:.0} µs, worst {:.0} µs",
        seen.len(),
        percentile(0.5),
        percentile(0.9),
        percentile(0.99),
        percentile(1.0),
    );
    println!(
        "understudy status: p50 {} µs, p99 {} µs",
        status(&bed, &service, options, "pause_us_p50")?,
        status(&bed, &service, options, "pause_us_p99")?,
    );
    Ok(ExitCode::SUCCESS)
}

fn compile(directory: &Path, library: &Path) -> Result<()> {
    let source = directory.join("spin.c");
    fs::write(&source, SOURCE)?;
    let mut cc = Command::new("cc");
    cc.args(["-O2", "-shared", "-fPIC", "-pthread", "-o"])
        .args([library, &source]);
    let status = cc.status().context("cc could not be started")?;
    ensure!(status.success(), "cc failed on {}", source.display());
    Ok(())
}

/// Puts the thread that spins on the second processor, and everything else on the first.
fn place(bed: &Bed) -> Result<()> {
    let cpu = |number| {
        let mut set = CpuSet::new();
        set.set(number).map(|()| set)
    };
    let (first, second) = (cpu(0)?, cpu(1)?);
    // Our own threads, and those that they start: the load.
    sched_setaffinity(Pid::from_raw(0), &first)?;
    for host in ["primary", "backup"] {
        for name in ["redis-server", "understudy"] {
            for pid in bed.host(host)?.processes_named(name) {
                for task in fs::read_dir(format!("/proc/{pid}/task"))? {
                    let task = task?.path();
                    let tid = task.file_name().and_then(|n| n.to_str()?.parse().ok());
                    let tid = Pid::from_raw(tid.context("a thread without a number")?);
                    let name = fs::read_to_string(task.join("comm")).unwrap_or_default();
                    let spins = name.trim() == "spin";
                    sched_setaffinity(tid, if spins { &second } else { &first })?;
                }
            }
        }
    }
    Ok(())
}

fn word(board: &File, at: u64) -> Result<u64> {
    let mut bytes = [0; 8];
    board.read_exact_at(&mut bytes, at)?;
    Ok(u64::from_ne_bytes(bytes))
}

/// The stops from number `first` on, microseconds.
fn gaps(board: &File, first: u64, ticks_per_us: f64) -> Result<Vec<f64>> {
    let gap = |number| Ok(word(board, 16 + number * 16 + 8)? as f64 / ticks_per_us);
    (first..word(board, 0)?).map(gap).collect()
}

/// A number that `understudy status` tells.
fn status(bed: &Bed, service: &Service, options: &Pause, field: &str) -> Result<u64> {
    options.server.status(bed, service, "env")?.number(field)
}
