//! Signals that are pending in an image: the guest counts those that processes of the container have sent against those
//! that the log says were got.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Release;

use eventlog::handover::ThreadState;
use guest::abi::is_sent;
use sys::arena::Arena;
use sys::ptrace::SigInfo;

use super::arena::delivered_to;
use super::checkpoint::Checkpoint;
use super::children::{CODE_AT, signal_of, word};

/// Where the sender lies in a `siginfo_t`.
const SENDER_AT: usize = 16;

/// By whom, to which process, and which; numbers inside the container.
type Passed = (u32, u32, u32);

/// Tells the guest of them. What its table cannot hold, it does not count.
pub(super) fn fill(arena: &Arena, checkpoint: &Checkpoint, threads: &[ThreadState]) {
    let delivered = |process: u32, thread: u32| {
        let mut all = threads.iter();
        let state = all.find(|state| (state.pid, state.tid) == (process, thread));
        state.map_or(0, |state| delivered_to(checkpoint, state))
    };
    let all = checkpoint.processes().iter().flat_map(|store| {
        let process = store.process();
        let of_threads = store.threads().iter().flat_map(move |thread| {
            let delivered = delivered(process.pid, thread.tid);
            not_delivered(&thread.pending, delivered)
        });
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

/// Those of a thread without the one that is on its way to it: the log has said that it was got.
fn not_delivered(pending: &[SigInfo], delivered: u32) -> impl Iterator<Item = &SigInfo> {
    let is_it = |info: &SigInfo| number(info) == delivered;
    let at = pending.iter().position(is_it).unwrap_or(pending.len());
    let (before, from) = pending.split_at(at);
    before.iter().chain(from.iter().skip(1))
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
    let sender = word(info, SENDER_AT).cast_unsigned();
    is_sent(word(info, CODE_AT)).then_some((sender, receiver, number(info)))
}

fn number(info: &SigInfo) -> u32 {
    signal_of(info).cast_unsigned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_processes_have_sent_are_counted() {
        let info = |number: i32, code: i32, sender: i32| {
            let mut info = [0; 128];
            for (at, word) in [(0, number), (CODE_AT, code), (SENDER_AT, sender)] {
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
        let left = |delivered| not_delivered(&infos, delivered).count();
        assert_eq!([left(34), left(10), left(12)], [6, 6, 7]);
    }
}
