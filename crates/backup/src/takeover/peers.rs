//! Asking the container's peers where they stand.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use gate::rebuild::{Answer, ConnectionState, Probed, Prober, Timestamp};
use gate::{Entry, Gate};

use super::error::Result;
use super::handshakes::Known;

/// Probes are sent again after so long: the first may have gone where the address was before.
const AGAIN: Duration = Duration::from_millis(8);
const NAP: Duration = Duration::from_micros(50);
/// The window a peer is taken to offer until it says otherwise.
const PEER_WINDOW: u32 = 64 << 10;

/// The other end of a connection.
#[derive(Debug)]
pub(super) struct Peer {
    /// What the log says of the connection.
    pub(super) state: ConnectionState,
    /// The gate's entry.
    pub(super) entry: Entry,
    /// Where it stands, once it has said so.
    pub(super) answer: Option<Answer>,
    /// It knows no such connection.
    pub(super) refused: bool,
    /// How long its answer is waited for.
    pub(super) patience: Duration,
}

impl Peer {
    /// The gate learns of the connection.
    pub(super) fn adopt(
        gate: &mut Gate,
        state: ConnectionState,
        patience: Duration,
    ) -> Result<Self> {
        let entry = gate.adopt(&state.handshake, &state.progress(sys::bpf::boot_ns()))?;
        Ok(Self {
            state,
            entry,
            answer: None,
            refused: false,
            patience,
        })
    }

    /// What rebuilding goes by.
    pub(super) fn probed(&self) -> Probed {
        match &self.answer {
            Some(answer) => Probed::Answered { ack: answer.ack },
            None => Probed::Silent,
        }
    }

    /// Nothing more will be heard of it.
    const fn is_settled(&self) -> bool {
        self.answer.is_some() || self.refused
    }
}

/// A connection of which the log knows no more than its handshake.
pub(super) fn fresh(known: &Known) -> ConnectionState {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(known.at, |d| d.as_nanos() as u64);
    ConnectionState {
        handshake: known.handshake,
        timestamp: known.handshake.timestamps.then(|| Timestamp {
            value: known.timestamp,
            age: Duration::from_nanos(now.saturating_sub(known.at)),
        }),
        read: 0,
        unread: Vec::new(),
        peer_ended: false,
        written: 0,
        acknowledged: 0,
        peer_window: PEER_WINDOW,
        ended: false,
        orphan: false,
    }
}

/// Asks every peer where it stands.
pub(super) fn probe(all: &mut [&mut Peer], gate: &Gate, prober: &mut Prober) {
    let begun = Instant::now();
    let mut asked = None::<Instant>;
    loop {
        if asked.is_none_or(|at| at.elapsed() > AGAIN) {
            for peer in all.iter().filter(|peer| !peer.is_settled()) {
                if let Err(error) = prober.ask(gate, &peer.state) {
                    tracing::warn!(%error, "a peer cannot be asked");
                }
            }
            asked = Some(Instant::now());
        }
        let new = prober.answers(gate);
        let answers: BTreeMap<_, _> = new.into_iter().map(|a| (a.tuple, a)).collect();
        for peer in all.iter_mut().filter(|peer| !peer.is_settled()) {
            let tuple = &peer.state.handshake.tuple;
            peer.answer = answers.get(tuple).copied();
            peer.refused = prober.is_refused(tuple);
        }
        let waited = begun.elapsed();
        if all
            .iter()
            .all(|peer| peer.is_settled() || waited > peer.patience)
        {
            return;
        }
        thread::sleep(NAP);
    }
}
