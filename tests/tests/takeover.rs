//! A server is lost under load, and the clients notice a short silence, nothing else.
#![expect(
    clippy::unwrap_used,
    reason = "the helpers of a test fail as the test does"
)]

use std::sync::mpsc;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use understudy_bench::bed::Bed;
use understudy_bench::load::{self, Config, Report};
use understudy_bench::rng::Rng;
use understudy_bench::service::{Loss, Protection, Service, redis};
use understudy_tests::{repeats, understudy};

const PORT: u16 = 6379;
/// The gap that a client may see at most, with 50 ms of detection.
const WORST_GAP_MS: f64 = 600.0;

/// Clients of every kind, over data of some size.
fn clients(service: &Service, seed: u64) -> Config {
    Config {
        duration: Duration::from_secs(6),
        seed,
        closed: 50,
        pipelined: 10,
        slow: 3,
        half_closing: 5,
        idle: 200,
        value_len: 1024,
        fill_mib: 100,
        ..Config::new(service.address)
    }
}

fn start(bed: &Bed, scratch: &TempDir) -> Service {
    let options = ["--heartbeat", "10ms", "--detect", "50ms"]
        .map(str::to_owned)
        .to_vec();
    let protection = Protection {
        understudy: understudy().unwrap(),
        options,
    };
    Service::protected(bed, scratch.path(), &protection, &redis(PORT), PORT).unwrap()
}

/// Loads `service` and strikes at a random moment between the second and the fourth second.
fn load_and_lose(bed: &Bed, service: &Service, loss: Loss, seed: u64) -> (Report, Instant) {
    let config = clients(service, seed);
    let mut rng = Rng::new(seed, 7);
    let step = 200 + usize::try_from(rng.below(200)).unwrap();
    let (steps, seen) = mpsc::channel();
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            bed.host("client")
                .unwrap()
                .inside(|| load::run(&config, Some(steps)))
        });
        let reached = seen.iter().any(|passed| passed.index == step);
        assert!(
            reached,
            "the load ended before its time: {:?}",
            load.join().unwrap()
        );
        let lost_at = service.lose(bed, loss, &mut rng).unwrap();
        (load.join().unwrap().unwrap(), lost_at)
    })
}

fn survives(loss: Loss) {
    for round in 0..repeats() {
        let seed = u64::from(round) + 1;
        let (bed, scratch) = (Bed::new().unwrap(), TempDir::new().unwrap());
        let service = start(&bed, &scratch);
        let (report, lost_at) = load_and_lose(&bed, &service, loss, seed);
        let gap = report.gap_around(lost_at).unwrap();
        println!(
            "{loss:?} {seed}: gap {:.1} ms, {:?}",
            gap.ms,
            service.takeover()
        );
        assert!(
            report.flawless() && report.resets == 0,
            "{loss:?} {seed}: {report:#?}"
        );
        assert!(
            gap.ended && gap.ms <= WORST_GAP_MS,
            "{loss:?} {seed}: {gap:?}"
        );
        let line = service.takeover().unwrap();
        for field in ["gap_ms=", "replayed_events=", "restored_mib=", "attempts="] {
            assert!(line.contains(field), "{line}");
        }
    }
}

#[test]
fn the_loss_of_the_host() {
    survives(Loss::Host);
}

#[test]
fn the_loss_of_the_container() {
    survives(Loss::Container);
}

#[test]
fn the_loss_of_the_shim() {
    survives(Loss::Shim);
}

/// Takes the primary off the network, dead or alive, and puts it back when the backup answers.
fn goes_and_comes_back(alive: bool) {
    let (bed, scratch) = (Bed::new().unwrap(), TempDir::new().unwrap());
    let service = start(&bed, &scratch);
    let primary = bed.host("primary").unwrap();
    let config = Config {
        duration: Duration::from_secs(5),
        closed: 20,
        ..Config::new(service.address)
    };
    let (steps, seen) = mpsc::channel();
    let (report, frames) = std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            bed.host("client")
                .unwrap()
                .inside(|| load::run(&config, Some(steps)))
        });
        assert!(seen.iter().any(|passed| passed.index == 100));
        if alive {
            primary.set_uplink(false).unwrap();
        } else {
            service.lose(&bed, Loss::Host, &mut Rng::new(5, 0)).unwrap();
        }
        // What comes 200 ms later is the backup's.
        let answers_again = seen.iter().skip(20).any(|passed| passed.replies > 0);
        assert!(answers_again, "no takeover");
        let capture = bed
            .watch(primary, &format!("host {}", service.address.ip()))
            .unwrap();
        primary.set_uplink(true).unwrap();
        let report = load.join().unwrap().unwrap();
        (report, capture.end().unwrap())
    });
    assert!(report.flawless() && report.resets == 0, "{report:#?}");
    assert!(service.takeover().is_some());
    assert!(
        frames.is_empty(),
        "{} frames of the container come from the old host: {frames:#?}",
        frames.len()
    );
}

#[test]
fn a_live_primary_that_comes_back_is_mute() {
    goes_and_comes_back(true);
}

#[test]
fn a_dead_primary_that_comes_back_is_mute() {
    goes_and_comes_back(false);
}
