//! From the rings to the backup.

use std::mem::take;
use std::sync::atomic::Ordering::Acquire;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use eventlog::recording::OWN_STREAM;
use gate::{Opening, Touched};
use guest::abi::conn;
use recorder::{Drainer, NAP, Sink};
use stream::StreamError;
use stream::ack::{AckError, AckTracker};
use stream::clock::Nanos;
use stream::log::LogSender;

use super::egress::{Shared, Touch};

/// How long records are gathered while the last drain is under way: a distant backup must not set the pace.
const GATHER: Duration = Duration::from_micros(300);

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
#[derive(Clone, Debug, Default)]
pub(super) struct Tracker(Arc<Tracked>);

#[derive(Debug, Default)]
struct Tracked {
    drains: Mutex<AckTracker<Released>>,
    /// Told when nothing is under way any more.
    settled: Condvar,
}

impl Tracker {
    fn lock(&self) -> MutexGuard<'_, AckTracker<Released>> {
        // Every change of the tracker is complete in itself.
        self.0.drains.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until nothing is under way, but not long.
    fn await_settled(&self, at_most: Duration) {
        let under_way = |drains: &mut AckTracker<Released>| drains.in_flight() > 0;
        let settled = &self.0.settled;
        drop(settled.wait_timeout_while(self.lock(), at_most, under_way));
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
    /// Records since the last drain, and their bytes.
    records: u64,
    bytes: u64,
}

impl LogSink {
    pub(super) fn new(sender: LogSender, shared: Arc<Shared>) -> (Self, Tracker) {
        let tracker = Tracker::default();
        let sink = Self {
            sender,
            tracker: tracker.clone(),
            shared,
            note: Released::default(),
            records: 0,
            bytes: 0,
        };
        (sink, tracker)
    }

    /// The host takes a duplicate of a new connection's socket and tells the backup of the handshake.
    fn adopt(&mut self, index: usize) -> Result<(), StreamError> {
        let adopted = self.shared.egress().adopt(index, self.shared.init);
        match adopted {
            Ok(placed) => self.records(OWN_STREAM, placed.position, &placed.record, 1),
            Err(e) => {
                tracing::warn!(index, error = %e, "a connection could not be adopted");
                Ok(())
            }
        }
    }

    /// The backup learns of connections in the making; their answers wait for that.
    fn open(&mut self) -> Result<(), StreamError> {
        let new = take(&mut *self.shared.openings());
        for opening in new {
            let placed = self.shared.egress().opens(&opening);
            match placed {
                Ok(placed) => {
                    self.records(OWN_STREAM, placed.position, &placed.record, 1)?;
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

    fn records(
        &mut self,
        stream: u32,
        position: u64,
        bytes: &[u8],
        records: u64,
    ) -> Result<(), StreamError> {
        self.sender.records(stream, position, &[bytes])?;
        self.shared.tail().push(stream, position, bytes);
        self.records += records;
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
        let begun = self.tracker.lock().begin(Nanos::now(), self.note.clone());
        let Ok(number) = begun else {
            // The backup acknowledges nothing before the first checkpoint, which needs these records. They go;
            // what they release waits for the next drain.
            return self.sender.flush();
        };
        self.note = Released::default();
        self.tracker.lock().sent(self.bytes);
        let (records, bytes) = (take(&mut self.records), take(&mut self.bytes));
        self.sender.drain(number)?;
        let lag = self.tracker.lag();
        let mut stats = self.shared.stats();
        stats.lag = lag;
        stats.records += records;
        stats.bytes += bytes;
        Ok(())
    }

    fn refused(&mut self, number: u16) {
        let name = sysabi::lookup(u64::from(number)).map_or("unknown", |row| row.name);
        eprintln!(
            "understudy: the system call {name} is not supported and was answered with ENOSYS"
        );
    }
}

/// Ships what the rings hold. While a drain is under way its successor gathers records, and whoever releases
/// the one ships the other: under load nobody has to be woken for that, and records come many at a time.
#[derive(Debug)]
pub(super) struct Shipper {
    drainer: Mutex<Drainer<LogSink>>,
    tracker: Tracker,
    shared: Arc<Shared>,
}

impl Shipper {
    pub(super) fn new(drainer: Drainer<LogSink>, tracker: Tracker, shared: Arc<Shared>) -> Self {
        let drainer = Mutex::new(drainer);
        Self {
            drainer,
            tracker,
            shared,
        }
    }

    /// True if there was something.
    fn ship(&self) -> Result<bool, StreamError> {
        let drainer = self.drainer.lock();
        drainer.unwrap_or_else(PoisonError::into_inner).round()
    }

    /// After a release: ships what has been asked for meanwhile, if nothing is under way. (The next drain
    /// can then be begun without waiting for an acknowledgement, which is the caller's to take.)
    pub(super) fn go_on(&self) -> Result<(), StreamError> {
        if !self.tracker.is_settled() {
            return Ok(());
        }
        if self.shared.arena.is_look_wanted() {
            self.ship()?;
        } else {
            self.tracker.0.settled.notify_all();
        }
        Ok(())
    }

    /// The drain thread: ships what is asked for while nothing is under way, and looks now and then.
    pub(super) fn run(&self) {
        if let Err(e) = self.try_run()
            && !self.shared.stop.load(Acquire)
        {
            eprintln!("understudy: the log cannot be sent: {e}; output is held");
        }
    }

    fn try_run(&self) -> Result<(), StreamError> {
        loop {
            let stopping = self.shared.stop.load(Acquire);
            let moved = self.ship()?;
            if !stopping {
                self.tracker.await_settled(GATHER);
                self.shared.arena.sleep_until_asked(NAP);
            } else if !moved {
                return Ok(());
            }
        }
    }
}
