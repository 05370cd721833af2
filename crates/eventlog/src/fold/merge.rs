//! Putting the records of several streams into the order in which they happened.
//!
//! Threads log by themselves; what ties their logs together are the versions of the objects they share.
//! A record that changed a process's descriptor table or its signal actions is applied when the version
//! before it has been; everything else at once. A record that waits holds back what follows in its stream.
//! So whoever has whole streams feeds them by time ([`Merge::feed_by_time`]).

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};
use sysabi::Object;

use super::{Fold, FoldError, Pid, SpaceId, StreamId};
use crate::change::Change;
use crate::record::{self, Header, Record, kind};

/// Most bytes of records that wait for their turn.
pub const MAX_HELD: usize = 64 << 20;

/// The versions reached in one address space; `None` until the first one was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Versions {
    pub(super) descriptors: Option<u64>,
    pub(super) signals: Option<u64>,
}

/// A [`Fold`] that takes streams in any order relative to each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Merge {
    pub(super) fold: Fold,
    pub(super) spaces: BTreeMap<SpaceId, Versions>,
    /// Records, as stored, that wait.
    pub(super) held: BTreeMap<StreamId, VecDeque<Vec<u8>>>,
    pub(super) held_bytes: usize,
}

/// What still waits at the end of a log: it came after something that was never received, so that nothing
/// outside can have seen its effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remains {
    /// The stream.
    pub stream: StreamId,
    /// Its records that wait.
    pub records: usize,
    /// Kind of the first of them.
    pub kind: u16,
    /// The version that it waits to follow.
    pub version: u64,
}

enum Turn {
    Now,
    Wait,
    Never,
}

impl Merge {
    /// A container in which nothing has happened yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The state so far.
    #[must_use]
    pub const fn fold(&self) -> &Fold {
        &self.fold
    }

    /// See [`Fold::start_in`].
    pub fn start_in(&mut self, directory: &[u8], umask: u32) {
        self.fold.start_in(directory, umask);
    }

    /// See [`Fold::note_changes_below`].
    pub fn note_changes_below(&mut self, directories: &[Vec<u8>]) {
        self.fold.note_changes_below(directories);
    }

    /// See [`Fold::take_changes`].
    pub fn take_changes(&mut self) -> Vec<Change> {
        self.fold.take_changes()
    }

    /// Drops a closed connection that the client has acknowledged; true if there was one.
    pub fn forget(&mut self, description: super::DescriptionId) -> bool {
        self.fold.forget(description)
    }

    /// Names the thread that a stream belongs to. See [`Fold::introduce`].
    ///
    /// # Errors
    /// As [`Fold::introduce`], and what applying records that waited for it brings up.
    pub fn introduce(&mut self, stream: StreamId, pid: Pid, tid: u32) -> Result<(), FoldError> {
        self.fold.introduce(stream, pid, tid)?;
        self.drain()
    }

    /// Ends processes that are not among `living`, the kernel's own word: killed ones, which say nothing themselves.
    ///
    /// # Errors
    /// What applying records that waited for it brings up.
    pub fn only(&mut self, living: &[Pid]) -> Result<(), FoldError> {
        self.fold.end_others(living);
        self.drain()
    }

    /// Takes the next record of a stream.
    ///
    /// # Errors
    /// [`FoldError`] if a record cannot be folded (see [`Fold::apply`]), or if more than [`MAX_HELD`] bytes
    /// wait.
    pub fn feed(&mut self, stream: StreamId, record: &Record<'_>) -> Result<(), FoldError> {
        if self.held.contains_key(&stream) || !self.try_apply(stream, record)? {
            return self.hold(stream, record);
        }
        self.drain()
    }

    /// What waits, and for which version.
    #[must_use]
    pub fn remains(&self) -> Vec<Remains> {
        let remains = self.held.iter().filter_map(|(stream, waiting)| {
            let (first, _) = record::decode(waiting.front()?).ok()?;
            let Header { kind, version, .. } = first.header;
            Some(Remains {
                stream: *stream,
                records: waiting.len(),
                kind,
                version,
            })
        });
        remains.collect()
    }

    /// Gives up on what waits; the log has ended. Answers with what it was.
    pub fn finish(&mut self) -> Vec<Remains> {
        let remains = self.remains();
        self.held.clear();
        self.held_bytes = 0;
        remains
    }

    /// Applies a record if it is its turn.
    fn try_apply(&mut self, stream: StreamId, record: &Record<'_>) -> Result<bool, FoldError> {
        match self.turn(stream, &record.header)? {
            Turn::Wait => return Ok(false),
            Turn::Never => {
                super::bump(&mut self.fold.strays, 1);
                return Ok(true);
            }
            Turn::Now => {}
        }
        match self.fold.apply(stream, record) {
            Ok(()) => {}
            Err(FoldError::Unplaced { .. }) => return Ok(false),
            Err(error) => return Err(error),
        }
        if record.header.kind == kind::EXEC || record.header.kind == kind::EXIT {
            let Self { fold, spaces, .. } = self;
            spaces.retain(|space, _| {
                fold.processes
                    .values()
                    .any(|process| process.space == *space)
            });
        }
        Ok(true)
    }

    fn turn(&mut self, stream: StreamId, header: &Header) -> Result<Turn, FoldError> {
        let Some(space) = self.fold.space(stream) else {
            return match header.kind {
                kind::BIRTH => Ok(Turn::Now),
                kind::EXEC => Err(FoldError::UnknownStream { stream }),
                // The thread was killed, or its process executed another program.
                _ => Ok(Turn::Never),
            };
        };
        let Some(row) = sysabi::lookup(u64::from(header.kind)).filter(|_| header.version != 0)
        else {
            return Ok(Turn::Now);
        };
        let versions = self.spaces.entry(space).or_default();
        let reached = match row.object() {
            Some(Object::Descriptors) => &mut versions.descriptors,
            Some(Object::Signals) => &mut versions.signals,
            _ => return Ok(Turn::Now),
        };
        if reached.is_some_and(|reached| reached.saturating_add(1) < header.version) {
            return Ok(Turn::Wait);
        }
        *reached = (*reached).max(Some(header.version));
        Ok(Turn::Now)
    }

    fn hold(&mut self, stream: StreamId, record: &Record<'_>) -> Result<(), FoldError> {
        let (header, len) = record.header.encode();
        let mut bytes =
            vec![0; record::stored_len(record.header.needs_long(), record.payload.len())];
        bytes[..len].copy_from_slice(&header[..len]);
        bytes[len..len + record.payload.len()].copy_from_slice(record.payload);
        self.held_bytes += bytes.len();
        if self.held_bytes > MAX_HELD {
            return Err(FoldError::TooMany {
                what: "bytes of records that wait for their turn",
                most: MAX_HELD as u64,
            });
        }
        self.held.entry(stream).or_default().push_back(bytes);
        Ok(())
    }

    /// Applies what can be applied now, until nothing more can.
    fn drain(&mut self) -> Result<(), FoldError> {
        loop {
            let mut moved = false;
            for stream in self.held.keys().copied().collect::<Vec<_>>() {
                while let Some(bytes) = self.held.get_mut(&stream).and_then(VecDeque::pop_front) {
                    let applied = match record::decode(&bytes) {
                        Ok((record, _)) => self.try_apply(stream, &record)?,
                        Err(_) => true,
                    };
                    if !applied {
                        self.held.entry(stream).or_default().push_front(bytes);
                        break;
                    }
                    self.held_bytes = self.held_bytes.saturating_sub(bytes.len());
                    moved = true;
                }
                if self.held.get(&stream).is_some_and(VecDeque::is_empty) {
                    self.held.remove(&stream);
                }
            }
            if !moved {
                return Ok(());
            }
        }
    }
}
