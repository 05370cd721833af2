//! Feeding the rings: each thread's stream, as fast as the thread consumes it.

use std::sync::atomic::Ordering::{Acquire, Release, SeqCst};

use guest::abi::{MAX_SLOTS, RING_LEN, Slot, slot};
use sys::arena::{Arena, futex_wake};
use sys::follow::Caller;

use crate::log::Log;

/// What a look at all rings found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Bytes were fed or threads came and went.
    pub(crate) progress: bool,
    /// Bytes consumed by all threads that live.
    pub(crate) consumed: u64,
    /// Threads that live.
    pub(crate) threads: usize,
    /// Of these, at the ends of their logs, or waiting for a turn.
    pub(crate) idle: usize,
}

/// Feeds one container.
#[derive(Debug)]
pub(crate) struct Feeder<'a> {
    arena: &'a Arena,
    log: &'a Log,
    requests: Caller,
}

impl<'a> Feeder<'a> {
    pub(crate) fn new(arena: &'a Arena, log: &'a Log, requests: Caller) -> Self {
        Self { arena, log, requests }
    }

    /// Looks at every ring once.
    pub(crate) fn round(&mut self) -> Seen {
        let mut seen = Seen::default();
        for index in 0..MAX_SLOTS {
            let ring = self.arena.slot(index);
            match ring.state.load(Acquire) {
                slot::FREE | slot::CLAIMED => continue,
                slot::DONE => {
                    ring.state.store(slot::FREE, Release);
                    seen.progress = true;
                    continue;
                }
                state => {
                    seen.threads += 1;
                    seen.idle += usize::from(state != slot::LIVE);
                }
            }
            seen.progress |= self.feed(index, ring);
            seen.consumed += ring.tail.load(Acquire);
            self.requests.notice(ring);
        }
        seen
    }

    fn feed(&self, index: usize, ring: &Slot) -> bool {
        let stream = self.log.stream(ring.stream.load(Acquire));
        let (head, tail) = (ring.head.load(Acquire), ring.tail.load(Acquire));
        let left = &stream[(head as usize).min(stream.len())..];
        let room = RING_LEN - (head - tail);
        let n = (left.len() as u64).min(room);
        let more = n > 0;
        if more {
            self.arena.write_ring(index, head, &left[..n as usize]);
            ring.head.store(head + n, SeqCst);
        }
        let ended = n == left.len() as u64 && ring.end.swap(1, SeqCst) == 0;
        if (more || ended) && ring.consumer_asleep.swap(0, SeqCst) != 0 {
            futex_wake(&ring.consumer_asleep);
        }
        more || ended
    }
}
