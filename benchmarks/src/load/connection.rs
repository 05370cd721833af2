//! One connection: its socket, what is on its way, and what it does next.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, SocketAddrV4, TcpStream};
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, connect, setsockopt, socket, sockopt,
};

use super::data::DataSet;
use super::faults::Faults;
use super::model::{Expected, Mix, Model, read_big};
use super::resp::{self, NotAReply};

/// Bytes that a slow reader takes at a time, and how long it waits between: about 4 MiB/s.
const SLOW_CHUNK: usize = 32 << 10;
const SLOW_PAUSE: Duration = Duration::from_millis(8);
/// Receive buffer of a slow reader: most of a reply must wait with the server.
const SLOW_BUFFER: usize = 64 << 10;
/// Bytes that others take at a time.
const CHUNK: usize = 64 << 10;
/// Most commands of a half-closing connection before it closes.
const HALF_BATCH: u64 = 16;

/// How a connection behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Keeps so many commands on their way; 1 is closed-loop.
    Loop { depth: usize },
    /// Reads replies of 1 MiB, slowly.
    Slow { reader: u64 },
    /// Sends a batch, closes its sending side, reads the rest until end of file, and comes again.
    HalfClosing,
    /// Says something at the beginning and at the end.
    Idle,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Loop { depth: 1 } => "closed-loop",
            Self::Loop { .. } => "pipelining",
            Self::Slow { .. } => "slow reader",
            Self::HalfClosing => "half-closing",
            Self::Idle => "idle",
        })
    }
}

/// Why a connection is no more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("end of file with {0} replies outstanding")]
    EndOfFile(usize),
    #[error("{0}")]
    Protocol(#[from] NotAReply),
    #[error("a reply to nothing")]
    Unasked,
}

impl Broken {
    /// True if the other side reset the connection, or refused it. Closing the sending side of a
    /// connection that was reset says "not connected".
    pub(crate) fn is_reset(&self) -> bool {
        use ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotConnected};
        matches!(self, Self::Io(e) if matches!(e.kind(), ConnectionReset | ConnectionRefused | BrokenPipe | NotConnected))
    }
}

/// A connection of one kind, and the writes it remembers.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) kind: Kind,
    pub(crate) model: Model,
    pub(crate) stream: TcpStream,
    pub(crate) connecting: bool,
    /// Sent or about to be, not answered; with the time of sending.
    waiting: VecDeque<(Expected, Instant)>,
    /// When its next command is due, if the rate is limited.
    pub(crate) next: Instant,
    /// Sends no more on this socket.
    closing: bool,
    out: Vec<u8>,
    input: Vec<u8>,
}

/// What reading brought.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// How long each reply took.
    pub(crate) took: Vec<Duration>,
    /// The half-closed connection is complete: all replies, then end of file.
    pub(crate) complete: bool,
}

impl Connection {
    /// Begins to connect.
    ///
    /// # Errors
    /// If there are no more sockets, or the address cannot be reached at all.
    pub(crate) fn open(server: SocketAddrV4, kind: Kind, model: Model) -> std::io::Result<Self> {
        Ok(Self {
            kind,
            model,
            stream: dial(server, kind)?,
            connecting: true,
            next: Instant::now(),
            waiting: VecDeque::new(),
            closing: false,
            out: Vec::new(),
            input: Vec::new(),
        })
    }

    /// Begins to connect again, after a complete half-closed connection.
    ///
    /// # Errors
    /// As for [`Connection::open`].
    pub(crate) fn reopen(&mut self, server: SocketAddrV4) -> std::io::Result<()> {
        self.stream = dial(server, self.kind)?;
        self.connecting = true;
        self.closing = false;
        self.input.clear();
        Ok(())
    }

    /// The socket is writable for the first time: connected, or not.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn connected(&mut self) -> Result<(), Broken> {
        if let Some(e) = self.stream.take_error()? {
            return Err(e.into());
        }
        self.connecting = false;
        Ok(())
    }

    /// True if it waits for the server: for a reply, for end of file, or to be accepted.
    pub(crate) fn unfinished(&self) -> bool {
        self.connecting || self.closing || !self.waiting.is_empty()
    }

    /// True if bytes wait for the socket.
    pub(crate) const fn wants_to_write(&self) -> bool {
        self.connecting || !self.out.is_empty()
    }

    /// True if it reads when there is something; slow readers read when their time has come.
    pub(crate) const fn wants_to_read(&self) -> bool {
        !matches!(self.kind, Kind::Slow { .. })
    }

    /// How long it waits between reads.
    pub(crate) const fn pause(&self) -> Duration {
        SLOW_PAUSE
    }

    /// Puts commands on their way as its kind demands; `mix` decides which.
    ///
    /// # Errors
    /// If the connection is broken.
    pub(crate) fn issue(
        &mut self,
        mix: Mix,
        set: &Rc<DataSet>,
        now: Instant,
    ) -> Result<(), Broken> {
        match self.kind {
            Kind::Loop { depth } => {
                while self.waiting.len() < depth {
                    let expected = self.model.next(mix, &mut self.out);
                    self.waiting.push_back((expected, now));
                }
            }
            Kind::Slow { reader } if self.waiting.is_empty() => {
                self.waiting
                    .push_back((read_big(set, reader, &mut self.out), now));
            }
            Kind::HalfClosing if !self.closing => {
                for _ in 0..=self.model.choose(HALF_BATCH) {
                    let expected = self.model.next(mix, &mut self.out);
                    self.waiting.push_back((expected, now));
                }
                self.closing = true;
            }
            _ => return Ok(()),
        }
        self.flush()
    }

    /// Says PING.
    ///
    /// # Errors
    /// If the connection is broken.
    pub(crate) fn ping(&mut self, now: Instant) -> Result<(), Broken> {
        resp::command(&mut self.out, &[b"PING"]);
        self.waiting.push_back((Expected::Pong, now));
        self.flush()
    }

    /// Writes what the socket takes.
    ///
    /// # Errors
    /// If the connection is broken.
    pub(crate) fn flush(&mut self) -> Result<(), Broken> {
        let mut done = 0;
        while done < self.out.len() {
            match self.stream.write(&self.out[done..]) {
                Ok(n) => done += n,
                Err(e) if e.kind() == ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        self.out.drain(..done);
        if self.closing && self.out.is_empty() && done > 0 {
            self.stream.shutdown(Shutdown::Write)?;
        }
        Ok(())
    }

    /// Reads what is there (a slow reader: some of it) and judges the replies.
    ///
    /// # Errors
    /// If the connection is broken.
    pub(crate) fn read(&mut self, now: Instant, faults: &mut Faults) -> Result<Progress, Broken> {
        let chunk = if self.wants_to_read() {
            CHUNK
        } else {
            SLOW_CHUNK
        };
        let held = self.input.len();
        self.input.resize(held + chunk, 0);
        let got = self.stream.read(&mut self.input[held..]);
        self.input.truncate(held + *got.as_ref().unwrap_or(&0));
        let mut progress = Progress::default();
        match got {
            Ok(0) if self.closing && self.waiting.is_empty() && self.input.is_empty() => {
                progress.complete = true
            }
            Ok(0) => return Err(Broken::EndOfFile(self.waiting.len())),
            Ok(_) => self.judge(now, &mut progress, faults)?,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(e) => return Err(e.into()),
        }
        Ok(progress)
    }

    fn judge(
        &mut self,
        now: Instant,
        progress: &mut Progress,
        faults: &mut Faults,
    ) -> Result<(), Broken> {
        let mut at = 0;
        while let Some((reply, used)) = resp::parse(&self.input[at..])? {
            let (expected, sent) = self.waiting.pop_front().ok_or(Broken::Unasked)?;
            self.model.check(expected, &reply, faults);
            progress.took.push(now.saturating_duration_since(sent));
            at += used;
        }
        self.input.drain(..at);
        Ok(())
    }
}

/// A socket that is connecting, without waiting for it.
fn dial(server: SocketAddrV4, kind: Kind) -> std::io::Result<TcpStream> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
    setsockopt(&fd, sockopt::TcpNoDelay, &true)?;
    if matches!(kind, Kind::Slow { .. }) {
        // Before connecting: it decides the window that is offered.
        setsockopt(&fd, sockopt::RcvBuf, &SLOW_BUFFER)?;
    }
    let address = SockaddrIn::from(server);
    match connect(std::os::fd::AsRawFd::as_raw_fd(&fd), &address) {
        Ok(()) | Err(nix::errno::Errno::EINPROGRESS) => Ok(TcpStream::from(fd)),
        Err(e) => Err(e.into()),
    }
}

/// The IPv4 form of an address.
///
/// # Errors
/// If it has none.
pub(crate) fn ipv4(server: SocketAddr) -> std::io::Result<SocketAddrV4> {
    match server {
        SocketAddr::V4(v4) => Ok(v4),
        SocketAddr::V6(v6) => Err(std::io::Error::new(
            ErrorKind::Unsupported,
            format!("{v6} is no IPv4 address"),
        )),
    }
}
