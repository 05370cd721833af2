//! Draining the rings: one thread, which sleeps when there is nothing to drain.
//! What one round takes is a consistent cut ([`crate::cut`]).

use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool,
    Ordering::{Acquire, Release, SeqCst},
};
use std::time::Duration;

use guest::abi::{Slot, slot};
use sys::arena::{Arena, futex_wake};
use sys::follow::Caller;

use crate::cut::{Cut, is_drained, rings};

/// Where drained bytes go.
pub trait Sink {
    /// Why bytes could not be taken. The drainer stops then, and the container with it, since its rings fill.
    type Error;

    /// A look at all rings begins: what is seen now is covered by the records that this round drains.
    fn begin(&mut self);

    /// Takes bytes of a stream, whole records (so many), without gaps.
    ///
    /// # Errors
    /// When the bytes cannot be kept or sent.
    fn records(
        &mut self,
        stream: u32,
        position: u64,
        bytes: &[u8],
        records: u64,
    ) -> Result<(), Self::Error>;

    /// All rings were looked at once since the last call.
    ///
    /// # Errors
    /// As [`Self::records`].
    fn round(&mut self) -> Result<(), Self::Error>;

    /// A system call was refused for the first time.
    fn refused(&mut self, number: u16);
}

/// Longest sleep: nobody asks for records that release nothing.
pub const NAP: Duration = Duration::from_millis(1);

/// Drains the rings of one container.
#[derive(Debug)]
pub struct Drainer<S> {
    arena: Arc<Arena>,
    sink: S,
    requests: Caller,
    bytes: Vec<u8>,
    cut: Cut,
    named: [u64; 8],
}

impl<S: Sink> Drainer<S> {
    /// A drainer that gives what it finds to `sink` and tells `requests` when a process asks for something.
    pub fn new(arena: Arc<Arena>, sink: S, requests: Caller) -> Self {
        Self {
            arena,
            sink,
            requests,
            bytes: Vec::new(),
            cut: Cut::default(),
            named: [0; 8],
        }
    }

    /// Where it goes.
    pub fn sink(&mut self) -> &mut S {
        &mut self.sink
    }

    /// Drains until `stop` is set and the rings are empty; gives the sink back.
    ///
    /// # Errors
    /// What the sink returned.
    pub fn run(mut self, stop: &AtomicBool) -> Result<S, S::Error> {
        loop {
            let stopping = stop.load(Acquire);
            let moved = self.round()?;
            if !stopping {
                // Also when something moved: records come many at a time to whoever waits to be asked.
                self.arena.sleep_until_asked(NAP);
            } else if !moved {
                return Ok(self.sink);
            }
        }
    }

    /// Looks at every ring once; true if there was something. For those who have a loop of their own.
    ///
    /// # Errors
    /// What the sink returned.
    pub fn round(&mut self) -> Result<bool, S::Error> {
        let arena = Arc::clone(&self.arena);
        let mut moved = false;
        arena.begin_look();
        self.sink.begin();
        self.cut.begin(&arena);
        for index in 0..rings(&arena) {
            let ring = arena.slot(index);
            let state = ring.state.load(Acquire);
            if !is_drained(state) {
                continue;
            }
            moved |= self.drain(index, ring)?;
            self.requests.notice(ring);
            if state == slot::DONE && ring.head.load(Acquire) == ring.tail.load(Acquire) {
                ring.state.store(slot::FREE, Release);
            }
        }
        self.name_refused();
        self.sink.round()?;
        Ok(moved)
    }

    /// Drains what belongs to this round; true if the ring held anything.
    fn drain(&mut self, index: usize, ring: &Slot) -> Result<bool, S::Error> {
        let (tail, head) = (ring.tail.load(Acquire), ring.head.load(Acquire));
        if head == tail {
            return Ok(false);
        }
        let stream = ring.stream.load(Acquire);
        self.bytes.clear();
        self.arena.read_ring(index, tail, head, &mut self.bytes);
        let (len, records) = self.cut.take(index, stream, tail, &self.bytes);
        if len == 0 {
            return Ok(true);
        }
        self.sink
            .records(stream, tail, &self.bytes[..len], records)?;
        ring.tail.store(tail + len as u64, SeqCst);
        if ring.producer_asleep.swap(0, SeqCst) != 0 {
            futex_wake(&ring.producer_asleep);
        }
        Ok(true)
    }

    fn name_refused(&mut self) {
        for (word, named) in self.named.iter_mut().enumerate() {
            let refused = self.arena.control().refused[word].load(Acquire);
            let new = refused & !*named;
            for bit in (0..64).filter(|bit| new & (1 << bit) != 0) {
                self.sink.refused((word * 64 + bit) as u16);
            }
            *named = refused;
        }
    }
}
