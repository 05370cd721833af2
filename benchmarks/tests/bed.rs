//! The test bed on real servers. Needs root and redis-server.
#![expect(
    clippy::unwrap_used,
    reason = "the helpers of a test fail as the test does"
)]

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use understudy_bench::bed::{Bed, Host, Process};
use understudy_bench::load::{self, Config};
use understudy_bench::rng::Rng;

const PORT: u16 = 6379;

fn redis(bed: &Bed, host: &Host) -> (Process, SocketAddr) {
    let args = [
        "--port",
        &PORT.to_string(),
        "--bind",
        "0.0.0.0",
        "--protected-mode",
        "no",
        "--save",
        "",
        "--dir",
        "/tmp",
    ];
    let mut process = host
        .spawn(host.command("redis-server", &args).stdout(Stdio::null()))
        .unwrap();
    let server = SocketAddr::from((host.address(), PORT));
    bed.host("client")
        .unwrap()
        .wait_for_listener(server, &mut process, Duration::from_secs(10))
        .unwrap();
    (process, server)
}

fn everything(server: SocketAddr) -> Config {
    Config {
        duration: Duration::from_secs(2),
        closed: 50,
        pipelined: 10,
        slow: 3,
        half_closing: 5,
        idle: 200,
        value_len: 1024,
        fill_mib: 8,
        ..Config::new(server)
    }
}

#[test]
fn redis_has_a_flawless_report() {
    let bed = Bed::new().unwrap();
    let (_process, server) = redis(&bed, bed.host("primary").unwrap());
    let report = bed
        .host("client")
        .unwrap()
        .inside(|| load::run(&everything(server), None))
        .unwrap();
    assert!(report.flawless(), "{report:#?}");
    assert!(
        report.audit.read > 8000 && report.latency.count > 1000,
        "{report:#?}"
    );
}

#[test]
fn a_rate_is_kept() {
    let bed = Bed::new().unwrap();
    let (_process, server) = redis(&bed, bed.host("primary").unwrap());
    let config = Config {
        closed: 20,
        rate: Some(1000),
        duration: Duration::from_secs(2),
        ..Config::new(server)
    };
    let report = bed
        .host("client")
        .unwrap()
        .inside(|| load::run(&config, None))
        .unwrap();
    assert!(report.flawless(), "{report:#?}");
    assert!(
        (1600..=2050).contains(&report.latency.count),
        "{} replies in 2 s at 1000/s",
        report.latency.count
    );
}

#[test]
fn the_loss_of_a_host_is_complete_and_seen() {
    let bed = Bed::new().unwrap();
    let primary = bed.host("primary").unwrap();
    let (mut process, server) = redis(&bed, primary);
    // In a process tree and a network namespace of its own, as a container is.
    let script = "unshare --net tail -f /dev/null & echo $!; wait";
    let mut parent = primary
        .spawn(
            primary
                .command("sh", &["-c", script])
                .stdout(Stdio::piped()),
        )
        .unwrap();
    let mut line = String::new();
    BufReader::new(parent.child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let contained = format!("/proc/{}", line.trim());
    assert!(std::fs::exists(&contained).unwrap());
    let config = Config {
        patience: Duration::from_secs(1),
        ..everything(server)
    };
    let (steps, seen) = mpsc::channel();
    let client = bed.host("client").unwrap();
    let (report, lost_at) = std::thread::scope(|scope| {
        let load = scope.spawn(|| client.inside(|| load::run(&config, Some(steps))));
        assert_eq!(seen.recv().unwrap().index, 0, "steps are told as they pass");
        while seen.recv().unwrap().index < 50 {}
        let lost_at = primary.lose(&mut Rng::new(3, 0)).unwrap();
        (load.join().unwrap().unwrap(), lost_at)
    });
    assert!(!process.wait(Duration::from_secs(5)).unwrap().success());
    parent.wait(Duration::from_secs(5)).unwrap();
    assert!(
        !std::fs::exists(&contained).unwrap(),
        "{contained} survived"
    );
    let gap = report.gap_around(lost_at).unwrap();
    assert!(!gap.ended && gap.ms > 500.0, "{gap:?}");
    assert_eq!(report.broken, 50 + 10 + 3 + 5 + 200, "{report:#?}");
    assert!(report.audit.failed.is_some() && !report.flawless());
}

#[test]
fn hosts_reach_each_other_and_a_cut_off_one_does_not() {
    let bed = Bed::new().unwrap();
    let (_process, server) = redis(&bed, bed.host("backup").unwrap());
    let client = bed.host("client").unwrap();
    let reach = || {
        client.inside(|| {
            Ok(std::net::TcpStream::connect_timeout(
                &server,
                Duration::from_millis(300),
            )?)
        })
    };
    reach().unwrap();
    bed.host("backup").unwrap().set_uplink(false).unwrap();
    reach().unwrap_err();
    bed.host("backup").unwrap().set_uplink(true).unwrap();
    let end = Instant::now() + Duration::from_secs(5);
    while reach().is_err() {
        assert!(
            Instant::now() < end,
            "the uplink is up again and leads nowhere"
        );
    }
}

#[test]
fn what_a_host_sends_is_seen_and_nobody_elses() {
    let bed = Bed::new().unwrap();
    let (_process, server) = redis(&bed, bed.host("primary").unwrap());
    let watch = |host| {
        bed.watch(bed.host(host).unwrap(), &format!("host {}", server.ip()))
            .unwrap()
    };
    let (servers, others) = (watch("primary"), watch("backup"));
    let config = Config {
        duration: Duration::from_millis(50),
        ..Config::new(server)
    };
    bed.host("client")
        .unwrap()
        .inside(|| load::run(&config, None))
        .unwrap();
    let frames = servers.end().unwrap();
    assert!(
        frames.len() > 10 && frames.iter().any(|line| line.contains("Flags [S.]")),
        "{frames:#?}"
    );
    let wrong: Vec<_> = others
        .end()
        .unwrap()
        .into_iter()
        .filter(|line| !line.contains("ARP"))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_bed_leaves_nothing_behind() {
    let bed = Bed::new().unwrap();
    let (process, _) = redis(&bed, bed.host("primary").unwrap());
    let names: Vec<String> = ["primary", "backup", "client"]
        .map(|h| bed.host(h).unwrap().netns().to_owned())
        .to_vec();
    let pid = process.pid();
    std::mem::forget(process);
    drop(bed);
    for name in names {
        assert!(
            !std::fs::exists(format!("/run/netns/{name}")).unwrap(),
            "{name} is still there"
        );
    }
    let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    assert!(state.is_empty() || state.contains(") Z "), "{state}");
}
