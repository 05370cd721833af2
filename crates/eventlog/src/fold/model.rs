//! What the fold knows: processes, descriptor tables, open file descriptions.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use super::Ends;
use crate::payload::{self, Parsed};
use crate::record::{Header, kind};

/// Process number inside the container.
pub type Pid = u32;
/// Number of a thread's log.
pub type StreamId = u32;
/// Number of an open file description, never used twice.
pub type DescriptionId = u64;
/// Number of a descriptor table.
pub type TableId = u64;
/// Number of an address space: the guest's version counters live in memory.
pub type SpaceId = u64;
/// Number of a [`Channel`](super::Channel).
pub type ChannelId = u64;

/// One process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its parent.
    pub parent: Pid,
    /// Its descriptor table; shared after clone with CLONE_FILES.
    pub table: TableId,
    /// Its memory; shared between vfork and exec.
    pub space: SpaceId,
    /// Its threads and their streams.
    pub threads: BTreeMap<u32, StreamId>,
    /// The path that the last successful execve named.
    pub program: Vec<u8>,
    /// The working directory: what chdir was given, joined, without resolving anything. Empty: as at start.
    pub cwd: Vec<u8>,
    /// The root directory, if chroot was called.
    pub root: Vec<u8>,
    /// The file creation mask. `None`: as at start.
    pub umask: Option<u32>,
    /// Users, groups, capabilities.
    pub credentials: Credentials,
    /// Resource limits that were set: soft and hard, by resource.
    pub limits: BTreeMap<u32, (u64, u64)>,
    /// `setitimer` timers by kind.
    pub interval_timers: BTreeMap<u32, Armed>,
    /// POSIX timers by number.
    pub posix_timers: BTreeMap<u32, PosixTimer>,
    /// Signal actions that are not the default, as the kernel's `sigaction` (handler, flags, restorer, mask).
    pub actions: BTreeMap<u32, Action>,
    /// Process group, if setpgid or setsid set it.
    pub group: Option<Pid>,
    /// Session, if setsid made one.
    pub session: Option<Pid>,
    /// Options of prctl that were set, with their first operand.
    pub options: BTreeMap<u32, u64>,
    /// Status it ended with; its parent has not waited for it yet.
    pub ended: Option<i64>,
    /// Its parent has waited for it, but its own log has not been folded to its end.
    pub reaped: bool,
    /// Its parent has got a signal that told of its end.
    pub told: bool,
}

/// A signal's action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Action {
    /// Handler's address, or 1 for ignored.
    pub handler: u64,
    /// SA_ flags.
    pub flags: u64,
    /// The restorer's address.
    pub restorer: u64,
    /// Signals blocked meanwhile.
    pub mask: u64,
}

/// Users and groups of a process; `None` is what it was at start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// Real, effective, saved user.
    pub users: [Option<u32>; 3],
    /// Real, effective, saved group.
    pub groups: [Option<u32>; 3],
    /// Supplementary groups.
    pub supplementary: Option<Vec<u32>>,
    /// The argument of the last capset (`cap_user_data_t`, two of them).
    pub capabilities: Option<Vec<u8>>,
}

/// A timer that was set, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Armed {
    /// Flags of the call (TFD_TIMER_ABSTIME and the like).
    pub flags: u32,
    /// Interval and value, as the call was given them (`itimerspec`, or `itimerval` for setitimer).
    pub setting: Vec<u8>,
    /// When it was set, as [`Stream::time`].
    pub at: u64,
    /// When the program last saw that it had expired: it does not expire again but by its interval.
    pub seen: Option<u64>,
}

impl Armed {
    /// Whether it expires again and again.
    #[must_use]
    pub fn is_periodic(&self) -> bool {
        let interval = self.setting.get(..16).unwrap_or_default();
        interval.iter().any(|byte| *byte != 0)
    }
}

/// A POSIX timer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PosixTimer {
    /// Its clock.
    pub clock: u32,
    /// The `sigevent` it was made with; empty for the default.
    pub event: Vec<u8>,
    /// Its setting.
    pub armed: Option<Armed>,
}

/// A descriptor table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Processes that share it.
    pub users: u32,
    /// Descriptors.
    pub entries: BTreeMap<i32, Entry>,
    /// Descriptors closed lately, newest last: a late record of another thread may still name them.
    pub closed: VecDeque<Closed>,
}

/// One descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What it refers to.
    pub description: DescriptionId,
    /// Closed by execve.
    pub cloexec: bool,
    /// Version of the table when it was opened; 0 when not known.
    pub since: u64,
    /// When that was, as [`Stream::time`].
    pub opened: u64,
}

/// A descriptor that was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Closed {
    /// Its number.
    pub fd: i32,
    /// What it had been.
    pub entry: Entry,
    /// Version of the table when it was closed.
    pub until: u64,
    /// When that was, as [`Stream::time`].
    pub closed: u64,
}

/// An open file description.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// Descriptors (and messages in flight) that refer to it.
    pub references: u32,
    /// Status flags as of open or F_SETFL: access mode, O_NONBLOCK, O_APPEND.
    pub flags: u32,
    /// Epoll sets that watch it.
    pub watchers: BTreeSet<DescriptionId>,
    /// F_SETOWN and F_SETSIG.
    pub owner: Option<(i32, i32)>,
    /// The lock that flock took: LOCK_SH or LOCK_EX.
    pub lock: Option<u32>,
    /// What it is.
    pub kind: Kind,
}

impl Description {
    /// Between whom it is, for a connection of which that is known.
    #[must_use]
    pub fn ends(&self) -> Option<Ends> {
        match &self.kind {
            Kind::Socket(socket) => socket.ends(),
            _ => None,
        }
    }
}

/// Kinds of open file description.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Standard input, output or error, given to the first process.
    Standard(u8),
    /// A file, directory or device that has a name.
    File(File),
    /// Memory with a descriptor.
    Memfd {
        /// The name it was given.
        name: Vec<u8>,
        /// Flags of memfd_create.
        flags: u32,
        /// Size as of the last ftruncate or write.
        size: u64,
        /// Offset.
        offset: u64,
        /// Seals added.
        seals: u32,
    },
    /// A socket.
    Socket(Socket),
    /// One end of a pipe.
    Pipe {
        /// Its bytes.
        channel: ChannelId,
        /// True for the end that writes.
        writes: bool,
        /// Capacity set by F_SETPIPE_SZ.
        capacity: Option<u64>,
    },
    /// An epoll set: interests by descriptor number and what that number meant.
    Epoll(BTreeMap<(i32, DescriptionId), Interest>),
    /// An eventfd. Its counter is `added − taken`.
    Event {
        /// Sum of the initial value and what was written.
        added: u64,
        /// Sum of what was read.
        taken: u64,
        /// EFD_SEMAPHORE.
        semaphore: bool,
    },
    /// A timerfd.
    Timer {
        /// Its clock.
        clock: u32,
        /// Its setting.
        armed: Option<Armed>,
    },
    /// A signalfd and its mask.
    Signal(Vec<u8>),
    /// An inotify instance: path and mask by watch.
    Inotify(BTreeMap<i32, (Vec<u8>, u32)>),
    /// A pidfd.
    Process(Pid),
    /// Something that the call with this number made and that the fold does not know.
    Other(u16),
}

/// A named file that is open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Its path, joined with the working directory or the directory descriptor, not resolved.
    pub path: Vec<u8>,
    /// Flags of open.
    pub flags: u32,
    /// Offset.
    pub offset: u64,
    /// The offset is the file's end, wherever that is (after an append).
    pub at_end: bool,
    /// Its name was removed.
    pub unlinked: bool,
}

/// An interest of an epoll set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interest {
    /// Events, with EPOLLET and the like.
    pub events: u32,
    /// The application's data.
    pub data: u64,
    /// False after an EPOLLONESHOT event was delivered.
    pub armed: bool,
}

/// A socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Socket {
    /// AF_INET and so on.
    pub domain: u32,
    /// SOCK_STREAM and so on, without flags.
    pub kind: u32,
    /// Protocol.
    pub protocol: u32,
    /// How far it is.
    pub state: State,
    /// Its own address, as bound or as getsockname said.
    pub local: Vec<u8>,
    /// The other side's address.
    pub peer: Vec<u8>,
    /// Options by level and name, each with its last value; inherited from the listener.
    pub options: BTreeMap<(i32, i32), Vec<u8>>,
    /// Bytes the application has read.
    pub read: u64,
    /// Bytes the application has written.
    pub written: u64,
    /// The application has read the end of the stream.
    pub end_read: bool,
    /// shutdown of the receiving side.
    pub shut_read: bool,
    /// shutdown of the sending side.
    pub shut_write: bool,
    /// A call ended with ECONNRESET, EPIPE or ETIMEDOUT: there is nothing to rebuild.
    pub broken: bool,
    /// Bytes inside the container: what it receives and what it sends, for UNIX sockets.
    pub channels: Option<(ChannelId, ChannelId)>,
}

/// How far a socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Made.
    New,
    /// Has an address.
    Bound,
    /// Accepts.
    Listening {
        /// The backlog last asked for.
        backlog: i32,
        /// Connections accepted.
        accepted: u64,
    },
    /// connect goes on in the background.
    Connecting,
    /// Connected by connect or socketpair.
    Connected,
    /// Made by accept.
    Accepted {
        /// The listener.
        listener: DescriptionId,
        /// The listener's port, 0 for UNIX sockets.
        port: u16,
        /// How many connections of this peer (address and port) this port had accepted with it, from 1.
        ordinal: u64,
    },
}

/// A connection that no descriptor refers to any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Orphan {
    /// The description it was.
    pub description: DescriptionId,
    /// The process that closed it last.
    pub pid: Pid,
    /// The number it had there.
    pub fd: i32,
    /// Which close it was, over the whole container, from 1.
    pub close: u64,
    /// The connection.
    pub socket: Socket,
}

/// An intent whose result has not been seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// The call.
    pub nr: u16,
    /// Its first argument.
    pub arg0: u32,
    /// Payload of the intent.
    pub payload: Vec<u8>,
}

/// What is known of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stream {
    /// The process.
    pub pid: Pid,
    /// The thread.
    pub tid: u32,
    /// Records applied.
    pub records: u64,
    /// When its last record was made, by the time-stamp counter of the recording host, and the last before its last
    /// intent.
    pub time: u64,
    /// See there.
    pub before_intent: u64,
    /// The call it has begun and not ended.
    pub intent: Option<Intent>,
    /// Own and peer's address of the connection that its next record makes, as the guest asked for them.
    pub connection: Vec<u8>,
    /// The stream of the child that its clone has made, if that was seen before the clone's result.
    pub born: Option<StreamId>,
    /// It ended.
    pub ended: bool,
}

impl Intent {
    /// The payload taken apart, if it is one of the call.
    pub(super) fn parsed(&self) -> Option<Parsed<'_>> {
        let row = sysabi::lookup(u64::from(self.nr))?;
        let header = Header {
            kind: kind::INTENT,
            result: i64::from(self.nr),
            ..Header::default()
        };
        payload::parse(row, &header, &self.payload).ok()
    }
}
