//! The container's connections: what is known of each, where its peer stands, its new socket.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering::Acquire;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use gate::rebuild::{
    Answer, ConnectionState, Plan, Probed, Prober, Rebuilder, Rebuilt, Timestamp, plan,
};
use gate::{Entry, Gate};
use guest::abi::{Conn, MAX_CONNS, conn};
use sys::arena::Arena;

use super::dead;
use super::error::Result;
use super::log::{Known, Log};

/// How long peers are waited for; who answers later has its connection rebuilt from what is known.
const ANSWERS: Duration = Duration::from_millis(30);
/// Probes are sent again after so long: the first may have gone where the address was before.
const AGAIN: Duration = Duration::from_millis(8);
const NAP: Duration = Duration::from_micros(50);
/// The window a peer is taken to offer until it says otherwise.
const PEER_WINDOW: u32 = 64 << 10;

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    /// Its entry in the arena.
    pub(super) index: usize,
    /// The descriptor it came with and the process.
    pub(super) fd: i32,
    pub(super) pid: u32,
    /// The application has closed it.
    pub(super) closed: bool,
    state: Option<(ConnectionState, Entry)>,
    answer: Option<Answer>,
    /// Its peer knows it no longer.
    refused: bool,
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
pub(super) fn collect(arena: &Arena, log: &Log, gate: &mut Gate) -> Result<Vec<Connection>> {
    let handshakes = log.handshakes()?;
    let now = sys::bpf::boot_ns();
    let mut all = Vec::new();
    for index in entries(arena) {
        let c = arena.conn(index);
        let known = handshakes.get(&(index, c.generation.load(Acquire)));
        let closed = c.state.load(Acquire) == conn::CLOSED;
        let state = match known {
            Some(known) => {
                let state = state_of(c, known, closed);
                let entry = gate.adopt(&state.handshake, &state.progress(now))?;
                Some((state, entry))
            }
            None => None,
        };
        if state.is_none() && closed {
            continue;
        }
        all.push(Connection {
            index,
            fd: c.fd.load(Acquire).cast_signed(),
            pid: c.pid.load(Acquire),
            closed,
            state,
            answer: None,
            refused: false,
        });
    }
    Ok(all)
}

fn state_of(c: &Conn, known: &Known, closed: bool) -> ConnectionState {
    let written = c.written.load(Acquire);
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(known.at, |d| d.as_nanos() as u64);
    ConnectionState {
        handshake: known.handshake,
        timestamp: known.handshake.timestamps.then(|| Timestamp {
            value: known.timestamp,
            age: Duration::from_nanos(now.saturating_sub(known.at)),
        }),
        read: c.read.load(Acquire),
        unread: Vec::new(),
        peer_ended: c.read_end.load(Acquire) != 0,
        written,
        acknowledged: c.trimmed.load(Acquire).min(written),
        peer_window: PEER_WINDOW,
        ended: closed || c.shut.load(Acquire) != 0,
        orphan: closed,
    }
}

/// Asks every peer where it stands. Those of closed connections are not waited for.
pub(super) fn probe(all: &mut [Connection], gate: &Gate, prober: &mut Prober) -> Result<()> {
    let begun = Instant::now();
    let mut asked = None::<Instant>;
    loop {
        if asked.is_none_or(|at| at.elapsed() > AGAIN) {
            let silent = all.iter().filter(|c| !c.is_settled());
            for (state, _) in silent.filter_map(|c| c.state.as_ref()) {
                if let Err(error) = prober.ask(gate, state) {
                    tracing::warn!(%error, "a peer cannot be asked");
                }
            }
            asked = Some(Instant::now());
        }
        let new = prober.answers(gate);
        let answers: BTreeMap<_, _> = new.into_iter().map(|a| (a.tuple, a)).collect();
        for c in all.iter_mut().filter(|c| !c.is_settled()) {
            if let Some((state, _)) = &c.state {
                let tuple = &state.handshake.tuple;
                c.answer = answers.get(tuple).copied();
                c.refused = prober.is_refused(tuple);
            }
        }
        let waits = |c: &Connection| !c.is_settled() && !c.closed;
        if !all.iter().any(waits) || begun.elapsed() > ANSWERS {
            return Ok(());
        }
        thread::sleep(NAP);
    }
}

impl Connection {
    /// Nothing more will be heard of it.
    const fn is_settled(&self) -> bool {
        self.state.is_none() || self.answer.is_some() || self.refused
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
    let Some((state, entry)) = &c.state else {
        return Err("its handshake is not known".to_owned());
    };
    if c.refused {
        return Err("its peer does not know it any more".to_owned());
    }
    let probed = match &c.answer {
        Some(answer) => Probed::Answered { ack: answer.ack },
        None => Probed::Silent,
    };
    let plan = plan(state, probed).map_err(|e| e.to_string())?;
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
        if let Some((state, entry)) = &connection.state {
            prober.live(gate, &state.handshake.tuple, *entry);
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
        let (state, _) = self.connection.state.as_ref()?;
        let clock = self.connection.answer.and_then(|a| a.tsval).unwrap_or(0);
        Some((state, plan.snd_una, clock))
    }

    /// Whether its peer said where it stands.
    pub(super) fn answered(&self) -> bool {
        self.connection.answer.is_some()
    }
}
