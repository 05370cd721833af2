//! Memory that processes share, in checkpoints of all of them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall panic")]

mod common;

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use checkpointer::{Census, ImageStore, Settings, Tree};
use common::{Target, compile_source, directory};
use eventlog::image::{Backing, decode, encode};
use sys::follow::Images;

/// Nothing is made while a checkpoint is taken.
struct Quiet {
    forks: u64,
}

impl Census for Quiet {
    fn is_lent(&self) -> bool {
        false
    }

    fn births(&self) -> u64 {
        0
    }

    fn forks(&self) -> u64 {
        self.forks
    }

    fn changes(&self) -> u64 {
        0
    }

    fn has_others(&self, _: &[u32]) -> bool {
        false
    }
}

#[test]
fn what_a_child_wrote_that_has_ended_is_in_the_next_checkpoint() {
    let directory = directory();
    let mut command = Command::new(compile_source("heirs", directory.path(), &[]));
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut target = Target(command.spawn().unwrap());
    let mut input = target.0.stdin.take().unwrap();
    let mut output = target.0.stdout.take().unwrap();
    let mut answer = || output.read_exact(&mut [0]).unwrap();
    answer();
    let own = std::process::id().cast_signed();
    let mut tree = Tree::new(own, target.pid(), Images::default(), Settings::default());
    let mut store = ImageStore::new();
    for forks in 0..5 {
        let (taken, _) = tree.checkpoint(&Quiet { forks }, &mut |_| {}).unwrap();
        let image = encode(&taken.images()[0]);
        store.apply(&decode(&image).unwrap()).unwrap();
        tree.recycle(taken);
        assert_eq!(shared_word(&store), 1000 + forks);
        input.write_all(b"f").unwrap();
        answer();
    }
}

#[test]
fn a_container_whose_program_was_killed_has_no_checkpoint() {
    let mut command = Command::new("sleep");
    let mut target = Target(command.arg("1000").spawn().unwrap());
    // Nothing is below it that is another's.
    let init = target.pid();
    let mut tree = Tree::new(init, target.pid(), Images::default(), Settings::default());
    let quiet = Quiet { forks: 0 };
    tree.checkpoint(&quiet, &mut |_| {}).unwrap();
    target.0.kill().unwrap();
    let mut stopped = false;
    // Dying, dead, or waited for: whichever it is.
    for _ in 0..1000 {
        let taken = tree.checkpoint(&quiet, &mut |living| stopped |= living.is_empty());
        assert!(taken.is_err() && !stopped, "{taken:?}");
    }
}

/// The first word of the memory that is shared.
fn shared_word(store: &ImageStore) -> u64 {
    let mut mappings = store.mappings().iter();
    let shared = mappings
        .find(|m| m.backing == Backing::SharedMemory)
        .unwrap();
    let (_, page) = store
        .pages(shared.start, shared.start + 4096)
        .next()
        .unwrap();
    u64::from_le_bytes(page[..8].try_into().unwrap())
}
