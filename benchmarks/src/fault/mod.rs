//! Faults that hit a protected redis under load, and what its clients saw of them.
//!
//! In: a kind of fault and a seed, which decides the load and the moment. Out: whether the service went on, how long it was
//! silent, and everything that a client or a wire has to complain of. What a host that comes back says is watched, too:
//! nothing, in the service's name.

use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::bed::{Bed, Host};
use crate::load::{self, Config, Report};
use crate::rng::Rng;
use crate::service::{Loss, Protection, Service, redis};

/// One way in which hosts fail. A new one is an element of [`KINDS`].
#[derive(Debug)]
pub struct Kind {
    /// What it is called.
    pub name: &'static str,
    /// What happens.
    pub about: &'static str,
    takeover: Takeover,
    strike: fn(&Bed, &Service, &mut Rng) -> Result<Instant>,
    /// What brings the old host back once the service runs elsewhere.
    heal: Option<fn(&Host) -> Result<()>>,
}

/// Whether the backup is to take over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Takeover {
    Comes,
    /// The primary may have been silent for long enough, or not.
    MayCome,
    MustNotCome,
}

/// All of them.
pub const KINDS: &[Kind] = &[
    Kind {
        name: "host",
        about: "the host's uplink and all its processes go, in random order",
        takeover: Takeover::Comes,
        strike: |bed, service, rng| service.lose(bed, Loss::Host, rng),
        heal: None,
    },
    Kind {
        name: "container",
        about: "the server's processes are killed",
        takeover: Takeover::Comes,
        strike: |bed, service, rng| service.lose(bed, Loss::Container, rng),
        heal: None,
    },
    Kind {
        name: "shim",
        about: "understudy run is killed",
        takeover: Takeover::Comes,
        strike: |bed, service, rng| service.lose(bed, Loss::Shim, rng),
        heal: None,
    },
    Kind {
        name: "cut-off",
        about: "the host's uplink goes down, and comes up again after the takeover",
        takeover: Takeover::Comes,
        strike: |bed, _, _| {
            let now = Instant::now();
            bed.host("primary")?.set_uplink(false)?;
            Ok(now)
        },
        heal: Some(|primary| primary.set_uplink(true)),
    },
    Kind {
        name: "frozen",
        about: "all processes of the host are stopped, and go on after the takeover",
        takeover: Takeover::Comes,
        strike: |bed, _, rng| {
            let primary = bed.host("primary")?;
            let mut all = primary.processes();
            rng.shuffle(&mut all);
            let now = Instant::now();
            signal(&all, Signal::SIGSTOP);
            Ok(now)
        },
        heal: Some(|primary| {
            signal(&primary.processes(), Signal::SIGCONT);
            Ok(())
        }),
    },
    Kind {
        name: "flapping",
        about: "the host's uplink goes down and up for a while, each time for long enough to be missed or not",
        takeover: Takeover::MayCome,
        strike: |bed, _, rng| {
            let (primary, now) = (bed.host("primary")?, Instant::now());
            for _ in 0..FLAPS {
                for up in [false, true] {
                    primary.set_uplink(up)?;
                    sleep_ms(rng.below(LONGEST_FLAP));
                }
            }
            Ok(now)
        },
        heal: Some(|primary| primary.set_uplink(true)),
    },
    Kind {
        name: "slow-takeover",
        about: "understudy run is killed, and the backup is stopped for a while when it takes over",
        takeover: Takeover::Comes,
        strike: |bed, service, rng| {
            let struck = service.lose(bed, Loss::Shim, rng)?;
            sleep_ms(rng.below(LONGEST_FLAP));
            stand_still(bed.host("backup")?, rng);
            Ok(struck)
        },
        heal: None,
    },
    Kind {
        name: "frozen-backup",
        about: "all processes of the backup are stopped for a while, and it must not take the primary for lost",
        takeover: Takeover::MustNotCome,
        strike: |bed, _, rng| {
            let now = Instant::now();
            stand_still(bed.host("backup")?, rng);
            Ok(now)
        },
        heal: None,
    },
];

/// Times that an uplink goes down and up again, and the longest time in each state, milliseconds.
const FLAPS: u32 = 8;
const LONGEST_FLAP: u64 = 90;
/// Longest time for which a host is stopped, milliseconds.
const LONGEST_STOP: u64 = 400;

fn sleep_ms(time: u64) {
    std::thread::sleep(Duration::from_millis(time));
}

/// Stops all processes of a host for a while.
fn stand_still(host: &Host, rng: &mut Rng) {
    let all = host.processes();
    signal(&all, Signal::SIGSTOP);
    sleep_ms(rng.below(LONGEST_STOP));
    signal(&all, Signal::SIGCONT);
}

/// Those that have gone by themselves are left out.
fn signal(all: &[i32], signal: Signal) {
    for pid in all {
        let _ = kill(Pid::from_raw(*pid), signal);
    }
}

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
    let service = Service::protected(&bed, directory, protection, &redis(PORT), PORT)?;
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
    let (report, struck) = std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let client = bed.host("client")?;
            client.inside(|| load::run(&config, Some(steps)))
        });
        let struck = if seen.iter().any(|passed| passed.index == step) {
            strike(kind, &bed, &service, &mut rng)
        } else {
            Err(anyhow!("the load ended before its time"))
        };
        let report = load.join().map_err(|_| anyhow!("a client panicked"))?;
        Ok::<_, anyhow::Error>((report?, struck))
    })?;
    Ok(judge(kind, seed, &service, &report, struck))
}

/// When the first blow fell, and the frames that the old host sent after it had come back.
fn strike(
    kind: &Kind,
    bed: &Bed,
    service: &Service,
    rng: &mut Rng,
) -> Result<(Instant, Vec<String>)> {
    ensure!(service.takeover().is_none(), "nothing was lost yet");
    // Somewhere between two steps.
    std::thread::sleep(Duration::from_micros(rng.below(10_000)));
    let struck = (kind.strike)(bed, service, rng)?;
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
        kind.heal.map_or(Ok(()), |heal| heal(primary))?;
        return Ok((struck, Vec::new()));
    };
    let ip = service.address.ip();
    let capture = bed.watch(primary, &format!("host {ip} or arp host {ip}"))?;
    heal(primary)?;
    std::thread::sleep(LISTEN);
    Ok((struck, capture.end()?))
}

fn judge(
    kind: &Kind,
    seed: u64,
    service: &Service,
    report: &Report,
    struck: Result<(Instant, Vec<String>)>,
) -> Outcome {
    let mut complaints = report.faults.examples.clone();
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
        broken: report.broken,
        frames: frames.len() as u64,
        complaints,
    }
}
