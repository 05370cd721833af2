//! From the rings to the backup.

use std::sync::atomic::Ordering::Acquire;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use eventlog::recording::OWN_STREAM;
use gate::{Opening, Touched};
use guest::abi::conn;
use recorder::{Drainer, Sink};
use stream::StreamError;
use stream::ack::{AckError, AckTracker};
use stream::clock::Nanos;
use stream::log::LogSender;

use super::egress::{Shared, Touch};

/// What the acknowledgement of a drain releases.
#[derive(Clone, Debug, Default)]
pub(super) struct Released {
    /// Connections as they were when the drain began.
    pub(super) touches: Vec<Touch>,
    /// Answers to connection requests.
    pub(super) openings: Vec<Opening>,
}

impl Released {
    fn is_empty(&self) -> bool {
        self.touches.is_empty() && self.openings.is_empty()
    }

    fn append(&mut self, mut later: Self) {
        self.touches.append(&mut later.touches);
        self.openings.append(&mut later.openings);
    }
}

/// The drains under way, with what each releases.
#[derive(Clone, Debug)]
pub(super) struct Tracker(Arc<Mutex<AckTracker<Released>>>);

impl Tracker {
    fn lock(&self) -> MutexGuard<'_, AckTracker<Released>> {
        // Every change of the tracker is complete in itself.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the acknowledgement of a drain releases, oldest first.
    pub(super) fn acknowledged(&self, drain: u64) -> Result<Released, AckError> {
        let mut all = Released::default();
        for drain in self.lock().acknowledged(drain)? {
            all.append(drain.note);
        }
        Ok(all)
    }

    /// Nothing is under way.
    pub(super) fn is_settled(&self) -> bool {
        self.lock().in_flight() == 0
    }

    /// Bytes of log that are under way.
    fn lag(&self) -> u64 {
        self.lock().lag_bytes()
    }
}

/// Takes what the drainer finds.
#[derive(Debug)]
pub(super) struct LogSink {
    sender: LogSender,
    tracker: Tracker,
    shared: Arc<Shared>,
    note: Released,
    bytes: u64,
}

impl LogSink {
    pub(super) fn new(sender: LogSender, shared: Arc<Shared>) -> (Self, Tracker) {
        let tracker = Tracker(Arc::default());
        let sink = Self {
            sender,
            tracker: tracker.clone(),
            shared,
            note: Released::default(),
            bytes: 0,
        };
        (sink, tracker)
    }

    /// The host takes a duplicate of a new connection's socket and tells the backup of the handshake.
    fn adopt(&mut self, index: usize) -> Result<(), StreamError> {
        let adopted = self.shared.egress().adopt(index, self.shared.init);
        match adopted {
            Ok(placed) => self.records(OWN_STREAM, placed.position, &placed.record),
            Err(e) => {
                tracing::warn!(index, error = %e, "a connection could not be adopted");
                Ok(())
            }
        }
    }

    /// The backup learns of connections in the making; their answers wait for that.
    fn open(&mut self) -> Result<(), StreamError> {
        let new = std::mem::take(&mut *self.shared.openings());
        for opening in new {
            let placed = self.shared.egress().opens(&opening);
            match placed {
                Ok(placed) => {
                    self.records(OWN_STREAM, placed.position, &placed.record)?;
                    self.note.openings.push(opening);
                }
                Err(e) => tracing::warn!(error = %e, "a connection request is not answered"),
            }
        }
        Ok(())
    }
}

impl Sink for LogSink {
    type Error = StreamError;

    fn begin(&mut self) {
        let arena = &self.shared.arena;
        let touched = Touched::new(arena).map(|index| Touch::of(arena, index));
        self.note.touches.extend(touched);
    }

    fn records(&mut self, stream: u32, position: u64, bytes: &[u8]) -> Result<(), StreamError> {
        self.sender.records(stream, position, &[bytes])?;
        self.shared.tail().push(stream, position, bytes);
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    fn round(&mut self) -> Result<(), StreamError> {
        let new: Vec<usize> = self
            .note
            .touches
            .iter()
            .filter(|t| t.state == conn::OPEN && !t.adopted)
            .map(|t| t.index)
            .collect();
        self.open()?;
        for index in new {
            self.adopt(index)?;
        }
        if self.bytes == 0 && self.note.is_empty() {
            return Ok(());
        }
        let note = std::mem::take(&mut self.note);
        let number = loop {
            match self.tracker.lock().begin(Nanos::now(), note.clone()) {
                Ok(number) => break number,
                // Too much is under way: the rings fill meanwhile, and the application waits.
                Err(_) => std::thread::park_timeout(std::time::Duration::from_micros(200)),
            }
        };
        self.tracker.lock().sent(self.bytes);
        self.bytes = 0;
        self.sender.drain(number)?;
        self.shared.stats().lag = self.tracker.lag();
        Ok(())
    }

    fn is_waiting(&self) -> bool {
        !self.shared.openings().is_empty()
    }

    fn refused(&mut self, number: u16) {
        let name = sysabi::lookup(u64::from(number)).map_or("unknown", |row| row.name);
        eprintln!(
            "understudy: the system call {name} is not supported and was answered with ENOSYS"
        );
    }
}

/// The drain thread.
pub(super) fn run(drainer: Drainer<LogSink>, shared: &Shared) {
    if let Err(e) = drainer.run(&shared.stop)
        && !shared.stop.load(Acquire)
    {
        eprintln!("understudy: the log cannot be sent: {e}; output is held");
    }
}
