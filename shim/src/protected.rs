//! A protected run: the container is recorded, its log streamed, its output held until the backup has the
//! log that caused it, and a checkpoint taken every epoch.
//!
//! * [`session`]: the four connections to the backup.
//! * [`drain`]: from the rings to the log connection; new connections are adopted on the way.
//! * [`egress`]: gate and output of all connections; what an acknowledgement releases.
//! * [`openings`]: connections in the making, on their way from the gate to the log.
//! * [`handshakes`]: what a takeover would need to know of all connections.
//! * [`epochs`]: checkpoints, and the fold that goes into their images.
//! * [`tail`]: the log since the last cut, for the fold.
//! * [`bereft`]: connections whose last holder was killed.

mod bereft;
mod drain;
mod egress;
mod epochs;
mod handshakes;
mod openings;
mod session;
mod status;
mod tail;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{
    AtomicBool,
    Ordering::{Acquire, Release},
};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use gate::{Config, Gate, Injector};
use guest::abi::{ARENA_FD, ROOM_FD, flag, mode};
use nix::sys::eventfd::{EfdFlags, EventFd};
use recorder::Drainer;
use stream::heartbeat::{Heartbeats, Pulse};
use stream::lease::{Lease, Outcome};
use sys::arena::Arena;
use sys::follow::Follower;
use sys::namespaces::{in_network, pidfd_open, pidfd_signal};
use sys::process::RealTime;

use crate::Error;
use crate::container::{Container, Ended, Isolation, Prepared, Program, Spec};
use crate::control::{self, Role, Server};
use crate::options::{Mode, OnBackupLoss, Options, Protection};
use crate::signals::{Signals, wait_passing};
pub use session::host_traits;

use drain::{LogSink, Released, Shipper};
use egress::{Egress, Shared};
use session::Session;
use tail::Tail;

/// How long the acknowledgements' thread waits while nothing is on its way.
const IDLE: Duration = Duration::from_millis(20);
/// … and while something is.
const BUSY: Duration = Duration::from_millis(1);

/// Runs the command of `options`, protected, to its end.
pub(crate) fn run(options: &Options, protection: &Protection) -> Result<i32, Error> {
    refuse_unbuilt(protection)?;
    let signals = Signals::block()?;
    let arena = Arc::new(Arena::new(mode::RECORD, flag::OWN_OUTPUT).map_err(Error::Arena)?);
    let room = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
        .map_err(Error::descriptor)?;
    let room: Arc<OwnedFd> = Arc::new(room.as_fd().try_clone_to_owned().map_err(Error::Arena)?);
    let mut prepared = prepare(options, &arena, &room)?;
    let mut gate = attach_gate(prepared.container(), options, protection)?;
    let openings = gate.openings();
    let lease = gate.lease_keeper();
    // Not before: one frame under the container's own address, and bridges remember it for minutes.
    prepared.attach()?;
    let network = prepared.container().namespace("net")?;
    let injector = in_network(network.as_fd(), || {
        Injector::open().map_err(std::io::Error::other)
    })
    .map_err(Error::Arena)?;
    let (init, program) = (prepared.init_pid, prepared.program_pid);
    let shared = Arc::new(Shared {
        egress: Mutex::new(Egress::new(gate, injector, Arc::clone(&arena), room)?),
        tail: Mutex::new(Tail::default()),
        stop: AtomicBool::new(false),
        stats: Mutex::new(status::Stats::default()),
        openings: Mutex::default(),
        lease,
        arena: Arc::clone(&arena),
        init,
    });
    let follower = Follower::attach(Arc::clone(&arena), init, program)?;
    // Dropped before the follower, which waits for the program's first execve or its end.
    let prepared = prepared;
    let mut threads = Threads::default();
    // Last, since from now on silence would be suspicious.
    let session = Session::open(options, protection)?;
    let Session {
        log,
        heartbeat,
        checkpoint,
        control: mut control_connection,
        timing,
    } = session;
    let generation = log.welcome.generation;
    let lease = Lease::new(timing, heartbeat.welcome);
    let heartbeats = Heartbeats::new(heartbeat, lease);
    let pulse = heartbeats.pulse();
    threads.start("heartbeat", {
        let shared = Arc::clone(&shared);
        let init = pidfd_open(init).map_err(Error::Arena)?;
        move || beat(heartbeats, &shared, &init)
    })?;
    let (log_sender, acks) = stream::log::primary(log);
    let (sink, tracker) = LogSink::new(log_sender, Arc::clone(&shared));
    let drainer = Drainer::new(Arc::clone(&arena), sink, follower.caller());
    let shipper = Shipper::new(drainer, tracker.clone(), Arc::clone(&shared));
    let shipper = Arc::new(shipper);
    threads.start("drain", {
        let shipper = Arc::clone(&shipper);
        move || shipper.run()
    })?;
    if let Some(openings) = openings {
        let shared = Arc::clone(&shared);
        threads.start("openings", move || openings::run(openings, &shared))?;
    }
    threads.start("release", {
        let shared = Arc::clone(&shared);
        move || release(acks, &tracker, &shipper, &shared)
    })?;
    let mut container = prepared.open_gate()?;
    container.started()?;
    follower.started()?;
    let (sender, commits) = stream::checkpoint::primary(checkpoint);
    let epochs = epochs::Epochs::new(
        Arc::clone(&shared),
        program,
        follower.images(),
        protection.epoch,
        sender,
        commits,
    );
    threads.start("epoch", move || epochs.run())?;
    let handler = status::Protected::new(
        options,
        protection,
        Arc::clone(&shared),
        pulse.clone(),
        generation,
        program,
    );
    let _server = Server::bind(
        &control::directory(),
        &options.name,
        Role::Primary,
        Arc::new(handler),
    )?;
    let ended = wait_passing(&mut container, &signals)?;
    shared.stop.store(true, Release);
    let (fenced, gave_up) = {
        let lease = pulse.lease();
        (lease.fenced(), lease.gave_up())
    };
    if let Some(generation) = fenced {
        drop(container);
        threads.detach();
        return if gave_up {
            Ok(0)
        } else {
            Err(Error::Fenced { generation })
        };
    }
    if is_loss(ended) {
        hand_over(&shared, &pulse);
    } else {
        control_connection.ended(ended.code());
    }
    pulse.stop();
    drop(container);
    threads.detach();
    Ok(ended.code())
}

/// Whether the program was killed from outside, which no program does of itself: the backup goes on with it.
fn is_loss(ended: Ended) -> bool {
    matches!(ended, Ended::Lost | Ended::Signaled(libc::SIGKILL))
}

/// Leaves the container to the backup. The gate is closed first: from then on the backup may go live.
fn hand_over(shared: &Shared, pulse: &Pulse) {
    shared.lease.set(0);
    match pulse.give_up() {
        Ok(()) => eprintln!("understudy: the container was killed: the backup goes on with it"),
        // It will notice the silence.
        Err(e) => {
            eprintln!("understudy: the container was killed, and the backup cannot be told: {e}")
        }
    }
}

/// Switches that the command line knows and this build does not serve must not be taken for served.
fn refuse_unbuilt(protection: &Protection) -> Result<(), Error> {
    let unbuilt = |what| Err(Error::Unbuilt { what });
    match (
        protection.mode,
        protection.on_backup_loss,
        protection.mirrors.is_empty(),
    ) {
        (Mode::Hybrid, OnBackupLoss::Stall, true) => Ok(()),
        (Mode::Checkpoint, ..) => unbuilt("--mode checkpoint"),
        (Mode::Active, ..) => unbuilt("--mode active"),
        (_, OnBackupLoss::Continue, _) => unbuilt("--on-backup-loss continue"),
        (.., false) => unbuilt("--mirror"),
    }
}

fn prepare(options: &Options, arena: &Arena, room: &OwnedFd) -> Result<Prepared, Error> {
    let spec = Spec {
        name: options.name.clone(),
        isolation: Isolation::FULL,
        link: Some(options.link.clone()),
    };
    let mut program = Program::new(options.command.clone());
    program.descriptors = vec![
        (
            arena.file().try_clone_to_owned().map_err(Error::Arena)?,
            ARENA_FD,
        ),
        (room.try_clone().map_err(Error::Arena)?, ROOM_FD),
    ];
    Ok(Container::prepare_apart(&spec, program)?)
}

/// Attaches the gate to the host's end of the container's link. It stays closed until the lease opens it.
fn attach_gate(
    container: &Container,
    options: &Options,
    protection: &Protection,
) -> Result<Gate, Error> {
    let index = container.host_link().ok_or(Error::NoLink)?;
    let name = nix::net::if_::if_indextoname(index).map_err(Error::descriptor)?;
    Ok(Gate::attach(
        &name.to_string_lossy(),
        &Config {
            gate: true,
            mask: protection.tap.then(|| mask_of(options)),
            hold: false,
            answers: true,
        },
    )?)
}

/// The source address of the container's frames: not its own, so that bridges flood what is sent to it to the
/// backup, too, which holds it for the time after a takeover.
fn mask_of(options: &Options) -> [u8; 6] {
    let [a, b, c, d] = options.link.address.octets();
    [0x06, 0x75, a, b, c, d]
}

/// Keeps the lease: each answered heartbeat opens the gate a little longer. A container that is live elsewhere
/// is ended here.
fn beat(heartbeats: Heartbeats, shared: &Shared, init: &OwnedFd) {
    // Without the privilege a busy host may look dead; detection then wants a longer time.
    let _real_time = RealTime::enter(3);
    let ended = heartbeats.run(|outcome| match outcome {
        Outcome::Extended { until } => shared.lease.set(until.0),
        Outcome::Unchanged => {}
        Outcome::Fenced { .. } => {
            shared.lease.set(0);
            shared.stop.store(true, Release);
            // It may have ended by itself.
            let _ = pidfd_signal(init.as_fd(), libc::SIGKILL);
        }
        Outcome::OtherBackup { instance } => {
            shared.lease.set(0);
            eprintln!("understudy: another run of the backup answers (instance {instance}), which holds nothing of this container");
        }
    });
    if let Err(e) = ended
        && !shared.stop.load(Acquire)
    {
        eprintln!("understudy: heartbeats ended: {e}; output is held until the backup is back");
    }
}

/// Releases what the backup has acknowledged, and keeps output moving.
fn release(
    mut acks: stream::log::AckReceiver,
    tracker: &drain::Tracker,
    shipper: &Shipper,
    shared: &Shared,
) {
    // Whoever is woken by an answer must not keep the others back: clients come one by one then, and the
    // server is woken for each.
    let _real_time = RealTime::enter(1);
    loop {
        let wait = if shared.egress().is_busy() {
            BUSY
        } else {
            IDLE
        };
        let acked = match acks.recv(Some(wait)) {
            Ok(acked) => acked,
            Err(e) => {
                if !shared.stop.load(Acquire) {
                    eprintln!("understudy: the log's connection ended: {e}; output is held");
                }
                return;
            }
        };
        if shared.stop.load(Acquire) && acked.is_none() && tracker.is_settled() {
            return;
        }
        let released = match acked.map(|number| tracker.acknowledged(number)) {
            Some(Ok(released)) => released,
            Some(Err(e)) => {
                eprintln!(
                    "understudy: the backup's acknowledgement makes no sense: {e}; output is held"
                );
                return;
            }
            None => Released::default(),
        };
        if let Err(e) = shared.egress().turn(&released) {
            eprintln!("understudy: sending failed: {e}");
        }
        if let Err(e) = shipper.go_on() {
            eprintln!("understudy: the log cannot be sent: {e}; output is held");
            return;
        }
    }
}

/// The threads of a run. They end with their connections and the process.
#[derive(Debug, Default)]
struct Threads(Vec<JoinHandle<()>>);

impl Threads {
    fn start(&mut self, name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), Error> {
        self.0.push(
            thread::Builder::new()
                .name(name.into())
                .spawn(body)
                .map_err(Error::Arena)?,
        );
        Ok(())
    }

    /// The container has ended and the backup knows: nothing they could still do matters.
    fn detach(self) {
        drop(self.0);
    }
}
