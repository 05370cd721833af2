//! Performs the sends of all connections: one thread, no waiting call but [`Sender::turn`]'s.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{Shutdown, setsockopt, shutdown, sockopt};

use crate::buffer::OutputBuffer;
use crate::error::GateError;
use crate::facts::{Handshake, position_of};
use crate::kernel::{Entry, Gate};
use crate::output::{Action, End, OutputError, OutputState};

/// A connection to be sent for.
#[derive(Debug)]
pub struct Adopted<B> {
    /// A duplicate of the application's socket.
    pub socket: OwnedFd,
    /// Where its output waits.
    pub buffer: B,
    /// Its entry at the gate and the handshake; without, acknowledgements are asked of the socket.
    pub gated: Option<(Entry, Handshake)>,
    /// Where it stands: [`OutputState::default`] for a new one.
    pub state: OutputState,
}

/// What came of a connection.
#[derive(Debug)]
pub enum Outcome {
    /// The peer has everything, the application had closed: socket, entry and buffer are given back.
    Freed {
        /// The slot that is free again.
        slot: usize,
    },
    /// The kernel gave the connection up; the application will see it on its own socket.
    Failed {
        /// The slot.
        slot: usize,
        /// Why.
        error: io::Error,
    },
}

/// Owns every connection's output from the write to the acknowledgement.
#[derive(Debug)]
pub struct Sender<B> {
    epoll: Epoll,
    connections: BTreeMap<usize, Adopted<B>>,
    /// Slots with something on its way.
    busy: BTreeSet<usize>,
}

/// More events than this are left for the next turn.
const EVENTS: usize = 64;

impl<B: OutputBuffer> Sender<B> {
    /// A sender without connections.
    ///
    /// # Errors
    /// [`GateError::System`] if there is no descriptor left.
    pub fn new() -> Result<Self, GateError> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(|e| GateError::System {
            step: "epoll_create1",
            source: e.into(),
        })?;
        Ok(Self {
            epoll,
            connections: BTreeMap::new(),
            busy: BTreeSet::new(),
        })
    }

    /// Takes over the output of the connection in `slot`. One that is there already is dropped: its slot
    /// was used again.
    ///
    /// # Errors
    /// [`GateError::System`] if the socket cannot be watched.
    pub fn adopt(&mut self, slot: usize, connection: Adopted<B>) -> Result<(), GateError> {
        // Edge-triggered: an event comes when a full socket takes bytes again, and on errors.
        let interest = EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        self.epoll
            .add(&connection.socket, EpollEvent::new(interest, slot as u64))
            .map_err(|e| GateError::System {
                step: "epoll_ctl",
                source: e.into(),
            })?;
        self.connections.insert(slot, connection);
        self.busy.insert(slot);
        Ok(())
    }

    /// Releases the output in `slot` up to stream position `to`, and the application's `end` if the
    /// acknowledged log holds it, and sends at once what the kernel takes.
    ///
    /// # Errors
    /// [`OutputError`] if the buffer contradicts itself: the container is not to be trusted then.
    pub fn release(
        &mut self,
        slot: usize,
        to: u64,
        end: Option<End>,
        gate: Option<&mut Gate>,
    ) -> Result<Option<Outcome>, OutputError> {
        let Some(c) = self.connections.get_mut(&slot) else {
            return Ok(None);
        };
        c.state
            .release(to, c.buffer.written(), c.buffer.capacity(), end)?;
        if let (Some(g), Some((entry, _))) = (gate.as_deref(), c.gated) {
            g.allow_send(
                entry,
                c.state.released().max(c.state.sent_to()),
                c.state.is_finished(),
            );
        }
        let outcome = self.drive(slot, gate);
        Ok(outcome)
    }

    /// Does what can be done for one connection now.
    fn drive(&mut self, slot: usize, gate: Option<&mut Gate>) -> Option<Outcome> {
        let c = self.connections.get_mut(&slot)?;
        let mut failed = None;
        loop {
            match c.state.next() {
                Action::Wait => break,
                Action::Send { from, to } => match c.buffer.send(c.socket.as_fd(), from, to) {
                    Ok(n) => c.state.sent(n),
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => c.state.full(),
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => failed = Some(c.fail(e)),
                },
                Action::Finish => match c.finish(gate.as_deref()) {
                    Ok(()) => c.state.finished(),
                    Err(e) => failed = Some(c.fail(e)),
                },
                Action::Reset => {
                    c.reset(gate.as_deref());
                    return Some(self.give_up(slot, gate, false));
                }
                Action::Free => return Some(self.give_up(slot, gate, true)),
            }
        }
        c.buffer.set_trimmed(c.state.trim_to());
        if !c.state.is_settled() {
            self.busy.insert(slot);
        }
        failed.map(|error| Outcome::Failed { slot, error })
    }

    fn give_up(&mut self, slot: usize, gate: Option<&mut Gate>, closed: bool) -> Outcome {
        self.busy.remove(&slot);
        if let Some(c) = self.connections.remove(&slot) {
            c.buffer.set_trimmed(c.state.trim_to());
            // The duplicate goes only when the gate lets through what its close makes the kernel send.
            if let (Some(g), Some((entry, _))) = (gate, c.gated)
                && let Err(e) = g.finish(
                    entry,
                    closed || c.state.is_failed() || c.state.next() == Action::Reset,
                )
            {
                tracing::warn!(slot, error = %e, "the gate keeps an entry that is no longer used");
            }
            drop(c.socket);
            c.buffer.free();
        }
        Outcome::Freed { slot }
    }

    /// Waits up to `timeout` for sockets that take bytes again, then looks at every connection with
    /// something on its way: sends, trims, ends.
    ///
    /// # Errors
    /// [`GateError::System`] if epoll fails.
    pub fn turn(
        &mut self,
        timeout: Duration,
        mut gate: Option<&mut Gate>,
    ) -> Result<Vec<Outcome>, GateError> {
        let mut events = [EpollEvent::empty(); EVENTS];
        let wait = EpollTimeout::try_from(timeout).unwrap_or(EpollTimeout::MAX);
        let n = match self.epoll.wait(&mut events, wait) {
            Ok(n) => n,
            Err(nix::errno::Errno::EINTR) => 0,
            Err(e) => {
                return Err(GateError::System {
                    step: "epoll_wait",
                    source: e.into(),
                });
            }
        };
        let mut outcomes = Vec::new();
        for event in &events[..n] {
            let slot = event.data() as usize;
            let Some(c) = self.connections.get_mut(&slot) else {
                continue;
            };
            if event.events().contains(EpollFlags::EPOLLERR) && !c.state.is_failed() {
                // The error itself stays on the socket for the application to find.
                let error = c.fail(io::Error::from_raw_os_error(nix::libc::ECONNRESET));
                outcomes.push(Outcome::Failed { slot, error });
            }
            c.state.writable();
            self.busy.insert(slot);
        }
        for slot in std::mem::take(&mut self.busy) {
            let Some(c) = self.connections.get_mut(&slot) else {
                continue;
            };
            c.learn(gate.as_deref());
            if !c.state.is_settled() {
                self.busy.insert(slot);
            }
            outcomes.extend(self.drive(slot, gate.as_deref_mut()));
        }
        Ok(outcomes)
    }

    /// The connection in `slot`, if there is one.
    #[must_use]
    pub fn state(&self, slot: usize) -> Option<&OutputState> {
        self.connections.get(&slot).map(|c| &c.state)
    }

    /// The sender's duplicate of the socket in `slot`.
    #[must_use]
    pub fn socket(&self, slot: usize) -> Option<&OwnedFd> {
        self.connections.get(&slot).map(|c| &c.socket)
    }

    /// The gate's entry of the connection in `slot`.
    #[must_use]
    pub fn entry(&self, slot: usize) -> Option<Entry> {
        self.connections
            .get(&slot)
            .and_then(|c| c.gated)
            .map(|(entry, _)| entry)
    }

    /// Slots of all connections, in order.
    pub fn slots(&self) -> impl Iterator<Item = usize> + '_ {
        self.connections.keys().copied()
    }

    /// True if some connection has something on its way: turns should follow within a millisecond or so.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        !self.busy.is_empty()
    }
}

impl<B: OutputBuffer> Adopted<B> {
    fn fail(&mut self, error: io::Error) -> io::Error {
        self.state.fail();
        self.buffer
            .set_error(error.raw_os_error().unwrap_or(nix::libc::EPIPE));
        error
    }

    fn finish(&self, gate: Option<&Gate>) -> io::Result<()> {
        if let (Some(g), Some((entry, _))) = (gate, self.gated) {
            g.allow_send(entry, self.state.released(), true);
        }
        Ok(shutdown(self.socket.as_raw_fd(), Shutdown::Write)?)
    }

    fn reset(&self, gate: Option<&Gate>) {
        if let (Some(g), Some((entry, _))) = (gate, self.gated) {
            g.allow_reset(entry);
        }
        let linger = nix::libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        // A socket that refuses is closed without a reset: no harm beside a slower end at the peer.
        if let Err(e) = setsockopt(&self.socket, sockopt::Linger, &linger) {
            tracing::debug!(error = %e, "a socket takes no linger time");
        }
    }

    /// Learns what the peer has, from the gate or from the socket.
    fn learn(&mut self, gate: Option<&Gate>) {
        let sent = self.state.sent_to();
        if let (Some(g), Some((entry, handshake))) = (gate, self.gated) {
            let progress = g.progress(entry);
            if progress.over
                && !self.state.is_failed()
                && sys::tcp::info(self.socket.as_fd()).is_ok_and(|i| i.state == CLOSED)
            {
                self.fail(io::Error::from_raw_os_error(nix::libc::ECONNRESET));
            }
            self.state
                .acknowledge(position_of(progress.una, sent, handshake.send_seq(sent)));
        } else if let Ok(waiting) = sys::tcp::unacknowledged(self.socket.as_fd()) {
            let end = sent + u64::from(self.state.is_finished());
            self.state
                .acknowledge(end.saturating_sub(u64::from(waiting)));
        }
    }
}

/// `TCP_CLOSE`.
const CLOSED: u8 = 7;
