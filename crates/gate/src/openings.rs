//! Connections in the making: the container's answers to connection requests wait until the log holds them.
//!
//! Once a peer has the answer (SYN-ACK) the connection exists for it, whether the application has accepted
//! it or not. So the answer is output like any other: the gate keeps it and hands it to user space
//! ([`Openings`]), which logs it and then lets it leave ([`Gate::answer`]). A host that takes over can go on
//! with every connection that any peer believes in.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::Ordering::Relaxed;

use aya::maps::{MapData, RingBuf};

use crate::error::GateError;
use crate::facts::{Handshake, Scale};
use crate::kernel::{Entry, Gate};
use crate::layout::{MAX_CONNECTIONS, connection, opening, option};
use crate::receive::Injector;
use crate::segment::{ETHERNET_LEN, resendable};
use crate::tuple::Tuple;

/// An answer that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opening {
    /// What it agrees on.
    pub handshake: Handshake,
    /// The timestamp it carries, 0 without.
    pub timestamp: u32,
    /// Its IPv4 packet.
    pub packet: Vec<u8>,
}

/// The answers that wait, as the gate meets them: each as often as the kernel tries to send it.
pub struct Openings {
    ring: RingBuf<MapData>,
}

impl Openings {
    pub(crate) const fn new(ring: RingBuf<MapData>) -> Self {
        Self { ring }
    }

    /// Appends those that came since the last call. Does not wait.
    pub fn read(&mut self, out: &mut Vec<Opening>) {
        while let Some(item) = self.ring.next() {
            out.extend(decode(&item));
        }
    }
}

impl AsFd for Openings {
    /// Readable while there is something to read.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

impl std::fmt::Debug for Openings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Openings").finish_non_exhaustive()
    }
}

/// An entry of the ring; `None` if it is not one, or not about IPv4.
pub(crate) fn decode(bytes: &[u8]) -> Option<Opening> {
    let bytes = bytes.first_chunk::<{ opening::LEN }>()?;
    let word =
        |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let short = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
    let bits = bytes[opening::OPTIONS];
    let scale = Scale {
        local: bytes[opening::SCALES],
        peer: bytes[opening::SCALES + 1],
    };
    let timestamps = bits & option::TIMESTAMPS != 0;
    let len = word(opening::FRAME_LEN) as usize;
    let frame = bytes.get(opening::FRAME..opening::FRAME + len)?;
    let whole = resendable(frame, usize::from(u16::MAX)).swap_remove(0);
    Some(Opening {
        handshake: Handshake {
            tuple: Tuple::of_key(bytes.first_chunk()?)?,
            iss: word(opening::ISS),
            irs: word(opening::IRS),
            local_mss: short(opening::MSS),
            peer_mss: short(opening::MSS + 2),
            scale: (bits & option::WSCALE != 0).then_some(scale),
            sack: bits & option::SACK != 0,
            timestamps,
            active: bits & option::ACTIVE != 0,
        },
        timestamp: if timestamps { word(opening::TSVAL) } else { 0 },
        packet: whole.get(ETHERNET_LEN..)?.to_vec(),
    })
}

impl Gate {
    /// The container's initial sequence number of the connection under these addresses, once its peer has
    /// completed the handshake and while neither side has reset it.
    #[must_use]
    pub fn established(&self, tuple: &Tuple) -> Option<u32> {
        let index = self.tuples.get(&tuple.key(), 0).ok()?;
        let entry = Entry(index);
        let open = index < MAX_CONNECTIONS && !self.progress(entry).over;
        open.then(|| self.word(entry, connection::ISS).load(Relaxed))
    }

    /// Lets an answer leave that waits, and sends it. Call it when the log holds it.
    ///
    /// # Errors
    /// [`GateError::MapAccess`] if the kernel refuses, [`GateError::Socket`] if the packet cannot be sent.
    /// (The kernel then sends it again by itself, after a second.)
    pub fn answer(&mut self, opening: &Opening, injector: &Injector) -> Result<(), GateError> {
        let handshake = &opening.handshake;
        self.answered
            .insert(handshake.tuple.key(), handshake.iss, 0)
            .map_err(|e| GateError::MapAccess {
                name: "answered",
                source: Box::new(e),
            })?;
        injector.send(&opening.packet, &handshake.tuple)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_entry_is_refused() {
        assert_eq!(decode(&[0; 10]), None);
        let mut entry = [0; opening::LEN];
        // Not an IPv4-mapped address, then a frame longer than its room.
        assert_eq!(decode(&entry), None);
        entry[opening::FRAME_LEN..opening::FRAME_LEN + 4].copy_from_slice(&177_u32.to_ne_bytes());
        assert_eq!(decode(&entry), None);
    }
}
