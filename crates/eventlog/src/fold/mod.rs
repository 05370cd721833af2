//! The kernel's state as a function of the log: descriptors, sockets, epoll sets, pipes, timers, limits.
//!
//! Every change of it came through a recorded call, so nobody needs to ask the kernel: [`Fold::apply`] takes
//! one record of one stream after another and keeps what a takeover has to rebuild. Whole streams are fed in the
//! order of time ([`Merge::feed_by_time`]), which is what callers use; changes of shared objects are besides put into
//! the order of their versions ([`Merge`]). What the fold knows at a checkpoint is part of the image
//! ([`Merge::snapshot`]); folding on from there gives what folding the whole log gives.
//!
//! Who knows what: the fold knows bytes read and written for each connection, its options, order of closes,
//! offsets, interests, unread bytes of internal channels. It does not know sequence numbers, windows,
//! acknowledgements or bytes a client has sent that were not read (the gate does), nor memory, registers and
//! signal masks (the image does), nor the contents of files (the mirror does).
//!
//! # What the fold asks of records
//!
//! * `arg0` is the first argument, thus for most calls the descriptor.
//! * A call that changed the descriptor table carries the table's version after it, counted from 1 in each
//!   address space; 0 if it changed nothing. Which calls can: [`sysabi::Syscall::object`].
//! * `ticks` tell when each was made: by that, a number that a thread uses is not mistaken for what it means after
//!   another thread has closed it and opened it again.
//! * An OUTPUT stands for the whole call; a call that moves bytes between descriptors (sendfile, splice) is
//!   recorded as itself.
//! * `BIRTH`: `result` is the thread's number. Its stream is placed by the record of the clone that made it
//!   or, if that has one, by the clone's intent: so a vfork child is known before its parent goes on.
//! * `EXIT`: `arg0` is not 0 if the whole process ends.
//! * execve may have an intent, for the path.

mod by_time;
mod calls;
mod changed;
mod channel;
mod credentials;
mod describe;
mod descriptors;
mod epoll;
mod error;
mod files;
mod flow;
mod merge;
mod message;
mod model;
mod nr;
mod process;
mod settle;
mod snapshot;
mod sockets;
mod timers;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};

pub use by_time::{Fed, FeedError};
pub use channel::{Channel, MAX_UNREAD, Written};
pub use error::FoldError;
pub use merge::{MAX_HELD, Merge, Remains};
pub use model::*;
pub use settle::Settled;
pub use snapshot::{MAX_SNAPSHOT, SnapshotError};
pub use sockets::Ends;

use crate::record::{Record, cycles_of, kind};

/// Most processes and zombies.
pub const MAX_PROCESSES: usize = 1 << 15;
/// Most streams.
pub const MAX_STREAMS: usize = 1 << 16;
/// Most open file descriptions.
pub const MAX_DESCRIPTIONS: usize = 1 << 20;
/// Closed connections that are remembered; beyond it the oldest is forgotten.
pub const MAX_ORPHANS: usize = 1 << 14;

/// The state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fold {
    processes: BTreeMap<Pid, Process>,
    tables: BTreeMap<TableId, Table>,
    descriptions: BTreeMap<DescriptionId, Description>,
    channels: BTreeMap<ChannelId, Channel>,
    streams: BTreeMap<StreamId, Stream>,
    orphans: VecDeque<Orphan>,
    /// Connections accepted so far by port and peer.
    accepts: BTreeMap<(u16, Vec<u8>), u64>,
    /// UNIX connections by the listener's address, made and not accepted, or accepted and not (seen to be) made.
    meetings: BTreeMap<Vec<u8>, sockets::Meeting>,
    /// When the record was made that is being applied; 0 otherwise.
    now: u64,
    next_id: u64,
    closes: u64,
    strays: u64,
    /// Files whose changes are noted; no part of the state.
    watched: changed::Watched,
    /// Where the first process starts, and its umask.
    start: (Vec<u8>, Option<u32>),
}

impl Fold {
    /// A container in which nothing has happened yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Says in which directory the container's first process starts, and with which umask; before anything else.
    pub fn start_in(&mut self, directory: &[u8], umask: u32) {
        self.start = (directory.to_vec(), Some(umask));
    }

    /// Names the thread that a stream belongs to; the host knows it from the ring. The first one makes the
    /// container's first process, with standard input, output and error (its EXEC tells of others). For all
    /// others it is not necessary, since a clone's record names the child's stream, and does no harm.
    ///
    /// # Errors
    /// [`FoldError::TooMany`] beyond [`MAX_STREAMS`] or [`MAX_PROCESSES`].
    pub fn introduce(&mut self, stream: StreamId, pid: Pid, tid: u32) -> Result<(), FoldError> {
        if self.streams.contains_key(&stream) {
            return Ok(());
        }
        if self.processes.is_empty() {
            self.first_process(pid)?;
        } else if !self.processes.contains_key(&pid) {
            return Ok(());
        }
        self.bind_stream(stream, pid, tid)
    }

    /// Applies one record. Records of one stream come in their order; [`Merge`] sees to the rest.
    ///
    /// # Errors
    /// [`FoldError`] if the record cannot be one of this container. The state is then as before or has part
    /// of the record's effect: the log is not to be trusted from here on.
    pub fn apply(&mut self, id: StreamId, record: &Record<'_>) -> Result<(), FoldError> {
        let header = &record.header;
        if header.kind == kind::BIRTH
            && !self.streams.contains_key(&id)
            && !self.birth(id, header)?
        {
            return Err(FoldError::Unplaced {
                stream: id,
                tid: header.result,
            });
        }
        let Some(stream) = self.streams.get_mut(&id) else {
            return Err(FoldError::UnknownStream { stream: id });
        };
        bump(&mut stream.records, 1);
        if header.kind == kind::INTENT {
            stream.before_intent = stream.time;
        }
        bump(&mut stream.time, cycles_of(header.ticks));
        self.now = stream.time;
        match header.kind {
            kind::EXEC => self.exec(id, record.payload)?,
            kind::SIGNAL => self.signal(id, record.payload),
            kind::EXIT => self.exit(id, header),
            kind::INTENT => self.intend(id, header, record.payload)?,
            kind::OUTPUT => self.output(id, header),
            kind::CONNECTION => self.announce(id, record.payload),
            0..=1023 => self.call(id, record)?,
            _ => {}
        }
        self.now = 0;
        Ok(())
    }

    /// The processes, zombies included, by number.
    #[must_use]
    pub const fn processes(&self) -> &BTreeMap<Pid, Process> {
        &self.processes
    }

    /// The descriptor table of a process.
    #[must_use]
    pub fn table(&self, pid: Pid) -> Option<&Table> {
        self.processes
            .get(&pid)
            .and_then(|process| self.tables.get(&process.table))
    }

    /// The open file descriptions by number.
    #[must_use]
    pub const fn descriptions(&self) -> &BTreeMap<DescriptionId, Description> {
        &self.descriptions
    }

    /// What a descriptor of a process refers to.
    #[must_use]
    pub fn descriptor(&self, pid: Pid, fd: i32) -> Option<(&Entry, &Description)> {
        let entry = self.table(pid)?.entries.get(&fd)?;
        Some((entry, self.descriptions.get(&entry.description)?))
    }

    /// A channel's unread bytes.
    #[must_use]
    pub fn channel(&self, id: ChannelId) -> Option<&Channel> {
        self.channels.get(&id)
    }

    /// Streams that have not ended, by number.
    pub fn streams(&self) -> impl Iterator<Item = (StreamId, &Stream)> {
        self.streams
            .iter()
            .filter(|(_, stream)| !stream.ended)
            .map(|(id, stream)| (*id, stream))
    }

    /// Connections that the application has closed, oldest close first. Which of them the client has
    /// acknowledged whole the gate knows; see [`Fold::forget`].
    #[must_use]
    pub const fn orphans(&self) -> &VecDeque<Orphan> {
        &self.orphans
    }

    /// Drops a closed connection that the client has acknowledged; true if there was one.
    pub fn forget(&mut self, description: DescriptionId) -> bool {
        let before = self.orphans.len();
        self.orphans
            .retain(|orphan| orphan.description != description);
        self.orphans.len() != before
    }

    /// Records that named a descriptor or process the fold does not know, and had no effect.
    #[must_use]
    pub const fn strays(&self) -> u64 {
        self.strays
    }

    fn fresh_id(&mut self) -> u64 {
        self.next_id = self.next_id.wrapping_add(1);
        self.next_id
    }

    /// The address space of a stream's process.
    fn space(&self, stream: StreamId) -> Option<SpaceId> {
        let pid = self.streams.get(&stream)?.pid;
        self.processes.get(&pid).map(|process| process.space)
    }
}

/// Moves a counter on. A snapshot may have come from anywhere: no counter may overflow.
const fn bump(counter: &mut u64, by: u64) {
    *counter = counter.saturating_add(by);
}
