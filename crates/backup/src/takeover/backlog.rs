//! Connections that nobody has accepted: rebuilt, and put where the application's next accept finds them.
//!
//! The kernel's own queue cannot be filled from outside, so a stand-in goes there: a connection of this host
//! to the listener. The guest puts the rebuilt socket in its place when it is accepted.

use std::io::Write;
use std::net::{SocketAddr, SocketAddrV4, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering::Release;
use std::time::Duration;

use eventlog::fold::{Fold, Kind, Pid, Socket, State};
use gate::Gate;
use gate::rebuild::{Prober, Rebuilder, plan};
use guest::abi::{MAX_BACKLOG, backlog};
use sys::arena::Arena;

use super::error::Result;
use super::handshakes::Opening;
use super::objects::{Name, name};
use super::peers::{Peer, fresh};
use super::place::Target;

/// Its peer may not know of the connection yet, and then says nothing.
const PATIENCE: Duration = Duration::from_millis(5);
/// The listener is on this host.
const CONNECT: Duration = Duration::from_millis(100);

/// One connection.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) peer: Peer,
    /// The answer to its request, which its peer may not have.
    answer: Vec<u8>,
}

/// A rebuilt one.
#[derive(Debug)]
pub(super) struct Rebuilt {
    pub(super) socket: OwnedFd,
    local: SocketAddrV4,
}

/// The gate learns of them.
pub(super) fn adopt(openings: Vec<Opening>, gate: &mut Gate) -> Result<Vec<Waiting>> {
    if openings.len() > MAX_BACKLOG {
        let lost = openings.len() - MAX_BACKLOG;
        tracing::warn!(
            lost,
            "more connections wait to be accepted than can be kept"
        );
    }
    let adopt = |opening: Opening| {
        Ok(Waiting {
            peer: Peer::adopt(gate, fresh(&opening.known), PATIENCE)?,
            answer: opening.answer,
        })
    };
    openings.into_iter().take(MAX_BACKLOG).map(adopt).collect()
}

/// Rebuilds those that their peers believe in, or may come to believe in. Called in the container's network.
pub(super) fn build(all: Vec<Waiting>, gate: &Gate, prober: &mut Prober) -> Vec<Rebuilt> {
    let mut built = Vec::new();
    for waiting in all {
        let tuple = waiting.peer.state.handshake.tuple;
        if waiting.peer.refused {
            continue;
        }
        match build_one(&waiting, gate, prober) {
            Ok(socket) => built.push(Rebuilt {
                socket,
                local: tuple.local,
            }),
            Err(reason) => tracing::warn!(%tuple, reason, "a new connection cannot go on"),
        }
    }
    built
}

fn build_one(
    waiting: &Waiting,
    gate: &Gate,
    prober: &mut Prober,
) -> std::result::Result<OwnedFd, String> {
    let Peer { state, entry, .. } = &waiting.peer;
    let plan = plan(state, waiting.peer.probed()).map_err(|e| e.to_string())?;
    gate.settle(*entry, &state.handshake, &plan);
    let rebuilt = Rebuilder.build(state, &plan, &[]);
    let socket = rebuilt
        .and_then(gate::rebuild::Rebuilt::go_live)
        .map_err(|e| e.to_string())?;
    let tuple = &state.handshake.tuple;
    prober.live(gate, tuple, *entry);
    if waiting.peer.answer.is_none() && !waiting.answer.is_empty() {
        prober
            .answer_again(tuple, &waiting.answer)
            .map_err(|e| e.to_string())?;
    }
    Ok(socket)
}

/// A connection that waits in the process.
#[derive(Debug)]
pub(super) struct Queued<'a> {
    /// Its descriptor there.
    pub(super) target: Target,
    /// The listener it came to, whose options it inherits.
    pub(super) listener: &'a Socket,
    port: u16,
    local: SocketAddrV4,
}

impl Queued<'_> {
    /// Whether a process may accept it. Each that may has a descriptor of it under the same number, and the one that
    /// accepts it closes its own.
    pub(super) fn is_for(&self, fold: &Fold, pid: Pid) -> bool {
        listener(fold, pid, self.local).is_some()
    }
}

/// Puts a stand-in into the listener's queue for each; `first` is the first object's index, `number` the
/// first descriptor that is free. Called in the container's network, when the listeners are there.
pub(super) fn queue<'a>(
    all: &[Rebuilt],
    fold: &'a Fold,
    pids: &[Pid],
    first: usize,
    number: i32,
) -> Vec<Queued<'a>> {
    let mut queued = Vec::new();
    for (rebuilt, (object, number)) in all.iter().zip((first..).zip(number..)) {
        let mut listeners = pids
            .iter()
            .filter_map(|pid| listener(fold, *pid, rebuilt.local));
        let Some(listener) = listeners.next() else {
            tracing::debug!(local = %rebuilt.local, "nobody listens for a new connection any more");
            continue;
        };
        match stand_in(rebuilt.local) {
            Ok(port) => queued.push(Queued {
                target: Target {
                    object,
                    number,
                    cloexec: true,
                },
                listener,
                port,
                local: rebuilt.local,
            }),
            Err(error) => tracing::warn!(%error, "a new connection cannot be queued"),
        }
    }
    queued
}

fn listener(fold: &Fold, pid: Pid, local: SocketAddrV4) -> Option<&Socket> {
    let table = fold.table(pid)?;
    let sockets = table.entries.values().filter_map(|entry| {
        match &fold.descriptions().get(&entry.description)?.kind {
            Kind::Socket(socket) if matches!(socket.state, State::Listening { .. }) => Some(socket),
            _ => None,
        }
    });
    let mut sockets = sockets.filter(|socket| {
        matches!(name(&socket.local), Some(Name::V4(ip, port))
            if port == local.port() && (ip.is_unspecified() || ip == *local.ip()))
    });
    sockets.next()
}

/// Its port. One byte goes with it: some listeners want to see data first.
fn stand_in(listener: SocketAddrV4) -> std::io::Result<u16> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::V4(listener), CONNECT)?;
    stream.write_all(&[0])?;
    Ok(stream.local_addr()?.port())
}

/// Tells the guest.
pub(super) fn announce(arena: &Arena, queued: &[Queued<'_>]) {
    let control = arena.control();
    for (entry, one) in control.backlog.iter().zip(queued) {
        let value = backlog::entry(one.port, one.target.number.cast_unsigned());
        entry.store(value, Release);
    }
    control.backlog_len.store(queued.len() as u32, Release);
}
