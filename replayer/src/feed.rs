//! Feeding the rings: each thread's stream, as fast as the thread consumes it.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::{Acquire, Release, SeqCst};

use guest::abi::{MAX_SLOTS, RING_LEN, Slot, slot};
use sys::arena::{Arena, futex_wake};
use sys::follow::Caller;

/// Where the bytes of streams come from.
pub trait Source {
    /// Why bytes could not be had.
    type Error: std::error::Error;

    /// Position of the first byte that is there of a stream.
    fn start(&self, stream: u32) -> u64;

    /// Appends up to `max` bytes of a stream from `position` on to `out`; answers how many: fewer only at
    /// the stream's end.
    ///
    /// # Errors
    /// When bytes that should be there are not.
    fn read(
        &self,
        stream: u32,
        position: u64,
        max: usize,
        out: &mut Vec<u8>,
    ) -> Result<usize, Self::Error>;
}

/// What a look at all rings found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Bytes were fed or threads came and went.
    pub progress: bool,
    /// Bytes consumed by all threads that live.
    pub consumed: u64,
    /// Threads that live.
    pub threads: usize,
    /// Of these, at the ends of their logs.
    pub parked: usize,
    /// Of these, waiting for a turn.
    pub waiting: usize,
}

impl Seen {
    /// Threads at the ends of their logs, or waiting for a turn.
    #[must_use]
    pub const fn idle(&self) -> usize {
        self.parked + self.waiting
    }
}

/// Feeds one container.
#[derive(Debug)]
pub(crate) struct Feeder<'a, S> {
    arena: &'a Arena,
    source: &'a S,
    requests: Option<Caller>,
    bytes: Vec<u8>,
    /// How far threads that have left took their streams.
    left: BTreeMap<u32, Taken>,
    /// Number of the first process in the container, 0 before it runs.
    first: u32,
}

/// How far a stream was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) position: u64,
    /// Its thread has left, or its process, which waits for its threads to take what they have: what is left is left
    /// for good, and not because another process was faster.
    pub(crate) for_good: bool,
}

/// Stream of the first process's first thread.
const FIRST_STREAM: u32 = 1;

impl<'a, S: Source> Feeder<'a, S> {
    /// A feeder; requests of the guests are told to `requests`.
    pub(crate) fn new(arena: &'a Arena, source: &'a S, requests: Option<Caller>) -> Self {
        Self {
            arena,
            source,
            requests,
            bytes: Vec::new(),
            left: BTreeMap::new(),
            first: 0,
        }
    }

    /// How far each stream was taken that ever had a thread. The first process has ended.
    pub(crate) fn taken(&self) -> BTreeMap<u32, Taken> {
        let mut taken = self.left.clone();
        for ring in (0..MAX_SLOTS).map(|index| self.arena.slot(index)) {
            let for_good = match ring.state.load(Acquire) {
                slot::FREE | slot::CLAIMED => continue,
                slot::DONE => true,
                _ => ring.pid.load(Acquire) == self.first,
            };
            let position = ring.tail.load(Acquire);
            taken.insert(ring.stream.load(Acquire), Taken { position, for_good });
        }
        taken
    }

    /// Looks at every ring once.
    pub(crate) fn round(&mut self) -> Result<Seen, S::Error> {
        let mut seen = Seen::default();
        for index in 0..MAX_SLOTS {
            let ring = self.arena.slot(index);
            match ring.state.load(Acquire) {
                slot::FREE | slot::CLAIMED => continue,
                slot::DONE => {
                    let taken = Taken {
                        position: ring.tail.load(Acquire),
                        for_good: true,
                    };
                    self.left.insert(ring.stream.load(Acquire), taken);
                    ring.state.store(slot::FREE, Release);
                    seen.progress = true;
                    continue;
                }
                state => {
                    if self.first == 0 && ring.stream.load(Acquire) == FIRST_STREAM {
                        self.first = ring.pid.load(Acquire);
                    }
                    seen.threads += 1;
                    seen.parked += usize::from(state == slot::PARKED);
                    seen.waiting += usize::from(state == slot::WAITING);
                }
            }
            seen.progress |= self.feed(index)?;
            seen.consumed += ring.tail.load(Acquire);
            if let Some(requests) = &self.requests {
                requests.notice(ring);
            }
        }
        Ok(seen)
    }

    fn feed(&mut self, index: usize) -> Result<bool, S::Error> {
        let ring: &Slot = self.arena.slot(index);
        if ring.end.load(Acquire) != 0 {
            return Ok(false);
        }
        let stream = ring.stream.load(Acquire);
        let (head, tail) = (ring.head.load(Acquire), ring.tail.load(Acquire));
        let room = RING_LEN - (head - tail);
        self.bytes.clear();
        let n = self
            .source
            .read(stream, head, room as usize, &mut self.bytes)? as u64;
        if n > 0 {
            self.arena.write_ring(index, head, &self.bytes);
            ring.head.store(head + n, SeqCst);
        }
        let ended = n < room;
        if ended {
            ring.end.store(1, SeqCst);
        }
        if (n > 0 || ended) && ring.consumer_asleep.swap(0, SeqCst) != 0 {
            futex_wake(&ring.consumer_asleep);
        }
        Ok(n > 0 || ended)
    }
}
