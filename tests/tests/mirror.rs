//! What a server writes to its files is there when it goes on elsewhere, to the byte, and nothing else is.
#![expect(
    clippy::unwrap_used,
    reason = "the helpers of a test fail as the test does"
)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use tempfile::TempDir;
use understudy_bench::bed::Bed;
use understudy_bench::load::{self, Config, Report};
use understudy_bench::rng::Rng;
use understudy_bench::service::{Loss, Protection, Service, redis};
use understudy_tests::{options, repeats, understudy};

const PORT: u16 = 6379;

/// A redis that keeps everything in files below `data`.
fn server(data: &Path) -> Vec<String> {
    let mut command = redis(PORT);
    let more = [
        "--dir",
        data.to_str().unwrap(),
        "--appendonly",
        "yes",
        "--appendfsync",
        "everysec",
        // Rewritten in the beginning: files are made, renamed and removed, by a child of the server, too. Not behind the
        // loss: that would bring back what is missing.
        "--auto-aof-rewrite-min-size",
        "1mb",
        "--auto-aof-rewrite-percentage",
        "1000",
        "--enable-debug-command",
        "yes",
    ];
    command.extend(more.map(str::to_owned));
    command
}

/// A line of redis's answer.
fn ask(at: SocketAddr, question: &str) -> String {
    let mut connection = TcpStream::connect(at).unwrap();
    connection
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    connection.write_all(question.as_bytes()).unwrap();
    connection.write_all(b"\r\n").unwrap();
    let mut line = String::new();
    BufReader::new(connection).read_line(&mut line).unwrap();
    line.trim().to_owned()
}

/// Files, with their lengths and when they were changed last.
type Listing = BTreeMap<PathBuf, (u64, i64, i64)>;

/// Every file below a directory.
fn listing(directory: &Path) -> Listing {
    let mut all = BTreeMap::new();
    let mut left = vec![directory.to_owned()];
    while let Some(next) = left.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let entry = entry.unwrap();
            let about = entry.metadata().unwrap();
            if about.is_dir() {
                left.push(entry.path());
            } else {
                let (changed, part) = (about.mtime(), about.mtime_nsec());
                all.insert(entry.path(), (about.len(), changed, part));
            }
        }
    }
    all
}

/// What happens to the hosts. What is left of the primary's files when its host is lost.
type Fault = fn(&Bed, &Service, &mut Rng, &Path) -> Listing;

fn host_lost(bed: &Bed, service: &Service, rng: &mut Rng, data: &Path) -> Listing {
    service.lose(bed, Loss::Host, rng).unwrap();
    listing(data)
}

/// What was written while there was no backup is in its copy, too.
fn backup_lost_and_host_then(bed: &Bed, service: &Service, rng: &mut Rng, data: &Path) -> Listing {
    const WITHOUT: Duration = Duration::from_secs(20);
    service.lose(bed, Loss::Backup, rng).unwrap();
    service.restart_backup(bed).unwrap();
    service.await_protected_again(bed, WITHOUT).unwrap();
    host_lost(bed, service, rng, data)
}

/// Loads the server and strikes meanwhile.
fn strike(bed: &Bed, service: &Service, seed: u64, fault: Fault, data: &Path) -> (Report, Listing) {
    let config = Config {
        duration: Duration::from_secs(6),
        seed,
        closed: 20,
        value_len: 512,
        fill_mib: 8,
        ..Config::new(service.address)
    };
    let mut rng = Rng::new(seed, 11);
    let step = 200 + usize::try_from(rng.below(200)).unwrap();
    let (steps, seen) = mpsc::channel();
    std::thread::scope(|scope| {
        let client = bed.host("client").unwrap();
        let load = scope.spawn(|| client.inside(|| load::run(&config, Some(steps))));
        let reached = seen.iter().any(|passed| passed.index == step);
        assert!(reached, "the load ended before its time");
        let left = fault(bed, service, &mut rng, data);
        (load.join().unwrap().unwrap(), left)
    })
}

#[test]
fn a_database_has_its_files_where_it_goes_on() {
    has_its_files(host_lost);
}

#[test]
fn a_backup_that_comes_back_has_the_files_again() {
    has_its_files(backup_lost_and_host_then);
}

fn has_its_files(fault: Fault) {
    for round in 0..repeats() {
        let (bed, scratch) = (Bed::new().unwrap(), TempDir::new().unwrap());
        let scratch_path = scratch.path().canonicalize().unwrap();
        let data = scratch_path.join("data");
        fs::create_dir(&data).unwrap();
        let mut options = options();
        options.extend(["--mirror".to_owned(), data.display().to_string()]);
        let protection = Protection {
            understudy: understudy().unwrap(),
            options,
            ..Protection::default()
        };
        let service =
            Service::protected(&bed, &scratch_path, &protection, &server(&data), PORT).unwrap();
        let (report, left) = strike(&bed, &service, u64::from(round) + 1, fault, &data);
        assert!(
            report.flawless() && report.resets == 0,
            "{report:#?}; the backup said: {}",
            service.said("backup")
        );
        assert!(service.takeover().is_some());

        // The files hold what the memory holds: they are read again in its place.
        let client = bed.host("client").unwrap();
        let asked = |question| {
            client
                .inside(|| Ok(ask(service.address, question)))
                .unwrap()
        };
        let [written, read, again] = ["DEBUG DIGEST", "DEBUG LOADAOF", "DEBUG DIGEST"].map(asked);
        assert_eq!(read, "+OK", "{}", service.said("backup"));
        assert!(written.len() > 40 && written == again, "{written} {again}");
        let copy = scratch_path.join("state/mirrors/redis-server/0");
        let names = listing(&copy).into_keys();
        let names: Vec<_> = names
            .filter_map(|path| path.file_name()?.to_str().map(str::to_owned))
            .collect();
        let is_base = |name: &&String| name.ends_with(".base.rdb");
        let base = names.iter().find(is_base).unwrap();
        assert_ne!(base, "appendonly.aof.1.base.rdb", "nothing was rewritten");
        // The lost host's own are as they were when it was lost.
        assert_eq!(asked("SET behind takeover"), "+OK");
        assert_eq!(listing(&data), left);
    }
}
