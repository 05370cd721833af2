//! A real server under load: how long the pauses are, and that a copy of it holds the same data.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall panic")]

mod common;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use checkpointer::{Checkpointer, ImageStore, Plan, Restored, Settings, Timing, restore};
use common::{Target, compare, directory, inside, path_of, wait_until};
use eventlog::image::{decode, encode};
use sys::process::RealTime;
use sys::remote::Batch;

/// A port that nobody listens on just now.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

fn server(directory: &Path, port: u16) -> Target {
    let mut command = Command::new("redis-server");
    command.args([
        "--save",
        "",
        "--bind",
        "127.0.0.1",
        "--enable-debug-command",
        "local",
        "--port",
        &port.to_string(),
    ]);
    let server = Target(
        command
            .current_dir(directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap(),
    );
    wait_until("the server listens", || {
        std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
    });
    server
}

fn cli(port: u16, words: &[&str]) -> String {
    let output = Command::new("redis-cli")
        .args(["-p", &port.to_string()])
        .args(words)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn load(port: u16) -> Target {
    let mut command = Command::new("redis-benchmark");
    command.args([
        "-p",
        &port.to_string(),
        "-c",
        "50",
        "-t",
        "set",
        "-r",
        "150000",
        "-d",
        "200",
        "-n",
        "100000000",
    ]);
    Target(
        command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    )
}

fn at(sorted: &[Duration], part: f64) -> u128 {
    sorted[((sorted.len() - 1) as f64 * part) as usize].as_micros()
}

fn report(timings: &[Timing]) -> u128 {
    let part = |name: &str, of: fn(&Timing) -> Duration| {
        let mut all: Vec<_> = timings.iter().map(of).collect();
        all.sort_unstable();
        println!(
            "{name:8} p50 {:6} p90 {:6} p99 {:6} max {:6} µs",
            at(&all, 0.5),
            at(&all, 0.9),
            at(&all, 0.99),
            at(&all, 1.0)
        );
        at(&all, 0.5)
    };
    let median = part("pause", |timing| timing.pause);
    part("stop", |timing| timing.stop);
    part("threads", |timing| timing.threads);
    part("pages", |timing| timing.pages);
    part("resume", |timing| timing.resume);
    part("live", |timing| timing.live);
    part("extra", |timing| timing.extra_stop);
    let mut pages: Vec<_> = timings
        .iter()
        .map(|timing| (timing.pause_pages, timing.live_pages))
        .collect();
    pages.sort_unstable();
    println!(
        "pages in the pause and live, median: {:?}",
        pages[pages.len() / 2]
    );
    median
}

#[test]
fn pauses_are_short_and_a_copy_holds_the_same_data() {
    let directory = directory();
    let port = free_port();
    let server = server(directory.path(), port);
    cli(port, &["debug", "populate", "150000", "key", "500"]);
    let load = load(port);
    let pid = server.pid();
    let priority = RealTime::enter(2).unwrap();
    let mut checkpointer = Checkpointer::attach(pid, Settings::default()).unwrap();
    let mut store = ImageStore::new();
    let mut timings = Vec::new();
    let count = std::env::var("TEST_CHECKPOINTS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(30);
    let mut next = Instant::now();
    for _ in 0..count {
        let (capture, timing) = checkpointer.checkpoint(&mut |_| {}).unwrap();
        store
            .apply(&decode(&encode(&capture.image())).unwrap())
            .unwrap();
        checkpointer.recycle(capture);
        timings.push(timing);
        // An epoch is a time by definition.
        next += Duration::from_millis(100);
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    let median = report(&timings[1..]);
    println!("{} MiB held", store.page_count() / 256);
    drop(load);
    let digest = cli(port, &["debug", "digest"]);
    let (capture, _) = checkpointer
        .checkpoint(&mut |threads| {
            for thread in threads {
                common::stop_thread(pid, thread.tid);
            }
        })
        .unwrap();
    common::wait_stopped(pid);
    store
        .apply(&decode(&encode(&capture.image())).unwrap())
        .unwrap();
    let (compared, wrong) = compare(pid, &store);
    println!("{compared} pages compared");
    assert!(
        wrong.is_empty(),
        "{} of {compared} pages differ: {wrong:x?}",
        wrong.len()
    );
    drop(priority);
    let image = directory.path().join("image");
    std::fs::write(&image, encode(&store.full_image())).unwrap();
    let epolls = epoll_sets(pid);
    drop(server);
    std::fs::write(
        directory.path().join("board"),
        format!("{port} {digest} {epolls}"),
    )
    .unwrap();
    assert!(inside(
        "inside_the_server_answers",
        &image,
        &directory.path().join("board")
    ));
    assert!(median < 5000, "the median pause was {median} µs");
}

/// What the epoll set of a server watches: its number, then the numbers of the listeners.
fn epoll_sets(pid: i32) -> String {
    let mut words = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let entry = entry.unwrap();
        let target = std::fs::read_link(entry.path()).unwrap();
        if target.to_string_lossy() == "anon_inode:[eventpoll]" {
            words.push(entry.file_name().into_string().unwrap());
            let info = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{}", words[0])).unwrap();
            let watched = info.lines().filter(|line| line.starts_with("tfd:"));
            words.extend(watched.map(|line| line.split_whitespace().nth(1).unwrap().to_owned()));
        }
    }
    words.join(" ")
}

/// Gives the copy its listener and its epoll set, by calls made inside it.
fn give_descriptors(restored: &Restored, port: u16, numbers: &[u64]) {
    let [set, watched @ ..] = numbers else {
        panic!("no epoll set")
    };
    let data = restored.data().start;
    let mut address = vec![2, 0];
    address.extend_from_slice(&port.to_be_bytes());
    address.extend_from_slice(&[127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
    sys::memory::write(restored.pid(), data, &address).unwrap();
    sys::memory::write_u64(restored.pid(), data + 64, 1).unwrap();
    let high = 600;
    let mut batch = Batch::new();
    let nonblocking = libc::SOCK_STREAM | libc::SOCK_NONBLOCK;
    batch.push(libc::SYS_socket, [2, nonblocking as u64, 0, 0, 0, 0]);
    let made = restored.run(restored.pid(), &batch).unwrap()[0] as u64;
    let mut batch = Batch::new();
    batch.push(libc::SYS_dup3, [made, high, 0, 0, 0, 0]);
    batch.push(libc::SYS_close, [made, 0, 0, 0, 0, 0]);
    batch.push(libc::SYS_setsockopt, [high, 1, 2, data + 64, 4, 0]);
    batch.push(libc::SYS_bind, [high, data, 16, 0, 0, 0]);
    batch.push(libc::SYS_listen, [high, 511, 0, 0, 0, 0]);
    batch.push(libc::SYS_epoll_create1, [0, 0, 0, 0, 0, 0]);
    let results = restored.run(restored.pid(), &batch).unwrap();
    assert!(results.iter().all(|&result| result >= 0), "{results:?}");
    let made = results[5] as u64;
    let mut batch = Batch::new();
    batch.push(libc::SYS_dup3, [made, *set, 0, 0, 0, 0]);
    for (index, &number) in watched.iter().enumerate() {
        let event = data + 128 + 16 * index as u64;
        let mut bytes = 1u32.to_le_bytes().to_vec();
        bytes.extend_from_slice(&number.to_le_bytes());
        sys::memory::write(restored.pid(), event, &bytes).unwrap();
        batch.push(libc::SYS_dup3, [high, number, 0, 0, 0, 0]);
        batch.push(libc::SYS_epoll_ctl, [*set, 1, number, event, 0, 0]);
    }
    let results = restored.run(restored.pid(), &batch).unwrap();
    assert!(results.iter().all(|&result| result >= 0), "{results:?}");
}

#[test]
#[ignore = "runs inside a namespace that another test makes"]
fn inside_the_server_answers() {
    let told = std::fs::read_to_string(path_of("TEST_BOARD")).unwrap();
    let words: Vec<_> = told.split_whitespace().collect();
    let port = words[0].parse().unwrap();
    let numbers: Vec<u64> = words[2..]
        .iter()
        .map(|word| word.parse().unwrap())
        .collect();
    let mut store = ImageStore::new();
    store
        .apply(&decode(&std::fs::read(path_of("TEST_IMAGE")).unwrap()).unwrap())
        .unwrap();
    let began = Instant::now();
    let restored = restore(
        &store,
        Plan {
            keep: vec![0, 1, 2],
            ..Plan::default()
        },
    )
    .unwrap();
    println!(
        "{} MiB restored in {:?}",
        store.page_count() / 256,
        began.elapsed()
    );
    give_descriptors(&restored, port, &numbers);
    let copy = common::Copy(restored.pid());
    restored.finish(&[]).unwrap();
    assert_eq!(cli(port, &["ping"]), "PONG");
    assert_eq!(cli(port, &["debug", "digest"]), words[1]);
    assert_eq!(cli(port, &["set", "after", "takeover"]), "OK");
    assert!(!copy.has_ended());
}
