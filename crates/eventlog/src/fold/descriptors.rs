//! Descriptor tables and the life of open file descriptions.

use std::collections::BTreeSet;

use super::{
    ChannelId, Closed, Description, DescriptionId, Entry, Fold, FoldError, Kind, MAX_DESCRIPTIONS,
    MAX_ORPHANS, Orphan, Pid, Socket, State, Table, TableId,
};

/// Closed descriptors that a table remembers.
const MAX_CLOSED: usize = 256;
/// AF_INET and AF_INET6.
pub(super) const INTERNET: [u32; 2] = [2, 10];
/// SOCK_STREAM.
pub(super) const STREAM: u32 = 1;

impl Fold {
    /// A new description without references.
    pub(super) fn describe_new(
        &mut self,
        kind: Kind,
        flags: u32,
    ) -> Result<DescriptionId, FoldError> {
        if self.descriptions.len() >= MAX_DESCRIPTIONS {
            return Err(FoldError::TooMany {
                what: "open file descriptions",
                most: MAX_DESCRIPTIONS as u64,
            });
        }
        let id = self.fresh_id();
        let description = Description {
            references: 0,
            flags,
            watchers: BTreeSet::new(),
            owner: None,
            lock: None,
            kind,
        };
        self.descriptions.insert(id, description);
        Ok(id)
    }

    /// Lets `fd` of a process refer to `id`; what it referred to is closed.
    pub(super) fn install(
        &mut self,
        pid: Pid,
        fd: i32,
        id: DescriptionId,
        cloexec: bool,
        version: u64,
    ) {
        self.retain(id);
        self.close(pid, fd, version);
        let (alive, opened) = (self.descriptions.contains_key(&id), self.now);
        match self.table_mut(pid).filter(|table| alive && table.users > 0) {
            Some(table) => {
                let entry = Entry {
                    description: id,
                    cloexec,
                    since: version,
                    opened,
                };
                table.entries.insert(fd, entry);
            }
            None => self.release(id, pid, fd),
        }
    }

    /// Makes a description and lets `fd` refer to it.
    pub(super) fn open(
        &mut self,
        at: (Pid, i64, u64),
        kind: Kind,
        flags: u32,
        cloexec: bool,
    ) -> Result<(), FoldError> {
        let (pid, fd, version) = at;
        let Ok(fd) = i32::try_from(fd) else {
            return Ok(());
        };
        let id = self.describe_new(kind, flags)?;
        if fd >= 0 {
            self.install(pid, fd, id, cloexec, version);
        } else {
            self.retain(id);
            self.release(id, pid, fd);
        }
        Ok(())
    }

    /// Closes a descriptor; false if there is none.
    pub(super) fn close(&mut self, pid: Pid, fd: i32, version: u64) -> bool {
        let closed = self.now;
        let Some(table) = self.table_mut(pid) else {
            return false;
        };
        let Some(entry) = table.entries.remove(&fd) else {
            return false;
        };
        table.remember(Closed {
            fd,
            entry,
            until: version,
            closed,
        });
        self.release(entry.description, pid, fd);
        true
    }

    /// What `fd` meant when the record was made that is applied: usually what it means now, but for a late record
    /// what it was before it was closed (and perhaps used again).
    pub(super) fn meant(&self, pid: Pid, fd: i32) -> Option<DescriptionId> {
        let table = self.table(pid)?;
        let now = table.entries.get(&fd);
        if let Some(entry) = now.filter(|entry| entry.opened <= self.now) {
            return Some(entry.description);
        }
        let mut past = table.closed.iter().rev().filter(|closed| closed.fd == fd);
        let last = past.clone().next();
        let then = past.find(|closed| (closed.entry.opened..closed.closed).contains(&self.now));
        let then = then.map(|closed| closed.entry);
        let entry = then.or(now.copied()).or(last.map(|closed| closed.entry));
        entry.map(|entry| entry.description)
    }

    pub(super) fn retain(&mut self, id: DescriptionId) {
        if let Some(description) = self.descriptions.get_mut(&id) {
            description.references = description.references.saturating_add(1);
        }
    }

    /// Drops one reference; the last one ends the description, and with it what only it kept alive.
    pub(super) fn release(&mut self, id: DescriptionId, pid: Pid, fd: i32) {
        let mut pending = vec![(id, pid, fd)];
        while let Some((id, pid, fd)) = pending.pop() {
            let Some(description) = self.descriptions.get_mut(&id) else {
                continue;
            };
            description.references = description.references.saturating_sub(1);
            if description.references == 0
                && let Some(description) = self.descriptions.remove(&id)
            {
                let unsent = self.end(id, description, pid, fd);
                pending.extend(unsent.into_iter().map(|id| (id, 0, -1)));
            }
        }
    }

    /// What follows from a description's end; answers with the descriptions that were in flight to it.
    fn end(
        &mut self,
        id: DescriptionId,
        description: Description,
        pid: Pid,
        fd: i32,
    ) -> Vec<DescriptionId> {
        for watcher in &description.watchers {
            if let Some(Description {
                kind: Kind::Epoll(interests),
                ..
            }) = self.descriptions.get_mut(watcher)
            {
                interests.retain(|(_, watched), _| *watched != id);
            }
        }
        match description.kind {
            Kind::Epoll(interests) => {
                for (_, watched) in interests.into_keys() {
                    if let Some(watched) = self.descriptions.get_mut(&watched) {
                        watched.watchers.remove(&id);
                    }
                }
                Vec::new()
            }
            Kind::Pipe {
                channel, writes, ..
            } => self.leave(channel, writes.then_some(id)),
            Kind::Socket(socket) => {
                let mut unsent = Vec::new();
                if let Some((receives, sends)) = socket.channels {
                    unsent = self.leave(receives, None);
                    unsent.extend(self.leave(sends, Some(id)));
                }
                if let State::Listening { .. } = socket.state {
                    let waiting = self
                        .meetings
                        .remove(&super::sockets::address(&socket.local))
                        .unwrap_or_default();
                    for (receives, sends) in waiting.connected.into_iter().chain(waiting.accepted) {
                        unsent.extend(self.leave(receives, None));
                        unsent.extend(self.leave(sends, None));
                    }
                }
                self.remember(Orphan {
                    description: id,
                    pid,
                    fd,
                    close: 0,
                    socket,
                });
                unsent
            }
            _ => Vec::new(),
        }
    }

    /// Keeps a closed TCP connection until the gate says that the client has everything.
    fn remember(&mut self, mut orphan: Orphan) {
        let socket = &orphan.socket;
        let connected = matches!(
            socket.state,
            State::Connected | State::Connecting | State::Accepted { .. }
        );
        if INTERNET.contains(&socket.domain) && socket.kind == STREAM && connected {
            super::bump(&mut self.closes, 1);
            orphan.close = self.closes;
            self.orphans.push_back(orphan);
            if self.orphans.len() > MAX_ORPHANS {
                self.orphans.pop_front();
            }
        }
    }

    /// One end of a channel is gone, with the description that wrote to it if it was that end; with the last one its
    /// bytes are, too.
    fn leave(&mut self, id: ChannelId, writer: Option<DescriptionId>) -> Vec<DescriptionId> {
        let Some(channel) = self.channels.get_mut(&id) else {
            return Vec::new();
        };
        channel.ended = channel.ended.or(writer);
        channel.ends = channel.ends.saturating_sub(1);
        if channel.ends > 0 {
            return Vec::new();
        }
        self.channels
            .remove(&id)
            .into_iter()
            .flat_map(|channel| channel.passed.into_iter().flatten())
            .collect()
    }

    /// The channel that an ended description wrote to, while there is another end to read from.
    pub(super) fn written_by_ended(&self, id: DescriptionId) -> Option<ChannelId> {
        let mut channels = self.channels.iter();
        channels.find_map(|(channel, is)| (is.ended == Some(id)).then_some(*channel))
    }

    pub(super) fn table_mut(&mut self, pid: Pid) -> Option<&mut Table> {
        let table = self.processes.get(&pid)?.table;
        self.tables.get_mut(&table)
    }

    /// A copy of a process's table, as fork makes it.
    pub(super) fn copy_table(&mut self, pid: Pid) -> TableId {
        let mut copy = self.table(pid).cloned().unwrap_or_default();
        copy.users = 1;
        for entry in copy.entries.values() {
            self.retain(entry.description);
        }
        let id = self.fresh_id();
        self.tables.insert(id, copy);
        id
    }

    /// A process lets go of its table; the last one closes everything in it, in the order of numbers.
    pub(super) fn leave_table(&mut self, pid: Pid) {
        let Some(id) = self.processes.get(&pid).map(|process| process.table) else {
            return;
        };
        let Some(table) = self.tables.get_mut(&id) else {
            return;
        };
        table.users = table.users.saturating_sub(1);
        if table.users > 0 {
            return;
        }
        // The table stays, empty, for late records of the process's other threads.
        let entries = std::mem::take(&mut table.entries);
        for (fd, entry) in &entries {
            table.remember(Closed {
                fd: *fd,
                entry: *entry,
                until: u64::MAX,
                closed: u64::MAX,
            });
        }
        for (fd, entry) in entries {
            self.release(entry.description, pid, fd);
        }
    }

    /// A process that shares its table gets one of its own.
    pub(super) fn unshare_table(&mut self, pid: Pid) {
        if self.table(pid).is_some_and(|table| table.users > 1) {
            let copy = self.copy_table(pid);
            self.leave_table(pid);
            if let Some(process) = self.processes.get_mut(&pid) {
                process.table = copy;
            }
        }
    }

    /// The socket behind a description, also if it was closed.
    pub(super) fn socket_mut(&mut self, id: DescriptionId) -> Option<&mut Socket> {
        match self.descriptions.get_mut(&id) {
            Some(Description {
                kind: Kind::Socket(socket),
                ..
            }) => Some(socket),
            Some(_) => None,
            None => self
                .orphans
                .iter_mut()
                .rev()
                .find(|o| o.description == id)
                .map(|orphan| &mut orphan.socket),
        }
    }
}

impl Table {
    /// Keeps a closed descriptor in mind for a while.
    fn remember(&mut self, closed: Closed) {
        self.closed.push_back(closed);
        if self.closed.len() > MAX_CLOSED {
            self.closed.pop_front();
        }
    }
}
