//! What a process is not asked for in every pause, changed while a checkpoint is taken.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on shall panic")]

mod common;

use std::cell::{Cell, RefCell};
use std::io::{Read, Write};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};

use checkpointer::{Census, ImageStore, Settings, Tree};
use common::{Target, compile_source, directory};
use eventlog::image::{decode, encode};
use sys::follow::Images;

/// What the program does at its turns.
const ACTIONS: [u64; 2] = [0, libc::SA_ONSTACK as u64];
const STACKS: [u64; 2] = [32768, 65536];
const UMASKS: [u32; 2] = [0o22, 0o77];
const DIRECTORIES: [&str; 2] = ["/", "/tmp"];

/// Lets the program take its next turn at the wanted moment.
struct Changing {
    input: RefCell<ChildStdin>,
    output: RefCell<ChildStdout>,
    changes: Cell<u64>,
    /// Whether it takes one behind the first look at what has changed.
    late: Cell<bool>,
}

impl Changing {
    fn change(&self) {
        self.input.borrow_mut().write_all(b"c").unwrap();
        self.await_answer();
        self.changes.set(self.changes.get() + 1);
    }

    fn await_answer(&self) {
        self.output.borrow_mut().read_exact(&mut [0]).unwrap();
    }
}

impl Census for Changing {
    fn is_lent(&self) -> bool {
        false
    }

    fn births(&self) -> u64 {
        0
    }

    fn forks(&self) -> u64 {
        0
    }

    fn changes(&self) -> u64 {
        let seen = self.changes.get();
        if self.late.replace(false) {
            self.change();
        }
        seen
    }

    fn has_others(&self, _: &[u32]) -> bool {
        false
    }
}

#[test]
fn what_has_changed_is_asked_for_again() {
    let directory = directory();
    let mut command = Command::new(compile_source("changing", directory.path(), &[]));
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut target = Target(command.spawn().unwrap());
    let census = Changing {
        input: RefCell::new(target.0.stdin.take().unwrap()),
        output: RefCell::new(target.0.stdout.take().unwrap()),
        changes: Cell::new(0),
        late: Cell::new(false),
    };
    census.await_answer();
    let own = std::process::id().cast_signed();
    let mut tree = Tree::new(own, target.pid(), Images::default(), Settings::default());
    let mut store = ImageStore::new();
    for late in [false, true, false, true, true] {
        // Between two checkpoints, or between the first look and the pause.
        census.late.set(late);
        if !late {
            census.change();
        }
        let (taken, _) = tree.checkpoint(&census, &mut |_| {}).unwrap();
        let image = encode(&taken.images()[0]);
        store.apply(&decode(&image).unwrap()).unwrap();
        tree.recycle(taken);
        let turn = census.changes.get() as usize % 2;
        let process = store.process();
        let flags = process.actions[libc::SIGUSR2 as usize - 1][1] & libc::SA_ONSTACK as u64;
        assert_eq!(flags, ACTIONS[turn]);
        assert_eq!(store.threads()[0].altstack[2], STACKS[turn]);
        assert_eq!(process.umask, UMASKS[turn]);
        assert_eq!(process.cwd, DIRECTORIES[turn]);
    }
}
