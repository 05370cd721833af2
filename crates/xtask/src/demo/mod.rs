//! `cargo xtask demo`: redis under load, its host lost, and what the clients see of it.

mod draw;
mod stage;
mod summary;
mod svg;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::signal::{SigSet, Signal};
use understudy_bench::bed::Bed;
use understudy_bench::load::{self, Config, Step};
use understudy_bench::rng::Rng;
use understudy_bench::service::{Loss, Service};

use crate::{packages, toolchain};

/// What can be varied.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Run redis without Understudy, to see what the loss of its host means then
    #[arg(long)]
    unprotected: bool,
    /// Clients, each of which sends a command when the last was answered
    #[arg(long, default_value_t = 50)]
    clients: usize,
    /// Seconds of load; the host is lost about half-way
    #[arg(long, default_value_t = 10)]
    seconds: u32,
    /// Decides the commands, the moment of the loss and the order of deaths; another each time if absent
    #[arg(long)]
    seed: Option<u64>,
    /// Where the drawing of the gap goes [default: demo.svg in cargo's target directory]
    #[arg(long)]
    svg: Option<PathBuf>,
}

/// Runs the whole show.
///
/// # Errors
/// If it cannot be set up, or a protected service did not come through it flawlessly.
pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the demo makes network namespaces and containers: run it as root"
    );
    ensure!(
        options.seconds >= 2,
        "{} s of load are too short, 2 are the least",
        options.seconds
    );
    packages::install(&[packages::DEMO])?;
    toolchain::install()?;
    let bed = Arc::new(Bed::new()?);
    leave_clean(&bed)?;
    let service = stage::set(&bed, options.unprotected)?;
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let seed = options.seed.unwrap_or(u64::from(since.subsec_nanos()));
    println!(
        "{} clients on {}; the host is lost about half-way (seed {seed})\n",
        options.clients, service.address
    );
    let (report, lost_at) = perform(options, &bed, &service, seed)?;
    let target = stage::target()?;
    let svg = options
        .svg
        .clone()
        .unwrap_or_else(|| target.join("demo.svg"));
    let gap = report.gap_around(lost_at);
    svg::draw(&svg, &report, lost_at, gap)?;
    let text = summary::text(
        &report,
        lost_at,
        gap,
        options.unprotected,
        &service.takeover(),
    );
    println!("\n{text}\ndrawing: {}", svg.display());
    if options.unprotected || (report.flawless() && gap.is_some_and(|gap| gap.ended)) {
        return Ok(());
    }
    bail!(
        "the clients saw the loss of the host; the programs' own words are in {}",
        service.directory.display()
    )
}

/// The load, the loss in the middle of it, and the drawing of both.
fn perform(
    options: &Options,
    bed: &Bed,
    service: &Service,
    seed: u64,
) -> Result<(load::Report, Instant)> {
    let config = Config {
        duration: Duration::from_secs(u64::from(options.seconds)),
        closed: options.clients,
        seed,
        ..Config::new(service.address)
    };
    let mut rng = Rng::new(seed, 0);
    let whole = config.duration.as_nanos() / load::STEP.as_nanos();
    let whole = u64::try_from(whole).context("too long a demo")?;
    // Between 40 and 60 % of the time, at any moment of a step.
    let loss = usize::try_from(whole * 2 / 5 + rng.below(whole / 5))?;
    let within = Duration::from_micros(rng.below(10_000));
    let (steps, seen) = mpsc::channel::<Step>();
    let client = bed.host("client")?;
    std::thread::scope(|scope| {
        let load = scope.spawn(|| client.inside(|| load::run(&config, Some(steps))));
        let mut lost = None;
        let mut picture = draw::Picture::new();
        for step in seen {
            if step.index >= loss && lost.is_none() {
                lost = Some(scope.spawn(|| {
                    std::thread::park_timeout(within);
                    service.lose(bed, Loss::Host, &mut Rng::new(seed, 1))
                }));
                picture.fault();
            }
            picture.step(step);
        }
        picture.finish();
        let report = load
            .join()
            .map_err(|_| anyhow!("the load panicked"))?
            .context("the load could not be made")?;
        let lost = lost.context("the load ended before the host was lost")?;
        Ok((
            report,
            lost.join().map_err(|_| anyhow!("the loss panicked"))??,
        ))
    })
}

/// Removes the hosts also when interrupted.
fn leave_clean(bed: &Arc<Bed>) -> Result<()> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    // Threads to come inherit it, so that only the one that waits gets them.
    signals
        .thread_block()
        .context("signals could not be blocked")?;
    // The thread outlives the show: it must not keep the bed.
    let bed = Arc::downgrade(bed);
    std::thread::spawn(move || {
        if let Ok(signal) = signals.wait() {
            if let Some(bed) = bed.upgrade() {
                bed.remove();
            }
            eprintln!("\ninterrupted; the hosts are removed");
            std::process::exit(128 + signal as i32);
        }
    });
    Ok(())
}
