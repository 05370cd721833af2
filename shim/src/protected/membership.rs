//! Which run of the backup guards the container.
//!
//! A backup that was lost may be alive on the other side of a broken path, and take over. So the container joins another
//! run only of the very backup that guarded it, which knows this run of the container by a random number that it has on
//! disk beside the generation: a run before this one is over then, since the address could not be listened at otherwise, and it has not gone
//! live. Until then no output leaves.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use stream::StreamError;
use stream::connect::Connection;
use stream::heartbeat::{Heartbeats, Pulse};
use stream::hello::Refusal;
use stream::lease::{Lease, Outcome};
use stream::transport::Sender;
use sys::namespaces::pidfd_signal;
use sys::process::RealTime;

use super::drain::Released;
use super::egress::Shared;
use super::epochs::Link;
use super::session::{Control, Identity, Session};
use crate::Error;
use crate::options::{Options, Protection};

/// Between two attempts to join.
const AGAIN: Duration = Duration::from_millis(200);
/// Meanwhile, how often output that was released before is moved along.
const TURN: Duration = Duration::from_millis(20);

/// The ties between the container and the run of the backup that guards it.
#[derive(Debug)]
pub(super) struct Membership {
    options: Options,
    protection: Protection,
    shared: Arc<Shared>,
    /// The container's init.
    init: OwnedFd,
    identity: Identity,
    ties: Mutex<Ties>,
}

#[derive(Debug)]
struct Ties {
    pulse: Pulse,
    control: Control,
    /// Of log and checkpoints, for ending their connections.
    senders: [Sender; 2],
}

/// What a run of the backup takes: the log, and checkpoints.
#[derive(Debug)]
pub(super) struct Joined {
    pub(super) log: Connection,
    pub(super) checkpoints: Link,
}

impl Membership {
    /// Joins for the first time: from now on silence is suspicious.
    pub(super) fn begin(
        options: &Options,
        protection: &Protection,
        shared: Arc<Shared>,
        init: OwnedFd,
    ) -> Result<(Arc<Self>, Joined), Error> {
        let mut identity = Identity::new();
        let session = Session::open(options, protection, identity)?;
        identity.generation = session.log.welcome.generation;
        let (heartbeats, ties, joined) = parts(session);
        let senders = ties.senders.clone();
        let membership = Arc::new(Self {
            options: options.clone(),
            protection: protection.clone(),
            shared,
            init,
            identity,
            ties: Mutex::new(ties),
        });
        membership.keep_lease(heartbeats, senders)?;
        Ok((membership, joined))
    }

    /// The generation that the container runs under.
    pub(super) const fn generation(&self) -> u64 {
        self.identity.generation
    }

    /// The heartbeats at the moment.
    pub(super) fn pulse(&self) -> Pulse {
        self.ties().pulse.clone()
    }

    /// Tells the backup that the container has ended in order.
    pub(super) fn tell_end(&self, status: i32) {
        self.ties().control.ended(status);
    }

    fn ties(&self) -> MutexGuard<'_, Ties> {
        self.ties.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Joins the next run of the backup, however long that takes; `None` if the run is over before, or the container
    /// lives elsewhere.
    pub(super) fn rejoin(self: &Arc<Self>) -> Option<Joined> {
        let mut said = String::new();
        loop {
            let attempt = Instant::now() + AGAIN;
            while Instant::now() < attempt {
                if self.shared.stop.load(Acquire) {
                    return None;
                }
                if let Err(e) = self.shared.egress().turn(Released::default()) {
                    tracing::warn!(error = %e, "output that was released cannot be sent");
                }
                thread::sleep(TURN);
            }
            let error = match self.try_rejoin() {
                Ok(joined) => return Some(joined),
                Err(error) => error,
            };
            match &error {
                Error::Stream(StreamError::Refused {
                    refusal: Refusal::StaleGeneration { ours, .. },
                    ..
                }) => {
                    self.pulse().lease().fence(*ours);
                    self.end_container();
                    return None;
                }
                // The run before is not over, or its loss not noticed yet.
                Error::Stream(
                    StreamError::Unreachable { .. }
                    | StreamError::Closed { .. }
                    | StreamError::Timeout { .. }
                    | StreamError::Io { .. }
                    | StreamError::Refused {
                        refusal: Refusal::NameTaken { .. },
                        ..
                    },
                ) => tracing::debug!(%error, "the backup cannot be joined yet"),
                error => {
                    let sentence = error.to_string();
                    if sentence != said {
                        eprintln!("understudy: {sentence}; output is held");
                        said = sentence;
                    }
                }
            }
        }
    }

    fn try_rejoin(self: &Arc<Self>) -> Result<Joined, Error> {
        let session = Session::open(&self.options, &self.protection, self.identity)?;
        let (heartbeats, ties, joined) = parts(session);
        if self.pulse().lease().gave_up() {
            ties.pulse.lease().give_up();
        }
        self.keep_lease(heartbeats, ties.senders.clone())?;
        let before = std::mem::replace(&mut *self.ties(), ties);
        before.pulse.stop();
        before.senders.iter().for_each(Sender::shutdown);
        Ok(joined)
    }

    /// `senders` end with the heartbeats.
    fn keep_lease(
        self: &Arc<Self>,
        heartbeats: Heartbeats,
        senders: [Sender; 2],
    ) -> Result<(), Error> {
        let membership = Arc::clone(self);
        thread::Builder::new()
            .name("heartbeat".into())
            .spawn(move || membership.beat(heartbeats, &senders))
            .map(drop)
            .map_err(Error::Arena)
    }

    /// Keeps the lease: each answered heartbeat opens the gate a little longer. A container that is live elsewhere
    /// is ended here.
    fn beat(&self, heartbeats: Heartbeats, senders: &[Sender]) {
        // Without the privilege a busy host may look dead; detection then wants a longer time.
        let _real_time = RealTime::enter(3);
        let ended = heartbeats.run(|outcome| match outcome {
            Outcome::Extended { until } => self.shared.lease.set(until.0),
            Outcome::Unchanged => {}
            Outcome::Fenced { .. } => self.end_container(),
            Outcome::OtherBackup { instance } => {
                self.shared.lease.set(0);
                eprintln!("understudy: another run of the backup answers (instance {instance}), which holds nothing of this container");
            }
        });
        if let Err(e) = ended
            && !self.shared.stop.load(Acquire)
        {
            eprintln!("understudy: heartbeats ended: {e}; output is held until the backup is back");
            // Who has nothing to say would not notice.
            senders.iter().for_each(Sender::shutdown);
        }
    }

    /// This copy of the container must never speak again.
    fn end_container(&self) {
        self.shared.lease.set(0);
        self.shared.stop.store(true, Release);
        // It may have ended by itself.
        let _ = pidfd_signal(self.init.as_fd(), libc::SIGKILL);
    }
}

/// The heartbeats, what is kept of the rest, and what goes to others.
fn parts(session: Session) -> (Heartbeats, Ties, Joined) {
    let Session {
        log,
        heartbeat,
        checkpoint,
        control,
        timing,
    } = session;
    let lease = Lease::new(timing, heartbeat.welcome);
    let senders = [&log, &checkpoint].map(|connection| connection.sender.clone());
    let heartbeats = Heartbeats::new(heartbeat, lease);
    let pulse = heartbeats.pulse();
    let checkpoints = stream::checkpoint::primary(checkpoint);
    let joined = Joined { log, checkpoints };
    let ties = Ties {
        pulse,
        control,
        senders,
    };
    (heartbeats, ties, joined)
}
