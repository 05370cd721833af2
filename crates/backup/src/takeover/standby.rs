//! How a container in waiting takes over.

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Release;
use std::thread;
use std::time::Duration;

use eventlog::fold::{DescriptionId, Merge};
use eventlog::handover::Details;
use gate::rebuild::{Prober, forged_end};
use gate::{Config, Gate, Tap};
use guest::abi::{ARENA_FD, mode};
use nix::sched::{CloneFlags, setns};
use shim::container::{Isolation, Link, Spec};
use stream::Nanos;
use sys::arena::{Arena, futex_wake};
use sys::namespaces::in_container;
use sys::packet::PacketSocket;

use super::checkpoint::Checkpoint;
use super::clock::Clock;
use super::connections::{self, Ready};
use super::continued::Continued;
use super::described;
use super::error::{Result, TakeoverError, io};
use super::folding::{self, Folded};
use super::handshakes::Handshakes;
use super::live::{Live, Output};
use super::log::Log;
use super::objects::Objects;
use super::peers::{self, Peer};
use super::population::Population;
use super::process::{self, Processes, Shared};
use super::search::{Search, Use};
use super::session::Session;
use super::stage::{Director, Past, Stage};
use super::waiting::Tell;
use super::{backlog, children, options, place, privileges, resets, spinning, timers};
use crate::detector::Suspicion;
use crate::guard::{Attempt, Guard};
use crate::mirror::Mirror;

/// Frames are looked at from this long before the primary's last sign of life: what a client sent then may
/// not be in the log.
const BEFORE: u64 = 300_000_000;
/// Where forged frames seem to come from.
const NEIGHBOUR: [u8; 6] = [2, 0x75, 0xff, 0xff, 0xff, 0xfe];

/// A container without a program: namespaces, a link on the bridge, a closed gate that keeps what is sent to
/// it, and processes that follow the checkpoints. Belongs to one thread, which traces.
#[derive(Debug)]
pub(super) struct Vacant {
    stage: Stage,
    details: Details,
    gate: Gate,
    /// On the host's end of the link.
    link: PacketSocket,
}

/// What a takeover took.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// From the primary's last sign of life to the first instruction here.
    pub gap: Duration,
    /// Records in the log that was replayed.
    pub replayed_events: u64,
    /// Bytes of memory that came from the image.
    pub restored_bytes: u64,
    /// Connections that go on, and those that could not.
    pub connections: (usize, usize),
    /// Of those that go on, whose peers did not answer in time.
    pub silent: usize,
    /// Frames delivered that came meanwhile.
    pub frames: usize,
    /// How long each step took.
    pub steps: Vec<(&'static str, Duration)>,
}

impl fmt::Display for Report {
    /// `gap_ms=… replayed_events=… restored_mib=…`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = self.restored_bytes as f64 / f64::from(1 << 20);
        write!(
            f,
            "gap_ms={:.1} replayed_events={} restored_mib={mib:.1}",
            self.gap.as_secs_f64() * 1e3,
            self.replayed_events,
        )
    }
}

impl Vacant {
    /// Makes it, with its link on `bridge` and directories in the places of others.
    pub(super) fn prepare(
        details: Details,
        bridge: &str,
        mounts: Vec<(PathBuf, PathBuf)>,
    ) -> Result<Self> {
        let spec = Spec {
            mounts,
            name: details.name.clone(),
            isolation: Isolation::Full,
            link: Some(Link {
                address: Ipv4Addr::from(details.address),
                prefix: details.prefix,
                gateway: details.gateway.map(Ipv4Addr::from),
                bridge: bridge.to_owned(),
            }),
        };
        let mut stage = Stage::prepare(&spec)?;
        let container = &mut stage.container;
        let index = container
            .host_link()
            .ok_or(TakeoverError::Missing { what: "link" })?;
        let name = nix::net::if_::if_indextoname(index).map_err(io("finding the link"))?;
        let config = Config {
            gate: false,
            mask: None,
            hold: true,
            answers: false,
        };
        let gate = Gate::attach(&name.to_string_lossy(), &config)?;
        let link = PacketSocket::open(index, 0).map_err(io("opening a packet socket"))?;
        // The gate is closed: nothing leaves, the announcement neither.
        container.attach()?;
        Ok(Self {
            stage,
            details,
            gate,
            link,
        })
    }

    /// Does a part of what its processes lack of the committed checkpoint; true if there was something.
    pub(super) fn follow(&mut self, guard: &Guard<Checkpoint>) -> bool {
        self.stage.follow(guard)
    }

    /// Takes over, with as many attempts as `search` allows; `tell` hears of those that failed. The calling thread
    /// enters the container's network for good.
    pub(super) fn take_over(
        self,
        attempt: Attempt<Checkpoint>,
        suspicion: Suspicion,
        search: &mut Search,
        tell: &mut Tell,
    ) -> Result<(Live, Report)> {
        let taken = self.try_all(attempt, suspicion, search, tell);
        taken.inspect_err(|error| {
            tell(search.number(), error);
            search.missed();
        })
    }

    fn try_all(
        mut self,
        attempt: Attempt<Checkpoint>,
        suspicion: Suspicion,
        search: &mut Search,
        tell: &mut Tell,
    ) -> Result<(Live, Report)> {
        let mut clock = Clock::start();
        let network = self.stage.container.namespace("net")?;
        setns(&network, CloneFlags::CLONE_NEWNET)
            .map_err(io("entering the container's network"))?;
        let guard = Arc::clone(attempt.guard());
        let mut committed = guard.image();
        let checkpoint = &mut committed.image;
        let log = match search.log() {
            Use::Replayed => Log::new(Arc::clone(&guard)),
            Use::NotNeeded | Use::LeftOut => Log::none(Arc::clone(&guard)),
        };
        let mut merge = Merge::restore(checkpoint.fold()?)?;
        merge.note_changes_below(&self.details.mirrors);
        let files = process::files(merge.fold());
        let clocks = Continued::begin(guard.clocks(), &self.stage.container);
        clock.step("prepare");
        let (processes, mut folded) = thread::scope(|scope| {
            let folding = scope.spawn(|| folding::fold(merge, &log));
            let mut director = Director {
                is_needed: &|| attempt.confirm(),
                tell,
            };
            let past = Past {
                files: &files,
                log: &log,
            };
            let stage = &mut self.stage;
            let replayed = stage.replay(checkpoint, &past, search, &mut clock, &mut director);
            let processes = replayed?;
            let folded = folding.join();
            let folded = folded.map_err(|_| TakeoverError::Panicked {
                what: "folds the log",
            })?;
            Ok::<_, TakeoverError>((processes, folded?))
        })?;
        let Shared { arena, room } = self.stage.shared.clone();
        let handshakes = match search.log() {
            Use::Replayed | Use::NotNeeded => Handshakes::read(&committed.image, &log)?,
            Use::LeftOut => {
                let log = Log::new(Arc::clone(&guard));
                let mut all = Handshakes::read(&committed.image, &log)?;
                // What peers have heard since the checkpoint, the container does not know.
                all.forsake();
                all
            }
        };
        let restored_bytes = committed.image.page_count() as u64 * 4096;
        drop(committed);
        clock.step("fold");
        folding::tell_settled(&arena, &folded.settled);
        let fold = folded.merge.fold();
        let population = Population::read(&arena, self.stage.container.init_pid(), fold)?;
        attempt.wait_until_clear();
        attempt.confirm()?;
        clock.step("fence");
        if let Some(mirror) = guard.mirror().as_mut() {
            mirror.finish(&folded.merge.take_changes())?;
            clock.step("files");
        }
        let replayed = Replayed {
            folded,
            processes,
            population,
        };
        let reconnected = self.reconnect(handshakes, &replayed, suspicion, &clocks, &mut clock)?;
        let generation = attempt.go_live().map_err(|(_, error)| error)?;
        let mut report = Report {
            replayed_events: replayed.folded.events,
            restored_bytes,
            ..Report::default()
        };
        let lead = clocks.realtime_lead().cast_unsigned();
        arena.control().realtime_lead.store(lead, Release);
        let processes = replayed.processes;
        let live = self.go_live(processes, arena, room, reconnected, suspicion, &mut report)?;
        clock.step("go live");
        report.steps = clock.steps;
        // Takes as long as the disk does.
        thread::spawn(move || {
            if let Some(Err(error)) = guard.mirror().as_ref().map(Mirror::goes_live) {
                tracing::error!(%error, "another run of that name could take the place of the container's files");
            }
        });
        tracing::info!(generation, ?report, "live");
        Ok((live, report))
    }

    /// Gives the processes their descriptors, connections among them.
    fn reconnect(
        &mut self,
        mut handshakes: Handshakes,
        replayed: &Replayed,
        suspicion: Suspicion,
        clocks: &Continued,
        clock: &mut Clock,
    ) -> Result<Reconnected> {
        let Replayed {
            folded,
            processes,
            population,
        } = replayed;
        let (arena, fold) = (&*self.stage.shared.arena, folded.merge.fold());
        let numbers = population.numbers();
        let tap = Tap::since(&self.gate, suspicion.last.0.saturating_sub(BEFORE));
        let mut prober = Prober::open(tap)?;
        let ids = described::all(fold, arena);
        let forsaken = std::mem::take(&mut handshakes.forsaken);
        let mut all = connections::collect(arena, &mut handshakes, &mut self.gate)?;
        let mut waiting = backlog::adopt(handshakes.not_accepted(arena), &mut self.gate)?;
        let mut forsaken = resets::adopt(&forsaken, &mut self.gate)?;
        self.gate.set_lease(u64::MAX);
        self.stage.container.announce()?;
        let known = all.iter_mut().filter_map(|c| c.peer.as_mut());
        let mut peers: Vec<&mut Peer> = known.collect();
        peers.extend(waiting.iter_mut().map(|w| &mut w.peer));
        peers.extend(&mut forsaken);
        peers::probe(&mut peers, &self.gate, &mut prober);
        clock.step("probe");
        let except: BTreeSet<DescriptionId> = ids.values().copied().collect();
        // Listeners come before the connections that share their ports.
        let mut objects = self.inside(|| Objects::make(fold, &numbers, &except))?;
        let built = connections::build(all, arena, &self.gate)?;
        let ready = connections::go_live(built, arena, &self.gate, &mut prober)?;
        for one in &ready {
            if let Some(id) = ids.get(&one.connection.index) {
                let copy = one
                    .socket
                    .try_clone()
                    .map_err(io("duplicating a connection"))?;
                objects.add(fold, *id, copy);
            }
        }
        let waiting = backlog::build(waiting, &self.gate, &mut prober);
        let targets = numbers.iter().flat_map(|pid| objects.targets(fold, *pid));
        let highest = targets.map(|t| t.number).max().unwrap_or(0);
        // Free in every process: whichever of them accepts has to find it.
        let (next, free) = (objects.all().len(), highest.max(ARENA_FD) + 1);
        let queued = backlog::queue(&waiting, fold, &numbers, next, free);
        for one in waiting {
            objects.add_unnamed(one.socket);
        }
        clock.step("build");
        for (pid, process) in population.iter() {
            let mut targets = objects.targets(fold, pid);
            let accepts = |q: &&backlog::Queued<'_>| q.is_for(fold, pid);
            targets.extend(queued.iter().filter(accepts).map(|q| q.target));
            let known = fold.processes().get(&pid);
            let limit = known.and_then(|p| p.limits.get(&NOFILE)).copied();
            let mut session = Session::open(process)?;
            place::place(
                &mut session,
                &processes.pass,
                &objects.all(),
                &targets,
                limit,
            )?;
            options::apply(&mut session, fold, pid)?;
            timers::arm(&mut session, fold, pid, clocks)?;
            for one in queued.iter().filter(accepts) {
                options::of_socket(&mut session, one.target.number, one.listener)?;
            }
            options::note_watchers(arena, fold, pid, &ready, &ids);
            children::settle(&mut session, fold, (pid, process))?;
            privileges::apply(&mut session, fold, pid)?;
            session.close()?;
        }
        backlog::announce(arena, &queued);
        clock.step("place");
        Ok(Reconnected {
            prober,
            ready,
            forsaken,
        })
    }

    /// Does something where paths mean what they mean in the container.
    fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let container = &self.stage.container;
        let (network, mounts) = (container.namespace("net")?, container.namespace("mnt")?);
        let done = in_container(network.as_fd(), mounts.as_fd(), || Ok(work()));
        done.map_err(io("entering the container's mounts"))?
    }

    /// From here on the container runs.
    fn go_live(
        self,
        processes: Processes,
        arena: Arc<Arena>,
        room: Arc<OwnedFd>,
        reconnected: Reconnected,
        suspicion: Suspicion,
        report: &mut Report,
    ) -> Result<Live> {
        let Reconnected {
            mut prober,
            ready,
            forsaken,
        } = reconnected;
        let init = self.stage.container.init_pid();
        let mut output = Output::new(Arc::clone(&arena), room, init, &processes)?;
        let mut ends = Vec::new();
        for one in ready {
            let broken = one.plan.is_none();
            report.connections.0 += usize::from(!broken);
            report.connections.1 += usize::from(broken);
            report.silent += usize::from(!broken && !one.answered());
            if let Some((state, snd_una, clock)) = one.end_to_forge() {
                let mac = self.details.mac;
                ends.push(forged_end(state, snd_una, clock).frame(NEIGHBOUR, mac));
            }
            if let Some(peer) = one.connection.peer.as_ref().filter(|_| broken) {
                resets::tell(peer, &self.gate, &mut prober);
            }
            output.resume(one)?;
        }
        // Those that the container has entries of are among them.
        report.connections.1 = report.connections.1.max(forsaken.len());
        for peer in &forsaken {
            resets::tell(peer, &self.gate, &mut prober);
        }
        output.free_the_rest();
        let (control, running) = (arena.control(), spinning::running(&arena));
        control.mode.store(mode::LIVE, Release);
        futex_wake(&control.mode);
        spinning::call(&running, init);
        report.gap = Nanos::now().since(suspicion.last);
        report.frames = prober.deliver(&self.gate, &self.link, suspicion.last.0)?;
        for end in ends {
            self.link
                .send(&end)
                .map_err(io("delivering the end of a stream"))?;
        }
        Ok(Live {
            container: self.stage.container,
            program: processes.program,
            gate: self.gate,
            output,
            _sockets: (prober, self.link),
        })
    }
}

/// RLIMIT_NOFILE, as the fold counts.
const NOFILE: u32 = 7;

/// A container that has come to the end of its log.
struct Replayed {
    /// The kernel's state there.
    folded: Folded,
    processes: Processes,
    population: Population,
}

/// What the container's connections became.
struct Reconnected {
    prober: Prober,
    ready: Vec<Ready>,
    /// Whose connections the container does not know.
    forsaken: Vec<Peer>,
}
