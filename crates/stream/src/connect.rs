//! Making a connection: TCP, TLS if asked for, hello and answer.

use core::time::Duration;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Instant;

use eventlog::codec;
use eventlog::frame::{Frame, Header, Kind};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::TcpUserTimeout;
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, ServerConnection};

use crate::error::StreamError;
use crate::hello::{Answer, Hello, Refusal, Welcome};
use crate::keys::Security;
use crate::transport::{Receiver, Sender, split, tls_error};

/// A backup that takes nothing for so long is gone: the primary's connections to it end. It may have lost its power, and
/// nobody is there to say so.
const GIVEN_UP: Duration = Duration::from_secs(30);

/// A connection that both sides agreed on.
#[derive(Debug)]
pub struct Connection {
    /// Frames out.
    pub sender: Sender,
    /// Frames in.
    pub receiver: Receiver,
    /// What the backup answered.
    pub welcome: Welcome,
}

/// Connects to a backup and introduces this primary; every step together takes at most `within`.
///
/// # Errors
/// One sentence for each of: nobody there, wrong key, other version, one side encrypted and the other not,
/// and every [`Refusal`].
pub fn connect(
    addr: SocketAddr,
    security: &Security,
    hello: &Hello,
    within: Duration,
) -> Result<Connection, StreamError> {
    let deadline = Instant::now() + within;
    let socket = TcpStream::connect_timeout(&addr, within)
        .map_err(|source| StreamError::Unreachable { addr, source })?;
    setsockopt(&socket, TcpUserTimeout, &(GIVEN_UP.as_millis() as u32)).map_err(|errno| {
        StreamError::Io {
            doing: "connecting to",
            peer: addr,
            source: errno.into(),
        }
    })?;
    let tls = match security {
        Security::Insecure => None,
        Security::Tls(tls) => {
            let name = ServerName::try_from("understudy").map_err(|e| StreamError::Io {
                doing: "naming",
                peer: addr,
                source: io::Error::other(e),
            })?;
            let client = ClientConnection::new(tls.client.clone(), name)
                .map_err(|source| StreamError::Tls { peer: addr, source })?;
            Some(rustls::Connection::Client(client))
        }
    };
    let (sender, mut receiver) = establish(socket, addr, tls, deadline, within)?;
    sender.message(&header(hello.generation), hello)?;
    let doing = "waiting for the answer to hello";
    let frame = next(&mut receiver, Kind::Hello, deadline, within, doing)?;
    let answer: Answer =
        codec::decode(frame.body).map_err(|source| StreamError::Message { peer: addr, source })?;
    let welcome = answer.map_err(|refusal| StreamError::Refused {
        peer: addr,
        refusal,
    })?;
    Ok(Connection {
        sender,
        receiver,
        welcome,
    })
}

/// A primary that has introduced itself and waits for an answer.
#[derive(Debug)]
pub struct Pending {
    /// What it said, checked by [`Hello::check`].
    pub hello: Hello,
    sender: Sender,
    receiver: Receiver,
}

/// Listens for primaries.
///
/// # Errors
/// [`StreamError::Listen`], with an address taken already among the reasons.
pub fn listen(addr: SocketAddr) -> Result<TcpListener, StreamError> {
    TcpListener::bind(addr).map_err(|source| StreamError::Listen { addr, source })
}

/// Takes an accepted socket through TLS and the primary's hello, within so much time.
///
/// # Errors
/// As [`connect`]; a primary of another version or with a bad hello gets an answer before the error.
/// [`StreamError::Silent`] for a peer that has only looked whether somebody listens.
pub fn accept(
    socket: TcpStream,
    peer: SocketAddr,
    security: &Security,
    within: Duration,
) -> Result<Pending, StreamError> {
    let deadline = Instant::now() + within;
    said_something(&socket, peer, within)?;
    let tls = match security {
        Security::Insecure => None,
        Security::Tls(tls) => {
            let server = ServerConnection::new(tls.server.clone())
                .map_err(|source| StreamError::Tls { peer, source })?;
            Some(rustls::Connection::Server(server))
        }
    };
    let (sender, mut receiver) = establish(socket, peer, tls, deadline, within)?;
    let hello = match next(
        &mut receiver,
        Kind::Hello,
        deadline,
        within,
        "waiting for hello",
    ) {
        Ok(frame) => codec::decode::<Hello>(frame.body)
            .map_err(|source| StreamError::Message { peer, source })?,
        Err(e) => {
            if let StreamError::Version { ours, .. } = e {
                // The peer reads no more than the version in the frame's header, and says so to its operator.
                let reason = format!("it speaks protocol version {ours}");
                sender.message(&header(0), &Answer::Err(Refusal::State { reason }))?;
            }
            return Err(e);
        }
    };
    if let Err(refusal) = hello.check() {
        sender.message(&header(0), &Answer::Err(refusal.clone()))?;
        return Err(StreamError::Refused { peer, refusal });
    }
    Ok(Pending {
        hello,
        sender,
        receiver,
    })
}

/// Waits for a peer's first byte, and leaves it where it is.
fn said_something(
    socket: &TcpStream,
    peer: SocketAddr,
    within: Duration,
) -> Result<(), StreamError> {
    let doing = "waiting for hello";
    let waited = socket
        .set_read_timeout(Some(within))
        .and_then(|()| socket.peek(&mut [0]))
        .and_then(|n| socket.set_read_timeout(None).map(|()| n));
    match waited {
        Ok(0) => Err(StreamError::Silent { peer }),
        Ok(_) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::ConnectionReset => Err(StreamError::Silent { peer }),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Err(StreamError::Timeout {
            doing,
            peer,
            after: within,
        }),
        Err(source) => Err(StreamError::Io {
            doing: "receiving from",
            peer,
            source,
        }),
    }
}

impl Pending {
    /// The primary's address.
    #[must_use]
    pub fn peer(&self) -> SocketAddr {
        self.sender.peer()
    }

    /// The sending half, to end the connection from elsewhere.
    #[must_use]
    pub fn sender(&self) -> &Sender {
        &self.sender
    }

    /// Takes the primary.
    ///
    /// # Errors
    /// As sending.
    pub fn welcome(self, welcome: Welcome) -> Result<(Hello, Connection), StreamError> {
        self.sender
            .message(&header(welcome.generation), &Answer::Ok(welcome))?;
        Ok((
            self.hello,
            Connection {
                sender: self.sender,
                receiver: self.receiver,
                welcome,
            },
        ))
    }

    /// Refuses the primary.
    ///
    /// # Errors
    /// As sending.
    pub fn refuse(self, refusal: Refusal) -> Result<(), StreamError> {
        self.sender.message(&header(0), &Answer::Err(refusal))
    }
}

/// The header of a hello or of its answer.
const fn header(generation: u64) -> Header {
    Header::of(Kind::Hello, generation, 0)
}

/// Sets the socket's options and shakes hands.
fn establish(
    mut socket: TcpStream,
    peer: SocketAddr,
    mut tls: Option<rustls::Connection>,
    deadline: Instant,
    within: Duration,
) -> Result<(Sender, Receiver), StreamError> {
    let failed = |source| StreamError::Io {
        doing: "connecting to",
        peer,
        source,
    };
    socket.set_nodelay(true).map_err(failed)?;
    if let Some(tls) = &mut tls {
        while tls.is_handshaking() {
            let left = remaining(deadline, within, peer, "encrypting the connection")?;
            socket.set_read_timeout(Some(left)).map_err(failed)?;
            socket.set_write_timeout(Some(left)).map_err(failed)?;
            tls.complete_io(&mut socket)
                .map_err(|e| handshake_error(peer, within, e))?;
        }
        socket.set_read_timeout(None).map_err(failed)?;
        socket.set_write_timeout(None).map_err(failed)?;
    }
    Ok(split(socket, peer, tls))
}

fn handshake_error(peer: SocketAddr, within: Duration, e: io::Error) -> StreamError {
    if let Some(inner) = e.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()) {
        return tls_error(peer, inner.clone());
    }
    match e.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => StreamError::Timeout {
            doing: "encrypting the connection",
            peer,
            after: within,
        },
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => {
            StreamError::PeerIsPlain { peer }
        }
        _ => StreamError::Io {
            doing: "encrypting the connection to",
            peer,
            source: e,
        },
    }
}

fn remaining(
    deadline: Instant,
    within: Duration,
    peer: SocketAddr,
    doing: &'static str,
) -> Result<Duration, StreamError> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        Err(StreamError::Timeout {
            doing,
            peer,
            after: within,
        })
    } else {
        Ok(left)
    }
}

/// The next frame, which must be of this kind and come in time.
fn next<'a>(
    receiver: &'a mut Receiver,
    kind: Kind,
    deadline: Instant,
    within: Duration,
    doing: &'static str,
) -> Result<Frame<'a>, StreamError> {
    let peer = receiver.peer();
    let left = remaining(deadline, within, peer, doing)?;
    match receiver.recv(Some(left))? {
        None => Err(StreamError::Timeout {
            doing,
            peer,
            after: within,
        }),
        Some(frame) if frame.header.kind != kind => Err(StreamError::Unexpected {
            doing,
            peer,
            found: frame.header.kind,
        }),
        Some(frame) => Ok(frame),
    }
}
