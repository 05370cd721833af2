//! One connection: frames out through a [`Sender`], frames in through a [`Receiver`], each on any thread.
//!
//! With TLS, both halves share rustls's state under a lock that is held for encryption and decryption
//! alone and never across a system call, so that a sender waiting for room cannot keep acknowledgements
//! from being read.

use core::time::Duration;
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use eventlog::codec;
use eventlog::frame::{Decoder, Frame, FrameError, Header, Span};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::{MsgFlags, recv};
use nix::sys::time::TimeSpec;
use serde::Serialize;

use crate::error::StreamError;
use crate::keys::is_wrong_key;

/// Bytes read from an encrypted socket at once.
const WIRE_LEN: usize = 64 << 10;

struct Shared {
    socket: TcpStream,
    peer: SocketAddr,
    session: Option<Mutex<rustls::Connection>>,
}

impl core::fmt::Debug for Shared {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Connection")
            .field("peer", &self.peer)
            .field("encrypted", &self.session.is_some())
            .finish()
    }
}

impl Shared {
    fn io(&self, doing: &'static str, source: io::Error) -> StreamError {
        use io::ErrorKind as K;
        match source.kind() {
            K::UnexpectedEof
            | K::ConnectionReset
            | K::BrokenPipe
            | K::ConnectionAborted
            | K::NotConnected => StreamError::Closed { peer: self.peer },
            _ => StreamError::Io {
                doing,
                peer: self.peer,
                source,
            },
        }
    }
}

/// The sending half. Clones send on the same connection; a call's bytes are never mixed with another's.
#[derive(Clone, Debug)]
pub struct Sender {
    shared: Arc<Shared>,
    /// Held from encryption until the last byte is with the kernel: records must leave in their order.
    order: Arc<Mutex<Vec<u8>>>,
}

/// The receiving half.
#[derive(Debug)]
pub struct Receiver {
    shared: Arc<Shared>,
    decoder: Decoder,
    wire: Vec<u8>,
    wire_at: usize,
    wire_end: usize,
}

/// Wraps a connected socket, and a TLS session whose handshake is done.
pub(crate) fn split(
    socket: TcpStream,
    peer: SocketAddr,
    session: Option<rustls::Connection>,
) -> (Sender, Receiver) {
    let encrypted = session.is_some();
    let shared = Arc::new(Shared {
        socket,
        peer,
        session: session.map(Mutex::new),
    });
    let sender = Sender {
        shared: Arc::clone(&shared),
        order: Arc::default(),
    };
    let wire = vec![0; if encrypted { WIRE_LEN } else { 0 }];
    (
        sender,
        Receiver {
            shared,
            decoder: Decoder::new(),
            wire,
            wire_at: 0,
            wire_end: 0,
        },
    )
}

/// A poisoned lock means that a thread panicked between two complete updates; the state is whole.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sender {
    /// The other end's address.
    #[must_use]
    pub fn peer(&self) -> SocketAddr {
        self.shared.peer
    }

    /// Sends bytes that are whole frames. Blocks while the peer takes nothing.
    ///
    /// # Errors
    /// [`StreamError::Closed`] or [`StreamError::Io`]; the connection is of no more use then.
    pub fn send_bytes(&self, bytes: &[u8]) -> Result<(), StreamError> {
        let mut cipher = locked(&self.order);
        let doing = "sending to";
        let Some(session) = &self.shared.session else {
            return (&self.shared.socket)
                .write_all(bytes)
                .map_err(|e| self.shared.io(doing, e));
        };
        let mut rest = bytes;
        while !rest.is_empty() {
            cipher.clear();
            let mut tls = locked(session);
            // rustls bounds what it buffers, so a large run goes in pieces.
            let n = tls
                .writer()
                .write(rest)
                .map_err(|e| self.shared.io(doing, e))?;
            rest = &rest[n..];
            while tls.wants_write() {
                tls.write_tls(&mut *cipher)
                    .map_err(|e| self.shared.io(doing, e))?;
            }
            drop(tls);
            (&self.shared.socket)
                .write_all(&cipher)
                .map_err(|e| self.shared.io(doing, e))?;
        }
        Ok(())
    }

    /// Sends one frame.
    ///
    /// # Errors
    /// As [`Sender::send_bytes`], and [`StreamError::Frame`] if the body is too long.
    pub fn send(&self, header: &Header, body: &[u8]) -> Result<(), StreamError> {
        let mut bytes = Vec::with_capacity(eventlog::frame::HEADER_LEN + body.len());
        header
            .encode(&[body], &mut bytes)
            .map_err(|source| StreamError::Frame {
                peer: self.shared.peer,
                source,
            })?;
        self.send_bytes(&bytes)
    }

    /// Sends one frame whose body is `message`.
    ///
    /// # Errors
    /// As [`Sender::send`], and [`StreamError::Message`] if the message is too long.
    pub fn message<T: Serialize>(&self, header: &Header, message: &T) -> Result<(), StreamError> {
        let body = codec::encode(message).map_err(|source| StreamError::Message {
            peer: self.shared.peer,
            source,
        })?;
        self.send(header, &body)
    }

    /// Ends the connection in both directions at once; every thread that waits on it returns
    /// [`StreamError::Closed`].
    pub fn shutdown(&self) {
        // It fails only on a socket that is closed already.
        let _ = self.shared.socket.shutdown(Shutdown::Both);
    }
}

/// A frame that was received; [`Receiver::body`] gives its body until the next receive.
pub type Received = Span;

impl Receiver {
    /// The other end's address.
    #[must_use]
    pub fn peer(&self) -> SocketAddr {
        self.shared.peer
    }

    /// The next frame. Waits without limit with `None`; otherwise answers `Ok(None)` when so much time has
    /// passed without a whole frame (at once with a zero duration).
    ///
    /// # Errors
    /// [`StreamError::Closed`] when the peer has ended the connection; [`StreamError::Frame`],
    /// [`StreamError::Version`] and the like for what it sent. All are final.
    pub fn recv(&mut self, within: Option<Duration>) -> Result<Option<Frame<'_>>, StreamError> {
        let Some(span) = self.recv_span(within)? else {
            return Ok(None);
        };
        Ok(Some(Frame {
            header: span.header,
            body: self.decoder.body(&span),
        }))
    }

    /// As [`Receiver::recv`], without borrowing the receiver: [`Receiver::body`] gives the body.
    ///
    /// # Errors
    /// As [`Receiver::recv`].
    pub fn recv_span(&mut self, within: Option<Duration>) -> Result<Option<Received>, StreamError> {
        let mut deadline = None;
        loop {
            let at_start = self.decoder.offset() == 0;
            match self.decoder.next_span() {
                Ok(Some(span)) => return Ok(Some(span)),
                Ok(None) => {}
                Err(source) => return Err(self.bad_frame(source, at_start)),
            }
            let wait = match within {
                None => None,
                Some(Duration::ZERO) => Some(Duration::ZERO),
                Some(d) => {
                    let until = *deadline.get_or_insert_with(|| Instant::now() + d);
                    Some(until.saturating_duration_since(Instant::now()))
                }
            };
            if !self.fill(wait)? && wait.is_some_and(|w| w.is_zero()) {
                return Ok(None);
            }
        }
    }

    /// The next frame of those that have been read from the socket already; makes no system call.
    ///
    /// # Errors
    /// As [`Receiver::recv`].
    pub(crate) fn buffered_span(&mut self) -> Result<Option<Received>, StreamError> {
        self.decoder
            .next_span()
            .map_err(|e| self.bad_frame(e, false))
    }

    /// The body of the frame received last.
    #[must_use]
    pub fn body(&self, received: &Received) -> &[u8] {
        self.decoder.body(received)
    }

    fn bad_frame(&self, source: FrameError, at_start: bool) -> StreamError {
        let peer = self.shared.peer;
        match source {
            FrameError::Version { theirs, ours, .. } => StreamError::Version { peer, theirs, ours },
            // The first byte of a TLS handshake or alert record, followed by its major version.
            FrameError::BadMagic { found, .. }
                if at_start
                    && self.shared.session.is_none()
                    && matches!(found & 0xffff, 0x0316 | 0x0315) =>
            {
                StreamError::PeerIsEncrypted { peer }
            }
            FrameError::BadMagic { found, .. } if at_start => StreamError::Foreign { peer, found },
            _ => StreamError::Frame { peer, source },
        }
    }

    /// Puts more input into the decoder; false if none came in time.
    fn fill(&mut self, wait: Option<Duration>) -> Result<bool, StreamError> {
        let shared = &self.shared;
        let Some(session) = &shared.session else {
            let Some(n) = receive(shared, self.decoder.room(), wait)? else {
                return Ok(false);
            };
            self.decoder.filled(n);
            return Ok(true);
        };
        loop {
            {
                let mut tls = locked(session);
                match tls.reader().read(self.decoder.room()) {
                    Ok(0) => return Err(StreamError::Closed { peer: shared.peer }),
                    Ok(n) => {
                        self.decoder.filled(n);
                        return Ok(true);
                    }
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    Err(e) => return Err(shared.io("receiving from", e)),
                }
                if self.wire_at < self.wire_end {
                    let mut piece = &self.wire[self.wire_at..self.wire_end];
                    let n = tls
                        .read_tls(&mut piece)
                        .map_err(|e| shared.io("receiving from", e))?;
                    self.wire_at += n;
                    tls.process_new_packets()
                        .map_err(|e| tls_error(shared.peer, e))?;
                    continue;
                }
            }
            let Some(n) = receive(shared, &mut self.wire, wait)? else {
                return Ok(false);
            };
            (self.wire_at, self.wire_end) = (0, n);
        }
    }
}

impl AsFd for Receiver {
    /// The socket, for poll: readable does not mean that a whole frame is there, and a frame may be there
    /// already without it; receive with a zero duration until `None` before waiting.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.socket.as_fd()
    }
}

/// Reads what is there, waiting as long as told; `None` if nothing came.
fn receive(
    shared: &Shared,
    buf: &mut [u8],
    wait: Option<Duration>,
) -> Result<Option<usize>, StreamError> {
    let failed = |e: Errno| shared.io("receiving from", e.into());
    if let Some(wait) = wait.filter(|w| !w.is_zero()) {
        let mut fds = [PollFd::new(shared.socket.as_fd(), PollFlags::POLLIN)];
        match ppoll(&mut fds, Some(TimeSpec::from_duration(wait)), None) {
            Ok(0) | Err(Errno::EINTR) => return Ok(None),
            Ok(_) => {}
            Err(e) => return Err(failed(e)),
        }
    }
    let flags = if wait.is_some() {
        MsgFlags::MSG_DONTWAIT
    } else {
        MsgFlags::empty()
    };
    loop {
        match recv(shared.socket.as_raw_fd(), buf, flags) {
            Ok(0) => return Err(StreamError::Closed { peer: shared.peer }),
            Ok(n) => return Ok(Some(n)),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Ok(None),
            Err(e) => return Err(failed(e)),
        }
    }
}

/// Says in the operator's terms what rustls says in its own.
pub(crate) fn tls_error(peer: SocketAddr, source: rustls::Error) -> StreamError {
    if is_wrong_key(&source) {
        return StreamError::WrongKey { peer };
    }
    match source {
        rustls::Error::InvalidMessage(_) => StreamError::PeerIsPlain { peer },
        source => StreamError::Tls { peer, source },
    }
}
