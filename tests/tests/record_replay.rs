//! `understudy record`, then `understudy replay`: every byte is printed again, and a damaged log is refused.
#![expect(
    clippy::unwrap_used,
    reason = "the helpers of a test fail as the test does"
)]

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use understudy_bench::bed::below;
use understudy_tests::{
    Ended, Running, free_address, limit, recording, repeats, requests, run, understudy,
};

/// Records `command`, with `drive` acting as its clients, and returns the log's directory and the run, which must
/// have ended well.
fn record(scratch: &Path, command: &[&str], drive: impl FnOnce(&Running)) -> (PathBuf, Ended) {
    let (log, ended) = record_any(scratch, command, drive);
    let said = String::from_utf8_lossy(&ended.stdout);
    assert!(
        ended.status.success(),
        "recording {command:?}: {}, {}\n{said}",
        ended.status,
        ended.stderr
    );
    (log, ended)
}

/// As [`record`], however the run ended.
fn record_any(scratch: &Path, command: &[&str], drive: impl FnOnce(&Running)) -> (PathBuf, Ended) {
    let log = scratch.join("log");
    let ended = recording::record(&log, command, scratch, drive).unwrap();
    (log, ended)
}

fn replay(log: &Path) -> Ended {
    recording::replay(log).unwrap()
}

/// Records and replays; what was printed, after checking that both printed the same.
fn twice(command: &[&str], prepare: impl Fn(&Path), drive: impl Fn(&Running, &Path)) -> String {
    let mut printed = String::new();
    for round in 1..=repeats() {
        let scratch = TempDir::new().unwrap();
        prepare(scratch.path());
        let (log, recorded) = record(scratch.path(), command, |running| {
            drive(running, scratch.path())
        });
        let replayed = replay(&log);
        assert!(
            replayed.status.success(),
            "round {round}: {}",
            replayed.stderr
        );
        recording::same(&recorded, &replayed).unwrap_or_else(|e| panic!("round {round}: {e}"));
        printed = String::from_utf8_lossy(&recorded.stdout).into_owned();
    }
    printed
}

/// [`twice`] for a program that needs no clients, with a file of the given name and content beside it.
fn script(command: &[&str], name: &str, text: &str) -> String {
    twice(
        command,
        |scratch| fs::write(scratch.join(name), text).unwrap(),
        |_, _| {},
    )
}

/// Compiles a program in C.
fn compile(command: &[&str], text: &str, scratch: &Path) -> PathBuf {
    let (source, program) = (scratch.join("program.c"), scratch.join("program"));
    fs::write(&source, text).unwrap();
    let ended = run(Command::new(command[0])
        .args(&command[1..])
        .arg("-o")
        .arg(&program)
        .arg(&source))
    .unwrap();
    assert!(ended.status.success(), "{}", ended.stderr);
    program
}

/// Compiles a program that needs no library beside it.
fn compile_static(compiler: &str, scratch: &Path) -> PathBuf {
    compile(
        &[compiler, "-static", "-O1", "-pthread"],
        include_str!("programs/alone.c"),
        scratch,
    )
}

fn lines(text: &str) -> usize {
    text.lines().count()
}

#[test]
fn redis_under_redis_benchmark() {
    let address = free_address().unwrap();
    let port = address.port().to_string();
    let printed = twice(
        &["redis-server", "--port", &port, "--bind", "127.0.0.1"],
        |_| {},
        |running, _| {
            running.listens(address).unwrap();
            let requests = requests().to_string();
            let load = ["-p", &port, "-n", &requests, "-c", "50", "-q"];
            let clients = Running::start(Command::new("redis-benchmark").args(load)).unwrap();
            let ended = clients.end(limit()).unwrap();
            assert!(
                ended.status.success() && !String::from_utf8_lossy(&ended.stdout).contains("rror"),
                "{ended:?}"
            );
            run(Command::new("redis-cli").args(["-p", &port, "SHUTDOWN", "NOSAVE"])).unwrap();
        },
    );
    assert!(
        printed.contains("Ready to accept connections") && printed.contains("bye bye"),
        "{printed}"
    );
}

#[test]
fn lighttpd_under_wrk() {
    let address = free_address().unwrap();
    let printed = twice(
        // What it says about itself goes to standard error.
        &["sh", "-c", "exec lighttpd -D -f lighttpd.conf 2>&1"],
        |scratch| lighttpd_files(scratch, address),
        |running, _| {
            running.listens(address).unwrap();
            let url = format!("http://{address}/page.html");
            let ended =
                run(Command::new("wrk").args(["-t", "1", "-c", "10", "-d", "1s", &url])).unwrap();
            let said = String::from_utf8_lossy(&ended.stdout);
            assert!(
                ended.status.success()
                    && !said.contains("Non-2xx")
                    && !said.contains("Socket errors"),
                "{said}"
            );
            // Its own number would be one of the recording's PID namespace.
            let servers = below(running.pid().as_raw(), "lighttpd");
            assert_eq!(servers.len(), 1, "{servers:?}");
            // Lets it answer what is on its way; SIGTERM would make its status depend on that.
            kill(Pid::from_raw(servers[0]), Signal::SIGINT).unwrap();
        },
    );
    assert!(
        printed.contains("server started") && printed.contains("server stopped"),
        "{printed}"
    );
}

fn lighttpd_files(scratch: &Path, address: SocketAddr) {
    let root = scratch.display();
    let (ip, port) = (address.ip(), address.port());
    let lines = format!(
        "server.document-root = \"{root}\"\nserver.bind = \"{ip}\"\nserver.port = {port}\n\
         server.pid-file = \"{root}/pid\"\nmimetype.assign = ( \".html\" => \"text/html\" )\n"
    );
    fs::write(scratch.join("lighttpd.conf"), lines).unwrap();
    fs::write(
        scratch.join("page.html"),
        "<p>a page of some length</p>\n".repeat(100),
    )
    .unwrap();
}

#[test]
fn python_with_time_random_threads_and_subprocesses() {
    let printed = script(
        &["/usr/bin/python3", "program.py"],
        "program.py",
        include_str!("programs/program.py"),
    );
    assert!(
        lines(&printed) > 25 && printed.ends_with("done\n"),
        "{printed}"
    );
}

#[test]
fn bash_with_pipes_and_subprocesses() {
    let printed = script(
        &["bash", "program.sh"],
        "program.sh",
        include_str!("programs/program.sh"),
    );
    assert!(
        lines(&printed) > 10 && printed.ends_with("done\n"),
        "{printed}"
    );
}

#[test]
fn threads_that_share_a_lock() {
    let command = ["gcc", "-O1", "-pthread"];
    let prepare = |scratch: &Path| {
        drop(compile(
            &command,
            include_str!("programs/threads.c"),
            scratch,
        ))
    };
    let printed = twice(&["./program"], prepare, |_, _| {});
    assert!(
        lines(&printed) > 10 && printed.ends_with("done\n"),
        "{printed}"
    );
}

#[test]
fn threads_that_share_every_kind_of_lock() {
    let command = ["gcc", "-O1", "-pthread"];
    let source = include_str!("programs/primitives.c");
    let prepare = |scratch: &Path| drop(compile(&command, source, scratch));
    let printed = twice(&["./program"], prepare, |_, _| {});
    assert!(
        lines(&printed) > 9 && printed.ends_with("done\n"),
        "{printed}"
    );
}

#[test]
fn a_static_program_with_musl() {
    let printed = twice(
        &["./program"],
        |scratch| drop(compile_static("musl-gcc", scratch)),
        |_, _| {},
    );
    assert!(
        lines(&printed) > 10 && printed.ends_with("done\n"),
        "{printed}"
    );
}

#[test]
fn a_static_program_with_glibc() {
    let printed = twice(
        &["./program"],
        |scratch| drop(compile_static("gcc", scratch)),
        |_, _| {},
    );
    assert!(
        lines(&printed) > 10 && printed.ends_with("done\n"),
        "{printed}"
    );
}

#[test]
fn in_an_otherwise_empty_root_directory() {
    let in_empty_root = |scratch: &Path| {
        let program = compile_static("musl-gcc", scratch);
        fs::create_dir(scratch.join("root")).unwrap();
        fs::rename(program, scratch.join("root/program")).unwrap();
    };
    let printed = twice(&["chroot", "root", "/program"], in_empty_root, |_, _| {});
    assert!(
        lines(&printed) > 10 && printed.ends_with("done\n"),
        "{printed}"
    );
}

/// What others printed before they were ended with the program, or by its execve.
#[test]
fn what_others_printed_before_they_were_ended() {
    let printed = twice(
        &["bash", "-c", "for i in 1 2 3; do (echo $i) & done; exit 0"],
        |_| {},
        |_, _| {},
    );
    assert!(lines(&printed) <= 3, "{printed}");
    let source = include_str!("programs/leaves.c");
    let prepare = |scratch: &Path| drop(compile(&["gcc", "-O1", "-pthread"], source, scratch));
    for command in [&["./program"][..], &["./program", "end"]] {
        let printed = twice(command, prepare, |_, _| {});
        let done = printed.contains("done\n");
        assert!(lines(&printed) > 3 && done, "{command:?}: {printed}");
    }
}

/// cat copies from file to file in the kernel where it can.
#[test]
fn what_is_copied_to_a_file_that_is_standard_output() {
    let scratch = TempDir::new().unwrap();
    let text = "one more line\n".repeat(20_000);
    fs::write(scratch.path().join("text"), &text).unwrap();
    let command = "exec \"$0\" record --out log -- cat text >out";
    let mut recorder = Command::new("sh");
    recorder.args(["-c", command]).arg(understudy().unwrap());
    let recorded = run(recorder.current_dir(scratch.path())).unwrap();
    assert!(recorded.status.success(), "{}", recorded.stderr);
    let out = fs::read_to_string(scratch.path().join("out")).unwrap();
    let replayed = replay(&scratch.path().join("log"));
    assert!(out == text && replayed.stdout == text.as_bytes());
}

#[test]
fn signals_reach_the_program_and_its_status_comes_back() {
    let handled = "trap 'echo asked; exit 6' TERM INT HUP; echo begun; >begun; while :; do sleep 9 & wait; done";
    let plain = "echo begun; >begun; exec sleep 9";
    let table = [
        (Signal::SIGTERM, handled, 6, "begun\nasked\n"),
        (Signal::SIGINT, handled, 6, "begun\nasked\n"),
        (Signal::SIGHUP, handled, 6, "begun\nasked\n"),
        (Signal::SIGTERM, plain, 128 + 15, "begun\n"),
    ];
    for (signal, script, status, printed) in table {
        let scratch = TempDir::new().unwrap();
        let (log, recorded) = record_any(scratch.path(), &["sh", "-c", script], |running| {
            running.makes(&scratch.path().join("begun")).unwrap();
            kill(running.pid(), signal).unwrap();
        });
        for ended in [recorded, replay(&log)] {
            let said = String::from_utf8_lossy(&ended.stdout);
            assert_eq!(
                (ended.status.code(), &*said),
                (Some(status), printed),
                "{signal}: {ended:?}"
            );
        }
    }
}

/// A shell does not trap what was ignored at its start: the replay would depend on who begins it.
#[test]
fn what_the_caller_ignores_is_not_ignored_by_the_program() {
    let scratch = TempDir::new().unwrap();
    let log = scratch.path().join("log");
    let mut recorder = Command::new("env");
    recorder
        .arg("--ignore-signal=USR1")
        .arg(understudy().unwrap());
    recorder.args(["record", "--out"]).arg(&log);
    recorder.args([
        "--",
        "sh",
        "-c",
        "trap 'echo asked; exit 6' USR1; kill -USR1 $$",
    ]);
    for ended in [run(&mut recorder).unwrap(), replay(&log)] {
        let said = String::from_utf8_lossy(&ended.stdout);
        assert_eq!(
            (ended.status.code(), &*said),
            (Some(6), "asked\n"),
            "{ended:?}"
        );
    }
}

#[test]
fn a_damaged_log_is_refused_in_one_sentence() {
    let scratch = TempDir::new().unwrap();
    let (log, _) = record(scratch.path(), &["sh", "-c", "date +%N; echo done"], |_| {});
    for file in files(&log) {
        let whole = fs::read(&file).unwrap();
        for cut in [0, whole.len() / 2, whole.len().saturating_sub(1)] {
            fs::write(&file, &whole[..cut]).unwrap();
            refused(
                &log,
                &format!("{} cut to {cut} of {} bytes", file.display(), whole.len()),
            );
        }
        for at in [0, whole.len() / 3, whole.len() - 1] {
            let mut flipped = whole.clone();
            flipped[at] ^= 4;
            fs::write(&file, flipped).unwrap();
            refused(
                &log,
                &format!("{} with a flipped bit in byte {at}", file.display()),
            );
        }
        fs::write(&file, whole).unwrap();
    }
    let mended = replay(&log);
    assert!(
        mended.status.success(),
        "the undamaged log: {}",
        mended.stderr
    );
}

/// The files of a log that hold something.
fn files(log: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(log)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let all: Vec<_> = entries
        .filter(|path| path.is_file() && path.metadata().unwrap().len() > 0)
        .collect();
    assert!(!all.is_empty(), "{} holds no log", log.display());
    all
}

fn refused(log: &Path, damage: &str) {
    let ended = replay(log);
    assert!(!ended.status.success(), "{damage}: replayed all the same");
    let said = ended.stderr.trim_end();
    assert!(
        !said.is_empty() && lines(said) == 1 && !said.contains("panicked"),
        "{damage}: {said}"
    );
}

#[test]
fn a_missing_log_is_refused_in_one_sentence() {
    let scratch = TempDir::new().unwrap();
    refused(&scratch.path().join("nothing"), "no directory");
    refused(scratch.path(), "an empty directory");
}
