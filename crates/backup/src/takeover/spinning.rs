//! Threads in a loop without a call in it, which only a signal ends: those that the checkpoint found there, and those that
//! are there when replay is over. They do not come to the guest by themselves, and have to be called.

use std::sync::atomic::Ordering::Acquire;

use eventlog::record::{Records, SIGNAL_AT_PLACE, kind};
use guest::abi::{CALLED, Slot, slot};
use nix::libc::SIGTRAP;
use replayer::Source;
use sys::arena::Arena;
use sys::process::queue_to_thread;
use sys::threads::find_thread;

use super::holds::rings;
use super::log::Log;

/// Bytes in which such a record lies.
const LOOK: usize = 1024;

/// The threads whose log goes on with such a signal, by their numbers in the container.
pub(super) fn expected(arena: &Arena, log: &Log) -> Vec<u32> {
    let begins = |ring: &Slot| is_next(log, ring.stream.load(Acquire), ring.tail.load(Acquire));
    numbers(rings(arena).filter(|ring| begins(ring)))
}

/// The threads that run when replay is over, which no wait tells that it is.
pub(super) fn running(arena: &Arena) -> Vec<u32> {
    numbers(rings(arena).filter(|ring| ring.state.load(Acquire) == slot::LIVE))
}

fn numbers<'a>(rings: impl Iterator<Item = &'a Slot>) -> Vec<u32> {
    rings.map(|ring| ring.tid.load(Acquire)).collect()
}

/// Calls threads. `init` is the container's first process.
pub(super) fn call(numbers: &[u32], init: i32) {
    for number in numbers {
        let Some((process, thread)) = find_thread(init, *number) else {
            continue;
        };
        // One that has gone meanwhile has left its loop.
        let called = queue_to_thread(process, thread, SIGTRAP, CALLED);
        tracing::debug!(number, ?called, "a thread may be in a loop");
    }
}

/// Whether the record there is of a signal that was delivered in the middle of the application's own code.
fn is_next(log: &Log, stream: u32, position: u64) -> bool {
    let mut bytes = Vec::new();
    if log.read(stream, position, LOOK, &mut bytes).is_err() {
        return false;
    }
    let Some(Ok(record)) = Records::new(&bytes).next() else {
        return false;
    };
    record.header.kind == kind::SIGNAL && record.header.hash == SIGNAL_AT_PLACE
}
