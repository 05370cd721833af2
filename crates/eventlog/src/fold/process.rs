//! Streams, threads and processes: birth, exec, exit, wait.

use std::collections::{BTreeMap, BTreeSet};

use super::calls::Call;
use super::{
    Entry, Fold, FoldError, Intent, Kind, MAX_PROCESSES, MAX_STREAMS, Pid, Process, Stream,
    StreamId, Table, nr,
};
use crate::payload::Child;
use crate::record::Header;

/// clone flags.
const CLONE_VM: u64 = 0x100;
const CLONE_FILES: u64 = 0x400;
const CLONE_VFORK: u64 = 0x4000;
const CLONE_PARENT: u64 = 0x8000;
const CLONE_THREAD: u64 = 0x1_0000;
/// Bytes of AT_RANDOM at the start of an EXEC's payload.
const RANDOM_LEN: usize = 16;
/// SIG_IGN: the one action besides the default that outlives execve.
const IGNORE: u64 = 1;
/// prctl options that execve resets.
const PR_SET_DUMPABLE: u32 = 4;
const PR_SET_KEEPCAPS: u32 = 8;
const PR_SET_NAME: u32 = 15;

impl Fold {
    /// The process that the host started: standard descriptors, nothing else.
    pub(super) fn first_process(&mut self, pid: Pid) -> Result<(), FoldError> {
        let (table, space) = (self.fresh_id(), self.fresh_id());
        self.tables.insert(
            table,
            Table {
                users: 1,
                ..Table::default()
            },
        );
        self.add_process(
            pid,
            Process {
                table,
                space,
                cwd: self.start.0.clone(),
                umask: self.start.1,
                ..Process::default()
            },
        )?;
        for fd in 0..3u8 {
            let id = self.describe_new(Kind::Standard(fd), if fd == 0 { 0 } else { 1 })?;
            self.retain(id);
            if let Some(table) = self.tables.get_mut(&table) {
                table.entries.insert(
                    i32::from(fd),
                    Entry {
                        description: id,
                        cloexec: false,
                        since: 0,
                        opened: 0,
                    },
                );
            }
        }
        Ok(())
    }

    fn add_process(&mut self, pid: Pid, process: Process) -> Result<(), FoldError> {
        if self.processes.len() >= MAX_PROCESSES {
            return Err(FoldError::TooMany {
                what: "processes",
                most: MAX_PROCESSES as u64,
            });
        }
        self.processes.insert(pid, process);
        Ok(())
    }

    /// Says whose log a stream is.
    pub(super) fn bind_stream(
        &mut self,
        id: StreamId,
        pid: Pid,
        tid: u32,
    ) -> Result<(), FoldError> {
        if self.streams.len() >= MAX_STREAMS {
            return Err(FoldError::TooMany {
                what: "streams",
                most: MAX_STREAMS as u64,
            });
        }
        let process = self
            .processes
            .get_mut(&pid)
            .ok_or(FoldError::NoProcess { pid })?;
        process.threads.insert(tid, id);
        let time = self.made_at(id).unwrap_or(0);
        self.streams.insert(
            id,
            Stream {
                pid,
                tid,
                time,
                ..Stream::default()
            },
        );
        Ok(())
    }

    /// From when on the time of a child's stream counts, while what made it is under way.
    fn made_at(&self, child: StreamId) -> Option<u64> {
        self.streams.values().find_map(|stream| {
            let announced = stream.intent.as_ref()?.parsed()?.child?;
            (announced.stream == child).then_some(stream.before_intent)
        })
    }

    /// The first record of a stream; false if the thread's maker has not got so far.
    pub(super) fn birth(&mut self, id: StreamId, header: &Header) -> Result<bool, FoldError> {
        let Ok(tid) = u32::try_from(header.result) else {
            return Ok(false);
        };
        let announced = self.streams.iter().find_map(|(maker, stream)| {
            let intent = stream.intent.as_ref()?;
            let child = intent.parsed()?.child.filter(|child| child.stream == id)?;
            Some((*maker, stream.pid, clone_flags(intent.nr, child)))
        });
        let Some((maker, parent, flags)) = announced else {
            return Ok(false);
        };
        let pid = self.make_thread(parent, tid, flags)?;
        if let Some(maker) = self.streams.get_mut(&maker) {
            maker.born = Some(id);
        }
        self.bind_stream(id, pid, tid).map(|()| true)
    }

    /// clone, clone3, fork, vfork returned in the parent.
    pub(super) fn cloned(&mut self, call: &Call<'_>) -> Result<(), FoldError> {
        let Ok(tid @ 1..) = u32::try_from(call.result) else {
            return Ok(());
        };
        let child = call.child()?;
        let born = self
            .streams
            .get_mut(&call.stream)
            .and_then(|stream| stream.born.take());
        if born == Some(child.stream) || self.streams.contains_key(&child.stream) {
            return Ok(());
        }
        let pid = self.make_thread(call.pid, tid, clone_flags(call.nr, child))?;
        self.bind_stream(child.stream, pid, tid)?;
        let begun = self.streams.get(&call.stream).map(|s| s.before_intent);
        if let Some(stream) = self.streams.get_mut(&child.stream) {
            stream.time = begun.unwrap_or(0);
        }
        Ok(())
    }

    /// A new thread, in a process of its own unless CLONE_THREAD; answers with the process.
    fn make_thread(&mut self, parent: Pid, tid: u32, flags: u64) -> Result<Pid, FoldError> {
        let maker = self
            .processes
            .get(&parent)
            .ok_or(FoldError::NoProcess { pid: parent })?;
        if flags & CLONE_THREAD != 0 {
            return Ok(parent);
        }
        let mut child = Process {
            parent: if flags & CLONE_PARENT != 0 {
                maker.parent
            } else {
                parent
            },
            threads: BTreeMap::new(),
            interval_timers: BTreeMap::new(),
            posix_timers: BTreeMap::new(),
            ended: None,
            reaped: false,
            told: false,
            ..maker.clone()
        };
        if flags & CLONE_FILES == 0 {
            child.table = self.copy_table(parent);
        } else if let Some(table) = self.tables.get_mut(&child.table) {
            table.users = table.users.saturating_add(1);
        }
        if flags & CLONE_VM == 0 {
            child.space = self.fresh_id();
        }
        self.remove_process(tid);
        self.add_process(tid, child)?;
        Ok(tid)
    }

    /// A new program image.
    pub(super) fn exec(&mut self, id: StreamId, payload: &[u8]) -> Result<(), FoldError> {
        let Some(stream) = self.streams.get_mut(&id) else {
            return Ok(());
        };
        let (pid, announced) = (stream.pid, stream.intent.take());
        stream.tid = pid;
        self.unshare_table(pid);
        let space = self.fresh_id();
        let Some(process) = self.processes.get_mut(&pid) else {
            return Ok(());
        };
        process.space = space;
        process.actions.retain(|_, action| action.handler == IGNORE);
        process.posix_timers.clear();
        process
            .options
            .retain(|option, _| ![PR_SET_DUMPABLE, PR_SET_KEEPCAPS, PR_SET_NAME].contains(option));
        if let Some(path) = announced.as_ref().and_then(program) {
            process.program = path;
        }
        let threads = std::mem::replace(&mut process.threads, BTreeMap::from([(pid, id)]));
        for other in threads.into_values().filter(|other| *other != id) {
            self.streams.remove(&other);
        }
        let closing: Vec<i32> = self.table(pid).map_or_else(Vec::new, |table| {
            table
                .entries
                .iter()
                .filter(|(_, entry)| entry.cloexec)
                .map(|(fd, _)| *fd)
                .collect()
        });
        for fd in closing {
            self.close(pid, fd, 0);
        }
        if let Some(table) = self.table_mut(pid) {
            // Versions begin again with the new image.
            table.closed.clear();
            table.entries.values_mut().for_each(|entry| entry.since = 0);
        }
        self.inherit(pid, payload.get(RANDOM_LEN..).unwrap_or_default())
    }

    /// The descriptors that the new image says it has: those the fold did not know of came from the host.
    fn inherit(&mut self, pid: Pid, list: &[u8]) -> Result<(), FoldError> {
        let list: BTreeSet<i32> = list
            .chunks_exact(4)
            .map(|fd| super::message::int(super::message::word(fd, 0, 4)))
            .collect();
        let known: BTreeSet<i32> = self.table(pid).map_or_else(BTreeSet::new, |table| {
            table.entries.keys().copied().collect()
        });
        for fd in list.difference(&known) {
            let kind = u8::try_from(*fd)
                .ok()
                .filter(|fd| *fd < 3)
                .map_or(Kind::Other(nr::EXECVE), Kind::Standard);
            self.open((pid, i64::from(*fd), 0), kind, 2, false)?;
        }
        if !list.is_empty() {
            for fd in known.difference(&list) {
                self.close(pid, *fd, 0);
            }
        }
        Ok(())
    }

    /// A thread or its process ends.
    pub(super) fn exit(&mut self, id: StreamId, header: &Header) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        stream.ended = true;
        stream.intent = None;
        let (pid, tid) = (stream.pid, stream.tid);
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        process.threads.remove(&tid);
        if header.arg0 != 0 || process.threads.is_empty() {
            self.end_process(pid, header.result);
        } else {
            self.streams.remove(&id);
        }
    }

    fn end_process(&mut self, pid: Pid, status: i64) {
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        if process.ended.is_some() {
            return;
        }
        process.ended = Some(status);
        let reaped = process.reaped;
        let threads = std::mem::take(&mut process.threads);
        for stream in threads.into_values() {
            if let Some(stream) = self.streams.get_mut(&stream) {
                stream.ended = true;
                stream.intent = None;
            }
        }
        self.leave_table(pid);
        if reaped {
            self.remove_process(pid);
        }
    }

    /// Ends processes that are not among `living`.
    pub(super) fn end_others(&mut self, living: &[Pid]) {
        let alive = self.processes.iter().filter(|(_, p)| p.ended.is_none());
        let others = alive.map(|(pid, _)| *pid);
        for pid in others
            .filter(|pid| !living.contains(pid))
            .collect::<Vec<_>>()
        {
            self.end_process(pid, -1);
        }
    }

    /// wait4 or waitid told of a child. Its own log may not be folded to its end yet.
    pub(super) fn waited(&mut self, pid: Pid, killed: bool) {
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        process.reaped = true;
        let ended = process.ended.is_some();
        if !ended && killed {
            self.end_process(pid, -1);
        } else if ended {
            self.remove_process(pid);
        }
    }

    /// Forgets a process that ended (or whose number is used again) and its streams.
    fn remove_process(&mut self, pid: Pid) {
        if self
            .processes
            .get(&pid)
            .is_some_and(|process| process.ended.is_none())
        {
            self.leave_table(pid);
        }
        if let Some(process) = self.processes.remove(&pid) {
            if self
                .tables
                .get(&process.table)
                .is_some_and(|table| table.users == 0)
            {
                self.tables.remove(&process.table);
            }
            self.streams.retain(|_, stream| stream.pid != pid);
        }
    }

    /// A call is about to have an effect.
    pub(super) fn intend(
        &mut self,
        id: StreamId,
        header: &Header,
        payload: &[u8],
    ) -> Result<(), FoldError> {
        let Some(stream) = self.streams.get_mut(&id) else {
            return Ok(());
        };
        let unknown = FoldError::UnknownCall {
            stream: id,
            record: stream.records,
            nr: header.result,
        };
        let nr = u16::try_from(header.result).map_err(|_| unknown)?;
        stream.intent = Some(Intent {
            nr,
            arg0: header.arg0,
            payload: payload.to_vec(),
        });
        let begun = stream.before_intent;
        let announced = stream.intent.as_ref().and_then(Intent::parsed);
        let child = announced.and_then(|parsed| parsed.child);
        // One that the host has named before.
        let known = child.and_then(|child| self.streams.get_mut(&child.stream));
        if let Some(child) = known.filter(|child| child.records == 0) {
            child.time = begun;
        }
        Ok(())
    }
}

/// The flags of a clone. Where they were not recorded: what glibc uses each call for.
fn clone_flags(nr: u16, child: Child) -> u64 {
    child.flags.unwrap_or(match nr {
        nr::VFORK => CLONE_VM | CLONE_VFORK,
        nr::CLONE3 => CLONE_VM | CLONE_FILES | CLONE_THREAD,
        _ => 0,
    })
}

/// The path of an announced execve.
fn program(intent: &Intent) -> Option<Vec<u8>> {
    let index = match intent.nr {
        nr::EXECVE => 0,
        nr::EXECVEAT => 1,
        _ => return None,
    };
    intent.parsed()?.inputs[index].map(|path| super::files::text(path).to_vec())
}
