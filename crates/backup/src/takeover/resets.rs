//! Peers whose connections do not go on hear so at once: one that waits for an answer would wait for ever.

use std::time::Duration;

use gate::Gate;
use gate::rebuild::Prober;

use super::error::Result;
use super::handshakes::Known;
use super::peers::{Peer, fresh};

/// How long their answers are waited for; who answers later is told by the kernel, which knows no such connection.
const ANSWERS: Duration = Duration::from_millis(30);

/// The peers of connections of which the container knows nothing; the gate learns of them.
pub(super) fn adopt(all: &[Known], gate: &mut Gate) -> Result<Vec<Peer>> {
    let one = |known| Peer::adopt(gate, fresh(known), ANSWERS);
    all.iter().map(one).collect()
}

/// Tells one of them.
pub(super) fn tell(peer: &Peer, gate: &Gate, prober: &mut Prober) {
    let tuple = &peer.state.handshake.tuple;
    if let Some(answer) = &peer.answer
        && let Err(error) = prober.reset(&peer.state, answer)
    {
        tracing::warn!(%error, "a peer cannot be told that its connection is gone");
    }
    prober.live(gate, tuple, peer.entry);
}
