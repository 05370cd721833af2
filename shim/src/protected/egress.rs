//! What leaves the container: the gate, the output of each connection, and what is released when.

use std::collections::BTreeMap;
use std::mem::take;
use std::net::SocketAddrV4;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use gate::{
    Adopted, ArenaOutput, End, Entry, Gate, GateError, Handshake, Injector, LeaseKeeper, Opening,
    OutputState, Sender, Tuple,
};
use guest::abi::conn;
use nix::sys::socket::{SockaddrIn, getpeername, getsockname};
use sys::arena::{Arena, futex_wake};
use sys::bpf::boot_ns;
use sys::process::PidFd;
use sys::threads::find_thread;

use super::drain::Released;
use super::handshakes::{Handshakes, Placed};
use super::held::Held;
use super::status::Stats;
use super::tail::Tail;
use crate::Error;

/// Processes whose descriptors are kept open, at most: a container may make and end any number.
const MOST_PROCESSES: usize = 256;

/// What the threads of a run share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) egress: Mutex<Egress>,
    pub(super) tail: Mutex<Tail>,
    pub(super) stats: Mutex<Stats>,
    /// Answers to connection requests that are not in the log yet.
    pub(super) openings: Mutex<Vec<Opening>>,
    /// In the mode in which output waits for a checkpoint: what waits.
    pub(super) held: Option<Held>,
    /// Not behind the lock of `egress`, which its other users hold for as long as sending takes.
    pub(super) lease: LeaseKeeper,
    pub(super) stop: AtomicBool,
    pub(super) arena: Arc<Arena>,
    /// The container's init, in our numbering.
    pub(super) init: i32,
}

impl Shared {
    pub(super) fn egress(&self) -> MutexGuard<'_, Egress> {
        self.egress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What may leave of what the backup has acknowledged.
    pub(super) fn acknowledged(&self, released: Released) -> Released {
        match &self.held {
            Some(held) => {
                held.add(released);
                Released::default()
            }
            None => released,
        }
    }

    pub(super) fn tail(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn openings(&self) -> MutexGuard<'_, Vec<Opening>> {
        self.openings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn stats(&self) -> MutexGuard<'_, Stats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's counters as they were when a drain began: what its acknowledgement covers. They only grow: the last
/// of a connection covers those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Touch {
    pub(super) index: usize,
    pub(super) generation: u32,
    pub(super) state: u32,
    pub(super) adopted: bool,
    written: u64,
    read: u64,
    read_end: bool,
    shut: bool,
}

impl Touch {
    /// The counters now.
    pub(super) fn of(arena: &Arena, index: usize) -> Self {
        let c = arena.conn(index);
        Self {
            index,
            generation: c.generation.load(Acquire),
            state: c.state.load(Acquire),
            adopted: c.adopted.load(Acquire) != 0,
            shut: c.shut.load(Acquire) != 0,
            read_end: c.read_end.load(Acquire) != 0,
            written: c.written.load(Acquire),
            read: c.read.load(Acquire),
        }
    }
}

/// Gate and senders.
pub(super) struct Egress {
    gate: Gate,
    /// May leave as far as the backup is concerned, and waits for the gate to open.
    waiting: Released,
    injector: Injector,
    sender: Sender<ArenaOutput>,
    known: BTreeMap<usize, Known>,
    handshakes: Handshakes,
    processes: BTreeMap<u32, PidFd>,
    arena: Arc<Arena>,
    room: Arc<OwnedFd>,
}

/// A connection that the host holds.
#[derive(Clone, Copy)]
struct Known {
    generation: u32,
    entry: Entry,
    handshake: Handshake,
}

impl std::fmt::Debug for Egress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Egress")
            .field("connections", &self.known.len())
            .finish_non_exhaustive()
    }
}

impl Egress {
    pub(super) fn new(
        gate: Gate,
        injector: Injector,
        arena: Arc<Arena>,
        room: Arc<OwnedFd>,
    ) -> Result<Self, Error> {
        let (known, processes) = (BTreeMap::new(), BTreeMap::new());
        Ok(Self {
            gate,
            waiting: Released::default(),
            injector,
            sender: Sender::new()?,
            known,
            handshakes: Handshakes::default(),
            processes,
            arena,
            room,
        })
    }

    /// Something is on its way to a client.
    pub(super) fn is_busy(&self) -> bool {
        self.sender.is_busy() || !self.waiting.is_empty()
    }

    /// The record of an answer that waits.
    pub(super) fn opens(&mut self, opening: &Opening) -> Result<Placed, Error> {
        self.handshakes.opens(opening)
    }

    /// What a checkpoint needs of the primary's own stream, and the position up to which that is.
    pub(super) fn handshakes(&mut self) -> (Vec<u8>, u64) {
        let gate = &self.gate;
        self.handshakes.snapshot(|tuple| gate.established(tuple))
    }

    /// Where the primary's own stream ends.
    pub(super) fn own_position(&self) -> u64 {
        self.handshakes.position()
    }

    /// Takes a duplicate of a new connection's socket; the record of its handshake.
    pub(super) fn adopt(&mut self, index: usize, init: i32) -> Result<Placed, Error> {
        let arena = Arc::clone(&self.arena);
        let c = arena.conn(index);
        let socket = self.socket_of(c.pid.load(Acquire), c.fd.load(Acquire).cast_signed(), init)?;
        let tuple = tuple_of(&socket)?;
        let (entry, handshake) = self.gate.register(&tuple)?;
        let generation = c.generation.load(Acquire);
        self.known.insert(
            index,
            Known {
                generation,
                entry,
                handshake,
            },
        );
        let buffer = ArenaOutput::new(Arc::clone(&arena), index, Some(Arc::clone(&self.room)));
        let gated = Some((entry, handshake));
        self.sender.adopt(
            index,
            Adopted {
                socket,
                buffer,
                gated,
                state: OutputState::default(),
            },
        )?;
        c.adopted.store(1, Release);
        futex_wake(&c.adopted);
        let timestamp = self.gate.progress(entry).tsval;
        self.handshakes
            .opened(index, generation, &handshake, timestamp)
    }

    fn socket_of(&mut self, pid: u32, fd: i32, init: i32) -> Result<OwnedFd, Error> {
        if let Some(known) = self.processes.get(&pid)
            && let Ok(socket) = known.take_descriptor(fd)
        {
            return Ok(socket);
        }
        let (process, _) = find_thread(init, pid).ok_or(Error::NoProcess { pid })?;
        let process = PidFd::open(process).map_err(Error::Arena)?;
        let socket = process.take_descriptor(fd).map_err(Error::Arena)?;
        if self.processes.len() >= MOST_PROCESSES {
            // Those that have ended are among them.
            self.processes.clear();
        }
        self.processes.insert(pid, process);
        Ok(socket)
    }

    /// Releases what acknowledged drains cover, and moves output along. What is released while there is no lease waits for
    /// one: what the closed gate drops, the kernel sends again 0.2 s later, and an answer to a connection request after 1 s.
    pub(super) fn turn(&mut self, released: Released) -> Result<(), GateError> {
        self.waiting.append(released);
        let mut released = Released::default();
        if boot_ns() < self.gate.lease() {
            released = take(&mut self.waiting);
        } else {
            self.waiting.condense();
        }
        for opening in &released.openings {
            self.gate.answer(opening, &self.injector)?;
        }
        for touch in &released.touches {
            if let Err(e) = self.release(touch) {
                // The container's memory contradicts itself: nothing more of this connection leaves.
                tracing::warn!(index = touch.index, error = %e, "a connection's output is not released");
            }
        }
        for outcome in self.sender.turn(Duration::ZERO, Some(&mut self.gate))? {
            tracing::debug!(?outcome, "connection");
            if let gate::Outcome::Freed { slot } = outcome {
                self.forget(slot);
            }
        }
        Ok(())
    }

    fn forget(&mut self, index: usize) {
        self.known.remove(&index);
        self.handshakes.ended(index);
    }

    fn release(&mut self, touch: &Touch) -> Result<(), Error> {
        let Some(known) = self
            .known
            .get(&touch.index)
            .copied()
            .filter(|k| k.generation == touch.generation)
        else {
            return Ok(());
        };
        self.gate
            .allow_receive(known.entry, touch.read, touch.read_end);
        let end = match (touch.state, touch.shut) {
            (conn::CLOSED, _) => Some(End::Close),
            (_, true) => Some(End::Shutdown),
            _ => None,
        };
        let outcome = self
            .sender
            .release(touch.index, touch.written, end, Some(&mut self.gate))?;
        if let Some(gate::Outcome::Freed { slot }) = outcome {
            self.forget(slot);
            return Ok(());
        }
        self.injector
            .acknowledge(&self.gate, known.entry, &known.handshake)?;
        Ok(())
    }
}

fn tuple_of(socket: &OwnedFd) -> Result<Tuple, Error> {
    let own: SockaddrIn = getsockname(socket.as_raw_fd()).map_err(Error::descriptor)?;
    let peer: SockaddrIn = getpeername(socket.as_raw_fd()).map_err(Error::descriptor)?;
    Ok(Tuple {
        local: SocketAddrV4::new(own.ip(), own.port()),
        peer: SocketAddrV4::new(peer.ip(), peer.port()),
    })
}
