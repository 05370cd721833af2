//! Checkpoints of programs that run and write meanwhile, compared page by page with the stopped process.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall panic")]

mod common;

use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use checkpointer::{CheckpointError, Checkpointer, ImageStore, Settings, StoppedThread};
use common::{
    Target, board, compare, compile_source, directory, rounds, signal, stop_thread, wait_stopped,
    wait_until,
};
use eventlog::image::{decode, encode};
use nix::libc;
use nix::sys::signal::Signal::{SIGCONT, SIGKILL};
use sys::ptrace;

/// A thread that is to stop runs in real time until it has: left so, it would keep a processor from everybody.
#[test]
fn nothing_outlives_its_tracer_in_a_pause() {
    const TRACED: &str = "TRACED";
    if let Ok(pid) = std::env::var(TRACED) {
        let pid = pid.parse().unwrap();
        let mut checkpointer = Checkpointer::attach(pid, Settings::default()).unwrap();
        let own = std::process::id() as i32;
        let _ = checkpointer.checkpoint(&mut |_| signal(own, SIGKILL));
        unreachable!("it was killed");
    }
    let directory = directory();
    let mut target = Target::start(directory.path(), &directory.path().join("board"));
    let name = std::thread::current().name().unwrap().to_owned();
    let tracer = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &name])
        .env(TRACED, target.pid().to_string())
        .output();
    assert_eq!(tracer.unwrap().status.signal(), Some(SIGKILL as i32));
    assert_eq!(target.0.wait().unwrap().signal(), Some(SIGKILL as i32));
}

#[test]
fn every_checkpoint_equals_the_stopped_process() {
    let directory = directory();
    let board = directory.path().join("board");
    let mut target = Target::start(directory.path(), &board);
    let pid = target.pid();
    let mut checkpointer = Checkpointer::attach(pid, Settings::default()).unwrap();
    let mut store = ImageStore::new();
    let mut pages = 0;
    for round in 0..40 {
        // Several, since a mapping may be hidden when a full one begins and open at its cut.
        if round >= 20 && round % 2 == 0 {
            checkpointer.make_full();
        }
        let before = rounds(&board);
        // Each thread has a signal of its own pending when the pause ends: none runs before it takes effect.
        let taken = checkpointer.checkpoint(&mut |threads| {
            for thread in threads {
                stop_thread(pid, thread.tid);
            }
        });
        let (capture, _) =
            taken.unwrap_or_else(|error| panic!("{error}; the target: {:?}", target.0.wait()));
        wait_stopped(pid);
        let bytes = encode(&capture.image());
        store.apply(&decode(&bytes).unwrap()).unwrap();
        checkpointer.recycle(capture);
        let (compared, wrong) = compare(pid, &store);
        assert!(
            wrong.is_empty(),
            "checkpoint {round}: {} pages differ, first at {:#x}",
            wrong.len(),
            wrong[0]
        );
        pages += compared;
        signal(pid, SIGCONT);
        target.goes_on(&board, before, 3);
    }
    assert_eq!(store.sequence(), 40);
    assert!(pages > 40_000);
}

#[test]
fn what_lies_beside_memory_that_is_mapped_again_is_in_a_full_checkpoint() {
    let directory = directory();
    let board = directory.path().join("board");
    let program = compile_source("border", directory.path(), &[]);
    let target = Target(Command::new(program).arg(&board).spawn().unwrap());
    wait_until("the target starts", || rounds(&board)[0] > 0);
    let pid = target.pid();
    let mut checkpointer = Checkpointer::attach(pid, Settings::default()).unwrap();
    for round in 0..100 {
        checkpointer.make_full();
        let mut stop = |threads: &[StoppedThread]| stop_thread(pid, threads[0].tid);
        let (capture, _) = checkpointer.checkpoint(&mut stop).unwrap();
        wait_stopped(pid);
        let mut store = ImageStore::new();
        let bytes = encode(&capture.image());
        store.apply(&decode(&bytes).unwrap()).unwrap();
        checkpointer.recycle(capture);
        let (_, wrong) = compare(pid, &store);
        assert_eq!(wrong, [], "checkpoint {round}: pages differ");
        signal(pid, SIGCONT);
    }
}

#[test]
fn a_sleep_that_was_stopped_before_is_in_the_image_as_it_was_called() {
    let sleep = Command::new("sleep").arg("60").spawn().unwrap();
    let target = Target(sleep);
    let syscall = format!("/proc/{}/syscall", target.pid());
    let sleeps = || std::fs::read_to_string(&syscall).unwrap_or_default();
    let number = libc::SYS_clock_nanosleep;
    wait_until("it sleeps", || sleeps().starts_with(&format!("{number} ")));
    let mut checkpointer = Checkpointer::attach(target.pid(), Settings::default()).unwrap();
    for _ in 0..3 {
        wait_until("it sleeps again", || !sleeps().starts_with("running"));
        let (capture, _) = checkpointer.checkpoint(&mut |_| {}).unwrap();
        let registers = ptrace::from_words(capture.image().threads[0].registers);
        assert_eq!(registers.rax, number.cast_unsigned());
        checkpointer.recycle(capture);
    }
}

#[test]
fn a_process_without_its_first_thread_is_refused_and_goes_on() {
    let directory = directory();
    let path = directory.path().join("board");
    let program = compile_source("headless", directory.path(), &[]);
    let mut target = Target(Command::new(program).arg(&path).spawn().unwrap());
    wait_until("the first thread has ended", || board(&path)[0] > 0);
    let refused = Checkpointer::attach(target.pid(), Settings::default());
    let pid = target.pid();
    assert!(
        matches!(refused, Err(CheckpointError::NoLeader { pid: of }) if of == pid),
        "{refused:?}"
    );
    let before = board(&path)[0];
    wait_until("the other goes on", || {
        assert!(target.0.try_wait().unwrap().is_none(), "the target ended");
        board(&path)[0] > before
    });
}
