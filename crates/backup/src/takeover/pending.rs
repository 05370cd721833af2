//! Signals that are pending in an image: the guest counts those that processes of the container have sent against those
//! that the log says were got.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Release;

use guest::abi::is_sent;
use sys::arena::Arena;
use sys::ptrace::SigInfo;

use super::checkpoint::Checkpoint;

/// Where number, code and sender lie in a `siginfo_t`.
const NUMBER_AT: usize = 0;
const CODE_AT: usize = 8;
const SENDER_AT: usize = 16;

/// By whom, to which process, and which; numbers inside the container.
type Passed = (u32, u32, u32);

/// Tells the guest of them. What its table cannot hold, it does not count.
pub(super) fn fill(arena: &Arena, checkpoint: &Checkpoint) {
    let all = checkpoint.processes().iter().flat_map(|store| {
        let process = store.process();
        let of_threads = store.threads().iter().flat_map(|thread| &thread.pending);
        let infos = process.pending.iter().chain(of_threads);
        infos.filter_map(|info| passed(process.pid, info))
    });
    let entries = &arena.control().sent;
    for (entry, ((sender, receiver, signal), count)) in entries.iter().zip(counted(all)) {
        entry.sender.store(sender, Release);
        entry.receiver.store(receiver, Release);
        entry.signal.store(signal, Release);
        entry.ahead.store(count, Release);
    }
}

fn counted(all: impl Iterator<Item = Passed>) -> BTreeMap<Passed, i32> {
    let mut counts = BTreeMap::new();
    for passed in all {
        *counts.entry(passed).or_default() += 1;
    }
    counts
}

/// `None` for one that the kernel has caused.
fn passed(receiver: u32, info: &SigInfo) -> Option<Passed> {
    let word = |at: usize| i32::from_ne_bytes([info[at], info[at + 1], info[at + 2], info[at + 3]]);
    let [number, sender] = [NUMBER_AT, SENDER_AT].map(|at| word(at).cast_unsigned());
    is_sent(word(CODE_AT)).then_some((sender, receiver, number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_processes_have_sent_are_counted() {
        let info = |number: i32, code: i32, sender: i32| {
            let mut info = [0; 128];
            for (at, word) in [(NUMBER_AT, number), (CODE_AT, code), (SENDER_AT, sender)] {
                info[at..at + 4].copy_from_slice(&word.to_ne_bytes());
            }
            info
        };
        let infos = [
            info(34, -1, 7),
            info(34, -1, 8),
            info(34, -1, 7),
            info(10, 0, 3),
            info(10, -6, 3),
            // A timer, and a child's end.
            info(14, -2, 0),
            info(17, 1, 9),
        ];
        let counted = counted(infos.iter().filter_map(|info| passed(3, info)));
        let expected = [((3, 3, 10), 2), ((7, 3, 34), 2), ((8, 3, 34), 1)];
        assert_eq!(counted, BTreeMap::from(expected));
    }
}
