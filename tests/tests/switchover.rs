//! Takeovers that nobody had to die for: one that is asked for, and one that is called off.
#![expect(
    clippy::unwrap_used,
    reason = "the helpers of a test fail as the test does"
)]

use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use understudy_bench::bed::{Bed, Host};
use understudy_bench::load::{self, Config, Report};
use understudy_bench::rng::Rng;
use understudy_bench::service::{Loss, Protection, Service, redis};
use understudy_tests::{LIMIT, run, understudy};

const PORT: u16 = 6379;
/// The silence after which the backup takes over, in milliseconds.
const DETECT_MS: f64 = 50.0;

fn start(bed: &Bed, scratch: &TempDir) -> Service {
    let protection = Protection {
        understudy: understudy().unwrap(),
        options: vec!["--detect".into(), "50ms".into()],
        ..Protection::default()
    };
    Service::protected(bed, scratch.path(), &protection, &redis(PORT), PORT).unwrap()
}

/// Loads the service for so many seconds; `work` begins when the first has passed.
fn under_load<T>(
    bed: &Bed,
    service: &Service,
    seconds: u64,
    work: impl FnOnce() -> T,
) -> (Report, T) {
    let config = Config {
        duration: Duration::from_secs(seconds),
        closed: 20,
        idle: 20,
        ..Config::new(service.address)
    };
    let client = bed.host("client").unwrap();
    let (steps, seen) = mpsc::channel();
    std::thread::scope(|scope| {
        let load = scope.spawn(|| client.inside(|| load::run(&config, Some(steps))));
        assert!(seen.iter().any(|passed| passed.index == 100));
        let done = work();
        (load.join().unwrap().unwrap(), done)
    })
}

#[test]
fn a_switchover_costs_no_connection() {
    let (bed, scratch) = (Bed::new().unwrap(), TempDir::new().unwrap());
    let mut service = start(&bed, &scratch);
    let (primary, backup) = (bed.host("primary").unwrap(), bed.host("backup").unwrap());
    let words = ["switchover", "redis-server"];
    let mut command = service.command(primary, &understudy().unwrap(), &words);
    let (report, (asked, there)) = under_load(&bed, &service, 3, || {
        let asked = Instant::now();
        let done = run(&mut command).unwrap();
        assert!(done.status.success() && done.stderr.is_empty(), "{done:?}");
        (asked, backup.processes_named("redis-server").len())
    });
    assert_eq!(there, 1, "it returned before the backup had gone on");
    let gap = report.gap_around(asked).unwrap();
    println!("{gap:?}");
    assert!(report.flawless() && report.resets == 0, "{report:#?}");
    assert!(gap.ended && gap.ms < 500.0, "{gap:?}");
    service.await_takeover(LIMIT).unwrap();
    // The old copy is of no use any more, and says nothing.
    assert!(
        service.wait(LIMIT).unwrap().success(),
        "{}",
        service.said("run")
    );
    assert!(primary.processes_named("redis-server").is_empty());
    let said = service.said("run");
    assert!(!said.contains("understudy: "), "{said}");
}

#[test]
fn a_takeover_that_fails_is_called_off() {
    let (bed, scratch) = (Bed::new().unwrap(), TempDir::new().unwrap());
    let service = start(&bed, &scratch);
    let (primary, backup) = (bed.host("primary").unwrap(), bed.host("backup").unwrap());
    let shim = primary.processes_named("understudy");
    assert_eq!(shim.len(), 1, "{shim:?}");
    // Longer than a backup tries.
    let (report, asked) = under_load(&bed, &service, 6, || {
        spoil(backup);
        let asked = Instant::now();
        // It is silent, but lives.
        signal(&shim, Signal::SIGSTOP);
        said(&service, "redis-server could not be taken over");
        mend(backup);
        signal(&shim, Signal::SIGCONT);
        said(&service, "the primary is back");

        asked
    });
    let gap = report.gap_around(asked).unwrap();
    assert!(report.flawless() && report.resets == 0, "{report:#?}");
    assert!(gap.ended && gap.ms > DETECT_MS, "{gap:?}");
    assert_eq!(service.takeover(), None);

    // It is protected as before.
    let (report, ()) = under_load(&bed, &service, 3, || {
        service.lose(&bed, Loss::Host, &mut Rng::new(9, 0)).unwrap();
    });
    assert!(report.flawless() && report.resets == 0, "{report:#?}");
    service.await_takeover(LIMIT).unwrap();
}

/// The primary is silent for long enough, is heard again, and dies while the backup puts away what it had begun.
#[test]
fn a_loss_while_a_takeover_is_called_off_is_noticed() {
    let (bed, scratch) = (Bed::new().unwrap(), TempDir::new().unwrap());
    let service = start(&bed, &scratch);
    let shim = bed.host("primary").unwrap().processes_named("understudy");
    let (report, line) = under_load(&bed, &service, 5, || {
        signal(&shim, Signal::SIGSTOP);
        said(&service, "the primary is lost");
        signal(&shim, Signal::SIGCONT);
        said(&service, "the primary was silent and is back");
        service.lose(&bed, Loss::Host, &mut Rng::new(9, 0)).unwrap();
        service.await_takeover(LIMIT).unwrap()
    });
    println!("{line}; the backup said: {}", service.said("backup"));
    assert!(report.flawless() && report.resets == 0, "{report:#?}");
}

/// The link that a standby of the container has on the backup.
const LINK: &str = "us-redis-server";

/// Kills what stands by on the backup, and sees to it that nothing else can.
fn spoil(backup: &Host) {
    let standby = backup.processes_named("namespaces");
    // The first process of the container in waiting, and the one that is restored ahead.
    assert!((1..=2).contains(&standby.len()), "{standby:?}");
    for pid in standby {
        // The end of the first is the other's.
        let killed = kill(Pid::from_raw(pid), Signal::SIGKILL);
        assert!(matches!(killed, Ok(()) | Err(Errno::ESRCH)), "{killed:?}");
    }
    assert!(ip(backup, &["link", "delete", LINK]));
    assert!(ip(backup, &["link", "add", LINK, "type", "bridge"]));
}

fn mend(backup: &Host) {
    assert!(ip(backup, &["link", "delete", LINK]));
}

fn ip(host: &Host, words: &[&str]) -> bool {
    run(&mut host.command("ip", words))
        .unwrap()
        .status
        .success()
}

fn signal(all: &[i32], signal: Signal) {
    for pid in all {
        kill(Pid::from_raw(*pid), signal).unwrap();
    }
}

/// Waits until the backup has said this.
fn said(service: &Service, words: &str) {
    let end = Instant::now() + LIMIT;
    while !service.said("backup").contains(words) {
        assert!(
            Instant::now() < end,
            "no {words:?} in {}",
            service.said("backup")
        );
        std::thread::park_timeout(Duration::from_millis(2));
    }
}
