//! The ways in which hosts fail.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::PATIENCE;
use crate::bed::{Bed, Host, Way, Wire};
use crate::rng::Rng;
use crate::service::{Loss, Service};

/// One way in which hosts fail. A new one is an element of [`KINDS`].
#[derive(Debug)]
pub struct Kind {
    /// What it is called.
    pub name: &'static str,
    /// What happens.
    pub about: &'static str,
    pub(super) takeover: Takeover,
    /// Hosts whose way to the others is in our hands.
    wires: &'static [&'static str],
    /// How it is before, if otherwise than usual.
    before: Option<fn(&Scene<'_>) -> Result<()>>,
    /// The fault; answers when the first blow fell.
    pub(super) strike: fn(&Scene<'_>, &mut Rng) -> Result<Instant>,
    /// What brings the old host back once the service runs elsewhere.
    pub(super) heal: Option<fn(&Scene<'_>) -> Result<()>>,
}

impl Kind {
    /// The ways that it needs in our hands.
    pub(super) fn wires(&self, bed: &Bed, seed: u64) -> Result<Vec<Wire>> {
        let wires = self.wires.iter();
        wires.map(|host| bed.wire(bed.host(host)?, seed)).collect()
    }
}

/// Whether the backup is to take over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Takeover {
    Comes,
    /// The primary may have been silent for long enough, or not.
    MayCome,
    MustNotCome,
}

/// What can be struck.
pub(super) struct Scene<'a> {
    pub(super) bed: &'a Bed,
    pub(super) service: &'a Service,
    /// Those that the kind asked for.
    wires: Vec<Wire>,
}

impl<'a> Scene<'a> {
    /// Makes everything as a kind of fault finds it.
    pub(super) fn set(
        bed: &'a Bed,
        service: &'a Service,
        wires: Vec<Wire>,
        kind: &Kind,
    ) -> Result<Self> {
        let scene = Self {
            bed,
            service,
            wires,
        };
        kind.before.map_or(Ok(()), |before| before(&scene))?;
        Ok(scene)
    }

    fn primary(&self) -> Result<&Host> {
        self.bed.host("primary")
    }

    fn backup(&self) -> Result<&Host> {
        self.bed.host("backup")
    }

    /// What happens to frames from the host whose way is in our hands, and to it.
    fn set_ways(&self, from: Way, to: Way) -> Result<()> {
        let wire = self.wires.first();
        wire.context("no host's way is in our hands")?.set(from, to);
        Ok(())
    }

    fn lose(&self, loss: Loss, rng: &mut Rng) -> Result<Instant> {
        self.service.lose(self.bed, loss, rng)
    }
}

/// What kinds have in common.
const USUAL: Kind = Kind {
    name: "",
    about: "",
    takeover: Takeover::Comes,
    wires: &[],
    before: None,
    strike: |_, _| Ok(Instant::now()),
    heal: None,
};

/// All of them.
pub const KINDS: &[Kind] = &[
    Kind {
        name: "host",
        about: "the host's uplink and all its processes go, in random order",
        strike: |scene, rng| scene.lose(Loss::Host, rng),
        ..USUAL
    },
    Kind {
        name: "container",
        about: "the server's processes are killed",
        strike: |scene, rng| scene.lose(Loss::Container, rng),
        ..USUAL
    },
    Kind {
        name: "shim",
        about: "understudy run is killed",
        strike: |scene, rng| scene.lose(Loss::Shim, rng),
        ..USUAL
    },
    Kind {
        name: "far",
        about: "as host, with clients whose round trip is 60 ms",
        wires: &["client"],
        before: Some(|scene| scene.set_ways(Way::long(FAR), Way::long(FAR))),
        strike: |scene, rng| scene.lose(Loss::Host, rng),
        ..USUAL
    },
    Kind {
        name: "cut-off",
        about: "the host's uplink goes down, and comes up again after the takeover",
        strike: |scene, _| {
            let now = Instant::now();
            scene.primary()?.set_uplink(false)?;
            Ok(now)
        },
        heal: Some(|scene| scene.primary()?.set_uplink(true)),
        ..USUAL
    },
    Kind {
        name: "link-cut",
        about: "the two hosts do not reach one another any more, but both reach the clients; then they do again",
        wires: &["backup"],
        strike: |scene, _| {
            let with_primary = Way::cut(Some(primary_of(scene)?));
            ways_now(scene, with_primary, with_primary)
        },
        heal: Some(open_ways),
        ..USUAL
    },
    Kind {
        name: "link-deaf",
        about: "as before, but only what the primary says is lost",
        wires: &["backup"],
        strike: |scene, _| {
            let with_primary = Way::cut(Some(primary_of(scene)?));
            ways_now(scene, Way::default(), with_primary)
        },
        heal: Some(open_ways),
        ..USUAL
    },
    Kind {
        name: "link-mute",
        about: "as before, but only what the backup says is lost",
        wires: &["backup"],
        strike: |scene, _| {
            let with_primary = Way::cut(Some(primary_of(scene)?));
            ways_now(scene, with_primary, Way::default())
        },
        heal: Some(open_ways),
        ..USUAL
    },
    Kind {
        name: "link-poor",
        about: "what the two hosts say to one another comes 5 to 15 ms later, and 1 of 100 frames not at all",
        takeover: Takeover::MayCome,
        wires: &["backup"],
        strike: |scene, _| {
            let poor = Way {
                delay: Duration::from_millis(5),
                jitter: Duration::from_millis(10),
                lost: 10,
                with: Some(primary_of(scene)?),
            };
            ways_now(scene, poor, poor)
        },
        ..USUAL
    },
    Kind {
        name: "frozen",
        about: "all processes of the host are stopped, and go on after the takeover",
        strike: |scene, rng| {
            let mut all = scene.primary()?.processes();
            rng.shuffle(&mut all);
            let now = Instant::now();
            signal(&all, Signal::SIGSTOP);
            Ok(now)
        },
        heal: Some(|scene| {
            signal(&scene.primary()?.processes(), Signal::SIGCONT);
            Ok(())
        }),
        ..USUAL
    },
    Kind {
        name: "flapping",
        about: "the host's uplink goes down and up for a while, each time for long enough to be missed or not",
        takeover: Takeover::MayCome,
        strike: |scene, rng| {
            let (primary, now) = (scene.primary()?, Instant::now());
            for _ in 0..FLAPS {
                for up in [false, true] {
                    primary.set_uplink(up)?;
                    sleep_ms(rng.below(LONGEST_FLAP));
                }
            }
            Ok(now)
        },
        heal: Some(|scene| scene.primary()?.set_uplink(true)),
        ..USUAL
    },
    Kind {
        name: "slow-takeover",
        about: "understudy run is killed, and the backup is stopped for a while when it takes over",
        strike: |scene, rng| {
            let struck = scene.lose(Loss::Shim, rng)?;
            sleep_ms(rng.below(LONGEST_FLAP));
            stand_still(scene.backup()?, rng);
            Ok(struck)
        },
        ..USUAL
    },
    Kind {
        name: "backup",
        about: "understudy backup is killed, and started again a little later: the service goes on then",
        takeover: Takeover::MustNotCome,
        strike: |scene, rng| {
            let struck = scene.lose(Loss::Backup, rng)?;
            restart_backup(scene, rng)?;
            Ok(struck)
        },
        ..USUAL
    },
    Kind {
        name: "backup-host",
        about: "as before, and then the host's uplink and all its processes go",
        strike: |scene, rng| {
            scene.lose(Loss::Backup, rng)?;
            restart_backup(scene, rng)?;
            sleep_ms(rng.below(LONGEST_FLAP));
            scene.lose(Loss::Host, rng)
        },
        ..USUAL
    },
    Kind {
        name: "frozen-backup",
        about: "all processes of the backup are stopped for a while, and it must not take the primary for lost",
        takeover: Takeover::MustNotCome,
        strike: |scene, rng| {
            let now = Instant::now();
            stand_still(scene.backup()?, rng);
            Ok(now)
        },
        ..USUAL
    },
];

/// One way of the far clients' frames.
const FAR: Duration = Duration::from_millis(30);
/// Times that an uplink goes down and up again, and the longest time in each state, milliseconds.
const FLAPS: u32 = 8;
const LONGEST_FLAP: u64 = 90;
/// Longest time for which a host is stopped, milliseconds.
const LONGEST_STOP: u64 = 400;
/// Longest time without a backup, milliseconds.
const LONGEST_ABSENCE: u64 = 600;

fn primary_of(scene: &Scene<'_>) -> Result<Ipv4Addr> {
    Ok(scene.primary()?.address())
}

fn ways_now(scene: &Scene<'_>, from: Way, to: Way) -> Result<Instant> {
    let now = Instant::now();
    scene.set_ways(from, to)?;
    Ok(now)
}

/// Everything passes again.
fn open_ways(scene: &Scene<'_>) -> Result<()> {
    scene.set_ways(Way::default(), Way::default())
}

fn sleep_ms(time: u64) {
    std::thread::sleep(Duration::from_millis(time));
}

/// Starts the backup again after a while, and waits until it guards the container.
fn restart_backup(scene: &Scene<'_>, rng: &mut Rng) -> Result<()> {
    sleep_ms(rng.below(LONGEST_ABSENCE));
    scene.service.restart_backup(scene.bed)?;
    scene.service.await_protected_again(scene.bed, PATIENCE)
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
