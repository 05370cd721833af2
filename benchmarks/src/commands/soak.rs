//! `soak`: a long time under steady load, and nothing happens.

use std::process::ExitCode;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use understudy_bench::bed::Bed;
use understudy_bench::load::{self, Config, Mix};
use understudy_bench::service::Service;

use super::{Server, median};

/// The options of `soak`.
#[derive(Args)]
pub(crate) struct Soak {
    #[command(flatten)]
    server: Server,
    /// How long
    #[arg(long, default_value_t = 60.0)]
    minutes: f64,
    /// Commands a second
    #[arg(long, default_value_t = 8000)]
    rate: u32,
    /// MiB of data
    #[arg(long, default_value_t = 20)]
    fill_mib: u64,
    /// Clients that connect, send, half-close and connect again
    #[arg(long, default_value_t = 1)]
    half_closing: usize,
}

/// Memory is looked at so often.
const LOOK: Duration = Duration::from_secs(10);
/// What memory may grow by from the second quarter to the last: a twentieth, and so many KiB.
const SLACK_KIB: f64 = 1024.0;

/// Resident memory, KiB.
#[derive(Clone, Copy, Debug)]
struct Memory {
    shim: u64,
    backup: u64,
}

pub(crate) fn run(options: &Soak) -> Result<ExitCode> {
    let bed = Bed::new()?;
    let directory = tempfile::tempdir()?;
    let service = options.server.protected(&bed, directory.path())?;
    let config = Config {
        duration: Duration::try_from_secs_f64(options.minutes * 60.0)
            .with_context(|| format!("{} is no number of minutes", options.minutes))?,
        closed: 50,
        half_closing: options.half_closing,
        idle: 20,
        // Lists would grow without end.
        mix: Mix {
            get: 1,
            set: 1,
            incr: 1,
            push: 0,
        },
        fill_mib: options.fill_mib,
        value_len: 1024,
        rate: Some(options.rate),
        ..Config::new(service.address)
    };
    let (end, ended) = mpsc::channel::<()>();
    let (report, seen) = std::thread::scope(|scope| {
        let (bed, service) = (&bed, &service);
        let watcher = scope.spawn(move || watch(bed, service, &ended));
        let report = bed.host("client")?.inside(|| load::run(&config, None));
        drop(end);
        let seen = watcher.join();
        Ok::<_, anyhow::Error>((report, seen))
    })?;
    let (report, seen) = (report?, seen.unwrap_or_else(|_| Ok(Vec::new()))?);
    println!(
        "{} replies, lost {}, twice {}, wrong {}, broken {}, resets {}; p50 {:.0} µs, p99 {:.0} µs",
        report.replies,
        report.faults.lost,
        report.faults.twice,
        report.faults.wrong,
        report.broken,
        report.resets,
        report.latency.p50_us,
        report.latency.p99_us,
    );
    for example in &report.faults.examples {
        println!("{example}");
    }
    if let Some(gap) = report.longest_gap {
        println!("longest time without any reply {:.1} ms", gap.ms);
    }
    let grown = [
        is_flat("shim", seen.iter().map(|m| m.shim)),
        is_flat("backup", seen.iter().map(|m| m.backup)),
    ];
    let takeover = service.takeover();
    println!("takeovers: {}", takeover.as_deref().unwrap_or("none"));
    if takeover.is_some() {
        println!("run said:\n{}", service.said("run"));
        println!("backup said:\n{}", service.said("backup"));
    }
    let good = report.flawless() && takeover.is_none() && grown.iter().all(|flat| *flat);
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn watch(bed: &Bed, service: &Service, ended: &mpsc::Receiver<()>) -> Result<Vec<Memory>> {
    let began = Instant::now();
    let mut all = Vec::new();
    while ended.recv_timeout(LOOK) == Err(mpsc::RecvTimeoutError::Timeout) {
        let memory = Memory {
            shim: resident(bed, "primary")?,
            backup: resident(bed, "backup")?,
        };
        if all.len() % 6 == 0 {
            println!(
                "{:>5.1} min: shim {} KiB, backup {} KiB{}",
                began.elapsed().as_secs_f64() / 60.0,
                memory.shim,
                memory.backup,
                service.takeover().map_or("", |_| ", TAKEN OVER"),
            );
        }
        all.push(memory);
    }
    Ok(all)
}

/// Resident memory of the largest `understudy` on a host: its main process.
fn resident(bed: &Bed, host: &str) -> Result<u64> {
    let of = |pid: i32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
        line.and_then(|l| l.split_ascii_whitespace().next()?.parse::<u64>().ok())
    };
    let all = bed.host(host)?.processes_named("understudy");
    let largest = all.into_iter().filter_map(of).max();
    largest.with_context(|| format!("no understudy runs on {host}"))
}

fn is_flat(name: &str, values: impl Iterator<Item = u64>) -> bool {
    let all: Vec<f64> = values.map(|kib| kib as f64).collect();
    let quarter = all.len() / 4;
    if quarter == 0 {
        println!("{name}: too short a time to judge its memory");
        return true;
    }
    let early = median(all[quarter..2 * quarter].iter().copied());
    let late = median(all[3 * quarter..].iter().copied());
    println!("{name}: {early:.0} KiB in the second quarter, {late:.0} KiB in the last");
    late <= early * 1.05 + SLACK_KIB
}
