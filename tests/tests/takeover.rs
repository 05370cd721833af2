//! A server is lost under load, and the clients notice a short silence, nothing else.
#![expect(
    clippy::unwrap_used,
    reason = "the helpers of a test fail as the test does"
)]

use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use understudy_bench::bed::{Bed, UPLINK};
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
    start_command(bed, scratch, &redis(PORT))
}

fn start_command(bed: &Bed, scratch: &TempDir, command: &[String]) -> Service {
    start_with(bed, scratch, command, &[])
}

fn start_with(bed: &Bed, scratch: &TempDir, command: &[String], more: &[&str]) -> Service {
    let options = ["--heartbeat", "10ms", "--detect", "50ms"];
    let options = options.iter().chain(more).copied();
    let options = options.map(str::to_owned).collect();
    let protection = Protection {
        understudy: understudy().unwrap(),
        options,
        ..Protection::default()
    };
    Service::protected(bed, scratch.path(), &protection, command, PORT).unwrap()
}

/// Loads `service` and strikes at a random moment between the second and the fourth second.
fn load_and_lose(bed: &Bed, service: &Service, config: &Config, loss: Loss) -> (Report, Instant) {
    let seed = config.seed;
    let mut rng = Rng::new(seed, 7);
    let step = 200 + usize::try_from(rng.below(200)).unwrap();
    let (steps, seen) = mpsc::channel();
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            bed.host("client")
                .unwrap()
                .inside(|| load::run(config, Some(steps)))
        });
        let reached = seen.iter().any(|passed| passed.index == step);
        assert!(
            reached,
            "the load ended before its time: {:?}",
            load.join().unwrap()
        );
        assert_eq!(
            service.takeover(),
            None,
            "nothing was lost yet; the backup said: {}; the primary: {}",
            service.said("backup"),
            service.said("run")
        );
        let lost_at = service.lose(bed, loss, &mut rng).unwrap();
        (load.join().unwrap().unwrap(), lost_at)
    })
}

/// A few clients notice nothing but a silence.
fn few_carry_on(bed: &Bed, service: &Service, loss: Loss) {
    let config = Config {
        duration: Duration::from_secs(5),
        closed: 20,
        pipelined: 2,
        half_closing: 2,
        ..Config::new(service.address)
    };
    let (report, lost_at) = load_and_lose(bed, service, &config, loss);
    assert!(report.flawless() && report.resets == 0, "{report:#?}");
    assert!(report.gap_around(lost_at).unwrap().ended);
}

fn survives(loss: Loss) {
    for round in 0..repeats() {
        let seed = u64::from(round) + 1;
        let (bed, scratch) = (Bed::new().unwrap(), TempDir::new().unwrap());
        let service = start(&bed, &scratch);
        let (report, lost_at) = load_and_lose(&bed, &service, &clients(&service, seed), loss);
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

/// Without a replay: no answer leaves that no checkpoint has.
#[test]
fn answers_may_wait_for_checkpoints() {
    for loss in [Loss::Host, Loss::Container, Loss::Shim] {
        let (bed, scratch) = (Bed::new().unwrap(), TempDir::new().unwrap());
        let mode = ["--mode", "checkpoint"];
        let service = start_with(&bed, &scratch, &redis(PORT), &mode);
        few_carry_on(&bed, &service, loss);
        let line = service.takeover().unwrap();
        assert!(line.contains(" replayed_events=0 "), "{loss:?}: {line}");
    }
}

#[test]
fn a_server_that_a_script_executes_is_protected() {
    let (bed, scratch) = (Bed::new().unwrap(), TempDir::new().unwrap());
    let script = format!("sleep 0.2; exec {} ''", redis(PORT).join(" "));
    let command = ["sh", "-c", &script].map(str::to_owned);
    let service = start_command(&bed, &scratch, &command);
    few_carry_on(&bed, &service, Loss::Shim);
}

/// The shell is the container's program then, and the server its child.
#[test]
fn a_server_below_a_shell() {
    for _ in 0..repeats() {
        let (bed, scratch) = (Bed::new().unwrap(), TempDir::new().unwrap());
        let script = format!("{} '' & wait", redis(PORT).join(" "));
        let command = ["sh", "-c", &script].map(str::to_owned);
        let service = start_command(&bed, &scratch, &command);
        few_carry_on(&bed, &service, Loss::Shim);
    }
}

/// Redis forks for each of its snapshots: there is a child most of the time, which writes what the server's memory
/// held at the fork.
#[test]
fn a_server_that_saves_in_a_child() {
    for round in 0..repeats() {
        let (bed, scratch) = (Bed::new().unwrap(), TempDir::new().unwrap());
        let mut command = redis(PORT);
        let data = scratch.path().display().to_string();
        command.pop();
        // A tenth of a millisecond for each key: seconds for all of them.
        command.extend(["1 1", "--rdb-key-save-delay", "100", "--dir", &data].map(str::to_owned));
        let service = start_command(&bed, &scratch, &command);
        let config = Config {
            duration: Duration::from_secs(6),
            seed: u64::from(round) + 1,
            closed: 20,
            pipelined: 2,
            fill_mib: 30,
            value_len: 1024,
            ..Config::new(service.address)
        };
        let (report, lost_at) = load_and_lose(&bed, &service, &config, Loss::Shim);
        assert!(report.flawless() && report.resets == 0, "{report:#?}");
        let gap = report.gap_around(lost_at).unwrap();
        println!("gap {:.1} ms, {:?}", gap.ms, service.takeover());
        assert!(gap.ended, "{gap:?}");
    }
}

/// What clients send meanwhile is not kept for them: they send it again by themselves.
#[test]
fn without_the_tap() {
    let (bed, scratch) = (Bed::new().unwrap(), TempDir::new().unwrap());
    let service = start_with(&bed, &scratch, &redis(PORT), &["--tap", "off"]);
    few_carry_on(&bed, &service, Loss::Host);
}

/// A bridge takes the lowest address among its ports' for its own, and these are about the highest there are: with
/// a container's below them, both bridges had the same one, and the hosts did not hear each other.
#[test]
fn hosts_with_high_hardware_addresses() {
    let (bed, scratch) = (Bed::new().unwrap(), TempDir::new().unwrap());
    for (name, address) in [
        ("primary", "fe:f0:00:00:00:01"),
        ("backup", "fe:f0:00:00:00:02"),
    ] {
        let host = bed.host(name).unwrap();
        let set = ["link", "set", UPLINK, "address", address];
        assert!(host.command("ip", &set).status().unwrap().success());
    }
    let service = start(&bed, &scratch);
    few_carry_on(&bed, &service, Loss::Host);
}

/// The processes that stand by on the backup: nothing else of it is stopped by a tracer. They still have the
/// name of the thread that makes containers.
fn standing_by(bed: &Bed) -> Vec<Pid> {
    let mut all = bed.host("backup").unwrap().processes_named("namespaces");
    all.retain(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.contains(") t ")
    });
    all.into_iter().map(Pid::from_raw).collect()
}

#[test]
fn a_process_that_stood_by_is_made_again_when_it_is_lost() {
    let (bed, scratch) = (Bed::new().unwrap(), TempDir::new().unwrap());
    let service = start(&bed, &scratch);
    let config = clients(&service, 3);
    let (steps, seen) = mpsc::channel();
    let (report, lost_at) = std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            bed.host("client")
                .unwrap()
                .inside(|| load::run(&config, Some(steps)))
        });
        let mut seen = seen.iter();
        let mut strike = |step| {
            assert!(seen.any(|passed| passed.index == step), "the load ended");
            // It runs for moments, when it makes calls.
            let found = (0..1000).find_map(|_| standing_by(&bed).pop());
            kill(found.unwrap(), Signal::SIGKILL).unwrap();
        };
        // By the next checkpoint there is another; without one, it is made at the takeover.
        strike(150);
        strike(300);
        let lost_at = service.lose(&bed, Loss::Host, &mut Rng::new(3, 7)).unwrap();
        (load.join().unwrap().unwrap(), lost_at)
    });
    let gap = report.gap_around(lost_at).unwrap();
    println!("gap {:.1} ms, {:?}", gap.ms, service.takeover());
    assert!(report.flawless() && report.resets == 0, "{report:#?}");
    assert!(gap.ended && gap.ms <= WORST_GAP_MS, "{gap:?}");
    assert!(service.takeover().unwrap().contains("attempts=1"));
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
