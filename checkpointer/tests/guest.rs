//! Threads that are inside the guest when a pause begins: the cut falls where their logs are whole.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall panic")]

mod common;

use std::process::Command;
use std::time::{Duration, Instant};

use checkpointer::{CheckpointError, Checkpointer, ImageStore, Settings};
use common::{OFFSETS, Target, board, compile_source, directory, wait_until};
use eventlog::image::{decode, encode};
use sys::process::RealTime;

const EFFECTS: usize = 0;
const RECORDS: usize = 2;
const HELD: usize = 4;
const REDO: usize = 6;
const DISPATCHED: usize = 7;
const BLOCKED: usize = 8;
/// Words of registers in the image.
const RIP: usize = 16;
/// Pauses of threads that keep all processors busy.
const PAUSES: u32 = 30;
/// What the kernel lets real-time threads have of a second: a pause that waits for one of them while others spin takes
/// as long.
const THROTTLED: Duration = Duration::from_millis(950);

#[test]
fn no_cut_falls_between_an_effect_and_its_record() {
    let directory = directory();
    let path = directory.path().join("board");
    let program = compile_source("guest", directory.path(), &OFFSETS);
    let mut target = Target(Command::new(program).arg(&path).spawn().unwrap());
    wait_until("all threads start", || {
        let now = board(&path);
        now[RECORDS] > 0 && now[RECORDS + 1] > 0 && now[DISPATCHED] > 0 && now[BLOCKED] > 0
    });
    let guest = Some(common::guest(&path));
    // The processors may be busy: what is tested is where the cut falls, not how soon.
    let settings = Settings {
        guest,
        settle: Duration::from_millis(5),
        ..Settings::default()
    };
    let _priority = RealTime::enter(2).unwrap();
    let mut checkpointer = Checkpointer::attach(target.pid(), settings).unwrap();
    let mut store = ImageStore::new();
    let (mut taken, mut late) = (0, 0);
    while taken < 200 {
        let before = board(&path);
        let mut at_cut = before;
        match checkpointer.checkpoint(&mut |_| at_cut = board(&path)) {
            Err(CheckpointError::Unsettled { .. }) => late += 1,
            other => {
                let (capture, _) = other.unwrap();
                assert_eq!(
                    at_cut[EFFECTS..RECORDS],
                    at_cut[RECORDS..HELD],
                    "the cut is torn"
                );
                store
                    .apply(&decode(&encode(&capture.image())).unwrap())
                    .unwrap();
                checkpointer.recycle(capture);
                let blocked = store
                    .threads()
                    .iter()
                    .find(|thread| u64::from(thread.tid) == at_cut[BLOCKED])
                    .unwrap();
                assert_eq!(blocked.registers[RIP], at_cut[REDO]);
                let dispatching = store
                    .threads()
                    .iter()
                    .filter(|thread| thread.dispatch[0] == 1)
                    .count();
                assert_eq!(dispatching, 1);
                taken += 1;
            }
        }
        wait_until("the threads go on", || {
            assert!(target.0.try_wait().unwrap().is_none(), "the target ended");
            let now = board(&path);
            [EFFECTS, EFFECTS + 1, DISPATCHED]
                .iter()
                .all(|&word| now[word] > before[word])
        });
    }
    let held = board(&path)[HELD] + board(&path)[HELD + 1];
    println!("200 cuts, {late} given up, {held} threads held at the hook's exit");
    assert!(
        held > 20,
        "threads were held only {held} times: nothing was tested"
    );
    assert!(late < 100, "{late} pauses were given up");
}

#[test]
fn a_pause_is_given_up_when_a_thread_stays_in_the_guest() {
    let directory = directory();
    let path = directory.path().join("board");
    let program = compile_source("guest", directory.path(), &OFFSETS);
    let mut target = Target(Command::new(program).arg(&path).spawn().unwrap());
    wait_until("all threads start", || {
        board(&path)[RECORDS] > 0 && board(&path)[DISPATCHED] > 0
    });
    let guest = Some(common::guest(&path));
    let settings = Settings {
        guest,
        settle: Duration::ZERO,
        ..Settings::default()
    };
    let mut checkpointer = Checkpointer::attach(target.pid(), settings).unwrap();
    let mut given_up = 0;
    for _ in 0..50 {
        let before = board(&path);
        match checkpointer.checkpoint(&mut |_| {}) {
            Err(CheckpointError::Unsettled { .. }) => given_up += 1,
            other => checkpointer.recycle(other.unwrap().0),
        }
        wait_until("the threads go on", || {
            assert!(target.0.try_wait().unwrap().is_none(), "the target ended");
            let now = board(&path);
            [EFFECTS, EFFECTS + 1, DISPATCHED]
                .iter()
                .all(|&word| now[word] > before[word])
        });
    }
    assert!(given_up > 0, "no pause was ever given up");
}

#[test]
fn threads_that_keep_all_processors_busy_are_stopped_and_let_go_soon() {
    let directory = directory();
    let path = directory.path().join("board");
    let program = compile_source("spinners", directory.path(), &OFFSETS);
    let mut target = Target(Command::new(program).arg(&path).spawn().unwrap());
    wait_until("threads are made", || board(&path)[0] > 0);
    let nowhere = checkpointer::Guest {
        redo: 0,
        blocking_done: 0,
        waiting_done: 0,
    };
    let settings = Settings {
        guest: Some(nowhere),
        ..Settings::default()
    };
    let _priority = RealTime::enter(2).unwrap();
    let mut checkpointer = Checkpointer::attach(target.pid(), settings).unwrap();
    let began = Instant::now();
    for _ in 0..PAUSES {
        let before = board(&path)[0];
        let pause = checkpointer.checkpoint(&mut |_| {});
        assert!(
            matches!(pause, Err(CheckpointError::Unsettled { .. })),
            "{pause:?}"
        );
        wait_until("threads are made again", || {
            assert!(target.0.try_wait().unwrap().is_none(), "the target ended");
            board(&path)[0] > before
        });
    }
    let mean = began.elapsed() / PAUSES;
    println!("{PAUSES} pauses, one in {mean:?}");
    assert!(mean < THROTTLED / 4, "one pause in {mean:?}");
}
