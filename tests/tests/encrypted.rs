//! With keys, what passes between the hosts cannot be read on the way, and a takeover works as without.
#![expect(
    clippy::unwrap_used,
    reason = "the helpers of a test fail as the test does"
)]

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use understudy_bench::bed::{Bed, Process};
use understudy_bench::rng::Rng;
use understudy_bench::service::{Loss, Protection, Service, redis};
use understudy_tests::{LIMIT, understudy};

const PORT: u16 = 6379;
const SECRET: &str = "nobody-on-the-way-may-read-this-value";

#[test]
fn a_value_is_kept_and_not_shown() {
    let (bed, scratch) = (Bed::new().unwrap(), TempDir::new().unwrap());
    let frames = scratch.path().join("frames");
    let capture = capture(&bed, &frames);
    let protection = Protection {
        understudy: understudy().unwrap(),
        options: Vec::new(),
        ..Protection::default()
    };
    let service = scratch.path().join("service");
    let service = Service::protected(&bed, &service, &protection, &redis(PORT), PORT).unwrap();
    let client = bed.host("client").unwrap();
    let connections = client.inside(|| {
        let made = (0..20).map(|_| TcpStream::connect(service.address));
        Ok(made.collect::<Result<Vec<_>, _>>()?)
    });
    let mut connections = connections.unwrap();
    for (n, connection) in connections.iter_mut().enumerate() {
        connection.set_read_timeout(Some(LIMIT)).unwrap();
        ask(connection, &format!("SET {n} {SECRET}\r\n"), "+OK\r\n");
    }
    service.lose(&bed, Loss::Host, &mut Rng::new(3, 0)).unwrap();
    let kept = format!("${}\r\n{SECRET}\r\n", SECRET.len());
    for (n, connection) in connections.iter_mut().enumerate() {
        ask(connection, &format!("GET {n}\r\n"), &kept);
    }
    service.await_takeover(LIMIT).unwrap();
    let frames = end(capture, &frames);
    assert!(
        frames.len() > 1_000_000,
        "only {} bytes were seen",
        frames.len()
    );
    let shown = |words: &[u8]| frames.windows(words.len()).any(|seen| seen == words);
    assert!(!shown(SECRET.as_bytes()), "the value is shown");
    assert!(!shown(b"redis-server"), "the command is shown");
}

fn ask(connection: &mut TcpStream, question: &str, expected: &str) {
    connection.write_all(question.as_bytes()).unwrap();
    let mut answer = vec![0; expected.len()];
    connection.read_exact(&mut answer).unwrap();
    assert_eq!(String::from_utf8_lossy(&answer), expected);
}

/// Keeps what passes between the hosts, from now on.
fn capture(bed: &Bed, frames: &Path) -> Process {
    let path = frames.display().to_string();
    let words = [
        "-i",
        "up0",
        "-U",
        "--immediate-mode",
        "-Z",
        "root",
        "-w",
        &path,
        "tcp port 7400",
    ];
    let backup = bed.host("backup").unwrap();
    let mut tcpdump = backup.command("tcpdump", &words);
    let capture = backup.spawn(tcpdump.stdout(Stdio::null()).stderr(Stdio::null()));
    let limit = Instant::now() + LIMIT;
    // The file's header is written when frames are seen.
    while fs::metadata(frames).map_or(0, |file| file.len()) == 0 {
        assert!(Instant::now() < limit, "tcpdump has not begun");
        std::thread::park_timeout(Duration::from_millis(2));
    }
    capture.unwrap()
}

fn end(mut capture: Process, frames: &Path) -> Vec<u8> {
    kill(Pid::from_raw(capture.pid()), Signal::SIGINT).unwrap();
    capture.wait(LIMIT).unwrap();
    fs::read(frames).unwrap()
}
