//! The gate on one interface: loading the eBPF program, the lease, and what each connection may send.

use std::os::fd::AsFd;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use aya::maps::{HashMap, Map, MapData, Stack};
use aya::programs::SchedClassifier;
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcAttachType, qdisc_add_clsact};
use aya::{Ebpf, EbpfLoader};
use sys::bpf::MappedArray;

use crate::error::GateError;
use crate::facts::{Handshake, Progress, Scale};
use crate::layout::{COUNTERS, MAX_CONNECTIONS, config, connection, flag, held, option, permit, state};
use crate::rebuild::Plan;
use crate::tuple::{Key, Tuple};

/// The eBPF program, built from `bpf/gate.bpf.c` as `bpf/README.md` says.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../bpf/gate.bpf.o");

/// What the gate does beside holding the lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Connections are clamped and released. Without it the lease alone decides.
    pub gate: bool,
    /// Source MAC of everything that leaves, so that bridges never learn the container's own and flood
    /// what is sent to it to both hosts. Attach before the interface is up: a single frame that passed
    /// unmasked is remembered for minutes.
    pub mask: Option<[u8; 6]>,
    /// IPv4 for the container is kept (see [`crate::Tap`]) and not delivered.
    pub hold: bool,
}

/// A registered connection: the number of its entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Entry(pub(crate) u32);

/// How often each rule decided, since the gate was attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames that left.
    pub passed: u64,
    /// Dropped: the lease had expired.
    pub lease: u64,
    /// Dropped: neither IPv4 nor ARP.
    pub ethertype: u64,
    /// Dropped: not to be understood, or a fragment of TCP.
    pub malformed: u64,
    /// Dropped: no connection known under these addresses.
    pub unknown: u64,
    /// Dropped: a reset that the log does not explain.
    pub reset: u64,
    /// Dropped: payload or FIN that was not released.
    pub unreleased: u64,
    /// Left with a smaller acknowledgement number.
    pub clamped: u64,
    /// Dropped: an acknowledgement that would have said nothing once clamped.
    pub pure_ack: u64,
    /// Connections refused because there was no entry left.
    pub full: u64,
    /// Frames for the container that were kept instead of delivered.
    pub held: u64,
}

/// The gate, attached to the host's end of a container's veth.
///
/// Dropping it leaves the program in the kernel, where the lease closes it: only [`Gate::detach`] opens the
/// interface. Methods that take `&self` cost no system call.
pub struct Gate {
    interface: String,
    links: Vec<SchedClassifierLink>,
    pub(crate) config: MappedArray,
    pub(crate) connections: MappedArray,
    pub(crate) counters: MappedArray,
    held: Option<MappedArray>,
    tuples: HashMap<MapData, Key, u32>,
    closed: HashMap<MapData, Key, u32>,
    vacant: Stack<MapData, u32>,
}

/// What the container sends, and what it is sent.
const PROGRAMS: [&str; 2] = ["from_container", "to_container"];

fn program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut SchedClassifier, GateError> {
    let object = || GateError::Object { part: name };
    ebpf.program_mut(name).ok_or_else(object)?.try_into().map_err(|_| object())
}

fn map(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, GateError> {
    ebpf.take_map(name).ok_or(GateError::Object { part: name })
}

fn mapped(ebpf: &mut Ebpf, name: &'static str, len: usize) -> Result<MappedArray, GateError> {
    let Map::Array(data) = map(ebpf, name)? else { return Err(GateError::Object { part: name }) };
    let fd = data.fd().as_fd();
    MappedArray::map(fd, len).map_err(|source| GateError::Map { name, source })
}

impl Gate {
    /// Loads the program and attaches it to `interface` of the calling thread's network namespace. The gate
    /// is closed until [`Gate::set_lease`].
    ///
    /// # Errors
    /// [`GateError`] names the step that the kernel refused.
    pub fn attach(interface: &str, options: &Config) -> Result<Self, GateError> {
        let mut loader = EbpfLoader::new();
        if !options.hold {
            loader.map_max_entries("held", 1);
        }
        let mut ebpf = loader.load(OBJECT).map_err(|e| GateError::Load(Box::new(e)))?;
        // Before any map is taken out: until then the programs know their maps by descriptor.
        for name in PROGRAMS {
            program(&mut ebpf, name)?
                .load()
                .map_err(|source| GateError::Refused { program: name, source: Box::new(source) })?;
        }
        let wrong = |name| move |e| GateError::MapAccess { name, source: Box::new(e) };
        let held_len = held::SLOTS as usize * held::LEN;
        let mut gate = Self {
            interface: interface.to_owned(),
            links: Vec::new(),
            config: mapped(&mut ebpf, "config", config::LEN)?,
            connections: mapped(&mut ebpf, "connections", MAX_CONNECTIONS as usize * connection::LEN)?,
            counters: mapped(&mut ebpf, "counters", COUNTERS * 8)?,
            held: options.hold.then(|| mapped(&mut ebpf, "held", held_len)).transpose()?,
            tuples: map(&mut ebpf, "tuples")?.try_into().map_err(wrong("tuples"))?,
            closed: map(&mut ebpf, "closed")?.try_into().map_err(wrong("closed"))?,
            vacant: map(&mut ebpf, "vacant")?.try_into().map_err(wrong("vacant"))?,
        };
        for index in (0..MAX_CONNECTIONS).rev() {
            gate.vacant.push(index, 0).map_err(wrong("vacant"))?;
        }
        if let Some(mac) = options.mask {
            gate.config.write(config::MASK, &mac);
        }
        let bits = [(options.gate, flag::GATE), (options.mask.is_some(), flag::MASK), (options.hold, flag::HOLD)];
        let flags = bits.iter().filter(|(on, _)| *on).fold(0, |all, (_, bit)| all | bit);
        gate.config.word(config::FLAGS).store(flags, Release);
        gate.attach_programs(&mut ebpf)?;
        Ok(gate)
    }

    /// By netlink, not by TCX: a TCX link goes with its descriptor, and a killed shim would open the gate.
    fn attach_programs(&mut self, ebpf: &mut Ebpf) -> Result<(), GateError> {
        let refused = |step| {
            let interface = self.interface.clone();
            move |source: Box<dyn std::error::Error + Send + Sync>| GateError::Attach { interface, step, source }
        };
        if let Err(e) = qdisc_add_clsact(&self.interface)
            && !matches!(e, aya::programs::tc::TcError::AlreadyAttached)
        {
            return Err(refused("clsact")(e.into()));
        }
        for (name, at) in PROGRAMS.into_iter().zip([TcAttachType::Ingress, TcAttachType::Egress]) {
            let program = program(ebpf, name)?;
            let options = TcAttachOptions::Netlink(NlOptions::default());
            let id = program
                .attach_with_options(&self.interface, at, options)
                .map_err(|e| refused(name)(e.into()))?;
            let link = program.take_link(id).map_err(|e| refused(name)(e.into()))?;
            self.links.push(link);
        }
        Ok(())
    }

    /// Takes the program off the interface: from then on everything passes. Call it in the network
    /// namespace of [`Gate::attach`].
    pub fn detach(mut self) {
        self.links.clear();
    }

    /// Lets frames leave until `boot_ns` (nanoseconds of boot time, see [`sys::bpf::boot_ns`]); 0 closes
    /// the gate at once, `u64::MAX` opens it for good.
    pub fn set_lease(&self, boot_ns: u64) {
        self.config.long(config::LEASE_NS).store(boot_ns, Release);
    }

    /// When the lease ends, in nanoseconds of boot time.
    #[must_use]
    pub fn lease(&self) -> u64 {
        self.config.long(config::LEASE_NS).load(Acquire)
    }

    fn set_flag(&self, bit: u32, on: bool) {
        let flags = self.config.word(config::FLAGS);
        if on { flags.fetch_or(bit, Release) } else { flags.fetch_and(!bit, Release) };
    }

    /// Starts or stops keeping what is sent to the container. Only for a gate attached with
    /// [`Config::hold`].
    pub fn set_hold(&self, on: bool) {
        self.set_flag(flag::HOLD, on && self.held.is_some());
    }

    /// Starts or stops clamping and releasing.
    pub fn set_gate(&self, on: bool) {
        self.set_flag(flag::GATE, on);
    }

    /// The memory of kept frames, if this gate keeps any.
    pub(crate) const fn held(&self) -> Option<&MappedArray> {
        self.held.as_ref()
    }

    pub(crate) fn word(&self, entry: Entry, field: usize) -> &std::sync::atomic::AtomicU32 {
        self.connections.word(entry.0 as usize * connection::LEN + field)
    }

    fn long(&self, entry: Entry, field: usize) -> u64 {
        self.connections.long(entry.0 as usize * connection::LEN + field).load(Relaxed)
    }

    /// The entry of a connection whose handshake passed the gate, and what was agreed in it. Call it when
    /// accept or connect returned; from then on the entry is the caller's until [`Gate::finish`].
    ///
    /// # Errors
    /// [`GateError::Unknown`] if the handshake did not pass here.
    pub fn register(&mut self, tuple: &Tuple) -> Result<(Entry, Handshake), GateError> {
        let index = self.tuples.get(&tuple.key(), 0).map_err(|_| GateError::Unknown { tuple: *tuple })?;
        if index >= MAX_CONNECTIONS {
            return Err(GateError::Unknown { tuple: *tuple });
        }
        let entry = Entry(index);
        self.word(entry, connection::PERMIT).fetch_or(permit::OWNED, Release);
        Ok((entry, self.handshake(entry).ok_or(GateError::Unknown { tuple: *tuple })?))
    }

    /// Gives an entry to a connection that was rebuilt from elsewhere, with `progress` as it stands.
    ///
    /// # Errors
    /// [`GateError::Full`] if there is no entry left.
    pub fn adopt(&mut self, handshake: &Handshake, progress: &Progress) -> Result<Entry, GateError> {
        let index = self.vacant.pop(0).map_err(|_| GateError::Full { limit: MAX_CONNECTIONS })?;
        let entry = Entry(index);
        let base = index as usize * connection::LEN;
        self.connections.write(base, &[0; connection::LEN]);
        self.connections.write(base + connection::KEY, &handshake.tuple.key());
        let [a, b] = handshake.local_mss.to_ne_bytes();
        let [c, d] = handshake.peer_mss.to_ne_bytes();
        self.connections.write(base + connection::MSS, &[a, b, c, d]);
        let scale = handshake.scale.unwrap_or_default();
        let bits = [
            (handshake.scale.is_some(), option::WSCALE),
            (handshake.sack, option::SACK),
            (handshake.timestamps, option::TIMESTAMPS),
            (handshake.active, option::ACTIVE),
        ];
        let options = bits.iter().filter(|(on, _)| *on).fold(0, |all, (_, bit)| all | bit);
        self.connections.write(base + connection::OPTIONS, &[scale.local, scale.peer, options, 0]);
        self.connections.long(base + connection::ESTABLISHED_NS).store(sys::bpf::boot_ns(), Relaxed);
        self.connections.long(base + connection::PEER_NS).store(progress.peer_ns, Relaxed);
        self.connections.long(base + connection::TS_NS).store(progress.ts_ns, Relaxed);
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
            (connection::PERMIT, permit::OWNED),
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
            .map_err(|e| GateError::MapAccess { name: "tuples", source: Box::new(e) })?;
        Ok(entry)
    }

    /// Corrects an adopted entry by what the probe told: call it before the socket goes live.
    pub fn settle(&self, entry: Entry, handshake: &Handshake, plan: &Plan) {
        let released = handshake.send_seq(plan.resend.end + plan.swallow).wrapping_add(u32::from(plan.finish));
        // What lies in the kernel's queue counts as sent, although it did not pass here.
        let sent = handshake.send_seq(plan.output().sent_to());
        self.word(entry, connection::UNA).store(plan.snd_una, Release);
        self.word(entry, connection::SND_NXT).store(sent, Release);
        self.word(entry, connection::REL_SND).store(released, Release);
    }

    /// Gives an entry back. `closed` says that the log holds the close and the peer has everything: what
    /// the kernel still sends for these addresses passes then.
    ///
    /// # Errors
    /// [`GateError::MapAccess`] if the kernel refuses.
    pub fn finish(&mut self, entry: Entry, closed: bool) -> Result<(), GateError> {
        let wrong = |name| move |e| GateError::MapAccess { name, source: Box::new(e) };
        let mut key = [0; 36];
        self.connections.read(entry.0 as usize * connection::LEN + connection::KEY, &mut key);
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
        self.connections.read(base + connection::OPTIONS, &mut options);
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
        let seq = self.word(entry, connection::IRS).load(Relaxed).wrapping_add(1).wrapping_add(bytes as u32);
        self.word(entry, connection::REL_RCV).store(seq.wrapping_add(u32::from(eof)), Release);
    }

    /// The container's bytes up to stream position `bytes` may leave, and the FIN behind them if `fin`.
    pub fn allow_send(&self, entry: Entry, bytes: u64, fin: bool) {
        let seq = self.word(entry, connection::ISS).load(Relaxed).wrapping_add(1).wrapping_add(bytes as u32);
        self.word(entry, connection::REL_SND).store(seq.wrapping_add(u32::from(fin)), Release);
    }

    /// The log holds a close that resets the connection: the reset may leave.
    pub fn allow_reset(&self, entry: Entry) {
        self.word(entry, connection::PERMIT).fetch_or(permit::RESET, Release);
    }

    /// How often each rule decided.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let n = |i: usize| self.counters.long(i * 8).load(Relaxed);
        Counters {
            passed: n(0),
            lease: n(1),
            ethertype: n(2),
            malformed: n(3),
            unknown: n(4),
            reset: n(5),
            unreleased: n(6),
            clamped: n(7),
            pure_ack: n(8),
            full: n(9),
            held: n(10),
        }
    }

    /// The interface it is attached to.
    #[must_use]
    pub fn interface(&self) -> &str {
        &self.interface
    }
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gate").field("interface", &self.interface).field("lease", &self.lease()).finish_non_exhaustive()
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        // A link that is dropped detaches its program, and a gate that is lost must close, not open.
        for link in self.links.drain(..) {
            std::mem::forget(link);
        }
    }
}
