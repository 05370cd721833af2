//! Writing records by hand.

use std::collections::BTreeMap;

use sysabi::{Syscall, TABLE};

use crate::fold::{Description, FoldError, Kind, Merge, Pid, Socket, StreamId};
use crate::record::{Header, Record, TICK_SHIFT, kind, stored_len, ticks_of};

/// The row of a call.
pub(super) fn row(name: &str) -> &'static Syscall {
    TABLE.iter().find(|row| row.name == name).unwrap()
}

/// One record of one stream.
#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) stream: StreamId,
    pub(super) header: Header,
    pub(super) payload: Vec<u8>,
}

impl Event {
    /// A system call: buffers are those it reads (if its row captures), then those it fills.
    pub(super) fn call(name: &str, args: &[u64], result: i64, buffers: &[&[u8]]) -> Self {
        let row = row(name);
        let mut payload = Vec::new();
        if row.captures(result) {
            let mut all = args.to_vec();
            all.resize(row.arity(), 0);
            payload.extend(all.iter().flat_map(|arg| arg.to_le_bytes()));
        }
        for buffer in buffers {
            payload.extend((buffer.len() as u32).to_le_bytes());
            payload.extend_from_slice(buffer);
        }
        let arg0 = args.first().map_or(0, |arg| *arg as u32);
        let header = Header {
            kind: row.nr,
            result,
            arg0,
            ticks: 3,
            ..Header::default()
        };
        Self {
            stream: 1,
            header,
            payload,
        }
        .sized()
    }

    /// A clone and its like.
    pub(super) fn clone(name: &str, result: i64, stream: StreamId, flags: u64) -> Self {
        Self::call(name, &[], result, &[])
            .data(&stream.to_le_bytes())
            .data(&flags.to_le_bytes())
    }

    /// An event that is no call.
    pub(super) fn other(kind: u16, arg0: u32, result: i64) -> Self {
        Self {
            stream: 1,
            header: Header {
                kind,
                arg0,
                result,
                ..Header::default()
            },
            payload: Vec::new(),
        }
    }

    /// The same call as an intent.
    pub(super) fn intended(mut self) -> Self {
        self.header.result = i64::from(self.header.kind);
        self.header.kind = kind::INTENT;
        self
    }

    /// With data behind what is there.
    pub(super) fn data(mut self, data: &[u8]) -> Self {
        self.payload.extend_from_slice(data);
        self.sized()
    }

    pub(super) fn version(mut self, version: u64) -> Self {
        self.header.version = version;
        self
    }

    pub(super) fn on(mut self, stream: StreamId) -> Self {
        self.stream = stream;
        self
    }

    fn sized(mut self) -> Self {
        self.header.payload_len = self.payload.len() as u32;
        self
    }

    pub(super) fn feed(&self, to: &mut Merge) -> Result<(), FoldError> {
        to.feed(
            self.stream,
            &Record {
                header: self.header,
                payload: &self.payload,
            },
        )
    }
}

/// When the last record of each stream was made, one tick a record in all.
#[derive(Default)]
pub(super) struct Times {
    now: u64,
    last: BTreeMap<StreamId, u64>,
    /// Of a thread's maker, when it is about to make it.
    begun: BTreeMap<StreamId, u64>,
}

impl Times {
    /// What happened from here on, in that order, as each thread logs it.
    pub(super) fn streams(&mut self, events: &[Event]) -> BTreeMap<StreamId, Vec<u8>> {
        let mut streams = BTreeMap::<_, Vec<u8>>::new();
        for event in events {
            self.now += 1 << TICK_SHIFT;
            let begun = self.begun.get(&event.stream).copied().unwrap_or(0);
            let last = self.last.entry(event.stream).or_insert(begun);
            let makes = event.header.kind == kind::INTENT && event.payload.len() == 12;
            if makes {
                let child = event.payload[..4].try_into().unwrap();
                self.begun.insert(u32::from_le_bytes(child), *last);
            }
            let mut header = event.header;
            header.ticks = ticks_of(self.now - *last);
            *last = self.now;
            let (bytes, n) = header.encode();
            let len = stored_len(header.needs_long(), event.payload.len());
            let stream = streams.entry(event.stream).or_default();
            let end = stream.len() + len;
            stream.extend_from_slice(&bytes[..n]);
            stream.extend_from_slice(&event.payload);
            stream.resize(end, 0);
        }
        streams
    }
}

/// A container whose first process is 1, with stream 1.
pub(super) fn container() -> Merge {
    let mut merge = Merge::new();
    merge.introduce(1, 1, 1).unwrap();
    merge
}

/// Feeds all of them.
pub(super) fn play(merge: &mut Merge, events: impl IntoIterator<Item = Event>) {
    for event in events {
        event.feed(merge).unwrap();
    }
}

pub(super) fn description(merge: &Merge, pid: Pid, fd: i32) -> &Description {
    merge
        .fold()
        .descriptor(pid, fd)
        .unwrap_or_else(|| panic!("{fd} is closed\n{}", merge.fold().describe()))
        .1
}

pub(super) fn socket(merge: &Merge, pid: Pid, fd: i32) -> &Socket {
    match &description(merge, pid, fd).kind {
        Kind::Socket(socket) => socket,
        other => panic!("{fd} is {other:?}"),
    }
}

pub(super) fn is_open(merge: &Merge, pid: Pid, fd: i32) -> bool {
    merge.fold().descriptor(pid, fd).is_some()
}

/// The bytes in the pipe or socket behind a descriptor, to be read there.
pub(super) fn unread(merge: &Merge, pid: Pid, fd: i32) -> Vec<u8> {
    let id = match &description(merge, pid, fd).kind {
        Kind::Pipe { channel, .. } => *channel,
        Kind::Socket(socket) => socket.channels.unwrap().0,
        other => panic!("{fd} is {other:?}"),
    };
    merge
        .fold()
        .channel(id)
        .unwrap()
        .unread()
        .flatten()
        .copied()
        .collect()
}

/// An IPv4 socket address.
pub(super) fn inet(ip: [u8; 4], port: u16) -> Vec<u8> {
    [&[2, 0][..], &port.to_be_bytes(), &ip, &[0; 8]].concat()
}

/// An epoll event.
pub(super) fn event(events: u32, data: u64) -> Vec<u8> {
    [&events.to_le_bytes()[..], &data.to_le_bytes()].concat()
}

/// Two descriptors, as pipe and socketpair fill them.
pub(super) fn pair(one: u32, other: u32) -> Vec<u8> {
    [one.to_le_bytes(), other.to_le_bytes()].concat()
}

pub(super) const LEN16: [u8; 4] = 16u32.to_le_bytes();
