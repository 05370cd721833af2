//! The container after takeover: its output goes on through the arena, released at once.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::time::{Duration, Instant};

use gate::rebuild::Prober;
use gate::{Adopted, ArenaOutput, End, Gate, Outcome, OutputBuffer, OutputState, Sender, Touched};
use guest::abi::{MAX_SLOTS, conn, request, slot};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use shim::container::{Container, Ended};
use sys::arena::{Arena, futex_wake};
use sys::packet::PacketSocket;
use sys::process::PidFd;
use sys::threads::find_thread;

use super::connections::{self, Ready};
use super::error::{Result, TakeoverError, io};
use super::killed;
use super::process::Processes;

/// Between two looks while output is on its way, and while nothing is.
const BUSY: Duration = Duration::from_micros(500);
const IDLE: Duration = Duration::from_millis(20);
/// Between two looks for processes that were killed.
const CENSUS: Duration = Duration::from_millis(100);

/// A container that went live here.
#[derive(Debug)]
pub struct Live {
    pub(super) container: Container,
    /// The container's program, in our numbering.
    pub(super) program: i32,
    /// Kept open: it holds the lease, and passes everything.
    pub(super) gate: Gate,
    pub(super) output: Output,
    /// Closing them takes the kernel long.
    pub(super) _sockets: (Prober, PacketSocket),
}

/// Output and new connections of a container.
#[derive(Debug)]
pub(super) struct Output {
    arena: Arc<Arena>,
    room: Arc<OwnedFd>,
    sender: Sender<ArenaOutput>,
    init: i32,
    main: (u32, PidFd),
    /// Connections that nobody held at the last look, with their generations.
    suspects: BTreeSet<(usize, u32)>,
}

impl Output {
    /// Takes rebuilt connections over.
    pub(super) fn new(
        arena: Arc<Arena>,
        room: Arc<OwnedFd>,
        init: i32,
        processes: &Processes,
    ) -> Result<Self> {
        let main = PidFd::open(processes.program).map_err(io("opening the process"))?;
        Ok(Self {
            arena,
            room,
            sender: Sender::new()?,
            init,
            main: (processes.number, main),
            suspects: BTreeSet::new(),
        })
    }

    /// Goes on with a rebuilt connection, of which the application has another duplicate.
    pub(super) fn resume(&mut self, ready: Ready) -> Result<()> {
        let (index, c) = (
            ready.connection.index,
            self.arena.conn(ready.connection.index),
        );
        c.adopted.store(1, Release);
        let Some(plan) = ready.plan else {
            return Ok(());
        };
        let (buffer, state) = (self.buffer(index), plan.output());
        let socket = ready.socket;
        let adopted = Adopted {
            socket,
            buffer,
            gated: None,
            state,
        };
        self.sender.adopt(index, adopted)?;
        self.release(index);
        Ok(())
    }

    fn buffer(&self, index: usize) -> ArenaOutput {
        ArenaOutput::new(Arc::clone(&self.arena), index, Some(Arc::clone(&self.room)))
    }

    /// One look at everything; true if there was something.
    pub(super) fn turn(&mut self) -> Result<bool> {
        let arena = Arc::clone(&self.arena);
        let mut moved = false;
        arena.begin_look();
        for index in Touched::new(&arena) {
            moved = true;
            self.touched(index);
        }
        for outcome in self.sender.turn(Duration::ZERO, None)? {
            tracing::debug!(?outcome, "connection");
        }
        self.rings();
        Ok(moved)
    }

    fn touched(&mut self, index: usize) {
        let arena = Arc::clone(&self.arena);
        let c = arena.conn(index);
        if c.state.load(Acquire) == conn::OPEN && c.adopted.load(Acquire) == 0 {
            if let Err(error) = self.adopt(index) {
                tracing::warn!(index, %error, "a new connection could not be adopted");
            }
            c.adopted.store(1, Release);
            futex_wake(&c.adopted);
        }
        self.release(index);
        self.free_unowned(index);
    }

    /// Gives back the entry of a closed connection that nothing is sent for (any more).
    fn free_unowned(&self, index: usize) {
        let closed = self.arena.conn(index).state.load(Acquire) == conn::CLOSED;
        if closed && self.sender.state(index).is_none() {
            self.buffer(index).free();
        }
    }

    /// After all connections are resumed: those that were closed before, and need nothing, are free.
    pub(super) fn free_the_rest(&self) {
        for index in connections::entries(&self.arena) {
            self.free_unowned(index);
        }
    }

    /// Closes what processes held that were killed. `processes` lists the container's, in our numbering.
    fn bury(&mut self, processes: impl FnOnce() -> Option<Vec<i32>>) {
        let gone = killed::give_back(&self.arena, processes);
        let Some(living) = gone.filter(|living| living.has_less || !self.suspects.is_empty())
        else {
            return;
        };
        let held = living.sockets();
        // One that is passed on while the lists are read is in none of them, the first time.
        let before = std::mem::take(&mut self.suspects);
        for index in connections::entries(&self.arena) {
            let arena = Arc::clone(&self.arena);
            let c = arena.conn(index);
            let own = self.sender.socket(index).and_then(killed::inode);
            let open = c.state.load(Acquire) == conn::OPEN;
            if !open || own.is_none_or(|inode| held.contains(&inode)) {
                continue;
            }
            let suspect = (index, c.generation.load(Acquire));
            if before.contains(&suspect) {
                c.refs.store(0, Release);
                c.shut.store(1, Release);
                c.state.store(conn::CLOSED, Release);
                self.release(index);
            } else {
                self.suspects.insert(suspect);
            }
        }
    }

    fn adopt(&mut self, index: usize) -> Result<()> {
        let c = self.arena.conn(index);
        let (pid, fd) = (c.pid.load(Acquire), c.fd.load(Acquire).cast_signed());
        let socket = if pid == self.main.0 {
            self.main.1.take_descriptor(fd)
        } else {
            let found = find_thread(self.init, pid).ok_or(TakeoverError::Gone {
                pid: pid.cast_signed(),
            })?;
            PidFd::open(found.0).and_then(|process| process.take_descriptor(fd))
        };
        let socket = socket.map_err(io("duplicating a connection"))?;
        let adopted = Adopted {
            socket,
            buffer: self.buffer(index),
            gated: None,
            state: OutputState::default(),
        };
        Ok(self.sender.adopt(index, adopted)?)
    }

    /// Releases whatever was written.
    fn release(&mut self, index: usize) {
        let c = self.arena.conn(index);
        // The end is read first: behind it nothing more is written.
        let end = if c.state.load(Acquire) == conn::CLOSED {
            Some(End::Close)
        } else {
            (c.shut.load(Acquire) != 0).then_some(End::Shutdown)
        };
        let written = c.written.load(Acquire);
        match self.sender.release(index, written, end, None) {
            Ok(Some(Outcome::Failed { slot, error })) => {
                tracing::debug!(slot, %error, "a connection failed");
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(index, %error, "a connection's output makes no sense"),
        }
    }

    /// Gives rings back, and answers requests: nothing is recorded any more, so nothing has to be injected.
    fn rings(&self) {
        let answer = |word: &AtomicU32, from, to| {
            if word.compare_exchange(from, to, SeqCst, Acquire).is_ok() {
                futex_wake(word);
            }
        };
        for ring in (0..MAX_SLOTS).map(|index| self.arena.slot(index)) {
            answer(&ring.request, request::EXEC, request::GRANTED);
            answer(&ring.request, request::EXEC_FAILED, request::NONE);
            if ring.state.load(Acquire) == slot::DONE {
                ring.state.store(slot::FREE, Release);
            }
        }
    }

    /// Sleeps until a guest has something, or for a while.
    fn sleep(&self) {
        let wait = if self.sender.is_busy() { BUSY } else { IDLE };
        self.arena.sleep_until_asked(wait);
    }
}

impl Live {
    /// Hosts the container until it ends, or until `stop` is set, which ends it.
    ///
    /// # Errors
    /// When its output cannot be sent any more, or its end not be seen; it is gone then.
    pub fn host(mut self, stop: &AtomicBool) -> Result<Ended> {
        let mut looked = Instant::now();
        let mut counted = looked;
        loop {
            if self.output.turn()? {
                if looked.elapsed() < IDLE {
                    continue;
                }
            } else {
                self.output.sleep();
            }
            if looked.elapsed() >= IDLE || stop.load(Acquire) {
                looked = Instant::now();
                if counted.elapsed() >= CENSUS {
                    counted = looked;
                    let container = &self.container;
                    self.output.bury(|| container.processes().ok());
                }
                if stop.load(Acquire) {
                    self.container.kill()?;
                    return Ok(self.container.wait()?);
                }
                if has_ended(&self.container) {
                    return Ok(self.container.wait()?);
                }
            }
        }
    }

    /// The container's program, in our numbering.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.program
    }

    /// The gate in front of it, which is open.
    #[must_use]
    pub fn gate(&self) -> &Gate {
        &self.gate
    }
}

/// Whether the container's program has ended.
pub(super) fn has_ended(container: &Container) -> bool {
    let end = container.end_descriptor();
    let mut wanted = [PollFd::new(end, PollFlags::POLLIN)];
    poll(&mut wanted, PollTimeout::ZERO).is_ok_and(|n| n > 0)
}
