//! From a record of a system call to what it changed.

use super::timers::SIGINFO;
use super::{DescriptionId, Fold, FoldError, Intent, Pid, StreamId, nr};
use crate::payload::{self, AT_OFFSET, Parsed};
use crate::record::{Header, Record};

/// −EINTR.
const EINTR: i64 = -4;
/// −EBADF.
const EBADF: i64 = -9;
/// −EINPROGRESS.
const EINPROGRESS: i64 = -115;
/// −EPIPE, −ECONNRESET, −ETIMEDOUT.
const BROKEN: [i64; 3] = [-32, -104, -110];

/// One call, with what its record and its intent say.
pub(super) struct Call<'a> {
    pub(super) nr: u16,
    pub(super) stream: StreamId,
    pub(super) record: u64,
    pub(super) pid: Pid,
    /// The first argument as a descriptor.
    pub(super) fd: i32,
    pub(super) result: i64,
    pub(super) version: u64,
    pub(super) parsed: Parsed<'a>,
    announced: Parsed<'a>,
}

impl<'a> Call<'a> {
    /// The arguments.
    pub(super) fn args(&self) -> Result<[u64; 6], FoldError> {
        let missing = FoldError::NoArguments {
            stream: self.stream,
            record: self.record,
            nr: self.nr,
        };
        self.parsed.args.or(self.announced.args).ok_or(missing)
    }

    /// What the call read from the buffer of this argument.
    pub(super) fn input(&self, argument: usize) -> Option<&'a [u8]> {
        self.parsed.inputs[argument].or(self.announced.inputs[argument])
    }

    /// What the call filled.
    pub(super) fn filled(&self, argument: usize) -> &'a [u8] {
        self.parsed.filled[argument].unwrap_or_default()
    }

    /// The bytes that were written, as far as they are known.
    pub(super) fn data(&self) -> &'a [u8] {
        let data = if self.parsed.data.is_empty() {
            self.announced.data
        } else {
            self.parsed.data
        };
        &data[..data.len().min(usize::try_from(self.result).unwrap_or(0))]
    }

    /// The thread that was made.
    pub(super) fn child(&self) -> Result<payload::Child, FoldError> {
        let missing = FoldError::NoArguments {
            stream: self.stream,
            record: self.record,
            nr: self.nr,
        };
        self.parsed.child.or(self.announced.child).ok_or(missing)
    }

    /// Control data of a message sent or received.
    pub(super) fn message(&self) -> Option<payload::Message<'a>> {
        self.parsed.message.or(self.announced.message)
    }

    /// Where an opened descriptor goes.
    pub(super) const fn at(&self, fd: i64) -> (Pid, i64, u64) {
        (self.pid, fd, self.version)
    }
}

impl Fold {
    /// Applies the record of a system call.
    pub(super) fn call(&mut self, id: StreamId, record: &Record<'_>) -> Result<(), FoldError> {
        let header = &record.header;
        let Some(stream) = self.streams.get_mut(&id) else {
            return Err(FoldError::UnknownStream { stream: id });
        };
        let (pid, number) = (stream.pid, stream.records);
        let row = sysabi::lookup(u64::from(header.kind)).ok_or(FoldError::UnknownCall {
            stream: id,
            record: number,
            nr: i64::from(header.kind),
        })?;
        let intent = stream
            .intent
            .take()
            .filter(|intent| intent.nr == header.kind);
        let parsed =
            payload::parse(row, header, record.payload).map_err(|source| FoldError::Payload {
                stream: id,
                record: number,
                source,
            })?;
        let call = Call {
            nr: header.kind,
            stream: id,
            record: number,
            pid,
            fd: header.arg0.cast_signed(),
            result: header.result,
            version: header.version,
            parsed,
            announced: intent.as_ref().and_then(Intent::parsed).unwrap_or_default(),
        };
        if header.result < 0 {
            self.failed(&call)
        } else {
            self.succeeded(&call)
        }
    }

    /// A call that returned an error: nearly always without effect.
    fn failed(&mut self, call: &Call<'_>) -> Result<(), FoldError> {
        match call.nr {
            nr::CLOSE if call.result != EBADF => self.closed(call),
            nr::CONNECT if [EINPROGRESS, EINTR].contains(&call.result) => {
                return self.connected(call, false);
            }
            nr::READ
            | nr::READV
            | nr::RECVFROM
            | nr::RECVMSG
            | nr::WRITE
            | nr::WRITEV
            | nr::SENDTO
            | nr::SENDMSG
            | nr::SENDFILE
                if BROKEN.contains(&call.result) =>
            {
                if let Some(socket) = self.named(call).and_then(|id| self.socket_mut(id)) {
                    socket.broken = true;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn succeeded(&mut self, call: &Call<'_>) -> Result<(), FoldError> {
        self.note_changes(call);
        match call.nr {
            nr::READ | nr::READV | nr::RECVFROM | nr::RECVMSG => self.read(call)?,
            nr::WRITE | nr::WRITEV | nr::SENDTO | nr::SENDMSG => self.wrote(call)?,
            nr::PWRITEV2 if call.parsed.position == Some(AT_OFFSET) => self.wrote(call)?,
            nr::SENDFILE | nr::SPLICE | nr::TEE | nr::VMSPLICE | nr::COPY_FILE_RANGE => {
                self.moved(call)?
            }
            nr::OPEN | nr::OPENAT | nr::OPENAT2 | nr::CREAT => self.opened(call)?,
            nr::MEMFD_CREATE
            | nr::PIPE
            | nr::PIPE2
            | nr::EVENTFD
            | nr::EVENTFD2
            | nr::SIGNALFD
            | nr::SIGNALFD4
            | nr::TIMERFD_CREATE
            | nr::INOTIFY_INIT
            | nr::INOTIFY_INIT1
            | nr::PIDFD_OPEN
            | nr::EPOLL_CREATE
            | nr::EPOLL_CREATE1 => self.made(call)?,
            nr::CLOSE => self.closed(call),
            nr::CLOSE_RANGE => self.closed_range(call)?,
            nr::DUP | nr::DUP2 | nr::DUP3 => self.duplicated(call)?,
            nr::FCNTL => self.controlled(call)?,
            nr::IOCTL => self.ioctl(call)?,
            nr::LSEEK
            | nr::FTRUNCATE
            | nr::FALLOCATE
            | nr::GETDENTS
            | nr::GETDENTS64
            | nr::FLOCK => self.positioned(call)?,
            nr::RENAME | nr::RENAMEAT | nr::RENAMEAT2 | nr::UNLINK | nr::UNLINKAT | nr::RMDIR => {
                self.renamed(call)?
            }
            nr::CHDIR | nr::FCHDIR | nr::CHROOT | nr::GETCWD | nr::UMASK => self.moved_to(call)?,
            nr::SOCKET | nr::SOCKETPAIR => self.socket(call)?,
            nr::BIND
            | nr::LISTEN
            | nr::SHUTDOWN
            | nr::SETSOCKOPT
            | nr::GETSOCKNAME
            | nr::GETPEERNAME => self.configured(call)?,
            nr::CONNECT => self.connected(call, true)?,
            nr::ACCEPT | nr::ACCEPT4 => self.accepted(call)?,
            nr::EPOLL_CTL => self.interest(call)?,
            nr::EPOLL_WAIT | nr::EPOLL_PWAIT | nr::EPOLL_PWAIT2 => self.delivered(call),
            nr::INOTIFY_ADD_WATCH | nr::INOTIFY_RM_WATCH => self.watch(call)?,
            nr::CLONE | nr::CLONE3 | nr::FORK | nr::VFORK => self.cloned(call)?,
            nr::WAIT4 | nr::WAITID => self.wait_result(call),
            nr::RT_SIGACTION => self.action(call)?,
            nr::RT_SIGTIMEDWAIT => self.told(call.pid, call.filled(1), &SIGINFO),
            nr::SETITIMER
            | nr::ALARM
            | nr::TIMER_CREATE
            | nr::TIMER_SETTIME
            | nr::TIMER_DELETE
            | nr::TIMERFD_SETTIME => {
                self.timer(call)?;
            }
            nr::SETUID
            | nr::SETGID
            | nr::SETREUID
            | nr::SETREGID
            | nr::SETRESUID
            | nr::SETRESGID
            | nr::SETGROUPS
            | nr::CAPSET
            | nr::SETPGID
            | nr::SETSID
            | nr::SETRLIMIT
            | nr::PRLIMIT64
            | nr::PRCTL => self.credential(call)?,
            _ => {}
        }
        Ok(())
    }

    /// The description that the call's first argument names; counts a stray if there is none.
    pub(super) fn named(&mut self, call: &Call<'_>) -> Option<DescriptionId> {
        let id = self.meant(call.pid, call.fd);
        if id.is_none() {
            super::bump(&mut self.strays, 1);
        }
        id
    }

    /// Output that the gate took over.
    pub(super) fn output(&mut self, id: StreamId, header: &Header) {
        let Some(stream) = self.streams.get(&id) else {
            return;
        };
        let named = self.meant(stream.pid, header.arg0.cast_signed());
        match named.and_then(|id| self.socket_mut(id)) {
            Some(socket) => super::bump(
                &mut socket.written,
                u64::try_from(header.result).unwrap_or(0),
            ),
            None => super::bump(&mut self.strays, 1),
        }
    }
}
