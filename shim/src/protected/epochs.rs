//! Checkpoints: one every epoch, with what of arena and kernel state a takeover has to bring.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering::Acquire;
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use checkpointer::{Capture, CheckpointError, Checkpointer, Guest, Settings};
use eventlog::codec;
use eventlog::fold::Merge;
use eventlog::handover::{ConnectionCut, GuestState, ThreadState, section};
use eventlog::record::Records;
use eventlog::recording::OWN_STREAM;
use guest::Blob;
use guest::abi::{ARENA_BASE, ARENA_LEN, MAX_CONNS, MAX_SLOTS, conn, slot};
use stream::checkpoint::{Begin, CheckpointSender, Commit, CommitReceiver, Cut};
use sys::arena::Arena;
use sys::follow::Images;
use sys::memory::Range;
use sys::process::{PidFd, lock_memory};

use super::egress::Shared;
use crate::Error;

/// How long a checkpoint may wait for its commit before the connection counts as lost.
const COMMIT: Duration = Duration::from_secs(30);
/// Checkpoints that may fail one after another, before that is taken for more than bad luck.
const MOST_FAILURES: u32 = 50;
/// How long a program that lets go of its memory may take to end, in milliseconds.
const ENDING: u16 = 1000;
/// After a pause that could not be clean.
const AGAIN: Duration = Duration::from_millis(3);

/// Takes the checkpoints of one process.
#[derive(Debug)]
pub(super) struct Epochs {
    shared: Arc<Shared>,
    program: i32,
    images: Images,
    epoch: Duration,
    sender: CheckpointSender,
    commits: CommitReceiver,
    merge: Merge,
    known_streams: BTreeSet<u32>,
    /// The number of the last checkpoint that was taken.
    taken: u64,
}

/// The program's image that is watched.
#[derive(Debug)]
struct Watched {
    checkpointer: Checkpointer,
    /// Images that the program had executed before.
    image: u64,
}

/// A checkpoint that was taken and not sent.
#[derive(Debug)]
struct Taken {
    capture: Capture,
    at_cut: AtCut,
}

/// What is read from the arena while the process stands still.
#[derive(Debug, Default)]
struct AtCut {
    state: GuestState,
    output: Vec<u8>,
}

impl Epochs {
    pub(super) fn new(
        shared: Arc<Shared>,
        program: i32,
        images: Images,
        epoch: Duration,
        sender: CheckpointSender,
        commits: CommitReceiver,
    ) -> Self {
        let (merge, known_streams) = (Merge::new(), BTreeSet::new());
        Self {
            shared,
            program,
            images,
            epoch,
            sender,
            commits,
            merge,
            known_streams,
            taken: 0,
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
            ..Settings::default()
        };
        let images = self.images.of(self.program);
        let mut watched: Option<Watched> = None;
        let mut failures = 0;
        while !self.shared.stop.load(Acquire) {
            let began = Instant::now();
            // Not while the program executes another: its memory is being replaced.
            let image = images.lock().unwrap_or_else(PoisonError::into_inner);
            let taken = self.take(&mut watched, *image, &settings);
            drop(image);
            match taken.and_then(|taken| self.send(taken, &mut watched)) {
                Ok(()) => {
                    failures = 0;
                    thread::sleep(self.epoch.saturating_sub(began.elapsed()));
                }
                Err(Error::Checkpoint(CheckpointError::Unsettled { tid, waited_us })) => {
                    tracing::debug!(tid, waited_us, "pause given up");
                    thread::sleep(AGAIN);
                }
                Err(Error::Checkpoint(error)) if failures < MOST_FAILURES => {
                    tracing::debug!(%error, "a checkpoint failed; the next one is a full one");
                    failures += 1;
                    watched = None;
                    thread::sleep(AGAIN);
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Takes a checkpoint of the program's image number `image`.
    fn take(
        &mut self,
        watched: &mut Option<Watched>,
        image: u64,
        settings: &Settings,
    ) -> Result<Taken, Error> {
        let now = match watched.take() {
            Some(same) if same.image == image => same,
            _ => {
                let mut checkpointer = Checkpointer::attach(self.program, settings.clone())?;
                checkpointer.go_on_behind(self.taken);
                Watched {
                    checkpointer,
                    image,
                }
            }
        };
        let checkpointer = &mut watched.insert(now).checkpointer;
        let arena = Arc::clone(&self.shared.arena);
        let mut at_cut = AtCut::default();
        let (capture, timing) = checkpointer.checkpoint(&mut |_| at_cut = AtCut::read(&arena))?;
        self.shared.stats().paused(timing.pause);
        tracing::debug!(?timing, "checkpoint");
        self.taken = checkpointer.sequence();
        Ok(Taken { capture, at_cut })
    }

    /// Sends it with all that belongs to it, and waits until the backup has committed it.
    fn send(&mut self, taken: Taken, watched: &mut Option<Watched>) -> Result<(), Error> {
        let Taken { capture, at_cut } = taken;
        let (handshakes, own_position) = self.shared.egress().handshakes();
        let mut cut = self.fold_up_to(&at_cut.state)?;
        cut.streams.push((OWN_STREAM, own_position));
        let snapshot = self.merge.snapshot()?;
        let state = codec::encode(&at_cut.state)?;
        let mut image = capture.image();
        image.opaque.push((section::FOLD, Cow::Owned(snapshot)));
        image.opaque.push((section::GUEST, Cow::Owned(state)));
        image
            .opaque
            .push((section::OUTPUT, Cow::Owned(at_cut.output)));
        image
            .opaque
            .push((section::HANDSHAKES, Cow::Owned(handshakes)));
        let id = image.sequence;
        let base = (image.base != 0).then_some(image.base);
        let bytes = eventlog::image::encode(&image);
        drop(image);
        if let Some(watched) = watched {
            watched.checkpointer.recycle(capture);
        }
        self.sender.begin(&Begin {
            id,
            base,
            cut,
            image_len: bytes.len() as u64,
        })?;
        self.sender.chunk(&bytes)?;
        self.sender.finish()?;
        match self.commits.recv(Some(COMMIT))? {
            Some(Commit::Done { id }) => {
                self.shared.stats().epoch = id;
            }
            Some(Commit::Refused { id, reason }) => {
                tracing::warn!(id, reason, "checkpoint refused");
                if let Some(watched) = watched {
                    watched.checkpointer.make_full();
                }
            }
            None => return Err(Error::NoCommit { id }),
        }
        Ok(())
    }

    /// Brings the fold up to the cut. The drain thread has to come there first.
    fn fold_up_to(&mut self, state: &GuestState) -> Result<Cut, Error> {
        let positions: BTreeMap<u32, u64> = state
            .threads
            .iter()
            .map(|t| (t.stream, t.position))
            .collect();
        while positions
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
        for (stream, bytes) in taken {
            if stream == OWN_STREAM {
                continue;
            }
            for record in Records::new(&bytes) {
                self.merge.feed(stream, &record?)?;
            }
        }
        Ok(Cut {
            streams: positions.into_iter().collect(),
            next_stream: state.next_stream,
        })
    }
}

impl AtCut {
    /// Every thread of the container stands still.
    fn read(arena: &Arena) -> Self {
        let control = arena.control();
        let mut cut = Self::default();
        cut.state.next_stream = control.next_stream.load(Acquire);
        cut.state.pids = control.pids.version.load(Acquire);
        cut.state.stdio = control.stdio.version.load(Acquire);
        for index in 0..MAX_SLOTS {
            let ring = arena.slot(index);
            if ring.state.load(Acquire) == slot::LIVE {
                cut.state.threads.push(ThreadState {
                    slot: index as u32,
                    stream: ring.stream.load(Acquire),
                    tid: ring.tid.load(Acquire),
                    pid: ring.pid.load(Acquire),
                    block: ring.block.load(Acquire),
                    position: ring.head.load(Acquire),
                });
            }
        }
        for word in 0..MAX_CONNS / 64 {
            let mut left = control.taken[word].load(Acquire);
            while left != 0 {
                cut.connection(arena, word * 64 + left.trailing_zeros() as usize);
                left &= left - 1;
            }
        }
        cut
    }

    fn connection(&mut self, arena: &Arena, index: usize) {
        let c = arena.conn(index);
        let (written, trimmed) = (c.written.load(Acquire), c.trimmed.load(Acquire));
        let state = c.state.load(Acquire);
        if state != conn::OPEN && state != conn::CLOSED {
            return;
        }
        self.state.connections.push(ConnectionCut {
            index: index as u32,
            generation: c.generation.load(Acquire),
            state,
            refs: c.refs.load(Acquire),
            fd: c.fd.load(Acquire),
            pid: c.pid.load(Acquire),
            shut: c.shut.load(Acquire),
            read_end: c.read_end.load(Acquire),
            read: c.read.load(Acquire),
            written,
            trimmed,
            ends: c.ends.load(Acquire),
        });
        if written > trimmed {
            self.output.extend_from_slice(&(index as u32).to_le_bytes());
            self.output
                .extend_from_slice(&((written - trimmed) as u32).to_le_bytes());
            arena.read_output(index, trimmed, written, &mut self.output);
        }
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
