//! Checkpoints: one every epoch, with what of arena and kernel state a takeover has to bring. Without a backup they are
//! taken all the same, now and then, and go nowhere: the fold has to come along with the log.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::mem::take;
use std::sync::Arc;
use std::sync::atomic::Ordering::Acquire;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use checkpointer::{Census, CheckpointError, Guest, Settings, Tree, TreeCapture};
use eventlog::codec;
use eventlog::fold::Merge;
use eventlog::handover::section;
use eventlog::recording::OWN_STREAM;
use guest::Blob;
use guest::abi::{ARENA_BASE, ARENA_LEN, MAX_SLOTS, slot};
use stream::checkpoint::{Begin, CheckpointSender, Commit, CommitReceiver, Cut};
use sys::arena::Arena;
use sys::follow::Images;
use sys::memory::Range;
use sys::process::{PidFd, lock_memory};

use super::at_cut::AtCut;
use super::bereft;
use super::drain::Released;
use super::egress::Shared;
use super::files::Files;
use super::held::Held;
use crate::Error;

/// While a checkpoint waits for its commit, how often that is told.
const COMMIT: Duration = Duration::from_secs(30);
/// Checkpoints that may fail one after another, before that is taken for more than bad luck.
const MOST_FAILURES: u32 = 50;
/// How long a program that lets go of its memory may take to end, in milliseconds.
const ENDING: u16 = 1000;
/// After a pause that could not be clean.
const AGAIN: Duration = Duration::from_millis(3);
/// Between two checkpoints that nobody gets.
const ALONE: Duration = Duration::from_secs(1);

/// Where checkpoints go: to one run of the backup.
pub(super) type Link = (CheckpointSender, CommitReceiver);

/// Takes the checkpoints of a container.
#[derive(Debug)]
pub(super) struct Epochs {
    shared: Arc<Shared>,
    program: i32,
    images: Images,
    epoch: Duration,
    link: Option<Link>,
    /// Further runs of the backup, which hold nothing yet.
    links: Receiver<Link>,
    merge: Merge,
    known_streams: BTreeSet<u32>,
    files: Files,
}

/// A checkpoint that was taken and not sent.
#[derive(Debug)]
struct Taken {
    capture: TreeCapture,
    at_cut: AtCut,
    /// What leaves when it is committed.
    covered: Released,
}

/// What the arena tells of the container's processes.
struct Slots<'a>(&'a Arena);

impl Census for Slots<'_> {
    fn is_lent(&self) -> bool {
        let mut rings = (0..MAX_SLOTS).map(|index| self.0.slot(index));
        rings.any(|ring| ring.state.load(Acquire) == slot::LIVE && ring.lent.load(Acquire) != 0)
    }

    fn has_others(&self, known: &[u32]) -> bool {
        let mut rings = (0..MAX_SLOTS).map(|index| self.0.slot(index));
        rings.any(|ring| {
            ring.state.load(Acquire) == slot::LIVE && !known.contains(&ring.pid.load(Acquire))
        })
    }

    fn births(&self) -> u64 {
        self.0.control().next_stream.load(Acquire).into()
    }

    fn forks(&self) -> u64 {
        self.0.control().forks.load(Acquire).into()
    }

    fn changes(&self) -> u64 {
        self.0.control().changes.load(Acquire)
    }
}

impl Epochs {
    pub(super) fn new(
        shared: Arc<Shared>,
        program: i32,
        images: Images,
        epoch: Duration,
        links: Receiver<Link>,
        files: Files,
    ) -> Self {
        let (mut merge, known_streams) = (Merge::new(), BTreeSet::new());
        files.begin(&mut merge);
        Self {
            shared,
            program,
            images,
            epoch,
            link: None,
            links,
            merge,
            known_streams,
            files,
        }
    }

    /// The epoch thread.
    pub(super) fn run(mut self) {
        let program = PidFd::open(self.program);
        if let Err(e) = self.try_run()
            && !self.shared.stop.load(Acquire)
            // A program that is ending cannot be checkpointed, and need not.
            && !program.map_or(true, |program| program.ends_within(ENDING))
        {
            eprintln!("understudy: checkpoints ended: {e}");
        }
    }

    fn try_run(&mut self) -> Result<(), Error> {
        if let Err(e) = lock_memory() {
            tracing::warn!(error = %e, "memory cannot be locked");
        }
        let skip = vec![Range {
            start: ARENA_BASE,
            end: ARENA_BASE + ARENA_LEN,
        }];
        let settings = Settings {
            guest: Some(guest_labels()),
            skip,
            names: true,
            ..Settings::default()
        };
        let images = self.images.clone();
        let mut tree = Tree::new(self.shared.init, self.program, images, settings);
        let mut failures = 0;
        while !self.shared.stop.load(Acquire) {
            self.join_newest(&mut tree);
            let began = Instant::now();
            match self
                .take(&mut tree)
                .and_then(|taken| self.deliver(taken, &mut tree))
            {
                Ok(()) => {
                    failures = 0;
                    self.rest(began, &mut tree);
                }
                Err(Error::Checkpoint(
                    error @ (CheckpointError::Unsettled { .. } | CheckpointError::Busy { .. }),
                )) => {
                    tracing::debug!(%error, "pause given up");
                    thread::sleep(AGAIN);
                }
                Err(error @ (Error::Checkpoint(_) | Error::Files(_)))
                    if failures < MOST_FAILURES =>
                {
                    tracing::debug!(%error, "a checkpoint failed; the next one is a full one");
                    failures += 1;
                    thread::sleep(AGAIN);
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Goes on with the run of the backup that was joined last, if one was.
    fn join_newest(&mut self, tree: &mut Tree) {
        loop {
            match self.links.try_recv() {
                Ok(link) => self.join(link, tree),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return,
            }
        }
    }

    /// The next checkpoint is for a backup that has none.
    fn join(&mut self, link: Link, tree: &mut Tree) {
        self.link = Some(link);
        self.files.make_whole();
        tree.make_full();
    }

    /// Waits until the next checkpoint is due, or there is somebody to get it.
    fn rest(&mut self, began: Instant, tree: &mut Tree) {
        if self.link.is_some() {
            return thread::sleep(self.epoch.saturating_sub(began.elapsed()));
        }
        let alone = ALONE.max(self.epoch).saturating_sub(began.elapsed());
        match self.links.recv_timeout(alone) {
            Ok(link) => self.join(link, tree),
            Err(RecvTimeoutError::Timeout) => {}
            // Nobody will join another any more: the run is over.
            Err(RecvTimeoutError::Disconnected) => thread::sleep(alone),
        }
    }

    /// Takes a checkpoint of all processes.
    fn take(&mut self, tree: &mut Tree) -> Result<Taken, Error> {
        let arena = Arc::clone(&self.shared.arena);
        let mut at_cut = AtCut::default();
        let (files, link) = (&mut self.files, &mut self.link);
        let read = &mut |living: &[u32]| {
            at_cut = AtCut::read(&arena, living);
            if let Some((sender, _)) = link {
                files.copy_at_cut(sender);
            }
        };
        let covered = self.shared.held.as_ref().map(Held::take);
        let covered = covered.unwrap_or_default();
        let (capture, timing) = match tree.checkpoint(&Slots(&arena), read) {
            Ok(taken) => taken,
            Err(error) => {
                self.put_back(covered);
                return Err(error.into());
            }
        };
        match self.files.copied() {
            Ok(()) => {}
            // The backup is lost, which the log's connection tells of.
            Err(Error::Stream(error)) => {
                tracing::debug!(%error, "the container's files cannot be sent");
                self.link = None;
            }
            Err(error) => {
                self.put_back(covered);
                tree.recycle(capture);
                tree.make_full();
                return Err(error);
            }
        }
        self.shared.stats().paused(timing.pause);
        tracing::debug!(?timing, "checkpoint");
        Ok(Taken {
            capture,
            at_cut,
            covered,
        })
    }

    /// Brings the fold up to it, and sends it if there is a backup.
    fn deliver(&mut self, mut taken: Taken, tree: &mut Tree) -> Result<(), Error> {
        let covered = take(&mut taken.covered);
        let delivered = self.try_deliver(taken, tree);
        if !matches!(delivered, Ok(true)) {
            self.put_back(covered);
        } else if !covered.is_empty()
            && let Err(e) = self.shared.egress().turn(covered)
        {
            eprintln!("understudy: sending failed: {e}");
        }
        delivered.map(drop)
    }

    fn put_back(&self, covered: Released) {
        if let Some(held) = &self.shared.held {
            held.put_back(covered);
        }
    }

    /// Whether the backup has committed it.
    fn try_deliver(&mut self, taken: Taken, tree: &mut Tree) -> Result<bool, Error> {
        let (handshakes, own_position) = self.shared.egress().handshakes();
        let mut cut = self.fold_up_to(&taken.at_cut)?;
        cut.streams.push((OWN_STREAM, own_position));
        self.files.changed(self.merge.take_changes());
        let Some(mut link) = self.link.take() else {
            self.files.make_whole();
            tree.recycle(taken.capture);
            return Ok(false);
        };
        match self.send(&mut link, taken, cut, handshakes, tree) {
            // The backup is lost, which the log's connection tells of.
            Err(Error::Stream(error)) => {
                tracing::debug!(%error, "a checkpoint cannot be sent");
                Ok(false)
            }
            other => {
                self.link = Some(link);
                other
            }
        }
    }

    /// Sends it with all that belongs to it, and waits until the backup has committed it. Whether it has.
    fn send(
        &mut self,
        (sender, commits): &mut Link,
        taken: Taken,
        cut: Cut,
        handshakes: Vec<u8>,
        tree: &mut Tree,
    ) -> Result<bool, Error> {
        let Taken {
            capture, at_cut, ..
        } = taken;
        let snapshot = self.merge.snapshot()?;
        let state = codec::encode(&at_cut.state)?;
        let mut images = capture.images();
        let Some(first) = images.first_mut() else {
            return Ok(false);
        };
        let own = [
            (section::FOLD, snapshot),
            (section::GUEST, state),
            (section::OUTPUT, at_cut.output),
            (section::HANDSHAKES, handshakes),
        ];
        let own = own.map(|(kind, bytes)| (kind, Cow::Owned(bytes)));
        first.opaque.extend(own);
        let id = first.sequence;
        let base = (first.base != 0).then_some(first.base);
        let mut bytes = eventlog::image::encode(first);
        for image in &images[1..] {
            bytes.extend_from_slice(&eventlog::image::encode(image));
        }
        drop(images);
        tree.recycle(capture);
        sender.begin(&Begin {
            id,
            base,
            cut,
            image_len: bytes.len() as u64,
        })?;
        self.files.send(sender)?;
        sender.chunk(&bytes)?;
        sender.finish()?;
        // A backup that stands still may go on.
        let answer = loop {
            if let Some(answer) = commits.recv(Some(COMMIT))? {
                break answer;
            }
            tracing::warn!(id, "the checkpoint is not committed yet");
        };
        match answer {
            Commit::Done { id } => {
                self.files.committed();
                self.shared.stats().epoch = id;
                Ok(true)
            }
            Commit::Refused { id, reason } => {
                tracing::warn!(id, reason, "checkpoint refused");
                self.files.make_whole();
                tree.make_full();
                Ok(false)
            }
        }
    }

    /// Brings the fold up to the cut. The drain thread has to come there first.
    fn fold_up_to(&mut self, at_cut: &AtCut) -> Result<Cut, Error> {
        let state = &at_cut.state;
        let positions: BTreeMap<u32, u64> = state
            .threads
            .iter()
            .map(|t| (t.stream, t.position))
            .collect();
        let killed = at_cut.killed.iter().copied();
        let ends: Vec<(u32, u64)> = positions.clone().into_iter().chain(killed).collect();
        while ends
            .iter()
            .any(|(stream, position)| self.shared.tail().end(*stream) < *position)
        {
            if self.shared.stop.load(Acquire) {
                break;
            }
            self.shared.arena.ask_for_look();
            thread::sleep(Duration::from_micros(50));
        }
        let taken = self.shared.tail().take(&positions, state.next_stream);
        for t in &state.threads {
            if self.known_streams.insert(t.stream) {
                self.merge.introduce(t.stream, t.pid, t.tid)?;
            }
        }
        let mut taken: BTreeMap<u32, Vec<u8>> = taken.into_iter().collect();
        taken.remove(&OWN_STREAM);
        let streams: Vec<u32> = taken.keys().copied().collect();
        let fed = self.merge.feed_by_time(streams, |stream, out| {
            let bytes = taken.remove(&stream).unwrap_or_default();
            out.extend_from_slice(&bytes);
            Ok::<_, Infallible>(bytes.len())
        });
        if let [stream, ..] = fed?.cut_short[..] {
            return Err(Error::CutShort { stream });
        }
        let bereft = bereft::end_others(&mut self.merge, &at_cut.living)?;
        bereft::close(&self.shared.arena, &bereft, &state.connections);
        Ok(Cut {
            streams: positions.into_iter().collect(),
            next_stream: state.next_stream,
        })
    }
}

fn guest_labels() -> Guest {
    let blob = Blob::embedded();
    Guest {
        redo: blob.redo,
        blocking_done: blob.blocking_done,
        waiting_done: blob.waiting_done,
    }
}
