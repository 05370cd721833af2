//! What the injected blob and the host's side agree on: addresses, shared memory, thread blocks.
//!
//! Everything the guest will ever need is reserved when it is injected and lies at the same address in
//! every process, on the primary and in replay:
//!
//! ```text
//! HEAP_BASE      the blocks that malloc hands out           private, travels in the image
//! STACKS_BASE    the stacks of threads                      private, travels in the image
//! BLOB_BASE      the blob: text, constants, data          private, travels in the image
//! VDSO_COPY      the patched copy of the vDSO             private
//! THREADS_BASE   thread blocks and their hook stacks      private
//! ARENA_BASE     control page, rings, output buffers      one shared memfd, new on each host
//! ```
//!
//! The arena's file has the same layout as its mapping: see [`Control`], [`Slot`], [`Conn`] and the
//! `*_AT` offsets. Every field that both sides touch is atomic.

use core::net::SocketAddrV4;
use core::sync::atomic::{AtomicI32, AtomicU32, AtomicU64};

/// Where the heap lies that stands in for the C library's.
pub const HEAP_BASE: u64 = 0x2000_0000_0000;
/// Address space of the heap (256 GiB): mapped without access at injection, opened by the guest as it grows.
pub const HEAP_LEN: u64 = 256 << 30;
/// Where the stacks of threads lie that stand in for those the C library would map.
pub const STACKS_BASE: u64 = 0x2100_0000_0000;
/// Address space of the stacks (256 GiB): mapped without access at injection, opened one by one.
pub const STACKS_LEN: u64 = 256 << 30;
/// Where the blob is linked and mapped.
pub const BLOB_BASE: u64 = 0x3000_0000_0000;
/// Address space kept for the blob.
pub const BLOB_MAX: u64 = 0x0100_0000;
/// Where the patched copy of the vDSO lies.
pub const VDSO_COPY: u64 = 0x3000_0100_0000;
/// Where thread blocks begin.
pub const THREADS_BASE: u64 = 0x3000_1000_0000;
/// Address space of one thread block and its hook stack.
pub const THREAD_LEN: u64 = 64 << 10;
/// Threads of one process.
pub const MAX_THREADS: usize = 512;
/// Where the arena is mapped.
pub const ARENA_BASE: u64 = 0x3100_0000_0000;
/// The descriptor under which a process keeps the arena, so that its next image can map it.
pub const ARENA_FD: i32 = 1022;
/// Where replay keeps the descriptor that stands for the program's standard output.
pub const REPLAY_STDOUT_FD: i32 = 1020;
/// Where replay keeps the descriptor that stands for the program's standard error.
pub const REPLAY_STDERR_FD: i32 = 1021;

/// Where a process keeps the eventfd by which the host tells that a full output buffer has room again.
pub const ROOM_FD: i32 = 1019;

/// Rings in the arena: threads of all processes that can live at once.
pub const MAX_SLOTS: usize = 256;
/// Bytes of one ring (a power of two).
pub const RING_LEN: u64 = 1 << 20;
/// Connections whose output is owned at once.
pub const MAX_CONNS: usize = 16_384;
/// Connections that can wait, after a takeover, for the application to accept them.
pub const MAX_BACKLOG: usize = 384;
/// Entries of [`Control::turns`].
pub const MAX_TURNS: usize = 64;
/// Entries of [`Control::holds`].
pub const MAX_HOLDS: usize = 16;
/// Entries of [`Control::sent`].
pub const MAX_SENT: usize = 64;
/// Bytes of one connection's output buffer (a power of two).
pub const OUTPUT_LEN: u64 = 256 << 10;

/// Offset of the first [`Slot`] in the arena.
pub const SLOTS_AT: u64 = 0x3000;
/// Offset of the first [`Conn`].
pub const CONNS_AT: u64 = SLOTS_AT + MAX_SLOTS as u64 * size_of::<Slot>() as u64;
/// Offset of the tables that processes hand to their next image, one for each slot.
pub const INHERIT_AT: u64 = CONNS_AT + MAX_CONNS as u64 * size_of::<Conn>() as u64;
/// Descriptors that a process can hand to its next image.
pub const INHERIT_FDS: usize = 1024;
/// Offset of the first ring.
pub const RINGS_AT: u64 =
    (INHERIT_AT + MAX_SLOTS as u64 * INHERIT_FDS as u64 * 4).next_multiple_of(1 << 20);
/// Offset of the first output buffer.
pub const OUTPUTS_AT: u64 = RINGS_AT + MAX_SLOTS as u64 * RING_LEN;
/// Bytes of the whole arena.
pub const ARENA_LEN: u64 = OUTPUTS_AT + MAX_CONNS as u64 * OUTPUT_LEN;

/// First word of the control page.
pub const ARENA_MAGIC: u64 = 0x3130_4152_4154_5355;

/// What the guest does with a call.
pub mod mode {
    /// Record.
    pub const RECORD: u32 = 1;
    /// Replay from the rings.
    pub const REPLAY: u32 = 2;
    /// Neither: calls go straight to the kernel.
    pub const LIVE: u32 = 3;
}

/// The arena's first three pages.
#[repr(C)]
pub struct Control {
    /// [`ARENA_MAGIC`].
    pub magic: AtomicU64,
    /// One of [`mode`]; the one word whose change takes every thread live.
    pub mode: AtomicU32,
    /// The number of the next stream; every thread's log is one stream for its whole life.
    pub next_stream: AtomicU32,
    /// Futex: 1 while the host's drainer sleeps. Whoever turns it to 0 wakes it, after setting
    /// `drain_wanted`.
    pub drainer_asleep: AtomicU32,
    /// Switches of [`flag`].
    pub flags: AtomicU32,
    /// Rings that were ever taken: those from here on are free.
    pub slots: AtomicU32,
    /// Processes that were made, or were about to be.
    pub forks: AtomicU32,
    /// Replay: records that were taken, to tell standstill from patience.
    pub moves: AtomicU32,
    /// Replay: seed of how this attempt's timing differs from that of others; 0 for the plain one.
    pub seed: AtomicU32,
    /// Replay: how many entries of `turns` count.
    pub turn_count: AtomicU32,
    /// Replay: how many entries of `holds` count.
    pub hold_count: AtomicU32,
    /// Replay: how often the host has asked whether those wait in vain that wait for their turns. See [`Slot::looked`].
    pub looks: AtomicU32,
    /// Live after a takeover: how many nanoseconds the time of day is ahead of the host's, which may lag behind that of the
    /// host that was lost. The host sets it before it turns `mode`.
    pub realtime_lead: AtomicU64,
    /// Order of container-wide objects: process numbering, then standard output.
    pub pids: Order,
    /// Order of writes to standard output and error.
    pub stdio: Order,
    /// Why the guest gave up, for the host's message: a `mismatch` code, then its operands.
    pub failure: Failure,
    /// Numbers of refused calls, one bit each (the host names each once).
    pub refused: [AtomicU64; 8],
    /// One bit for each connection whose counters moved since the host last looked.
    pub touched: [AtomicU64; MAX_CONNS / 64],
    /// One bit for each connection's entry that is taken: set by the guest, cleared by whoever frees it.
    pub taken: [AtomicU64; MAX_CONNS / 64],
    /// How many entries of `backlog` are not 0.
    pub backlog_len: AtomicU32,
    /// 1 once somebody wants the host to look at rings and connections; the host clears it before it looks.
    pub drain_wanted: AtomicU32,
    /// Connections of the lost host that nobody has accepted: see [`backlog`]. The host fills entries before
    /// it turns `mode`, the guest clears them.
    pub backlog: [AtomicU64; MAX_BACKLOG],
    /// Replay: records that are taken as if they had been made at another time. The host fills them in before the
    /// process runs.
    pub turns: [Turn; MAX_TURNS],
    /// Replay: threads that are held while another passes. The host fills them in before the process runs.
    pub holds: [Hold; MAX_HOLDS],
    /// How many calls have changed what only a process itself can be asked for, or what is asked for while it runs: signal
    /// actions, alternate stacks, the working directory.
    pub changes: AtomicU64,
    /// Replay: held by whoever sends a signal to a process of the container, or looks at what is pending.
    pub signals: Order,
    /// Replay: signals whose sending and getting do not balance so far. The host fills in those that are pending in the
    /// image.
    pub sent: [Sent; MAX_SENT],
    /// How often a ring was taken.
    pub claims: AtomicU32,
    /// Recording: the thread that may run the program, with [`flag::SERIAL`].
    pub baton: Baton,
}

/// An entry of [`Control::sent`]. The numbers are those inside the container.
#[repr(C)]
pub struct Sent {
    /// The process that sends.
    pub sender: AtomicU32,
    /// The process that it is sent to.
    pub receiver: AtomicU32,
    /// Number of the signal.
    pub signal: AtomicU32,
    /// How many more were sent, by the log, than were got; below 0, how many more were got. 0 if the entry is free.
    pub ahead: AtomicI32,
}

/// An entry of [`Control::turns`].
#[repr(C)]
pub struct Turn {
    /// The record's stream.
    pub stream: AtomicU32,
    /// Keeps `position` aligned.
    pub pad: AtomicU32,
    /// Its position in the stream.
    pub position: AtomicU64,
    /// The time, in cycles of the recording host.
    pub time: AtomicU64,
}

/// An entry of [`Control::holds`]: a thread that has taken its record lets the host step it on by some instructions of
/// the program, and stands there while another thread takes some records. That one waits before it takes more until the
/// first has come to its next record.
#[repr(C)]
pub struct Hold {
    /// One of [`hold`].
    pub state: AtomicU32,
    /// The slot of the thread that is held, once it has come there.
    pub slot: AtomicU32,
    /// The stream of the thread that is held.
    pub stream: AtomicU32,
    /// The stream of the one that passes.
    pub passes: AtomicU32,
    /// The record behind which the one is held.
    pub position: AtomicU64,
    /// The first record that the other does not take before that.
    pub passes_from: AtomicU64,
    /// The first that it does not take before the one has come to its next.
    pub passes_to: AtomicU64,
}

/// Values of [`Hold::state`].
pub mod hold {
    /// The thread has not come there.
    pub const AHEAD: u32 = 0;
    /// It takes its record, and waits for the host.
    pub const REACHED: u32 = 1;
    /// The host steps it.
    pub const STEPPED: u32 = 2;
    /// It stands: the other may pass.
    pub const STANDS: u32 = 3;
    /// It has come to its next record, or is not waited for any more.
    pub const GONE: u32 = 4;
}

/// Entries of [`Control::backlog`].
pub mod backlog {
    /// The entry of a connection that waits as descriptor `fd` behind a stand-in with this port.
    #[must_use]
    pub const fn entry(port: u16, fd: u32) -> u64 {
        (port as u64) << 32 | (fd as u64 + 1)
    }

    /// The stand-in's port.
    #[must_use]
    pub const fn port(entry: u64) -> u16 {
        (entry >> 32) as u16
    }

    /// The descriptor.
    #[must_use]
    pub const fn fd(entry: u64) -> u64 {
        (entry & 0xffff_ffff).saturating_sub(1)
    }
}

/// Bits of [`Control::flags`].
pub mod flag {
    /// Output to TCP connections goes through [`super::Conn`] buffers; without it, straight to the socket.
    pub const OWN_OUTPUT: u32 = 1;
    /// Replay ends at the log's end by waiting there (takeover), not by ending the process (offline).
    pub const HOLD_AT_END: u32 = 2;
    /// Replay: a thread takes its next record when the others have taken all of theirs that are older. The guest clears
    /// it when that leads nowhere.
    pub const TIMED: u32 = 4;
    /// One thread runs at a time: see [`super::Baton`].
    pub const SERIAL: u32 = 8;
}

/// A lock with a version, for an object that processes share.
#[repr(C)]
pub struct Order {
    /// Thread number of the owner, 0 when free.
    pub owner: AtomicU32,
    /// Keeps `version` aligned.
    pub pad: AtomicU32,
    /// How many ordered calls were made.
    pub version: AtomicU64,
}

/// Which thread of the container runs the program, where one at a time does.
#[repr(C)]
pub struct Baton {
    /// Its number, 0 while none does.
    pub owner: AtomicU32,
    /// The number of the one that had it last; 0 behind a checkpoint.
    pub last: AtomicU32,
    /// How often it was taken.
    pub passed: AtomicU32,
    /// How many wait for it, and how many of them sleep (futex at `owner`).
    pub waiting: AtomicU32,
    /// See `waiting`.
    pub asleep: AtomicU32,
}

/// The first divergence that the guest met.
#[repr(C)]
pub struct Failure {
    /// 0 while there is none; set last. One of [`failure`].
    pub code: AtomicU32,
    /// Stream that met it.
    pub stream: AtomicU32,
    /// Position of the record in that stream.
    pub position: AtomicU64,
    /// What the log holds.
    pub expected: AtomicU64,
    /// What the program did.
    pub actual: AtomicU64,
}

/// Values of [`Failure::code`].
pub mod failure {
    /// Another kind of record: `expected` and `actual` are kinds.
    pub const CALL: u32 = 1;
    /// Another argument hash; the operands are kind in the upper half and hash in the lower.
    pub const ARGUMENTS: u32 = 2;
    /// Other output: hashes of the bytes.
    pub const OUTPUT: u32 = 3;
    /// A call that replay executes gave another result.
    pub const RESULT: u32 = 4;
    /// The stream ended where the program went on (offline).
    pub const END: u32 = 5;
    /// More threads or connections than the arena holds.
    pub const CAPACITY: u32 = 6;
    /// The payload holds something else than what the program passed: `expected` is where in the payload, `actual`
    /// the kind.
    pub const PAYLOAD: u32 = 7;
    /// Somebody is filling in the other fields.
    pub const CLAIMED: u32 = u32::MAX;
}

/// A ring's header. Recording: the guest produces, the host consumes; replay: the other way round.
#[repr(C, align(256))]
pub struct Slot {
    /// One of [`slot`].
    pub state: AtomicU32,
    /// The stream in this ring.
    pub stream: AtomicU32,
    /// Thread number inside the container.
    pub tid: AtomicU32,
    /// Process number inside the container.
    pub pid: AtomicU32,
    /// Request from the guest to the host: see [`request`]. Futex.
    pub request: AtomicU32,
    /// Replay: 1 when no more bytes will come.
    pub end: AtomicU32,
    /// Where in the memory of the process the thread's block lies.
    pub block: AtomicU64,
    /// The time of the last record that its thread consumed, in cycles of the recording host; for a thread that is
    /// being made, or a process that changes its image, of the last record before. See [`flag::TIMED`].
    pub time: AtomicU64,
    /// Recording: the time that the stream's first record counts from. Set before the ring is live.
    pub born: AtomicU64,
    /// When its thread took that record, in cycles of this host; 0 once it has come to the next. [`RESTORED`] before the
    /// first, until somebody waits for it.
    pub taken_at: AtomicU64,
    /// Replay: position of the record whose turn its thread waits for, while the state is [`slot::WAITING`].
    pub awaits: AtomicU64,
    /// Recording: 1 while its thread is the only one of a process that runs on its parent's memory (vfork), until
    /// that executes a program or ends.
    pub lent: AtomicU32,
    /// Replay: what [`Control::looks`] was when its thread, which waits for its turn, looked last and had to wait on.
    pub looked: AtomicU32,
    /// At a takeover: bytes of the write that its thread's last record announces which a reader has, the host having
    /// seen so before it turns `mode`.
    pub settled: AtomicU64,
    /// Bytes produced since the stream's start.
    pub head: AtomicU64,
    /// Futex: 1 while the consumer sleeps (replay: the guest).
    pub consumer_asleep: AtomicU32,
    pad1: [u32; 9],
    /// Bytes consumed since the stream's start.
    pub tail: AtomicU64,
    /// Futex: 1 while the producer waits for room (recording: the guest).
    pub producer_asleep: AtomicU32,
    pad2: [u32; 13],
}

/// `si_code` of a signal for one thread (sigaction(2)).
pub const SI_TKILL: i32 = -6;

/// Whether a process has sent a signal with this `si_code`: its siginfo names it.
#[must_use]
pub const fn is_sent(code: i32) -> bool {
    const SI_USER: i32 = 0;
    const SI_QUEUE: i32 = -1;
    matches!(code, SI_USER | SI_QUEUE | SI_TKILL)
}

/// Value of [`Slot::taken_at`].
pub const RESTORED: u64 = u64::MAX;

/// Values of [`Slot::state`].
pub mod slot {
    /// Nobody's.
    pub const FREE: u32 = 0;
    /// A thread logs to it, or is about to.
    pub const LIVE: u32 = 1;
    /// Its thread is gone; free again when the host has drained it.
    pub const DONE: u32 = 2;
    /// Replay: its thread waits at the stream's end.
    pub const PARKED: u32 = 3;
    /// Taken for a thread that is being made: not to be drained or fed yet.
    pub const CLAIMED: u32 = 4;
    /// Replay: its thread waits for its turn on a shared object.
    pub const WAITING: u32 = 5;
    /// Replay: its thread waits until others have taken older records.
    pub const EARLY: u32 = 6;
    /// Replay: its thread did something else than the log says, and stands.
    pub const LOST: u32 = 7;
}

/// Values of [`Slot::request`].
pub mod request {
    /// Nothing asked.
    pub const NONE: u32 = 0;
    /// The process is about to execve: attach and inject the next image. The host answers with `GRANTED`.
    pub const EXEC: u32 = 1;
    /// Go on.
    pub const GRANTED: u32 = 2;
    /// The host has seen `EXEC` and is about to answer.
    pub const SEEN: u32 = 4;
    /// The execve failed: let go again. The host answers with `NONE`.
    pub const EXEC_FAILED: u32 = 3;
}

/// In [`Conn::error`]: a write was told of the error, which the kernel does once.
pub const ERROR_TOLD: u32 = 1 << 31;

/// The output of one connection, from the application's write to the client's acknowledgement.
///
/// Bytes `trimmed..written` of the stream lie in the buffer, byte `n` at `n % OUTPUT_LEN`.
#[repr(C, align(128))]
pub struct Conn {
    /// One of [`conn`].
    pub state: AtomicU32,
    /// Descriptors that refer to it, over all processes.
    pub refs: AtomicU32,
    /// Host: 1 once it holds its own duplicate of the socket. Futex.
    pub adopted: AtomicU32,
    /// Guest: 1 when a writer met a full buffer; the host clears it when there is room, and wakes. Futex.
    pub full: AtomicU32,
    /// Bytes the application has written.
    pub written: AtomicU64,
    /// Bytes the client has acknowledged: their room is free.
    pub trimmed: AtomicU64,
    /// Guest: 1 after shutdown of the sending side or the last close.
    pub shut: AtomicU32,
    /// The descriptor and process it came with.
    pub fd: AtomicU32,
    /// Process number inside the container.
    pub pid: AtomicU32,
    /// Guest: how often this entry has been taken; tells two connections in one entry apart.
    pub generation: AtomicU32,
    /// Bytes the application has read.
    pub read: AtomicU64,
    /// Guest: 1 once the application has read the end of the peer's stream.
    pub read_end: AtomicU32,
    /// Host: the error (errno) that ended the connection, 0 while there is none. Guest: [`ERROR_TOLD`] beside it.
    pub error: AtomicU32,
    /// Guest: the epoll set from which it took EPOLLOUT while the buffer is full, plus one; 0 for none.
    pub muted_in: AtomicU32,
    /// Guest: the events the application asked for there, and its data.
    pub wanted_events: AtomicU32,
    /// See `wanted_events`.
    pub wanted_data: AtomicU64,
    /// Guest: the epoll set the descriptor was added to last, plus one.
    pub watched_in: AtomicU32,
    /// Guest: 1 while a thread appends.
    pub lock: AtomicU32,
    /// Guest: between whom it is, when over IPv4: see [`ends`].
    pub ends: AtomicU64,
    /// Guest: the process that read from it last, by its number inside; 0 when none has.
    pub holder: AtomicU32,
    pad: [u32; 3],
}

/// [`Conn::ends`]: the peer's address and port and the own port, in network order from the highest byte on.
#[must_use]
pub const fn ends(peer: [u8; 4], peer_port: [u8; 2], own_port: [u8; 2]) -> u64 {
    let ([a, b, c, d], [e, f], [g, h]) = (peer, peer_port, own_port);
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

/// The same, of addresses.
#[must_use]
pub fn ends_between(peer: SocketAddrV4, own_port: u16) -> u64 {
    let own = own_port.to_be_bytes();
    ends(peer.ip().octets(), peer.port().to_be_bytes(), own)
}

/// Values of [`Conn::state`].
pub mod conn {
    /// Nobody's.
    pub const FREE: u32 = 0;
    /// Open in the application.
    pub const OPEN: u32 = 1;
    /// Taken for a connection that is being made.
    pub const CLAIMED: u32 = 3;
    /// Closed in the application; the host frees it when the client has everything.
    pub const CLOSED: u32 = 2;
}

/// The start of a thread block; gs points to it. The hook stack takes the rest of [`THREAD_LEN`].
///
/// The fields up to `hook_top` are used by the entry code at fixed offsets (8 bytes each).
#[repr(C)]
pub struct ThreadBlock {
    /// Its own address (`gs:[0]`).
    pub this: AtomicU64,
    /// Top of the free part of the hook stack (`gs:[8]`); equal to `hook_top` outside the guest.
    pub hook_sp: AtomicU64,
    /// Scratch for the entry code (`gs:[16]`).
    pub scratch: AtomicU64,
    /// Top of the hook stack (`gs:[24]`).
    pub hook_top: AtomicU64,
    /// The mask that is set on the way out, so that a signal is delivered there (`gs:[32]`).
    pub exit_mask: AtomicU64,
    /// The application's signal mask.
    pub mask: AtomicU64,
    /// Not 0 inside a vDSO or lock replacement, which run on the application's stack.
    pub inside: AtomicU64,
    /// Host: hold this thread at the hook's exit.
    pub stop: AtomicU64,
    /// Why the thread trapped or waits: one of [`trap`].
    pub why: AtomicU64,
    /// Bytes of its stream that it has committed (recording) or consumed (replay).
    pub position: AtomicU64,
    /// The time of the last record, in cycles of the recording host, as the records' ticks add up to it.
    pub tsc: AtomicU64,
    /// Index of its ring.
    pub slot: AtomicU32,
    /// Number of its stream.
    pub stream: AtomicU32,
    /// Thread number inside the container.
    pub tid: AtomicU32,
    /// Process number inside the container.
    pub pid: AtomicU32,
    /// Index of the tables ([`TABLES`]) that its process uses.
    pub tables: AtomicU32,
    /// Not 0 once a signal waits for the next hook point; then `signal` holds it.
    pub pending: AtomicU32,
    /// The signal being handed to the application's handler, 0 otherwise.
    pub delivering: AtomicU32,
    /// Not 0: the record of the call under way says that a signal is delivered at its end.
    pub follows: AtomicU32,
    /// Calls since the last record that left none.
    pub unlogged: AtomicU64,
    /// Ring of the child that this thread is making, and its stream.
    pub child_slot: AtomicU32,
    /// See `child_slot`.
    pub child_stream: AtomicU32,
    /// Whether that child is made live, and is in no log.
    pub child_is_new: AtomicU32,
    /// Where the free blocks lie that this thread keeps.
    pub heap: AtomicU64,
    /// Not 0 in a thread that waits for events in one place: its output goes when it comes there again.
    pub loops: AtomicU32,
    /// What the thread has written and read and not yet asked the host to look at, in shares of what it may
    /// leave for later.
    pub owed: AtomicU32,
    /// `siginfo_t` of the waiting signal.
    pub signal: [AtomicU64; 16],
    /// The application's registers at the clone that made this thread; the child starts with them.
    pub birth: [AtomicU64; 16],
    /// Replay: position of the record that it looked at last.
    pub record: AtomicU64,
    /// Head of the thread's list of robust mutexes, as it told the kernel; 0 without one.
    pub robust: AtomicU64,
    /// Not 0 while the kernel holds back signals of this thread because of replay, whatever `mask` is.
    pub held_back: AtomicU32,
    /// Not 0 once the call under way has committed its intent.
    pub intended: AtomicU32,
    /// Bytes that the call under way has moved, in parts that have records of their own.
    pub done: AtomicU64,
    /// Number of the timer that looks after the waiting signal, plus one; 0 without one.
    pub timer: AtomicU32,
    /// Instructions that the thread is stepped through still, looking for `place`.
    pub steps: AtomicU32,
    /// Registers as the kernel's signal frame has them, and which of them change in the loop there.
    pub place: [AtomicU64; 18],
    /// Signals of one number that came in each other's place.
    pub exchange: Exchange,
    /// The stream of the C library whose lock the thread took first of those that it has; 0 without any.
    pub stream_held: AtomicU64,
}

/// The host's SIGTRAP with this code (that of a message queue, which sends none) calls a thread that may be in a loop which
/// a signal ends.
pub const CALLED: i32 = -3;

/// Entries of each queue of an [`Exchange`].
pub const EXCHANGED: usize = 4;

/// Signals of one number: those that came before their turn, and what is still pending of those that were delivered in
/// their place; the first words of each siginfo. A first word of 0 is a free entry.
#[repr(C)]
#[derive(Debug)]
pub struct Exchange {
    /// The number; 0 without any.
    pub signal: AtomicU32,
    /// Keeps what follows aligned.
    pub pad: AtomicU32,
    /// Those that came early, the first first.
    pub early: [[AtomicU64; 6]; EXCHANGED],
    /// What is left, as many.
    pub left: [[AtomicU64; 6]; EXCHANGED],
}

/// Sets of per-process tables in one address space: the process' own, and one for each child that
/// vfork or `posix_spawn` made and that has not called execve yet.
pub const TABLES: usize = 4;

/// Values of [`ThreadBlock::why`].
pub mod trap {
    /// No trap: waits at the hook's exit for as long as `stop` is set.
    pub const SETTLED: u64 = 1;
    /// Replay: at the log's end.
    pub const LOG_END: u64 = 2;
    /// Replay: diverged; see [`super::Control::failure`].
    pub const DIVERGED: u64 = 3;
    /// Initialisation is done.
    pub const READY: u64 = 4;
}

const _: () = assert!(size_of::<Control>() as u64 <= SLOTS_AT);
const _: () = assert!(size_of::<Slot>() == 256);
const _: () = assert!(size_of::<Conn>() == 128);
const _: () = assert!(RING_LEN.is_power_of_two() && OUTPUT_LEN.is_power_of_two());

/// Kinds of descriptors that the host hands to the first image in the inherited table.
pub mod inherited {
    /// The standard input the container was started with.
    pub const STDIN: u32 = 5;
    /// Its standard output.
    pub const STDOUT: u32 = 6;
    /// Its standard error.
    pub const STDERR: u32 = 7;
}

/// What the injector tells a fresh image; it writes this over the blob's symbol `BOOT` and then calls
/// `guest_init`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Boot {
    /// Ring of the image's first thread (that of the thread which called execve).
    pub slot: u32,
    /// Keeps what follows aligned.
    pub pad: u32,
    /// Where AT_RANDOM points to.
    pub at_random: u64,
    /// The signal mask the image starts with.
    pub mask: u64,
    /// Bytes of the blob's range, which is exempt from dispatch.
    pub blob_len: u64,
    /// The kernel's vDSO: start and end, 0 without one.
    pub vdso: [u64; 2],
    /// Its own entry points: clock_gettime, gettimeofday, time, getcpu; 0 where missing.
    pub vdso_entries: [u64; 4],
    /// Executable mappings of files that exist already: start and end.
    pub text: [[u64; 2]; 4],
}
