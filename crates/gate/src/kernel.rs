//! The gate on one interface: loading the eBPF program, attaching it, and the lease.

use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use aya::maps::{HashMap, Map, MapData, Stack};
use aya::programs::tc::{
    NlOptions, SchedClassifierLink, TcAttachOptions, TcAttachType, qdisc_add_clsact,
};
use aya::programs::{ProgramError, SchedClassifier};
use aya::{Ebpf, EbpfLoader};
use sys::bpf::MappedArray;

use crate::error::GateError;
use crate::layout::{COUNTERS, MAX_CONNECTIONS, config, connection, flag, held};
use crate::openings::Openings;
use crate::tuple::Key;

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
    /// The container's answers to connection requests wait for [`Gate::answer`]; [`Gate::openings`] tells
    /// of them.
    pub answers: bool,
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
    /// Answers to connection requests that were handed to user space.
    pub answers: u64,
}

/// The gate, attached to the host's end of a container's veth.
///
/// Dropping it leaves the program in the kernel, where the lease closes it: only [`Gate::detach`] opens the
/// interface. Methods that take `&self` cost no system call.
pub struct Gate {
    interface: String,
    links: Vec<SchedClassifierLink>,
    pub(crate) config: Arc<MappedArray>,
    pub(crate) connections: MappedArray,
    pub(crate) counters: MappedArray,
    held: Option<MappedArray>,
    openings: Option<Openings>,
    pub(crate) answered: HashMap<MapData, Key, u32>,
    pub(crate) tuples: HashMap<MapData, Key, u32>,
    pub(crate) closed: HashMap<MapData, Key, u32>,
    pub(crate) vacant: Stack<MapData, u32>,
}

/// Sets a gate's lease, whoever holds the gate: what keeps the lease must wait for nobody.
#[derive(Clone, Debug)]
pub struct LeaseKeeper(Arc<MappedArray>);

impl LeaseKeeper {
    /// Lets frames leave until `boot_ns` (nanoseconds of boot time, see [`sys::bpf::boot_ns`]); 0 closes
    /// the gate at once, `u64::MAX` opens it for good.
    pub fn set(&self, boot_ns: u64) {
        self.0.long(config::LEASE_NS).store(boot_ns, Release);
    }
}

/// What the container sends, and what it is sent.
const PROGRAMS: [&str; 2] = ["from_container", "to_container"];

fn program<'a>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut SchedClassifier, GateError> {
    let object = || GateError::Object { part: name };
    ebpf.program_mut(name)
        .ok_or_else(object)?
        .try_into()
        .map_err(|_| object())
}

/// How often the kernel is asked to take a program: it puts the verification off (EAGAIN) where a signal comes, be it one
/// that stops the thread for a moment (`bpf_check` of kernel/bpf/verifier.c; libbpf asks as often).
const ADMISSIONS: u32 = 5;

/// Has the kernel verify a program and take it.
fn admit(program: &mut SchedClassifier) -> Result<(), ProgramError> {
    let mut left = ADMISSIONS;
    loop {
        left -= 1;
        match program.load() {
            Err(ProgramError::LoadError { io_error, .. })
                if left > 0 && io_error.kind() == ErrorKind::WouldBlock => {}
            done => return done,
        }
    }
}

fn map(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, GateError> {
    ebpf.take_map(name).ok_or(GateError::Object { part: name })
}

fn mapped(ebpf: &mut Ebpf, name: &'static str, len: usize) -> Result<MappedArray, GateError> {
    let Map::Array(data) = map(ebpf, name)? else {
        return Err(GateError::Object { part: name });
    };
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
        let (mut gate, mut ebpf) = Self::load(interface, options)?;
        gate.attach_programs(&mut ebpf)?;
        Ok(gate)
    }

    /// Everything up to attaching.
    pub(crate) fn load(interface: &str, options: &Config) -> Result<(Self, Ebpf), GateError> {
        let mut loader = EbpfLoader::new();
        if !options.hold {
            loader.map_max_entries("held", 1);
        }
        let mut ebpf = loader
            .load(OBJECT)
            .map_err(|e| GateError::Load(Box::new(e)))?;
        // Before any map is taken out: until then the programs know their maps by descriptor.
        for name in PROGRAMS {
            admit(program(&mut ebpf, name)?).map_err(|source| GateError::Refused {
                program: name,
                source: Box::new(source),
            })?;
        }
        let wrong = |name| {
            move |e| GateError::MapAccess {
                name,
                source: Box::new(e),
            }
        };
        let held_len = held::SLOTS as usize * held::LEN;
        let mut gate = Self {
            interface: interface.to_owned(),
            links: Vec::new(),
            config: Arc::new(mapped(&mut ebpf, "config", config::LEN)?),
            connections: mapped(
                &mut ebpf,
                "connections",
                MAX_CONNECTIONS as usize * connection::LEN,
            )?,
            counters: mapped(&mut ebpf, "counters", COUNTERS * 8)?,
            held: options
                .hold
                .then(|| mapped(&mut ebpf, "held", held_len))
                .transpose()?,
            openings: None,
            answered: map(&mut ebpf, "answered")?
                .try_into()
                .map_err(wrong("answered"))?,
            tuples: map(&mut ebpf, "tuples")?
                .try_into()
                .map_err(wrong("tuples"))?,
            closed: map(&mut ebpf, "closed")?
                .try_into()
                .map_err(wrong("closed"))?,
            vacant: map(&mut ebpf, "vacant")?
                .try_into()
                .map_err(wrong("vacant"))?,
        };
        let ring = map(&mut ebpf, "openings")?;
        if options.answers {
            let ring = ring.try_into().map_err(wrong("openings"))?;
            gate.openings = Some(Openings::new(ring));
        }
        for index in (0..MAX_CONNECTIONS).rev() {
            gate.vacant.push(index, 0).map_err(wrong("vacant"))?;
        }
        if let Some(mac) = options.mask {
            gate.config.write(config::MASK, &mac);
        }
        let bits = [
            (options.gate, flag::GATE),
            (options.mask.is_some(), flag::MASK),
            (options.hold, flag::HOLD),
            (options.answers, flag::ANSWERS),
        ];
        let flags = bits
            .iter()
            .filter(|(on, _)| *on)
            .fold(0, |all, (_, bit)| all | bit);
        gate.config.word(config::FLAGS).store(flags, Release);
        Ok((gate, ebpf))
    }

    /// By netlink, not by TCX: a TCX link goes with its descriptor, and a killed shim would open the gate.
    fn attach_programs(&mut self, ebpf: &mut Ebpf) -> Result<(), GateError> {
        let refused = |step| {
            let interface = self.interface.clone();
            move |source: Box<dyn std::error::Error + Send + Sync>| GateError::Attach {
                interface,
                step,
                source,
            }
        };
        if let Err(e) = qdisc_add_clsact(&self.interface)
            && !matches!(e, aya::programs::tc::TcError::AlreadyAttached)
        {
            return Err(refused("clsact")(e.into()));
        }
        for (name, at) in PROGRAMS
            .into_iter()
            .zip([TcAttachType::Ingress, TcAttachType::Egress])
        {
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

    /// As [`LeaseKeeper::set`].
    pub fn set_lease(&self, boot_ns: u64) {
        self.lease_keeper().set(boot_ns);
    }

    /// A handle that sets the lease.
    #[must_use]
    pub fn lease_keeper(&self) -> LeaseKeeper {
        LeaseKeeper(Arc::clone(&self.config))
    }

    /// When the lease ends, in nanoseconds of boot time.
    #[must_use]
    pub fn lease(&self) -> u64 {
        self.config.long(config::LEASE_NS).load(Acquire)
    }

    fn set_flag(&self, bit: u32, on: bool) {
        let flags = self.config.word(config::FLAGS);
        if on {
            flags.fetch_or(bit, Release)
        } else {
            flags.fetch_and(!bit, Release)
        };
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

    /// The reader of answers that wait; `None` without [`Config::answers`], and from the second call on.
    pub fn openings(&mut self) -> Option<Openings> {
        self.openings.take()
    }

    /// The memory of kept frames, if this gate keeps any.
    pub(crate) const fn held(&self) -> Option<&MappedArray> {
        self.held.as_ref()
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
            answers: n(11),
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
        f.debug_struct("Gate")
            .field("interface", &self.interface)
            .field("lease", &self.lease())
            .finish_non_exhaustive()
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
