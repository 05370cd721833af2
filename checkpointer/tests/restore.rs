//! A process is checkpointed while it runs, killed, and made again in a fresh PID namespace under the
//! same numbers; its own checks go on there.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall panic")]

mod common;

use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Command, Stdio};

use checkpointer::{
    CheckpointError, Checkpointer, ExtraMapping, ImageStore, Plan, Prepared, Settings, restore,
};
use common::{
    Copy, OFFSETS, Target, board, compile_source, directory, inside, path_of, rounds, wait_until,
};
use eventlog::image::{decode, encode};
use sys::memory::Range;

/// Checkpoints a running process some times and returns what a backup would hold at the end.
fn checkpoints(pid: i32, count: u32, mut between: impl FnMut()) -> ImageStore {
    let mut checkpointer = Checkpointer::attach(pid, Settings::default()).unwrap();
    let mut store = ImageStore::new();
    for _ in 0..count {
        let (capture, _) = checkpointer.checkpoint(&mut |_| {}).unwrap();
        store
            .apply(&decode(&encode(&capture.image())).unwrap())
            .unwrap();
        checkpointer.recycle(capture);
        between();
    }
    store
}

fn held() -> ImageStore {
    let bytes = std::fs::read(path_of("TEST_IMAGE")).unwrap();
    let mut store = ImageStore::new();
    store.apply(&decode(&bytes).unwrap()).unwrap();
    store
}

#[test]
fn a_copy_goes_on_where_the_process_was_cut() {
    let directory = directory();
    let (board, image) = (
        directory.path().join("board"),
        directory.path().join("image"),
    );
    let mut target = Target::start(directory.path(), &board);
    for generation in 0..3 {
        let mut last = rounds(&board);
        let store = checkpoints(target.pid(), 4, || {
            target.goes_on(&board, last, 5);
            last = rounds(&board);
        });
        std::fs::write(&image, encode(&store.full_image())).unwrap();
        if generation == 2 {
            drop(target);
            assert!(inside("inside_the_copy_runs", &image, &board));
            return;
        }
    }
}

#[test]
#[ignore = "runs inside a namespace that another test makes"]
fn inside_the_copy_runs() {
    let board = path_of("TEST_BOARD");
    let store = held();
    for _ in 0..3 {
        let began = std::time::Instant::now();
        let restored = restore(
            &store,
            Plan {
                keep: vec![0, 1, 2],
                ..Plan::default()
            },
        )
        .unwrap();
        eprintln!(
            "restored {} pages in {:?}",
            store.page_count(),
            began.elapsed()
        );
        let numbers: Vec<_> = restored
            .threads()
            .iter()
            .map(|thread| thread.tid as u32)
            .collect();
        let wanted: Vec<_> = store.threads().iter().map(|thread| thread.tid).collect();
        assert_eq!(numbers, wanted);
        let (compared, wrong) = common::compare(restored.pid(), &store);
        assert!(
            compared > 1000 && wrong.len() < 8,
            "{} of {compared} pages differ: {wrong:x?}",
            wrong.len()
        );
        let copy = Copy(restored.pid());
        let before = rounds(&board);
        restored.finish(&[]).unwrap();
        wait_until("the copy runs", || {
            assert!(!copy.has_ended(), "the copy found a fault");
            rounds(&board)
                .iter()
                .zip(before)
                .all(|(now, before)| *now != before)
        });
        let started = rounds(&board);
        wait_until("the copy goes on", || {
            assert!(!copy.has_ended(), "the copy found a fault");
            rounds(&board)
                .iter()
                .zip(started)
                .all(|(now, before)| *now > before + 600)
        });
    }
}

#[test]
fn copies_of_a_template_begin_at_the_same_place() {
    let directory = directory();
    let (board, image) = (
        directory.path().join("board"),
        directory.path().join("image"),
    );
    let mut command = Command::new(compile_source("counter", directory.path(), &[]));
    command.arg(&board).stdin(Stdio::null());
    let target = Target(command.spawn().unwrap());
    wait_until("the target counts", || rounds(&board)[0] > 10);
    let store = checkpoints(target.pid(), 2, || {});
    std::fs::write(&image, encode(&store.full_image())).unwrap();
    drop(target);
    let run = "inside_copies_of_a_template_begin_at_the_same_place";
    assert!(inside(run, &image, &board));
}

#[test]
#[ignore = "runs inside a namespace that another test makes"]
fn inside_copies_of_a_template_begin_at_the_same_place() {
    let (mut store, path) = (held(), path_of("TEST_BOARD"));
    let plan = Plan {
        keep: vec![0, 1, 2],
        child: Some(Box::new(|_| sys::process::fork_with_pid(30_000))),
        ..Plan::default()
    };
    let mut template = Prepared::new(&store, plan).unwrap();
    template.update(&mut store, usize::MAX).unwrap();
    assert!(template.can_be_copied());
    let begins: Vec<u64> = (0..4)
        .map(|_| {
            let made = template.copy().unwrap().finish(&mut store).unwrap();
            assert_eq!(made.pid().cast_unsigned(), store.process().pid);
            let copy = Copy(made.pid());
            std::fs::write(&path, [0; 4096]).unwrap();
            made.finish(&[]).unwrap();
            let has_gone_on = |[now, begin, ..]: [u64; 4]| begin > 0 && now > begin + 20;
            wait_until("the copy counts", || {
                assert!(!copy.has_ended());
                has_gone_on(rounds(&path))
            });
            rounds(&path)[1]
        })
        .collect();
    assert!(begins.iter().all(|begin| *begin == begins[0]), "{begins:?}");
}

/// Words of the stand-in's board that grow: effects, records, dispatched calls.
const PROGRESS: [usize; 5] = [0, 1, 2, 3, 7];

#[test]
fn dispatch_thread_blocks_and_a_mapping_of_the_callers_go_on() {
    let directory = directory();
    let (path, image) = (
        directory.path().join("board"),
        directory.path().join("image"),
    );
    let program = compile_source("guest", directory.path(), &OFFSETS);
    let target = Target(
        Command::new(program)
            .arg(&path)
            .stdin(Stdio::null())
            .spawn()
            .unwrap(),
    );
    wait_until("all threads start", || {
        PROGRESS.iter().all(|&word| board(&path)[word] > 0) && board(&path)[8] > 0
    });
    let maps = sys::proc_maps::MapsFile::open(target.pid())
        .unwrap()
        .read()
        .unwrap();
    let shared = maps
        .iter()
        .find(|mapping| Path::new(&mapping.path) == path)
        .unwrap()
        .range;
    let settings = Settings {
        guest: Some(common::guest(&path)),
        settle: std::time::Duration::from_millis(20),
        skip: vec![shared],
        ..Settings::default()
    };
    let mut checkpointer = Checkpointer::attach(target.pid(), settings).unwrap();
    let mut store = ImageStore::new();
    wait_until("a checkpoint is taken", || {
        match checkpointer.checkpoint(&mut |_| {}) {
            Err(CheckpointError::Unsettled { .. }) => false,
            taken => store
                .apply(&decode(&encode(&taken.unwrap().0.image())).unwrap())
                .is_ok(),
        }
    });
    assert!(
        store
            .mappings()
            .iter()
            .all(|mapping| mapping.start != shared.start)
    );
    drop(target);
    std::fs::write(&image, encode(&store.full_image())).unwrap();
    std::fs::write(image.with_extension("address"), shared.start.to_string()).unwrap();
    assert!(inside("inside_blocks_and_dispatch_go_on", &image, &path));
}

#[test]
#[ignore = "runs inside a namespace that another test makes"]
fn inside_blocks_and_dispatch_go_on() {
    let path = path_of("TEST_BOARD");
    let address = std::fs::read_to_string(path_of("TEST_IMAGE").with_extension("address")).unwrap();
    let start: u64 = address.parse().unwrap();
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    let extra = ExtraMapping {
        range: Range {
            start,
            end: start + 4096,
        },
        protection: 3,
        shared: true,
        fd: file.as_raw_fd(),
        offset: 0,
    };
    let plan = Plan {
        extra: vec![extra],
        keep: vec![0, 1, 2],
        ..Plan::default()
    };
    let restored = restore(&held(), plan).unwrap();
    assert_eq!(
        restored
            .threads()
            .iter()
            .filter(|thread| thread.dispatch.mode == 1)
            .count(),
        1
    );
    let copy = Copy(restored.pid());
    let before = board(&path);
    restored.finish(&[]).unwrap();
    wait_until("the copy goes on", || {
        assert!(!copy.has_ended(), "the copy ended");
        PROGRESS
            .iter()
            .all(|&word| board(&path)[word] > before[word] + 100)
    });
}
