//! The container's connections: what is known of each, where its peer stands, its new socket.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering::Acquire;
use std::time::Duration;

use gate::Gate;
use gate::rebuild::{ConnectionState, Plan, Prober, Rebuilder, Rebuilt, plan};
use guest::abi::{Conn, MAX_CONNS, conn};
use sys::arena::Arena;

use super::dead;
use super::error::Result;
use super::handshakes::{Handshakes, Known};
use super::peers::{Peer, fresh};

/// How long peers are waited for; who answers later has its connection rebuilt from what is known.
const ANSWERS: Duration = Duration::from_millis(30);

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    /// Its entry in the arena.
    pub(super) index: usize,
    /// The application has closed it.
    pub(super) closed: bool,
    /// `None` if its handshake is not known.
    pub(super) peer: Option<Peer>,
}

/// A connection's socket.
#[derive(Debug)]
pub(super) struct Ready {
    pub(super) connection: Connection,
    pub(super) socket: OwnedFd,
    /// How it goes on; `None` for one that is broken.
    pub(super) plan: Option<Plan>,
}

/// All entries of the arena that are in use.
pub(super) fn entries(arena: &Arena) -> Vec<usize> {
    let used = |index: &usize| {
        let taken = arena.control().taken[index / 64].load(Acquire) >> (index % 64) & 1 != 0;
        taken
            && matches!(
                arena.conn(*index).state.load(Acquire),
                conn::OPEN | conn::CLOSED
            )
    };
    (0..MAX_CONNS).filter(used).collect()
}

/// What is known of all connections after replay; the gate learns of them.
pub(super) fn collect(
    arena: &Arena,
    handshakes: &mut Handshakes,
    gate: &mut Gate,
) -> Result<Vec<Connection>> {
    let mut all = Vec::new();
    for index in entries(arena) {
        let c = arena.conn(index);
        let closed = c.state.load(Acquire) == conn::CLOSED;
        let patience = if closed { Duration::ZERO } else { ANSWERS };
        let peer = match handshakes.of(index, c) {
            Some(known) => Some(Peer::adopt(gate, state_of(c, &known, closed), patience)?),
            None => None,
        };
        if peer.is_none() && closed {
            continue;
        }
        all.push(Connection {
            index,
            closed,
            peer,
        });
    }
    Ok(all)
}

fn state_of(c: &Conn, known: &Known, closed: bool) -> ConnectionState {
    let written = c.written.load(Acquire);
    ConnectionState {
        read: c.read.load(Acquire),
        peer_ended: c.read_end.load(Acquire) != 0,
        written,
        acknowledged: c.trimmed.load(Acquire).min(written),
        ended: closed || c.shut.load(Acquire) != 0,
        orphan: closed,
        ..fresh(known)
    }
}

/// Builds every socket, still in repair mode. Called in the container's network.
pub(super) fn build(
    all: Vec<Connection>,
    arena: &Arena,
    gate: &Gate,
) -> Result<Vec<(Connection, Option<Rebuilt>)>> {
    let mut built = Vec::new();
    for c in all {
        let rebuilt = match build_one(&c, arena, gate) {
            Ok(rebuilt) => rebuilt,
            Err(reason) if c.closed => {
                tracing::debug!(index = c.index, reason, "a closed connection is left");
                None
            }
            Err(reason) => {
                tracing::warn!(index = c.index, reason, "a connection cannot go on");
                None
            }
        };
        // Nobody will look at a closed one that has nothing left to say.
        if rebuilt.is_some() || !c.closed {
            built.push((c, rebuilt));
        }
    }
    Ok(built)
}

fn build_one(
    c: &Connection,
    arena: &Arena,
    gate: &Gate,
) -> std::result::Result<Option<Rebuilt>, String> {
    let Some(peer) = &c.peer else {
        return Err("its handshake is not known".to_owned());
    };
    if peer.refused {
        return Err("its peer does not know it any more".to_owned());
    }
    let Peer { state, entry, .. } = peer;
    let plan = plan(state, peer.probed()).map_err(|e| e.to_string())?;
    if plan.over {
        return Ok(None);
    }
    let mut tail = Vec::new();
    arena.read_output(c.index, plan.resend.start, plan.resend.end, &mut tail);
    gate.settle(*entry, &state.handshake, &plan);
    let rebuilt = Rebuilder.build(state, &plan, &tail);
    rebuilt.map(Some).map_err(|e| e.to_string())
}

/// Lets the sockets speak.
pub(super) fn go_live(
    built: Vec<(Connection, Option<Rebuilt>)>,
    arena: &Arena,
    gate: &Gate,
    prober: &mut Prober,
) -> Result<Vec<Ready>> {
    let mut all = Vec::new();
    for (connection, rebuilt) in built {
        let Some(rebuilt) = rebuilt else {
            let socket = dead::stand_in(Some(arena.conn(connection.index)))?;
            all.push(Ready {
                connection,
                socket,
                plan: None,
            });
            continue;
        };
        let plan = Some(rebuilt.plan().clone());
        let socket = rebuilt.go_live()?;
        if let Some(peer) = &connection.peer {
            prober.live(gate, &peer.state.handshake.tuple, peer.entry);
        }
        all.push(Ready {
            connection,
            socket,
            plan,
        });
    }
    Ok(all)
}

impl Ready {
    /// The peer's FIN, if it has to be forged: state and the peer's clock.
    pub(super) fn end_to_forge(&self) -> Option<(&ConnectionState, u32, u32)> {
        let plan = self.plan.as_ref().filter(|plan| plan.forge_end)?;
        let peer = self.connection.peer.as_ref()?;
        let clock = peer.answer.and_then(|a| a.tsval).unwrap_or(0);
        Some((&peer.state, plan.snd_una, clock))
    }

    /// Whether its peer said where it stands.
    pub(super) fn answered(&self) -> bool {
        let peer = self.connection.peer.as_ref();
        peer.is_some_and(|peer| peer.answer.is_some())
    }
}
