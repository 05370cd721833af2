//! Checkpoints of programs that run and write meanwhile, compared page by page with the stopped process.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall panic")]

mod common;

use checkpointer::{Checkpointer, ImageStore, Settings};
use common::{Target, compare, directory, rounds, signal, stop_thread, wait_stopped};
use eventlog::image::{decode, encode};
use nix::sys::signal::Signal::SIGCONT;

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
