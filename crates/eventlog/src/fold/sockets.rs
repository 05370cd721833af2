//! Sockets: addresses, options, connections.

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};

use serde::{Deserialize, Serialize};

use super::calls::Call;
use super::channel::Channel;
use super::descriptors::{INTERNET, STREAM};
use super::files::{O_CLOEXEC, O_NONBLOCK};
use super::message::{int, word};
use super::{ChannelId, Fold, FoldError, Kind, Socket, State, StreamId, nr};

/// AF_UNIX.
const UNIX: u32 = 1;
/// AF_INET.
const INET: u32 = 2;
/// AF_INET6.
const INET6: u32 = 10;
/// Bytes of an IPv4 and an IPv6 address, as the kernel has them.
const INET_LEN: usize = 16;
const INET6_LEN: usize = 28;
/// Options that a socket remembers.
const MAX_OPTIONS: usize = 256;
/// Connections that wait on one UNIX listener.
const MAX_WAITING: usize = 1 << 14;
/// Longest option value that is kept.
const MAX_OPTION_LEN: usize = 2048;
/// Peers whose connections are counted.
const MAX_PEERS: usize = 1 << 18;

/// Connections of a UNIX listener of which one side has not been folded: what the accepting side receives
/// on and sends on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Meeting {
    /// connect was seen, accept was not: the kernel's backlog.
    pub(super) connected: VecDeque<(ChannelId, ChannelId)>,
    /// accept was seen first.
    pub(super) accepted: VecDeque<(ChannelId, ChannelId)>,
}

/// An address without the room behind it; `None` for one of another family.
fn whole(address: &[u8]) -> Option<Vec<u8>> {
    let len = match word(address, 0, 2) as u32 {
        INET => INET_LEN,
        INET6 => INET6_LEN,
        _ => return None,
    };
    address.get(..len).map(<[u8]>::to_vec)
}

/// Between whom a connection over IPv4 is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ends {
    /// The peer's address and port.
    pub peer: SocketAddrV4,
    /// The own port.
    pub port: u16,
}

/// An IPv4 address, also in IPv6's clothes.
fn v4(address: &[u8]) -> Option<SocketAddrV4> {
    let port = u16::from_be_bytes(*address.get(2..)?.first_chunk()?);
    let ip = match word(address, 0, 2) as u32 {
        INET => Ipv4Addr::from(*address.get(4..)?.first_chunk::<4>()?),
        INET6 => Ipv6Addr::from(*address.get(8..)?.first_chunk::<16>()?).to_ipv4_mapped()?,
        _ => return None,
    };
    Some(SocketAddrV4::new(ip, port))
}

impl Socket {
    /// Between whom it is, if it is a connection over IPv4 and that is known.
    #[must_use]
    pub fn ends(&self) -> Option<Ends> {
        let peer = v4(&self.peer)?;
        let port = match (v4(&self.local), self.state) {
            (Some(local), _) => local.port(),
            (None, State::Accepted { port, .. }) => port,
            _ => return None,
        };
        Some(Ends { peer, port })
    }

    const fn new(domain: u32, kind: u32, protocol: u32) -> Self {
        Self {
            domain,
            kind,
            protocol,
            state: State::New,
            local: Vec::new(),
            peer: Vec::new(),
            options: BTreeMap::new(),
            read: 0,
            written: 0,
            end_read: false,
            shut_read: false,
            shut_write: false,
            broken: false,
            channels: None,
        }
    }
}

impl Fold {
    pub(super) fn socket(&mut self, call: &Call<'_>) -> Result<(), FoldError> {
        let args = call.args()?;
        let kind = args[1] as u32;
        let new = Socket::new(args[0] as u32, kind & 0xf, args[2] as u32);
        let (flags, cloexec) = (2 | kind & O_NONBLOCK, kind & O_CLOEXEC != 0);
        if call.nr == nr::SOCKET {
            return self.open(call.at(call.result), Kind::Socket(new), flags, cloexec);
        }
        let (one, other) = self.channel_pair(new.kind);
        for (i, channels) in [(one, other), (other, one)].into_iter().enumerate() {
            let end = Socket {
                state: State::Connected,
                channels: Some(channels),
                ..new.clone()
            };
            let fd = i64::from(int(word(call.filled(3), 4 * i, 4)));
            self.open(call.at(fd), Kind::Socket(end), flags, cloexec)?;
        }
        Ok(())
    }

    fn channel_pair(&mut self, kind: u32) -> (ChannelId, ChannelId) {
        let new = Channel {
            ends: 2,
            messages: kind != STREAM,
            ..Channel::default()
        };
        let (one, other) = (self.fresh_id(), self.fresh_id());
        self.channels.insert(one, new.clone());
        self.channels.insert(other, new);
        (one, other)
    }

    /// bind, listen, shutdown, setsockopt, getsockname, getpeername.
    pub(super) fn configured(&mut self, call: &Call<'_>) -> Result<(), FoldError> {
        let args = call.parsed.args;
        let Some(socket) = self.named(call).and_then(|id| self.socket_mut(id)) else {
            return Ok(());
        };
        match call.nr {
            nr::BIND => {
                socket.local = call.input(1).unwrap_or_default().to_vec();
                socket.state = State::Bound;
            }
            nr::GETSOCKNAME => socket.local = call.filled(1).to_vec(),
            nr::GETPEERNAME => socket.peer = call.filled(1).to_vec(),
            _ => {
                let args = match args {
                    Some(args) => args,
                    None => call.args()?,
                };
                match call.nr {
                    nr::LISTEN => {
                        let accepted = if let State::Listening { accepted, .. } = socket.state {
                            accepted
                        } else {
                            0
                        };
                        socket.state = State::Listening {
                            backlog: int(args[1]),
                            accepted,
                        };
                    }
                    nr::SHUTDOWN => {
                        socket.shut_read |= int(args[1]) != 1;
                        socket.shut_write |= int(args[1]) != 0;
                    }
                    _ => {
                        let value = call.input(3).unwrap_or_default();
                        let value = value[..value.len().min(MAX_OPTION_LEN)].to_vec();
                        socket.options.insert((int(args[1]), int(args[2])), value);
                        if socket.options.len() > MAX_OPTIONS {
                            return Err(FoldError::TooMany {
                                what: "options of a socket",
                                most: MAX_OPTIONS as u64,
                            });
                        }
                    }
                }
            }
        }
        Ok(())
    }

    pub(super) fn connected(&mut self, call: &Call<'_>, done: bool) -> Result<(), FoldError> {
        let announced = self.announced(call.stream);
        let peer = call.input(1).unwrap_or_default();
        let Some(id) = self.named(call) else {
            return Ok(());
        };
        let Some(socket) = self.socket_mut(id) else {
            return Ok(());
        };
        if word(peer, 0, 2) == 0 {
            // AF_UNSPEC dissolves an association.
            socket.peer.clear();
            socket.state = if socket.local.is_empty() {
                State::New
            } else {
                State::Bound
            };
            return Ok(());
        }
        socket.peer = peer.to_vec();
        if let Some([own, _]) = announced {
            socket.local = own;
        }
        socket.state = if done {
            State::Connected
        } else {
            State::Connecting
        };
        let kind = socket.kind;
        if socket.domain == UNIX && done && socket.channels.is_none() && kind != 2 {
            let (receives, sends) = self.meet(address(peer), kind, true)?;
            if let Some(socket) = self.socket_mut(id) {
                socket.channels = Some((sends, receives));
            }
        }
        Ok(())
    }

    /// A connection is about to be made; whoever accepts it need not ask between whom it is.
    pub(super) fn announce(&mut self, stream: StreamId, addresses: &[u8]) {
        if let Some(stream) = self.streams.get_mut(&stream)
            && addresses.len() == 2 * INET6_LEN
        {
            stream.connection = addresses.to_vec();
        }
    }

    /// Own and peer's address, where the stream was told of them.
    fn announced(&mut self, stream: StreamId) -> Option<[Vec<u8>; 2]> {
        let addresses = std::mem::take(&mut self.streams.get_mut(&stream)?.connection);
        let (own, peer) = addresses.split_at_checked(INET6_LEN)?;
        Some([whole(own)?, whole(peer)?])
    }

    pub(super) fn accepted(&mut self, call: &Call<'_>) -> Result<(), FoldError> {
        let flags = if call.nr == nr::ACCEPT4 {
            call.args()?[3] as u32
        } else {
            0
        };
        let announced = self.announced(call.stream);
        let Some(listener) = self.named(call) else {
            return Ok(());
        };
        let Some(socket) = self.socket_mut(listener) else {
            return Ok(());
        };
        if let State::Listening { accepted, .. } = &mut socket.state {
            super::bump(accepted, 1);
        }
        let mut new = Socket::new(socket.domain, socket.kind, socket.protocol);
        new.local.clone_from(&socket.local);
        new.options.clone_from(&socket.options);
        let peer = announced.map(|[_, peer]| peer);
        new.peer = peer.unwrap_or_else(|| call.filled(1).to_vec());
        let port = port(&new.local);
        let mut ordinal = 0;
        if INTERNET.contains(&new.domain) {
            ordinal = self.count_peer(port, address(&new.peer));
        } else if new.domain == UNIX {
            new.channels = Some(self.meet(address(&new.local), new.kind, false)?);
        }
        new.state = State::Accepted {
            listener,
            port,
            ordinal,
        };
        self.open(
            call.at(call.result),
            Kind::Socket(new),
            2 | flags & O_NONBLOCK,
            flags & O_CLOEXEC != 0,
        )
    }

    /// How often this port has accepted this peer, now included.
    fn count_peer(&mut self, port: u16, peer: Vec<u8>) -> u64 {
        if self.accepts.len() >= MAX_PEERS {
            let kinds =
                self.descriptions
                    .values()
                    .filter_map(|description| match &description.kind {
                        Kind::Socket(socket) => Some(socket),
                        _ => None,
                    });
            let used: std::collections::BTreeSet<Vec<u8>> = kinds
                .chain(self.orphans.iter().map(|orphan| &orphan.socket))
                .map(|s| address(&s.peer))
                .collect();
            self.accepts.retain(|(_, peer), _| used.contains(peer));
        }
        let count = self.accepts.entry((port, peer)).or_default();
        super::bump(count, 1);
        *count
    }

    /// The next connection of a UNIX listener, from one side; answers with the accepting side's channels.
    fn meet(
        &mut self,
        listener: Vec<u8>,
        kind: u32,
        connects: bool,
    ) -> Result<(ChannelId, ChannelId), FoldError> {
        let meeting = self.meetings.entry(listener.clone()).or_default();
        let (mine, theirs) = if connects {
            (&mut meeting.connected, &mut meeting.accepted)
        } else {
            (&mut meeting.accepted, &mut meeting.connected)
        };
        if let Some(channels) = theirs.pop_front() {
            return Ok(channels);
        }
        if mine.len() >= MAX_WAITING {
            return Err(FoldError::TooMany {
                what: "waiting connections",
                most: MAX_WAITING as u64,
            });
        }
        let channels = self.channel_pair(kind);
        let meeting = self.meetings.entry(listener).or_default();
        if connects {
            meeting.connected.push_back(channels)
        } else {
            meeting.accepted.push_back(channels)
        }
        Ok(channels)
    }
}

/// The port in a socket address, 0 if it has none.
pub(super) fn port(address: &[u8]) -> u16 {
    if INTERNET.contains(&(word(address, 0, 2) as u32)) {
        (word(address, 2, 2) as u16).swap_bytes()
    } else {
        0
    }
}

/// The part of a socket address that tells peers apart.
pub(super) fn address(bytes: &[u8]) -> Vec<u8> {
    let len = match word(bytes, 0, 2) as u32 {
        INET => 8,
        UNIX if bytes.get(2).is_some_and(|byte| *byte != 0) => {
            2 + bytes[2..]
                .iter()
                .position(|byte| *byte == 0)
                .unwrap_or(bytes.len() - 2)
        }
        family if INTERNET.contains(&family) => 24,
        _ => bytes.len(),
    };
    bytes[..bytes.len().min(len)].to_vec()
}
