//! From the rings to the backup, if there is one: without, the log goes no further than to where the fold takes it from,
//! and what it would release waits.

use std::collections::BTreeMap;
use std::convert::Infallible;
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
    pub(super) fn is_empty(&self) -> bool {
        self.touches.is_empty() && self.openings.is_empty()
    }

    pub(super) fn append(&mut self, mut later: Self) {
        self.touches.append(&mut later.touches);
        self.openings.append(&mut later.openings);
    }

    /// Keeps the last of each connection's touches: for what gathers over a long time.
    pub(super) fn condense(&mut self) {
        let touches = take(&mut self.touches).into_iter();
        let last: BTreeMap<_, _> = touches.map(|t| ((t.index, t.generation), t)).collect();
        self.touches = last.into_values().collect();
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

    /// Nothing is under way any more: what would have been released.
    fn begin_anew(&self) -> Released {
        let under_way = take(&mut *self.lock());
        self.0.settled.notify_all();
        let mut all = Released::default();
        under_way.into_notes().for_each(|note| all.append(note));
        all
    }

    /// Bytes of log that are under way.
    fn lag(&self) -> u64 {
        self.lock().lag_bytes()
    }
}

/// Takes what the drainer finds.
#[derive(Debug)]
pub(super) struct LogSink {
    /// To the backup, while there is one.
    sender: Option<LogSender>,
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
            sender: Some(sender),
            tracker: tracker.clone(),
            shared,
            note: Released::default(),
            records: 0,
            bytes: 0,
        };
        (sink, tracker)
    }

    /// Goes without a backup from now on.
    fn leave(&mut self) {
        if let Some(sender) = self.sender.take() {
            // Whoever waits for acknowledgements is to know.
            sender.shutdown();
        }
    }

    /// Goes on with a backup that holds nothing yet. It is told where each stream stands; what lies before is for its
    /// first checkpoint, and what nobody has acknowledged is released behind that.
    fn join(&mut self, mut sender: LogSender) -> Result<(), StreamError> {
        let mut note = self.tracker.begin_anew();
        note.append(take(&mut self.note));
        note.condense();
        self.note = note;
        (self.records, self.bytes) = (0, 0);
        let own = (OWN_STREAM, self.shared.egress().own_position());
        let mut ends = self.shared.tail().ends();
        ends.retain(|(stream, _)| *stream != OWN_STREAM);
        for (stream, position) in ends.into_iter().chain([own]) {
            sender.records(stream, position, &[])?;
        }
        sender.flush()?;
        self.sender = Some(sender);
        Ok(())
    }

    /// Sends something, if there is a backup.
    fn send(&mut self, what: impl FnOnce(&mut LogSender) -> Result<(), StreamError>) {
        if let Some(Err(error)) = self.sender.as_mut().map(what) {
            tracing::debug!(%error, "the log cannot be sent");
            self.leave();
        }
    }

    /// Keeps records for the fold, and sends them.
    fn take_records(&mut self, stream: u32, position: u64, bytes: &[u8], records: u64) {
        self.send(|sender| sender.records(stream, position, &[bytes]));
        self.shared.tail().push(stream, position, bytes);
        self.records += records;
        self.bytes += bytes.len() as u64;
    }

    /// The host takes a duplicate of a new connection's socket and tells the backup of the handshake.
    fn adopt(&mut self, index: usize) {
        let adopted = self.shared.egress().adopt(index, self.shared.init);
        match adopted {
            Ok(placed) => self.take_records(OWN_STREAM, placed.position, &placed.record, 1),
            Err(e) => tracing::warn!(index, error = %e, "a connection could not be adopted"),
        }
    }

    /// The backup learns of connections in the making; their answers wait for that. Without one they are not answered,
    /// and asked for again.
    fn open(&mut self) {
        let new = take(&mut *self.shared.openings());
        if self.sender.is_none() {
            return;
        }
        for opening in new {
            let placed = self.shared.egress().opens(&opening);
            match placed {
                Ok(placed) => {
                    self.take_records(OWN_STREAM, placed.position, &placed.record, 1);
                    self.note.openings.push(opening);
                }
                Err(e) => tracing::warn!(error = %e, "a connection request is not answered"),
            }
        }
    }
}

impl Sink for LogSink {
    type Error = Infallible;

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
    ) -> Result<(), Infallible> {
        self.take_records(stream, position, bytes, records);
        Ok(())
    }

    fn round(&mut self) -> Result<(), Infallible> {
        let touches = self.note.touches.iter_mut();
        let new = touches.filter(|t| t.state == conn::OPEN && !t.adopted);
        let new: Vec<usize> = new
            .map(|touch| {
                touch.adopted = true;
                touch.index
            })
            .collect();
        self.open();
        for index in new {
            self.adopt(index);
        }
        if self.bytes == 0 && self.note.is_empty() {
            return Ok(());
        }
        if self.sender.is_none() {
            self.note.condense();
            return Ok(());
        }
        let begun = self.tracker.lock().begin(Nanos::now(), self.note.clone());
        let Ok(number) = begun else {
            // The backup acknowledges nothing before the first checkpoint, which needs these records. They go;
            // what they release waits for the next drain.
            self.send(LogSender::flush);
            return Ok(());
        };
        self.note = Released::default();
        self.tracker.lock().sent(self.bytes);
        let (records, bytes) = (take(&mut self.records), take(&mut self.bytes));
        self.send(|sender| sender.drain(number));
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

    fn lock(&self) -> MutexGuard<'_, Drainer<LogSink>> {
        self.drainer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True if there was something.
    fn ship(&self) -> bool {
        let Ok(moved) = self.lock().round();
        moved
    }

    /// Ships nothing more: the backup is lost.
    pub(super) fn leave(&self) {
        self.lock().sink().leave();
    }

    /// Ships to a backup that holds nothing yet.
    pub(super) fn join(&self, sender: LogSender) -> Result<(), StreamError> {
        self.lock().sink().join(sender)
    }

    /// After a release: ships what has been asked for meanwhile, if nothing is under way. (The next drain
    /// can then be begun without waiting for an acknowledgement, which is the caller's to take.)
    pub(super) fn go_on(&self) {
        if !self.tracker.is_settled() {
            return;
        }
        if self.shared.arena.is_look_wanted() {
            self.ship();
        } else {
            self.tracker.0.settled.notify_all();
        }
    }

    /// The drain thread: ships what is asked for while nothing is under way, and looks now and then.
    pub(super) fn run(&self) {
        loop {
            let stopping = self.shared.stop.load(Acquire);
            let moved = self.ship();
            if !stopping {
                self.tracker.await_settled(GATHER);
                self.shared.arena.sleep_until_asked(NAP);
            } else if !moved {
                return;
            }
        }
    }
}
