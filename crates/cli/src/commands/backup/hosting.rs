//! The containers that a backup watches, and those it has taken over.

use std::collections::HashMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use backup::arbiter::Phase;
use backup::detector::Suspicion;
use backup::server::Handle;
use backup::takeover::{Checkpoint, Details, Live, Report, Search, Standby, TakeoverError};
use backup::{Back, Event, Guard, evidence};
use eventlog::codec;

use crate::arguments::{FailureArgument, RetryArguments};

/// Between two attempts for which nothing could stand by.
const PAUSE: Duration = Duration::from_millis(10);
/// Between two looks whether an end was asked for.
const LOOK: Duration = Duration::from_millis(100);
/// Between two looks at a takeover that may be called off.
const SOON: Duration = Duration::from_millis(5);

/// How containers are taken over.
#[derive(Clone, Debug)]
pub(super) struct Manner {
    /// The bridge that they join; the primary's name for it without.
    pub(super) bridge: Option<String>,
    /// How often it is tried.
    pub(super) retry: RetryArguments,
    /// What becomes of one for which that does not do.
    pub(super) on_failure: FailureArgument,
    /// Where checkpoint and log of such a one are kept.
    pub(super) failed: PathBuf,
}

/// Standbys, and threads that host containers.
#[derive(Debug)]
pub(super) struct Hosting {
    manner: Manner,
    handle: Arc<Handle<Checkpoint>>,
    stop: Arc<AtomicBool>,
    standbys: HashMap<String, Standby>,
    /// By the container's name: one takeover at a time.
    hosts: HashMap<String, Host>,
    /// Containers that could not be taken over, with the last heartbeat before that: until there is another.
    lost: HashMap<String, (Arc<Guard<Checkpoint>>, u64)>,
}

/// A takeover, and the container's life after it.
#[derive(Debug)]
struct Host {
    guard: Arc<Guard<Checkpoint>>,
    /// The primary's last heartbeat before it.
    last_beat: u64,
    /// Says whether it took over.
    thread: JoinHandle<bool>,
}

impl Hosting {
    pub(super) fn new(manner: Manner, handle: Handle<Checkpoint>, stop: Arc<AtomicBool>) -> Self {
        let (standbys, hosts) = (HashMap::new(), HashMap::new());
        let handle = Arc::new(handle);
        Self {
            manner,
            handle,
            stop,
            standbys,
            hosts,
            lost: HashMap::new(),
        }
    }

    /// Acts on the next event, if one comes soon.
    pub(super) fn serve(&mut self, events: &Receiver<Event<Checkpoint>>) {
        let ends_soon = |host: &Host| host.guard.phase() != Phase::Live;
        let pause = if self.hosts.values().any(ends_soon) {
            SOON
        } else {
            LOOK
        };
        match events.recv_timeout(pause) {
            Ok(event) => self.act(event),
            Err(RecvTimeoutError::Timeout) => {}
            // The server holds the other end; it is about to be noticed.
            Err(RecvTimeoutError::Disconnected) => thread::sleep(LOOK),
        }
        self.collect_hosts();
        self.welcome_back();
    }

    /// Notes which takeovers have failed, of those that are over.
    fn collect_hosts(&mut self) {
        let over = self.hosts.extract_if(|_, host| host.thread.is_finished());
        for (name, host) in over {
            // A thread that panicked took nothing over.
            if !host.thread.join().unwrap_or(false) {
                self.lost.insert(name, (host.guard, host.last_beat));
            }
        }
    }

    /// A takeover that was called off has used up the standby: those who are heard again need another. One that was lost
    /// meanwhile is taken over now: nobody heard of it.
    fn welcome_back(&mut self) {
        let heard = |_: &String, (guard, last): &mut (Arc<Guard<Checkpoint>>, u64)| {
            guard.last_beat() != *last
        };
        let back: Vec<_> = self.lost.extract_if(heard).collect();
        for (name, (guard, _)) in back {
            tracing::warn!(name, "the primary is back");
            self.prepare(&guard);
            self.suspected(guard);
        }
    }

    fn act(&mut self, event: Event<Checkpoint>) {
        match event {
            Event::Connected(guard) => self.prepare(&guard),
            Event::Protected(guard) => tracing::info!(name = guard.hello().name, "protected"),
            Event::Suspected(guard) => self.suspected(guard),
            Event::FalseAlarm(guard) => {
                let name = &guard.hello().name;
                tracing::warn!(name, "the primary was silent and is back");
            }
            Event::Ended(guard, status) => {
                let name = &guard.hello().name;
                tracing::info!(name, status, "ended");
                self.standbys.remove(name);
                self.handle.forget(name);
            }
            Event::Forgotten(guard) => {
                let name = &guard.hello().name;
                self.standbys.remove(name);
                self.lost.remove(name);
            }
            Event::Failed(guard, channel, error) => {
                tracing::warn!(name = guard.hello().name, ?channel, %error, "a connection failed");
            }
        }
    }

    fn prepare(&mut self, guard: &Arc<Guard<Checkpoint>>) {
        let name = guard.hello().name.clone();
        // One of an earlier run, whose link has the same name.
        self.standbys.remove(&name);
        self.lost.remove(&name);
        match standby(guard, &self.manner) {
            Ok(standby) => {
                self.standbys.insert(name, standby);
            }
            Err(error) => eprintln!("understudy: nothing can stand by for {name}: {error}"),
        }
    }

    /// Takes over, if the primary is still taken for dead: it may have been heard since somebody said so.
    fn suspected(&mut self, guard: Arc<Guard<Checkpoint>>) {
        let name = guard.hello().name.clone();
        if self.hosts.contains_key(&name) || self.lost.contains_key(&name) {
            // `welcome_back` asks again.
            return;
        }
        let (last_beat, Some(suspicion)) = (guard.last_beat(), guard.suspicion()) else {
            return;
        };
        tracing::warn!(name, ?suspicion, "the primary is lost");
        if guard.phase() == Phase::Unprotected {
            // There is nothing to take over. A primary that is slow at its start goes on as it was; one that
            // is gone is forgotten with its connections.
            eprintln!("understudy: {name} is silent, and was not protected yet");
            return;
        }
        let prepared = self.standbys.remove(&name);
        let manner = self.manner.clone();
        let (stop, handle) = (Arc::clone(&self.stop), Arc::clone(&self.handle));
        let (key, kept) = (name.clone(), Arc::clone(&guard));
        let thread = thread::Builder::new().name("host".into()).spawn(move || {
            let begin = (suspicion, last_beat);
            let Some(live) = take_over(&guard, prepared, &manner, begin) else {
                return false;
            };
            match live.host(&stop) {
                Ok(ended) => tracing::info!(name, ?ended, "the container has ended"),
                Err(error) => eprintln!("understudy: {name} cannot be hosted: {error}"),
            }
            handle.forget(&name);
            true
        });
        match thread {
            Ok(thread) => {
                let host = Host {
                    guard: kept,
                    last_beat,
                    thread,
                };
                self.hosts.insert(key, host);
            }
            Err(error) => eprintln!("understudy: no thread for a takeover: {error}"),
        }
    }

    /// Ends every container: `stop` is set.
    pub(super) fn end(mut self) {
        self.stop.store(true, Ordering::Release);
        self.standbys.clear();
        for (_, host) in self.hosts.drain() {
            // A panic was told when it happened.
            let _ = host.thread.join();
        }
    }
}

/// Why there was no takeover.
enum Given {
    /// The primary has its container back.
    Back(Back),
    /// All attempts have failed.
    Up,
}

/// Why one attempt did not end in a takeover.
enum Failed {
    /// None is needed.
    CalledOff(Back),
    /// Another may end otherwise; it was told.
    Tried,
    /// It did not come so far as to be tried.
    NotReady(String),
    /// So would every other; it was told.
    Impossible,
}

fn details(guard: &Guard<Checkpoint>) -> Result<Details, String> {
    codec::decode(&guard.hello().details).map_err(|e| e.to_string())
}

fn standby(guard: &Arc<Guard<Checkpoint>>, manner: &Manner) -> Result<Standby, String> {
    let details = details(guard)?;
    let bridge = manner.bridge.clone();
    let bridge = bridge.unwrap_or_else(|| details.bridge.clone());
    Standby::prepare(details, &bridge, guard).map_err(|e| e.to_string())
}

/// Takes over, in one way or the other; prints how it went. `None` where the primary is heard after `last_beat`, or the
/// container is lost.
fn take_over(
    guard: &Arc<Guard<Checkpoint>>,
    prepared: Option<Standby>,
    manner: &Manner,
    (suspicion, last_beat): (Suspicion, u64),
) -> Option<Live> {
    let name = &guard.hello().name;
    let mut search = manner.retry.search();
    if details(guard).is_ok_and(|details| !details.replays) {
        search.need_no_log();
    }
    let tried = try_until(guard, prepared, manner, (suspicion, last_beat), &mut search);
    let tried = match tried {
        Err(Given::Up) if manner.on_failure == FailureArgument::Checkpoint => {
            eprintln!(
                "understudy: {name} could not be taken over: it goes on from its last checkpoint, what it did and \
                 answered since is lost, and its connections are reset"
            );
            keep(guard, &manner.failed.join(name));
            search.leave_out_log();
            try_until(guard, None, manner, (suspicion, last_beat), &mut search)
        }
        other => other,
    };
    match tried {
        Ok((live, report)) => {
            println!("takeover {name} {report} attempts={}", search.number());
            Some(live)
        }
        Err(Given::Back(back)) => {
            eprintln!("understudy: takeover of {name} called off: {back}");
            None
        }
        Err(Given::Up) => {
            eprintln!("understudy: {name} could not be taken over: it is lost");
            if manner.on_failure == FailureArgument::Refuse {
                keep(guard, &manner.failed.join(name));
            }
            None
        }
    }
}

/// Tries to take over until that is done, the primary is heard after `last_beat`, or the time for it is used up.
fn try_until(
    guard: &Arc<Guard<Checkpoint>>,
    mut prepared: Option<Standby>,
    manner: &Manner,
    (suspicion, last_beat): (Suspicion, u64),
    search: &mut Search,
) -> Result<(Live, Report), Given> {
    loop {
        let begin = (suspicion, last_beat);
        match try_once(guard, prepared.take(), manner, begin, search) {
            Ok(taken) => return Ok(taken),
            Err(Failed::CalledOff(back)) => return Err(Given::Back(back)),
            Err(Failed::Impossible) => return Err(Given::Up),
            Err(Failed::NotReady(error)) => {
                tell(&guard.hello().name, search.number(), &error);
                thread::sleep(PAUSE);
            }
            Err(Failed::Tried) => {}
        }
        guard.is_silent_since(last_beat).map_err(Given::Back)?;
        if !search.may_go_on() {
            return Err(Given::Up);
        }
    }
}

/// Writes down what is known of a container that is lost, for whoever wants to know why.
fn keep(guard: &Guard<Checkpoint>, directory: &Path) {
    let (name, path) = (&guard.hello().name, directory.display());
    match evidence::keep(guard, directory) {
        Ok(()) => eprintln!(
            "understudy: checkpoint and log of {name} are kept: see `understudy replay {path}`"
        ),
        Err(error) => eprintln!("understudy: checkpoint and log of {name} are not kept: {error}"),
    }
}

fn tell(name: &str, attempt: u32, error: &dyn Display) {
    eprintln!("understudy: takeover of {name}, attempt {attempt}: {error}");
}

fn try_once(
    guard: &Arc<Guard<Checkpoint>>,
    prepared: Option<Standby>,
    manner: &Manner,
    (suspicion, last_beat): (Suspicion, u64),
    search: &mut Search,
) -> Result<(Live, Report), Failed> {
    let name = guard.hello().name.clone();
    // Before the takeover begins: a primary that is alive has to be silent from then on.
    let standby = match prepared {
        Some(standby) => standby,
        None => standby(guard, manner).map_err(Failed::NotReady)?,
    };
    guard
        .is_silent_since(last_beat)
        .map_err(Failed::CalledOff)?;
    let attempt = guard.take_over().map_err(|error| {
        tell(&name, search.number(), &error);
        Failed::Impossible
    })?;
    let told = Box::new(move |number, error: &TakeoverError| tell(&name, number, error));
    let taken = standby.take_over(attempt, suspicion, search, told);
    taken.map_err(|error| match error {
        TakeoverError::Back(back) => Failed::CalledOff(back),
        other if other.may_come_right() => Failed::Tried,
        _ => Failed::Impossible,
    })
}
