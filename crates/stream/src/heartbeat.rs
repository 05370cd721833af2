//! Heartbeats on the primary: a loop for a thread of its own, which the caller makes a real-time one.

use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use eventlog::codec;
use eventlog::frame::{Header, Kind};

use crate::clock::{Clocks, Nanos};
use crate::connect::Connection;
use crate::error::StreamError;
use crate::lease::{BeatAnswer, Heartbeat, Lease, Outcome};
use crate::transport::{Receiver, Sender};

/// A primary's heartbeat connection.
#[derive(Debug)]
pub struct Heartbeats {
    pulse: Pulse,
    receiver: Receiver,
}

/// A handle for other threads: reads the lease, gives it up, sends a heartbeat out of turn, ends the loop.
#[derive(Clone, Debug)]
pub struct Pulse {
    lease: Arc<Mutex<Lease>>,
    sender: Sender,
    stopped: Arc<AtomicBool>,
}

/// The header of a heartbeat or of its answer.
#[must_use]
pub const fn header(generation: u64, seq: u64) -> Header {
    Header::of(Kind::Heartbeat, generation, seq)
}

impl Pulse {
    /// The lease, for reading.
    pub fn lease(&self) -> MutexGuard<'_, Lease> {
        // Every change of a lease is complete in itself, so a panic elsewhere leaves it whole.
        self.lease.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a heartbeat now.
    ///
    /// # Errors
    /// As sending.
    pub fn beat(&self) -> Result<(), StreamError> {
        let beat = self.lease().beat(Nanos::now());
        let clocks = Clocks::now();
        self.sender.message(
            &header(beat.generation, beat.seq),
            &Heartbeat { beat, clocks },
        )
    }

    /// Gives the lease up and tells the backup. The gate must be closed already.
    ///
    /// # Errors
    /// As sending; the lease is given up all the same.
    pub fn give_up(&self) -> Result<(), StreamError> {
        self.lease().give_up();
        self.beat()
    }

    /// Ends [`Heartbeats::run`] and closes the connection.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        self.sender.shutdown();
    }
}

impl Heartbeats {
    /// Heartbeats for `lease` over a connection made for them.
    #[must_use]
    pub fn new(connection: Connection, lease: Lease) -> Self {
        let pulse = Pulse {
            lease: Arc::new(Mutex::new(lease)),
            sender: connection.sender,
            stopped: Arc::default(),
        };
        Self {
            pulse,
            receiver: connection.receiver,
        }
    }

    /// A handle for other threads.
    #[must_use]
    pub fn pulse(&self) -> Pulse {
        self.pulse.clone()
    }

    /// Sends heartbeats in their interval and takes the answers; tells each outcome to `on`, which hands the
    /// lease's end to the gate at once. Returns when fenced, stopped, or when the connection fails.
    ///
    /// # Errors
    /// As sending and receiving. The lease then runs out by itself.
    pub fn run(mut self, mut on: impl FnMut(Outcome)) -> Result<(), StreamError> {
        let interval = self.pulse.lease().timing().heartbeat;
        let mut due = Nanos::now();
        loop {
            let now = Nanos::now();
            if self.pulse.stopped.load(Ordering::Acquire) {
                return Ok(());
            }
            if now >= due {
                if let Err(e) = self.pulse.beat() {
                    return self.ended(e);
                }
                // After a stall, the missed ones are not made up for.
                due = if due + interval > now {
                    due + interval
                } else {
                    now + interval
                };
            }
            let wait = due.since(now).max(Duration::from_micros(1));
            let outcome = match self.receive(wait) {
                Ok(Some(outcome)) => outcome,
                Ok(None) => continue,
                Err(e) => return self.ended(e),
            };
            on(outcome);
            if matches!(outcome, Outcome::Fenced { .. }) {
                return Ok(());
            }
        }
    }

    fn ended(&self, e: StreamError) -> Result<(), StreamError> {
        if self.pulse.stopped.load(Ordering::Acquire) {
            Ok(())
        } else {
            Err(e)
        }
    }

    fn receive(&mut self, wait: Duration) -> Result<Option<Outcome>, StreamError> {
        let peer = self.receiver.peer();
        let Some(frame) = self.receiver.recv(Some(wait))? else {
            return Ok(None);
        };
        if frame.header.kind != Kind::Heartbeat {
            let doing = "waiting for the answer to a heartbeat";
            return Err(StreamError::Unexpected {
                doing,
                peer,
                found: frame.header.kind,
            });
        }
        let answer: BeatAnswer =
            codec::decode(frame.body).map_err(|source| StreamError::Message { peer, source })?;
        Ok(Some(self.pulse.lease().answered(&answer, Nanos::now())))
    }
}
