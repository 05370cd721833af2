//! Faults that hit a protected redis under load, and what its clients saw of them.
//!
//! In: a kind of fault and a seed, which decides the load and the moment. Out: whether the service went on, how long it was
//! silent, and everything that a client or a wire has to complain of. What a host that comes back says is watched, too:
//! nothing, in the service's name.

mod kinds;

use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::bed::Bed;
use crate::linear::{Clients, Finding};
use crate::load::{self, Config, Report};
use crate::rng::Rng;
use crate::service::{Protection, Service, redis};
pub use kinds::{KINDS, Kind};
use kinds::{Scene, Takeover};

const PORT: u16 = 6379;
/// How long clients ask.
const LOAD: Duration = Duration::from_secs(5);
/// Hundredths of a second after which the fault may come, and the width of that range.
const EARLIEST: u64 = 100;
const RANGE: u64 = 150;
/// Time for a takeover.
const PATIENCE: Duration = Duration::from_secs(10);
/// Time in which a takeover would come that must not, or need not.
const SETTLE: Duration = Duration::from_millis(500);
/// How long a host that came back is listened to.
const LISTEN: Duration = Duration::from_secs(1);

/// What came of one fault.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The [`Kind`]'s name.
    pub kind: String,
    /// The seed.
    pub seed: u64,
    /// The clients' silence, milliseconds.
    pub gap_ms: f64,
    /// Acknowledged writes whose effect is not there.
    pub lost: u64,
    /// Effects that are there more often than they were asked for.
    pub twice: u64,
    /// Other answers that no correct server can give.
    pub wrong: u64,
    /// Connections that ended, or left a command unanswered.
    pub broken: u64,
    /// Keys that several clients share, and whose answers no order explains.
    #[serde(default)]
    pub unexplained: u64,
    /// Frames in the service's name that the old host sent behind the takeover.
    pub frames: u64,
    /// Everything that should not be, in words; empty if all is well.
    pub complaints: Vec<String>,
}

/// Strikes once. What the programs say and keep goes to `directory`.
///
/// # Errors
/// If it does not come so far as to be struck.
pub fn inject(
    kind: &Kind,
    seed: u64,
    protection: &Protection,
    directory: &Path,
) -> Result<Outcome> {
    let bed = Bed::new()?;
    // Before there are connections, which would lose what is on its way.
    let wires = kind.wires(&bed, seed)?;
    let service = Service::protected(&bed, directory, protection, &redis(PORT), PORT)?;
    let scene = Scene::set(&bed, &service, wires, kind)?;
    let config = Config {
        duration: LOAD,
        seed,
        closed: 20,
        pipelined: 4,
        half_closing: 2,
        idle: 20,
        value_len: 256,
        fill_mib: 10,
        ..Config::new(service.address)
    };
    let mut rng = Rng::new(seed, 11);
    let step = usize::try_from(EARLIEST + rng.below(RANGE))?;
    let (steps, seen) = mpsc::channel();
    let sharing = Clients::new(service.address, seed);
    let (report, finding, struck) = std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let client = bed.host("client")?;
            client.inside(|| load::run(&config, Some(steps)))
        });
        let shared = scope.spawn(|| bed.host("client")?.inside(|| Ok(sharing.run())));
        let struck = if seen.iter().any(|passed| passed.index == step) {
            strike(kind, &scene, &mut rng)
        } else {
            Err(anyhow!("the load ended before its time"))
        };
        let report = load.join().map_err(|_| anyhow!("a client panicked"))?;
        sharing.stop();
        let finding = shared.join().map_err(|_| anyhow!("a client panicked"))?;
        Ok::<_, anyhow::Error>((report?, finding?, struck))
    })?;
    let outcome = judge(kind, seed, &service, &report, &finding, struck);
    Ok(outcome)
}

/// When the first blow fell, and the frames that the old host sent after it had come back.
fn strike(kind: &Kind, scene: &Scene<'_>, rng: &mut Rng) -> Result<(Instant, Vec<String>)> {
    let Scene { bed, service, .. } = scene;
    ensure!(service.takeover().is_none(), "nothing was lost yet");
    // Somewhere between two steps.
    std::thread::sleep(Duration::from_micros(rng.below(10_000)));
    let struck = (kind.strike)(scene, rng)?;
    if kind.takeover == Takeover::Comes {
        service.await_takeover(PATIENCE)?;
    } else {
        std::thread::sleep(SETTLE);
    }
    let went = service.takeover();
    if let Some(line) = went
        .as_ref()
        .filter(|_| kind.takeover == Takeover::MustNotCome)
    {
        bail!("the primary lives, and the backup said: {line}");
    }
    let primary = bed.host("primary")?;
    let (Some(heal), Some(_)) = (kind.heal, went) else {
        kind.heal.map_or(Ok(()), |heal| heal(scene))?;
        return Ok((struck, Vec::new()));
    };
    let ip = service.address.ip();
    let capture = bed.watch(primary, &format!("host {ip} or arp host {ip}"))?;
    heal(scene)?;
    std::thread::sleep(LISTEN);
    Ok((struck, capture.end()?))
}

fn judge(
    kind: &Kind,
    seed: u64,
    service: &Service,
    report: &Report,
    finding: &Finding,
    struck: Result<(Instant, Vec<String>)>,
) -> Outcome {
    let mut complaints = report.faults.examples.clone();
    complaints.extend_from_slice(&finding.unexplained);
    complaints.extend_from_slice(&finding.broken);
    if finding.answered == 0 {
        complaints.push("no client of shared keys was answered".to_owned());
    }
    complaints.extend(report.audit.failed.clone());
    if report.broken > 0 {
        complaints.push(format!(
            "{} connections broke, {} of them by a reset",
            report.broken, report.resets
        ));
    }
    let (gap, frames) = match struck {
        Ok((struck, frames)) => (report.gap_around(struck), frames),
        Err(error) => {
            complaints.push(format!("{error:#}"));
            (None, Vec::new())
        }
    };
    complaints.extend(frames.iter().map(|frame| format!("the old host: {frame}")));
    match gap {
        Some(gap) if gap.ended => {}
        Some(_) => complaints.push("no client was answered after the fault".to_owned()),
        None if kind.takeover != Takeover::Comes => {}
        None => complaints.push("the clients saw no silence".to_owned()),
    }
    if !complaints.is_empty() {
        complaints.push(format!("the backup said: {}", service.said("backup")));
        complaints.push(format!("the primary said: {}", service.said("run")));
    }
    Outcome {
        kind: kind.name.to_owned(),
        seed,
        gap_ms: gap.map_or(0.0, |gap| gap.ms),
        lost: report.faults.lost,
        twice: report.faults.twice,
        wrong: report.faults.wrong,
        broken: report.broken + finding.broken.len() as u64,
        unexplained: finding.unexplained.len() as u64,
        frames: frames.len() as u64,
        complaints,
    }
}
