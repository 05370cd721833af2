//! A protected run: the container is recorded, its log streamed, its output held until the backup has the
//! log that caused it, and a checkpoint taken every epoch.
//!
//! * [`membership`]: which run of the backup guards it, and how it joins the next.
//! * [`session`]: the four connections to the backup.
//! * [`drain`]: from the rings to the log connection; new connections are adopted on the way.
//! * [`egress`]: gate and output of all connections; what an acknowledgement releases.
//! * [`openings`]: connections in the making, on their way from the gate to the log.
//! * [`handshakes`]: what a takeover would need to know of all connections.
//! * [`epochs`]: checkpoints, and the fold that goes into their images.
//! * [`tail`]: the log since the last cut, for the fold.
//! * [`bereft`]: connections whose last holder was killed.

mod at_cut;
mod bereft;
mod drain;
mod egress;
mod epochs;
mod files;
mod handshakes;
mod held;
mod membership;
mod openings;
mod session;
mod status;
mod tail;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{
    AtomicBool,
    Ordering::{Acquire, Release},
};
use std::sync::mpsc::{self, channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use gate::{Config, Gate, Injector};
use guest::abi::{ARENA_FD, ROOM_FD, flag, mode};
use nix::sys::eventfd::{EfdFlags, EventFd};
use recorder::Drainer;
use stream::StreamError;
use stream::ack::AckError;
use stream::heartbeat::Pulse;
use stream::log::AckReceiver;
use sys::arena::Arena;
use sys::follow::Follower;
use sys::namespaces::{in_network, pidfd_open};
use sys::process::RealTime;

use crate::Error;
use crate::container::{Container, Ended, Isolation, Prepared, Program, Spec};
use crate::control::{self, Role, Server};
use crate::options::{Mode, OnBackupLoss, Options, Protection};
use crate::signals::{Signals, wait_passing};
pub use session::{BUILD, host_traits};

use drain::{LogSink, Released, Shipper};
use egress::{Egress, Shared};
use held::Held;
use membership::{Joined, Membership};
use tail::Tail;

/// How long the acknowledgements' thread waits while nothing is on its way.
const IDLE: Duration = Duration::from_millis(20);
/// … and while something is.
const BUSY: Duration = Duration::from_millis(1);

/// Runs the command of `options`, protected, to its end.
pub(crate) fn run(options: &Options, protection: &Protection) -> Result<i32, Error> {
    refuse_unbuilt(protection)?;
    let signals = Signals::block()?;
    let serial = if protection.serial { flag::SERIAL } else { 0 };
    let arena = Arena::new(mode::RECORD, flag::OWN_OUTPUT | serial);
    let arena = Arc::new(arena.map_err(Error::Arena)?);
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
        held: (protection.mode == Mode::Checkpoint).then(Held::default),
        lease,
        arena: Arc::clone(&arena),
        init,
    });
    let follower = Follower::attach(Arc::clone(&arena), init, program)?;
    // Dropped before the follower, which waits for the program's first execve or its end.
    let prepared = prepared;
    let mut threads = Threads::default();
    // Last, since from now on silence would be suspicious.
    let (membership, joined) = Membership::begin(
        options,
        protection,
        Arc::clone(&shared),
        pidfd_open(init).map_err(Error::Arena)?,
    )?;
    let (log_sender, acks) = stream::log::primary(joined.log);
    let (checkpoints, links) = channel();
    // The other end is here.
    let _ = checkpoints.send(joined.checkpoints);
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
        let releaser = Releaser {
            tracker,
            shipper,
            shared: Arc::clone(&shared),
            membership: Arc::clone(&membership),
            checkpoints,
        };
        move || releaser.run(acks)
    })?;
    let mut container = prepared.open_gate()?;
    container.started()?;
    follower.started()?;
    let epochs = epochs::Epochs::new(
        Arc::clone(&shared),
        program,
        follower.images(),
        protection.epoch,
        links,
        files::Files::new(session::mirrors(protection)),
    );
    threads.start("epoch", move || epochs.run())?;
    let handler = status::Protected::new(
        options,
        protection,
        Arc::clone(&shared),
        Arc::clone(&membership),
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
    let pulse = membership.pulse();
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
        membership.tell_end(ended.code());
        // Nobody goes on from a checkpoint any more.
        if let Some(held) = &shared.held
            && let Err(e) = shared.egress().turn(held.take())
        {
            eprintln!("understudy: sending failed: {e}");
        }
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
    match (protection.mode, protection.on_backup_loss) {
        (Mode::Hybrid | Mode::Checkpoint, OnBackupLoss::Stall) => Ok(()),
        (Mode::Active, _) => unbuilt("--mode active"),
        (_, OnBackupLoss::Continue) => unbuilt("--on-backup-loss continue"),
    }
}

fn prepare(options: &Options, arena: &Arena, room: &OwnedFd) -> Result<Prepared, Error> {
    let spec = Spec {
        mounts: Vec::new(),
        name: options.name.clone(),
        isolation: Isolation::Full,
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

/// Releases what the backup has acknowledged, keeps output moving, and joins the next run of a backup that is lost.
struct Releaser {
    tracker: drain::Tracker,
    shipper: Arc<Shipper>,
    shared: Arc<Shared>,
    membership: Arc<Membership>,
    checkpoints: mpsc::Sender<epochs::Link>,
}

/// Why nothing is acknowledged any more.
#[derive(Debug, thiserror::Error)]
enum Unacknowledged {
    #[error("the log's connection ended: {0}")]
    Ended(#[from] StreamError),
    #[error("the backup's acknowledgement makes no sense: {0}")]
    Senseless(#[from] AckError),
}

impl Releaser {
    fn run(self, mut acks: AckReceiver) {
        // Whoever is woken by an answer must not keep the others back: clients come one by one then, and the
        // server is woken for each.
        let _real_time = RealTime::enter(1);
        while let Err(e) = self.release(&mut acks) {
            if self.shared.stop.load(Acquire) {
                return;
            }
            eprintln!("understudy: {e}; output is held");
            self.shipper.leave();
            let Some(next) = self.join() else {
                return;
            };
            eprintln!("understudy: the backup is back; output goes on behind the next checkpoint");
            acks = next;
        }
    }

    /// Releases until the run is over.
    fn release(&self, acks: &mut AckReceiver) -> Result<(), Unacknowledged> {
        loop {
            let wait = if self.shared.egress().is_busy() {
                BUSY
            } else {
                IDLE
            };
            let acked = acks.recv(Some(wait))?;
            if self.shared.stop.load(Acquire) && acked.is_none() && self.tracker.is_settled() {
                return Ok(());
            }
            let released = match acked {
                Some(number) => self.tracker.acknowledged(number)?,
                None => Released::default(),
            };
            let released = self.shared.acknowledged(released);
            if let Err(e) = self.shared.egress().turn(released) {
                eprintln!("understudy: sending failed: {e}");
            }
            self.shipper.go_on();
        }
    }

    /// Joins the next run of the backup, which gets log and checkpoints from now on; `None` if the run is over before.
    fn join(&self) -> Option<AckReceiver> {
        loop {
            let Joined { log, checkpoints } = self.membership.rejoin()?;
            let (sender, acks) = stream::log::primary(log);
            match self.shipper.join(sender) {
                Ok(()) => {
                    // Without that thread the run is over.
                    self.checkpoints.send(checkpoints).ok()?;
                    return Some(acks);
                }
                Err(error) => tracing::debug!(%error, "the backup was lost again"),
            }
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
