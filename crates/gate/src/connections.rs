//! What each connection may send and receive, and what the gate saw of it.

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use crate::error::GateError;
use crate::facts::{Handshake, Progress, Scale};
use crate::kernel::{Entry, Gate};
use crate::layout::{MAX_CONNECTIONS, connection, option, permit, state};
use crate::rebuild::Plan;
use crate::tuple::Tuple;

impl Gate {
    pub(crate) fn word(&self, entry: Entry, field: usize) -> &AtomicU32 {
        self.connections
            .word(entry.0 as usize * connection::LEN + field)
    }

    fn long(&self, entry: Entry, field: usize) -> u64 {
        self.connections
            .long(entry.0 as usize * connection::LEN + field)
            .load(Relaxed)
    }

    /// The entry of a connection whose handshake passed the gate, and what was agreed in it. Call it when
    /// accept or connect returned; from then on the entry is the caller's until [`Gate::finish`].
    ///
    /// # Errors
    /// [`GateError::Unknown`] if the handshake did not pass here.
    pub fn register(&mut self, tuple: &Tuple) -> Result<(Entry, Handshake), GateError> {
        let index = self
            .tuples
            .get(&tuple.key(), 0)
            .map_err(|_| GateError::Unknown { tuple: *tuple })?;
        if index >= MAX_CONNECTIONS {
            return Err(GateError::Unknown { tuple: *tuple });
        }
        let entry = Entry(index);
        self.word(entry, connection::PERMIT)
            .fetch_or(permit::OWNED, Release);
        Ok((
            entry,
            self.handshake(entry)
                .ok_or(GateError::Unknown { tuple: *tuple })?,
        ))
    }

    /// Gives an entry to a connection that is rebuilt here, with `progress` as it stands. Where this gate
    /// can hold ([`Config::hold`]), what its peer sends is held until [`Gate::live`].
    ///
    /// # Errors
    /// [`GateError::Full`] if there is no entry left.
    pub fn adopt(
        &mut self,
        handshake: &Handshake,
        progress: &Progress,
    ) -> Result<Entry, GateError> {
        let index = self.vacant.pop(0).map_err(|_| GateError::Full {
            limit: MAX_CONNECTIONS,
        })?;
        let entry = Entry(index);
        let base = index as usize * connection::LEN;
        self.connections.write(base, &[0; connection::LEN]);
        self.connections
            .write(base + connection::KEY, &handshake.tuple.key());
        let [a, b] = handshake.local_mss.to_ne_bytes();
        let [c, d] = handshake.peer_mss.to_ne_bytes();
        self.connections
            .write(base + connection::MSS, &[a, b, c, d]);
        let scale = handshake.scale.unwrap_or_default();
        let bits = [
            (handshake.scale.is_some(), option::WSCALE),
            (handshake.sack, option::SACK),
            (handshake.timestamps, option::TIMESTAMPS),
            (handshake.active, option::ACTIVE),
        ];
        let options = bits
            .iter()
            .filter(|(on, _)| *on)
            .fold(0, |all, (_, bit)| all | bit);
        self.connections.write(
            base + connection::OPTIONS,
            &[scale.local, scale.peer, options, 0],
        );
        self.connections
            .long(base + connection::ESTABLISHED_NS)
            .store(sys::bpf::boot_ns(), Relaxed);
        self.connections
            .long(base + connection::PEER_NS)
            .store(progress.peer_ns, Relaxed);
        self.connections
            .long(base + connection::TS_NS)
            .store(progress.ts_ns, Relaxed);
        let held = if self.held().is_some() {
            permit::HELD
        } else {
            0
        };
        let words = [
            (connection::ISS, handshake.iss),
            (connection::IRS, handshake.irs),
            (connection::UNA, progress.una),
            (connection::PEER_WINDOW, progress.peer_window),
            (connection::PEER_MAX_WINDOW, progress.peer_max_window),
            (connection::PEER_NXT, progress.peer_nxt),
            (connection::PEER_FIN, u32::from(progress.peer_fin)),
            (connection::PEER_TSVAL, progress.peer_tsval),
            (connection::SND_NXT, progress.snd_nxt),
            (connection::KERNEL_ACK, progress.kernel_ack),
            (connection::SENT_ACK, progress.sent_ack),
            (connection::WINDOW, progress.window),
            (connection::EDGE, progress.edge),
            (connection::TSVAL, progress.tsval),
            (connection::TSECR, progress.tsecr),
            (connection::REL_RCV, progress.released_receive),
            (connection::REL_SND, progress.released_send),
            (connection::PERMIT, permit::OWNED | held),
            (connection::STATE, state::OPEN),
        ];
        for (field, value) in words {
            self.word(entry, field).store(value, Release);
        }
        let key = handshake.tuple.key();
        // Not there is the usual case.
        let _ = self.closed.remove(&key);
        self.tuples
            .insert(key, index, 0)
            .map_err(|e| GateError::MapAccess {
                name: "tuples",
                source: Box::new(e),
            })?;
        Ok(entry)
    }

    /// Corrects an adopted entry by what the probe told: call it before the socket goes live.
    pub fn settle(&self, entry: Entry, handshake: &Handshake, plan: &Plan) {
        let released = handshake
            .send_seq(plan.resend.end + plan.swallow)
            .wrapping_add(u32::from(plan.finish));
        // What lies in the kernel's queue counts as sent, although it did not pass here.
        let sent = handshake.send_seq(plan.output().sent_to());
        self.word(entry, connection::UNA)
            .store(plan.snd_una, Release);
        self.word(entry, connection::SND_NXT).store(sent, Release);
        self.word(entry, connection::REL_SND)
            .store(released, Release);
        if plan.finish {
            self.allow_fin(entry);
        }
    }

    /// The adopted connection's socket is live: what its peer sends from now on is delivered.
    pub fn live(&self, entry: Entry) {
        self.word(entry, connection::PERMIT)
            .fetch_and(!permit::HELD, Release);
    }

    /// Gives an entry back. `closed` says that the log holds the close and the peer has everything: what
    /// the kernel still sends for these addresses passes then.
    ///
    /// # Errors
    /// [`GateError::MapAccess`] if the kernel refuses.
    pub fn finish(&mut self, entry: Entry, closed: bool) -> Result<(), GateError> {
        let wrong = |name| {
            move |e| GateError::MapAccess {
                name,
                source: Box::new(e),
            }
        };
        let mut key = [0; 36];
        self.connections.read(
            entry.0 as usize * connection::LEN + connection::KEY,
            &mut key,
        );
        if self.tuples.get(&key, 0).is_ok_and(|index| index == entry.0) {
            if closed {
                self.closed.insert(key, 1, 0).map_err(wrong("closed"))?;
            }
            self.tuples.remove(&key).map_err(wrong("tuples"))?;
        }
        self.word(entry, connection::STATE).store(0, Release);
        self.word(entry, connection::PERMIT).store(0, Release);
        self.vacant.push(entry.0, 0).map_err(wrong("vacant"))
    }

    /// Gives back entries of connections that nobody registered and that were reset or have been silent
    /// since `before` (nanoseconds of boot time). Returns how many.
    ///
    /// # Errors
    /// [`GateError::MapAccess`] if the kernel refuses.
    pub fn sweep(&mut self, before: u64) -> Result<usize, GateError> {
        let stale: Vec<Entry> = (0..MAX_CONNECTIONS)
            .map(Entry)
            .filter(|e| {
                let now = self.word(*e, connection::STATE).load(Relaxed);
                now != 0
                    && self.word(*e, connection::PERMIT).load(Acquire) & permit::OWNED == 0
                    && (now != state::OPEN || self.long(*e, connection::PEER_NS) < before)
            })
            .collect();
        for entry in &stale {
            self.finish(*entry, false)?;
        }
        Ok(stale.len())
    }

    /// What was agreed when the connection was set up; `None` if its addresses are not IPv4.
    #[must_use]
    pub fn handshake(&self, entry: Entry) -> Option<Handshake> {
        let base = entry.0 as usize * connection::LEN;
        let (mut key, mut mss, mut options) = ([0; 36], [0; 4], [0; 4]);
        self.connections.read(base + connection::KEY, &mut key);
        self.connections.read(base + connection::MSS, &mut mss);
        self.connections
            .read(base + connection::OPTIONS, &mut options);
        let [local, peer, bits, _] = options;
        Some(Handshake {
            tuple: Tuple::of_key(&key)?,
            iss: self.word(entry, connection::ISS).load(Relaxed),
            irs: self.word(entry, connection::IRS).load(Relaxed),
            local_mss: u16::from_ne_bytes([mss[0], mss[1]]),
            peer_mss: u16::from_ne_bytes([mss[2], mss[3]]),
            scale: (bits & option::WSCALE != 0).then_some(Scale { local, peer }),
            sack: bits & option::SACK != 0,
            timestamps: bits & option::TIMESTAMPS != 0,
            active: bits & option::ACTIVE != 0,
        })
    }

    /// The last word of each side. Fields are read one after another: each is true, but they may be some
    /// nanoseconds apart.
    #[must_use]
    pub fn progress(&self, entry: Entry) -> Progress {
        let at = |field| self.word(entry, field).load(Acquire);
        Progress {
            una: at(connection::UNA),
            peer_window: at(connection::PEER_WINDOW),
            peer_max_window: at(connection::PEER_MAX_WINDOW),
            peer_nxt: at(connection::PEER_NXT),
            peer_fin: at(connection::PEER_FIN) != 0,
            peer_tsval: at(connection::PEER_TSVAL),
            peer_ns: self.long(entry, connection::PEER_NS),
            snd_nxt: at(connection::SND_NXT),
            kernel_ack: at(connection::KERNEL_ACK),
            sent_ack: at(connection::SENT_ACK),
            window: at(connection::WINDOW),
            edge: at(connection::EDGE),
            tsval: at(connection::TSVAL),
            tsecr: at(connection::TSECR),
            ts_ns: self.long(entry, connection::TS_NS),
            released_receive: at(connection::REL_RCV),
            released_send: at(connection::REL_SND),
            over: matches!(at(connection::STATE), state::RESET | state::REPLACED),
        }
    }

    /// The log holds the peer's bytes up to stream position `bytes`, and the end of its stream if `eof`:
    /// that much may be acknowledged.
    pub fn allow_receive(&self, entry: Entry, bytes: u64, eof: bool) {
        let seq = self
            .word(entry, connection::IRS)
            .load(Relaxed)
            .wrapping_add(1)
            .wrapping_add(bytes as u32);
        self.word(entry, connection::REL_RCV)
            .store(seq.wrapping_add(u32::from(eof)), Release);
    }

    /// The container's bytes up to stream position `bytes` may leave, and the FIN behind them if `fin`: with it the
    /// kernel must have all these bytes.
    pub fn allow_send(&self, entry: Entry, bytes: u64, fin: bool) {
        if fin {
            self.allow_fin(entry);
        }
        let seq = self
            .word(entry, connection::ISS)
            .load(Relaxed)
            .wrapping_add(1)
            .wrapping_add(bytes as u32);
        self.word(entry, connection::REL_SND)
            .store(seq.wrapping_add(u32::from(fin)), Release);
    }

    fn allow_fin(&self, entry: Entry) {
        self.word(entry, connection::PERMIT)
            .fetch_or(permit::FIN, Release);
    }

    /// The log holds a close that resets the connection: the reset may leave.
    pub fn allow_reset(&self, entry: Entry) {
        self.word(entry, connection::PERMIT)
            .fetch_or(permit::RESET, Release);
    }
}
