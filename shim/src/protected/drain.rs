//! From the rings to the backup.

use std::sync::atomic::Ordering::Acquire;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use eventlog::record::{Header, LONG_LEN, kind};
use eventlog::recording::OWN_STREAM;
use gate::Touched;
use guest::abi::conn;
use recorder::{Drainer, Sink};
use stream::StreamError;
use stream::ack::{AckError, AckTracker};
use stream::clock::Nanos;
use stream::log::LogSender;

use super::egress::{Shared, Touch};

/// The drains under way, with what each releases.
#[derive(Clone, Debug)]
pub(super) struct Tracker(Arc<Mutex<AckTracker<Vec<Touch>>>>);

impl Tracker {
    fn lock(&self) -> MutexGuard<'_, AckTracker<Vec<Touch>>> {
        // Every change of the tracker is complete in itself.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the acknowledgement of a drain releases, oldest first.
    pub(super) fn acknowledged(&self, drain: u64) -> Result<Vec<Touch>, AckError> {
        Ok(self
            .lock()
            .acknowledged(drain)?
            .flat_map(|released| released.note)
            .collect())
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
    note: Vec<Touch>,
    bytes: u64,
    own_position: u64,
}

impl LogSink {
    pub(super) fn new(sender: LogSender, shared: Arc<Shared>) -> (Self, Tracker) {
        let tracker = Tracker(Arc::default());
        let sink = Self {
            sender,
            tracker: tracker.clone(),
            shared,
            note: Vec::new(),
            bytes: 0,
            own_position: 0,
        };
        (sink, tracker)
    }

    /// The host takes a duplicate of a new connection's socket and tells the backup of the handshake.
    fn adopt(&mut self, index: usize) -> Result<(), StreamError> {
        let adopted = self.shared.egress().adopt(index, self.shared.init);
        let payload = match adopted {
            Ok(payload) => payload,
            Err(e) => {
                tracing::warn!(index, error = %e, "a connection could not be adopted");
                return Ok(());
            }
        };
        let entry = self.shared.arena.conn(index);
        let header = Header {
            kind: kind::HANDSHAKE,
            result: index as i64,
            version: u64::from(entry.generation.load(Acquire)),
            payload_len: payload.len() as u32,
            ..Header::default()
        };
        let (head, _) = header.encode();
        let mut record = head[..LONG_LEN].to_vec();
        record.extend_from_slice(&payload);
        record.resize(LONG_LEN + payload.len().next_multiple_of(8), 0);
        let at = self.own_position;
        self.own_position += record.len() as u64;
        self.records(OWN_STREAM, at, &record)
    }
}

impl Sink for LogSink {
    type Error = StreamError;

    fn begin(&mut self) {
        let arena = &self.shared.arena;
        let touched = Touched::new(arena).map(|index| Touch::of(arena, index));
        self.note.extend(touched);
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
            .iter()
            .filter(|t| t.state == conn::OPEN && !t.adopted)
            .map(|t| t.index)
            .collect();
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
