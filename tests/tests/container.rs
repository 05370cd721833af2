//! `understudy run --backup none`: the same container, without protection.

use std::time::Duration;

use tempfile::TempDir;
use understudy_bench::bed::{BRIDGE, Bed};
use understudy_bench::load::{self, Config};
use understudy_bench::service::{Service, redis};
use understudy_tests::{LIMIT, run, understudy};

const PORT: u16 = 6379;

#[test]
fn clients_of_every_kind_are_served() {
    let (bed, scratch) = (Bed::new().unwrap(), TempDir::new().unwrap());
    let service = Service::contained(
        &bed,
        scratch.path(),
        &understudy().unwrap(),
        &redis(PORT),
        PORT,
    )
    .unwrap();
    let config = Config {
        duration: Duration::from_secs(2),
        closed: 50,
        pipelined: 10,
        slow: 3,
        half_closing: 5,
        idle: 200,
        ..Config::new(service.address)
    };
    let report = bed
        .host("client")
        .unwrap()
        .inside(|| load::run(&config, None))
        .unwrap();
    assert!(report.flawless() && report.resets == 0, "{report:#?}");
    assert!(report.latency.count > 1000, "{report:#?}");
}

#[test]
fn the_status_of_the_command_is_passed_on() {
    let bed = Bed::new().unwrap();
    let primary = bed.host("primary").unwrap();
    let understudy = understudy().unwrap();
    let ip = format!("{}/24", bed.address(10));
    for status in [0, 3, 77] {
        let script = format!("exit {status}");
        let words = [
            "run",
            "--backup",
            "none",
            "--ip",
            &ip,
            "--bridge",
            BRIDGE,
            "--insecure",
            "--",
            "sh",
            "-c",
            &script,
        ];
        let ended = run(&mut primary.command(&understudy.display().to_string(), &words)).unwrap();
        assert_eq!(ended.status.code(), Some(status), "{ended:?}");
    }
}

#[test]
fn nothing_is_left_behind_when_it_is_told_to_end() {
    let (bed, scratch) = (Bed::new().unwrap(), TempDir::new().unwrap());
    let mut service = Service::contained(
        &bed,
        scratch.path(),
        &understudy().unwrap(),
        &redis(PORT),
        PORT,
    )
    .unwrap();
    let primary = bed.host("primary").unwrap();
    assert_eq!(primary.processes_named("redis-server").len(), 1);
    service.terminate(LIMIT).unwrap();
    assert!(primary.processes_named("redis-server").is_empty());
    assert!(primary.processes_named("understudy").is_empty());
    let links =
        run(&mut primary.command("ip", &["-br", "link", "show", "master", BRIDGE])).unwrap();
    let links = String::from_utf8(links.stdout).unwrap();
    assert_eq!(
        links.lines().count(),
        1,
        "only the uplink is a port of the bridge: {links}"
    );
}
