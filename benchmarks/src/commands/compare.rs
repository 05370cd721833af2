//! `compare`: one redis-benchmark after another, with and without protection.

use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Args;
use understudy_bench::bed::Bed;
use understudy_bench::processor::Reading;
use understudy_bench::service::{Service, redis};

use super::{PORT, Server, median};

/// The options of `compare`.
#[derive(Args)]
pub(crate) struct Compare {
    #[command(flatten)]
    server: Server,
    /// How often each of the two is measured
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Requests of the single connection
    #[arg(long, default_value_t = 20_000)]
    single: u32,
    /// Requests of all 50 connections, of each kind
    #[arg(long, default_value_t = 200_000)]
    requests: u32,
}

/// One round's figures.
#[derive(Clone, Copy, Debug)]
struct Sample {
    /// GET of 64 bytes over one connection, milliseconds.
    p50: f64,
    p99: f64,
    /// GET and SET of 64 bytes over 50 connections, requests a second.
    get: f64,
    set: f64,
    /// The server's processor time for one of those requests, microseconds.
    processor: f64,
}

pub(crate) fn run(options: &Compare) -> Result<ExitCode> {
    let (mut without, mut with) = (Vec::new(), Vec::new());
    println!("             GET p50 ms  p99 ms   GET/s   SET/s  redis µs/request");
    for _ in 0..options.rounds {
        for (protected, samples) in [(false, &mut without), (true, &mut with)] {
            let sample = round(options, protected)?;
            print(if protected { "protected" } else { "without" }, &sample);
            samples.push(sample);
        }
    }
    let [without, with] = [without, with].map(|all| middle(&all));
    println!("medians of {} rounds", options.rounds);
    print("without", &without);
    print("protected", &with);
    println!(
        "added GET p50 {:.0} µs, p99 {:.0} µs; throughput GET {:.2}, SET {:.2}; processor {:.2}",
        (with.p50 - without.p50) * 1e3,
        (with.p99 - without.p99) * 1e3,
        with.get / without.get,
        with.set / without.set,
        with.processor / without.processor,
    );
    Ok(ExitCode::SUCCESS)
}

fn print(name: &str, s: &Sample) {
    println!(
        "{name:<12} {:>10.3} {:>7.3} {:>7.0} {:>7.0} {:>17.2}",
        s.p50, s.p99, s.get, s.set, s.processor
    );
}

fn middle(all: &[Sample]) -> Sample {
    let of = |field: fn(&Sample) -> f64| median(all.iter().map(field));
    Sample {
        p50: of(|s| s.p50),
        p99: of(|s| s.p99),
        get: of(|s| s.get),
        set: of(|s| s.set),
        processor: of(|s| s.processor),
    }
}

fn round(options: &Compare, protected: bool) -> Result<Sample> {
    let bed = Bed::new()?;
    let directory = tempfile::tempdir()?;
    let service = if protected {
        options.server.protected(&bed, directory.path())?
    } else {
        let understudy = options.server.understudy()?;
        Service::contained(&bed, directory.path(), &understudy, &redis(PORT), PORT)?
    };
    measure(options, &bed, service.address).with_context(|| {
        format!(
            "understudy run said: {}; understudy backup said: {}; takeover: {:?}",
            service.said("run").trim(),
            service.said("backup").trim(),
            service.takeover()
        )
    })
}

fn measure(options: &Compare, bed: &Bed, at: SocketAddr) -> Result<Sample> {
    let warm = (options.requests / 10).max(1);
    benchmark(bed, at, 50, warm, "set")?;
    let [single] = benchmark(bed, at, 1, options.single, "get")?[..] else {
        anyhow::bail!("redis-benchmark printed more than one line");
    };
    let before = processor_ns(bed)?;
    let many = benchmark(bed, at, 50, options.requests, "set,get")?;
    let spent = processor_ns(bed)? - before;
    let [set, get] = many[..] else {
        anyhow::bail!("redis-benchmark printed {} lines, not 2", many.len());
    };
    Ok(Sample {
        p50: single.p50,
        p99: single.p99,
        get: get.rate,
        set: set.rate,
        processor: spent as f64 / 1e3 / f64::from(2 * options.requests),
    })
}

/// A line of redis-benchmark.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Line {
    rate: f64,
    p50: f64,
    p99: f64,
}

fn benchmark(
    bed: &Bed,
    at: SocketAddr,
    clients: u32,
    requests: u32,
    kinds: &str,
) -> Result<Vec<Line>> {
    let words = [
        "-h".to_owned(),
        at.ip().to_string(),
        "-p".to_owned(),
        at.port().to_string(),
        "-c".to_owned(),
        clients.to_string(),
        "-n".to_owned(),
        requests.to_string(),
        "-d".to_owned(),
        "64".to_owned(),
        "-t".to_owned(),
        kinds.to_owned(),
        "--csv".to_owned(),
    ];
    let client = bed.host("client")?;
    let out = client
        .command("redis-benchmark", &words)
        .output()
        .context("redis-benchmark could not be started")?;
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    ensure!(out.status.success(), "redis-benchmark failed: {said}");
    Ok(said.lines().filter_map(line).collect())
}

/// `"GET","34246.57","1.1","0.1","1.2","2.0","3.0","9.0"`: name, rate, mean, least, p50, p95, p99, most.
fn line(text: &str) -> Option<Line> {
    let mut fields = text.split(',').map(|field| field.trim_matches('"'));
    let mut next = |skip: usize| fields.nth(skip)?.parse::<f64>().ok();
    Some(Line {
        rate: next(1)?,
        p50: next(2)?,
        p99: next(1)?,
    })
}

/// Processor time of the server's threads so far, nanoseconds.
fn processor_ns(bed: &Bed) -> Result<u64> {
    let processes = bed.host("primary")?.processes_named("redis-server");
    ensure!(!processes.is_empty(), "no redis-server runs on the primary");
    Ok(Reading::of(&processes).total().ns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_redis_benchmark_are_read() {
        let text = r#""GET","34246.57","1.4","0.1","1.2","2.0","3.5","9.0""#;
        let expected = Line {
            rate: 34246.57,
            p50: 1.2,
            p99: 3.5,
        };
        assert_eq!(line(text), Some(expected));
        assert_eq!(line(r#""test","rps","avg_latency_ms","min""#), None);
    }
}
