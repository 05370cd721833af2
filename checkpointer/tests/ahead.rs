//! A process that is prepared ahead and follows the checkpoints of a running one: it is, at any time, what
//! a restore would make, and goes on from the last of them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall panic")]

mod common;

use std::path::Path;
use std::time::Instant;

use checkpointer::{Checkpointer, ImageStore, Plan, Prepared, RestoreError, Settings, restore};
use common::{Copy, Target, compare, directory, inside, path_of, rounds, wait_until};
use eventlog::image::{decode, encode};
use sys::proc_maps::MapsFile;

const CHECKPOINTS: usize = 40;

/// Takes checkpoints of a running program and leaves their images in a directory.
fn checkpoints(pid: i32, images: &Path, mut between: impl FnMut()) {
    let mut checkpointer = Checkpointer::attach(pid, Settings::default()).unwrap();
    for number in 0..CHECKPOINTS {
        // A full one in between: the primary sends one when its backup has refused another.
        if number == CHECKPOINTS / 2 {
            checkpointer.make_full();
        }
        let (capture, _) = checkpointer.checkpoint(&mut |_| {}).unwrap();
        std::fs::write(images.join(number.to_string()), encode(&capture.image())).unwrap();
        checkpointer.recycle(capture);
        between();
    }
}

#[test]
fn a_prepared_process_follows_every_checkpoint() {
    let directory = directory();
    let (board, images) = (
        directory.path().join("board"),
        directory.path().join("images"),
    );
    std::fs::create_dir(&images).unwrap();
    let mut target = Target::start(directory.path(), &board);
    let mut last = rounds(&board);
    checkpoints(target.pid(), &images, || {
        target.goes_on(&board, last, 5);
        last = rounds(&board);
    });
    drop(target);
    for test in ["inside_it_follows", "inside_it_can_be_lost"] {
        assert!(inside(test, &images, &board), "{test}");
    }
}

fn apply(store: &mut ImageStore, number: usize) {
    let bytes = std::fs::read(path_of("TEST_IMAGE").join(number.to_string())).unwrap();
    store.apply(&decode(&bytes).unwrap()).unwrap();
}

fn plan() -> Plan<'static> {
    Plan {
        keep: vec![0, 1, 2],
        ..Plan::default()
    }
}

/// The number of the process that stands for the image's, which is our only child.
fn number(store: &ImageStore) -> i32 {
    store.process().pid as i32
}

/// What is mapped in the process and how, but for its scratch: by page, since the kernel joins mappings.
fn check_map(pid: i32, store: &ImageStore) {
    let maps = MapsFile::open(pid).unwrap().read().unwrap();
    let mut rest = store.mappings().iter().peekable();
    for mapping in maps.iter().filter(|m| m.range.len() != 1 << 20) {
        let mut at = mapping.range.start;
        while at < mapping.range.end {
            while rest.peek().is_some_and(|wanted| wanted.end <= at) {
                rest.next();
            }
            let wanted = rest.peek().unwrap();
            let what = format!("{mapping:x?} is not {wanted:x?}");
            assert!(wanted.start <= at, "{what}");
            assert_eq!(mapping.protection(), wanted.protection, "{what}");
            assert_eq!(mapping.shared, wanted.shared, "{what}");
            if wanted.inode != 0 {
                let offset = at - mapping.range.start + mapping.offset;
                assert_eq!(offset, at - wanted.start + wanted.offset, "{what}");
            }
            let is_file = mapping.path.starts_with('/') && !mapping.path.starts_with("/memfd");
            if is_file || wanted.path.starts_with('/') && !wanted.shared {
                assert_eq!(mapping.path, wanted.path, "{what}");
            }
            at = wanted.end.min(mapping.range.end);
        }
    }
    let there: usize = maps.iter().map(|m| m.range.len()).sum();
    let wanted: u64 = store.mappings().iter().map(|m| m.end - m.start).sum();
    assert_eq!(there as u64, wanted + (1 << 20));
}

#[test]
#[ignore = "runs inside a namespace that another test makes"]
fn inside_it_follows() {
    let board = path_of("TEST_BOARD");
    let mut store = ImageStore::new();
    apply(&mut store, 0);
    let mut prepared = Prepared::new(&store, plan()).unwrap();
    let mut took = std::time::Duration::ZERO;
    for image in 0..CHECKPOINTS {
        if image > 0 {
            apply(&mut store, image);
        }
        // Now and then the next checkpoint comes before all of this one is there.
        if image % 3 == 1 {
            prepared.update(&mut store, 100).unwrap();
            continue;
        }
        let began = Instant::now();
        while !prepared.update(&mut store, 300).unwrap() {}
        took += began.elapsed();
        assert_eq!(prepared.sequence(), store.sequence());
        check_map(number(&store), &store);
        let (compared, wrong) = compare(number(&store), &store);
        assert!(
            compared > 1000 && wrong.is_empty(),
            "image {image}: {} of {compared} pages differ: {wrong:x?}",
            wrong.len()
        );
    }
    eprintln!("{CHECKPOINTS} checkpoints followed in {took:?}");
    let began = Instant::now();
    let restored = prepared.finish(&mut store).unwrap();
    eprintln!("finished in {:?}", began.elapsed());
    goes_on(restored, &board);
}

fn goes_on(restored: checkpointer::Restored, board: &Path) {
    let copy = Copy(restored.pid());
    let before = rounds(board);
    restored.finish(&[]).unwrap();
    wait_until("the copy goes on", || {
        assert!(!copy.has_ended(), "the copy found a fault");
        let now = rounds(board);
        now.iter()
            .zip(before)
            .all(|(now, before)| *now > before + 300)
    });
}

#[test]
#[ignore = "runs inside a namespace that another test makes"]
fn inside_it_can_be_lost() {
    let board = path_of("TEST_BOARD");
    let mut store = ImageStore::new();
    apply(&mut store, 0);
    let mut prepared = Prepared::new(&store, plan()).unwrap();
    assert!(prepared.update(&mut store, usize::MAX).unwrap());
    // It followed another store: what changed in between is not known.
    apply(&mut store, 1);
    drop(store.take_changes());
    let missed = prepared.update(&mut store, 1);
    assert!(
        matches!(missed, Err(RestoreError::Stranger { .. })),
        "{missed:?}"
    );
    drop(prepared);
    assert!(!Path::new(&format!("/proc/{}", number(&store))).exists());

    // It was killed.
    let mut prepared = Prepared::new(&store, plan()).unwrap();
    common::signal(number(&store), nix::sys::signal::Signal::SIGKILL);
    assert!(prepared.update(&mut store, usize::MAX).is_err());
    drop(prepared);
    assert!(!Path::new(&format!("/proc/{}", number(&store))).exists());

    // Whoever holds it has ended.
    let pid = number(&store);
    std::thread::scope(|scope| {
        scope.spawn(|| std::mem::forget(Prepared::new(&store, plan()).unwrap()));
    });
    let copy = Copy(pid);
    wait_until("it is killed", || copy.has_ended());
    // It is reaped: its number may be another's soon.
    std::mem::forget(copy);

    // A restore finds everything as if nothing had been prepared.
    goes_on(restore(&store, plan()).unwrap(), &board);
}
