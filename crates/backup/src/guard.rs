//! One protected container: its log, its checkpoint, and who may speak, shared by its connections' threads.
//!
//! Locks are taken in this order: image, mirror, log, watch. The watch is held for moments only, since heartbeats
//! wait for it; the log is never held while an image is applied, since acknowledgements wait for it.

mod attempt;
mod clocks;

pub use attempt::{Attempt, Back, LiveError};
pub use clocks::{Lead, PrimaryClocks};

use core::sync::atomic::{AtomicBool, Ordering};
use core::time::Duration;
use std::sync::mpsc::Sender as EventSender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Thread;

use eventlog::change::Change;
use stream::checkpoint::Begin;
use stream::control::Held;
use stream::hello::{Channel, Hello};
use stream::lease::{BeatAnswer, Condition, Heartbeat};
use stream::log::AckSender;
use stream::transport::Sender;
use stream::{Clocks, Nanos, StreamError};

use crate::arbiter::{Arbiter, Phase, TakeoverError};
use crate::detector::{Detector, Status, Suspicion};
use crate::generation::GenerationFile;
use crate::mirror::{FilesError, Mirror};
use crate::store::{Image, LogStore, StoreError, Whole};

/// What a backup tells whoever acts on it.
#[derive(Debug)]
pub enum Event<I> {
    /// A primary has introduced itself.
    Connected(Arc<Guard<I>>),
    /// Its first checkpoint is committed: the container is protected.
    Protected(Arc<Guard<I>>),
    /// The primary is taken for dead: time for [`Guard::take_over`], if [`Guard::suspicion`] still says so.
    Suspected(Arc<Guard<I>>),
    /// A heartbeat came after all.
    FalseAlarm(Arc<Guard<I>>),
    /// The container has ended in order with this status; nothing is kept of it any more.
    Ended(Arc<Guard<I>>, i32),
    /// Its primary has left before it was protected: there is nothing to take over, and its name is free.
    Forgotten(Arc<Guard<I>>),
    /// One of its connections failed; the container goes on as far as the others allow.
    Failed(Arc<Guard<I>>, Channel, ServeError),
}

/// Why a connection of a container is served no longer.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The connection.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// What came on it cannot be kept.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A frame that is no part of a checkpoint.
    #[error(transparent)]
    Part(#[from] stream::checkpoint::PartError),
    /// A heartbeat that does not decode.
    #[error(transparent)]
    Message(#[from] eventlog::codec::CodecError),
}

/// The committed checkpoint.
#[derive(Debug)]
pub struct Committed<I> {
    /// What the checkpoints were applied to.
    pub image: I,
    /// The last one committed; `None` before the first.
    pub begin: Option<Begin>,
}

/// Who may speak, and the connections.
#[derive(Debug)]
struct Watch {
    arbiter: Arbiter,
    detector: Detector,
    clocks: PrimaryClocks,
    reported: bool,
    held: u64,
    acked: u64,
    acks: Option<AckSender>,
    follower: Option<Thread>,
    open: Vec<(Channel, Sender)>,
    generation_file: Option<GenerationFile>,
}

/// One protected container.
#[derive(Debug)]
pub struct Guard<I> {
    hello: Hello,
    instance: u64,
    log: Mutex<LogStore>,
    log_moved: Condvar,
    image: Mutex<Committed<I>>,
    mirror: Mutex<Option<Mirror>>,
    /// A commit holds the image, or is next.
    committing: AtomicBool,
    watch: Mutex<Watch>,
    watch_moved: Condvar,
    events: EventSender<Event<I>>,
}

/// Every update under these locks is complete before anything that could panic.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<I: Image> Guard<I> {
    /// The guard of the container that `hello` introduced, under `generation`.
    pub(crate) fn new(
        hello: Hello,
        generation: u64,
        instance: u64,
        log: LogStore,
        image: I,
        generation_file: Option<GenerationFile>,
        events: EventSender<Event<I>>,
    ) -> Self {
        let watch = Watch {
            arbiter: Arbiter::new(generation, hello.timing, Nanos::now()),
            detector: Detector::new(hello.timing.detect),
            clocks: PrimaryClocks::default(),
            reported: false,
            held: 0,
            acked: 0,
            acks: None,
            follower: None,
            open: Vec::new(),
            generation_file,
        };
        Self {
            hello,
            instance,
            log: Mutex::new(log),
            log_moved: Condvar::new(),
            image: Mutex::new(Committed { image, begin: None }),
            mirror: Mutex::new(None),
            committing: AtomicBool::new(false),
            watch: Mutex::new(watch),
            watch_moved: Condvar::new(),
            events,
        }
    }

    /// The same, with copies of the container's files to keep.
    pub(crate) fn with_mirror(self, mirror: Option<Mirror>) -> Self {
        let mirror = Mutex::new(mirror);
        Self { mirror, ..self }
    }

    /// What the primary said first: name, session, details.
    #[must_use]
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// The generation that may speak.
    #[must_use]
    pub fn generation(&self) -> u64 {
        locked(&self.watch).arbiter.generation()
    }

    /// Where the container stands.
    #[must_use]
    pub fn phase(&self) -> Phase {
        locked(&self.watch).arbiter.phase()
    }

    /// The number of the primary's last heartbeat: another one later says that it is alive.
    #[must_use]
    pub fn last_beat(&self) -> u64 {
        locked(&self.watch).arbiter.last_beat()
    }

    /// Why the primary is taken for dead, if it is.
    #[must_use]
    pub fn suspicion(&self) -> Option<Suspicion> {
        locked(&self.watch).detector.suspicion()
    }

    /// The primary's clocks as far as heartbeats told them.
    #[must_use]
    pub fn clocks(&self) -> PrimaryClocks {
        locked(&self.watch).clocks.clone()
    }

    /// True while any connection of the primary is open.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        !locked(&self.watch).open.is_empty()
    }

    /// What the backup holds, for `status`.
    #[must_use]
    pub fn held(&self) -> Held {
        let checkpoint = locked(&self.image).begin.as_ref().map(|b| b.id);
        let (log_bytes, longest_stream) = {
            let log = locked(&self.log);
            (
                log.bytes(),
                log.streams().map(|s| s.end - s.start).max().unwrap_or(0),
            )
        };
        let watch = locked(&self.watch);
        Held {
            generation: watch.arbiter.generation(),
            checkpoint,
            log_bytes,
            longest_stream,
            false_alarms: watch.detector.false_alarms(),
        }
    }

    /// Begins a takeover: from here on nothing is acknowledged, granted or committed, so log and image stay
    /// what the primary's gate was opened for.
    ///
    /// # Errors
    /// [`TakeoverError`] if nothing is committed, or another takeover is under way or done.
    pub fn take_over(self: &Arc<Self>) -> Result<Attempt<I>, TakeoverError> {
        let generation = locked(&self.watch).arbiter.take_over()?;
        Ok(Attempt::new(Arc::clone(self), generation))
    }

    /// Fails if the primary was heard after this heartbeat, unless it said that it will not speak.
    ///
    /// # Errors
    /// [`Back`].
    pub fn is_silent_since(&self, last_beat: u64) -> Result<(), Back> {
        let watch = locked(&self.watch);
        let beat = watch.arbiter.last_beat();
        if beat == last_beat || watch.arbiter.is_yielded() {
            Ok(())
        } else {
            Err(Back { beat })
        }
    }

    /// Waits until log comes beyond what `seen` says, or so long: for a standby that replays continuously.
    pub fn wait_for_log(&self, seen: impl Fn(&LogStore) -> bool, within: Duration) {
        let log = locked(&self.log);
        drop(
            self.log_moved
                .wait_timeout_while(log, within, |log| seen(log)),
        );
    }

    /// Whether a commit holds the image or waits for it; whoever follows the commits lets it go first.
    pub fn is_committing(&self) -> bool {
        self.committing.load(Ordering::Acquire)
    }

    /// Unparks this thread after each commit from now on, and no other.
    pub fn tell_commits_to(&self, thread: Thread) {
        locked(&self.watch).follower = Some(thread);
    }

    /// The log.
    pub fn log(&self) -> MutexGuard<'_, LogStore> {
        locked(&self.log)
    }

    /// The copies of the container's directories, if there are any to keep.
    pub fn mirror(&self) -> MutexGuard<'_, Option<Mirror>> {
        locked(&self.mirror)
    }

    /// A part of a whole copy of the container's files.
    pub(crate) fn copy_files(&self, changes: &[Change]) -> Result<(), FilesError> {
        let _no_commit = self.image();
        if !locked(&self.watch).arbiter.may_commit() {
            return Ok(());
        }
        self.mirror()
            .as_mut()
            .map_or(Ok(()), |mirror| mirror.copy(changes))
    }

    /// The committed checkpoint. Commits wait while this is held.
    pub fn image(&self) -> MutexGuard<'_, Committed<I>> {
        locked(&self.image)
    }

    pub(crate) fn tell(&self, event: Event<I>) {
        // Nobody listens any more only when the backup is shutting down.
        let _ = self.events.send(event);
    }

    /// Registers a connection; false if one of this kind is open.
    pub(crate) fn open(&self, channel: Channel, sender: &Sender) -> bool {
        let mut watch = locked(&self.watch);
        if watch.open.iter().any(|(c, _)| *c == channel) {
            return false;
        }
        watch.open.push((channel, sender.clone()));
        if channel == Channel::Heartbeat {
            watch.arbiter.reconnected();
        }
        true
    }

    /// A connection is served no longer.
    pub(crate) fn closed(&self, channel: Channel) {
        locked(&self.watch).open.retain(|(c, sender)| {
            // Others may hold its sender: the peer is to know at once.
            if *c == channel {
                sender.shutdown();
            }
            *c != channel
        });
        // Whoever waits for log that cannot come any more looks again. Taking the lock orders this after a
        // waiter's own look.
        drop(locked(&self.log));
        self.log_moved.notify_all();
    }

    /// True once a log connection was served: its positions cannot be taken up by another.
    pub(crate) fn held_log(&self) -> bool {
        locked(&self.watch).acks.is_some()
    }

    pub(crate) fn is_open(&self, channel: Channel) -> bool {
        locked(&self.watch).open.iter().any(|(c, _)| *c == channel)
    }

    /// Ends every connection: their threads return.
    pub(crate) fn disconnect(&self) {
        for (_, sender) in &locked(&self.watch).open {
            sender.shutdown();
        }
    }

    /// Acknowledgements go there from now on.
    pub(crate) fn acknowledge_to(&self, acks: AckSender) {
        locked(&self.watch).acks = Some(acks);
    }

    /// Waits until there is room for log, or the log's connection has ended.
    pub(crate) fn wait_for_room(&self) {
        let log = locked(&self.log);
        if log.has_room() {
            return;
        }
        drop(
            self.log_moved
                .wait_while(log, |log| !log.has_room() && self.is_open(Channel::Log)),
        );
    }

    pub(crate) fn append(
        &self,
        stream: u32,
        position: u64,
        bytes: &[u8],
    ) -> Result<(), StoreError> {
        let mut log = locked(&self.log);
        log.append(stream, position, bytes)?;
        // A commit may wait for these very bytes, and the log for that commit.
        if log.awaited_is_reached() {
            self.log_moved.notify_all();
        }
        Ok(())
    }

    /// A whole drain is kept: acknowledges it if the phase allows, now or when it does.
    pub(crate) fn drained(&self, number: u64) -> Result<(), StreamError> {
        // First: what is acknowledged will have to be replayed.
        locked(&self.log).mark_drain();
        let due = {
            let mut watch = locked(&self.watch);
            watch.held = number;
            watch.due()
        };
        self.log_moved.notify_all();
        send_due(due)
    }

    /// Says which checkpoint's cut the log must reach whatever its cap.
    pub(crate) fn await_cut(&self, begin: Option<&Begin>) -> Result<(), StoreError> {
        let awaited = locked(&self.log).await_cut(begin.map(|b| b.cut.clone()));
        self.log_moved.notify_all();
        awaited
    }

    /// Commits a checkpoint once the log has reached its cut.
    ///
    /// Returns false, and changes nothing, if the log cannot reach it any more or a takeover is under way.
    pub(crate) fn commit(self: &Arc<Self>, whole: Whole) -> Result<bool, StoreError> {
        let Whole {
            begin,
            image,
            files,
        } = whole;
        {
            let log = locked(&self.log);
            let waits = |log: &mut LogStore| !log.reached(&begin.cut) && self.is_open(Channel::Log);
            let log = self
                .log_moved
                .wait_while(log, waits)
                .unwrap_or_else(PoisonError::into_inner);
            if !log.reached(&begin.cut) {
                return Ok(false);
            }
        }
        self.committing.store(true, Ordering::Release);
        let replaced = self.replace(begin, image, &files);
        self.committing.store(false, Ordering::Release);
        let follower = locked(&self.watch).follower.clone();
        if let Some(follower) = follower {
            follower.unpark();
        }
        if !replaced? {
            return Ok(false);
        }
        let (first, due) = {
            let mut watch = locked(&self.watch);
            let first = watch.arbiter.phase() == Phase::Unprotected;
            watch.arbiter.committed();
            (first, watch.due())
        };
        self.log_moved.notify_all();
        if first {
            self.tell(Event::Protected(Arc::clone(self)));
        }
        // A log connection that fails is noticed, and reported, by the thread that reads it.
        let _ = send_due(due);
        Ok(true)
    }

    /// Makes a checkpoint the committed one; false if a takeover is under way.
    fn replace(&self, begin: Begin, image: Vec<u8>, files: &[Change]) -> Result<bool, StoreError> {
        let mut committed = locked(&self.image);
        if !locked(&self.watch).arbiter.may_commit() {
            return Ok(false);
        }
        let id = begin.id;
        let last = committed.begin.as_ref().map(|b| b.id);
        if let Some(base) = begin.base
            && last != Some(base)
        {
            return Err(StoreError::Base {
                id,
                base,
                committed: last,
            });
        }
        // The log goes on from the checkpoint, and so must both. Files that do not come along are made anew; an image
        // cannot be.
        let mut mirror = self.mirror();
        if let Some(mirror) = mirror.as_mut() {
            let kept = mirror.commit(files);
            kept.map_err(|source| StoreError::Files { id, source })?;
        }
        let applied = committed.image.apply(&begin, image);
        if let (Err(_), Some(mirror)) = (&applied, mirror.as_mut()) {
            mirror.forget();
        }
        applied.map_err(|reason| StoreError::Image { id, reason })?;
        locked(&self.log).drop_before(&begin.cut);
        committed.begin = Some(begin);
        Ok(true)
    }

    /// A heartbeat came: the answer to send, and whether it proves a suspicion wrong.
    pub(crate) fn heartbeat(
        &self,
        Heartbeat { beat, clocks }: &Heartbeat,
        ours: Clocks,
        now: Nanos,
    ) -> (BeatAnswer, bool) {
        let mut watch = locked(&self.watch);
        watch.clocks.heard(clocks, &ours);
        let false_alarm = watch.detector.heard(now);
        if false_alarm {
            watch.reported = false;
        }
        let verdict = watch.arbiter.heartbeat(beat, now);
        if beat.condition == Condition::Yielded {
            watch.detector.yielded(now);
        }
        let generation = watch.arbiter.generation();
        (
            BeatAnswer {
                seq: beat.seq,
                generation,
                instance: self.instance,
                verdict,
            },
            false_alarm,
        )
    }

    /// How long until silence would be suspicious; a suspicion that was not reported yet is.
    pub(crate) fn watch(self: &Arc<Self>, now: Nanos, lost: bool) -> Duration {
        let mut watch = locked(&self.watch);
        if watch.arbiter.phase() == Phase::Ended {
            return self.hello.timing.detect;
        }
        let status = if lost {
            watch.detector.lost(now)
        } else {
            watch.detector.check(now)
        };
        match status {
            Status::Waiting => self.hello.timing.detect,
            Status::Alive { deadline } => deadline.since(now),
            Status::Suspected(_) => {
                if !watch.reported {
                    watch.reported = true;
                    drop(watch);
                    self.tell(Event::Suspected(Arc::clone(self)));
                }
                self.hello.timing.detect
            }
        }
    }

    /// The primary asked for a switch-over: reported as a suspicion.
    pub(crate) fn yielded(self: &Arc<Self>, now: Nanos) {
        locked(&self.watch).detector.yielded(now);
        self.watch(now, false);
    }

    /// The container has ended in order.
    pub(crate) fn ended(&self) {
        locked(&self.watch).arbiter.ended();
    }
}

impl Watch {
    /// The acknowledgement that is due, if any.
    fn due(&mut self) -> Option<(AckSender, u64)> {
        if !self.arbiter.may_acknowledge() || self.held <= self.acked {
            return None;
        }
        self.acked = self.held;
        self.acks.clone().map(|acks| (acks, self.held))
    }
}

fn send_due(due: Option<(AckSender, u64)>) -> Result<(), StreamError> {
    due.map_or(Ok(()), |(acks, number)| acks.ack(number))
}
