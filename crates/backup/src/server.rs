//! Listens for primaries and gives each connection a thread.

use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use core::time::Duration;
use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::mpsc::Sender as EventSender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use eventlog::codec;
use eventlog::handover::Details;
use stream::connect::{self, Pending};
use stream::hello::{Channel, Hello, Refusal, Welcome};
use stream::keys::Security;
use stream::{Nanos, StreamError};

use crate::arbiter::Phase;
use crate::generation::{GenerationFile, Reached};
use crate::guard::{Event, Guard};
use crate::mirror::Mirror;
use crate::serve::serve;
use crate::store::{Image, LogStore, Spill, StoreError};

/// How long a peer may take to introduce itself.
const HELLO_WITHIN: Duration = Duration::from_secs(5);
/// Peers that may be introducing themselves at once.
const MAX_STRANGERS: usize = 64;

/// What a backup is told by its operator.
#[derive(Clone, Debug)]
pub struct Options {
    /// Keys, or none.
    pub security: Security,
    /// Where log that does not fit into memory goes, and generations are remembered.
    pub state: Option<PathBuf>,
    /// Bytes of log in memory for each container; beyond it, log is spilled or the primary waits.
    pub log_cap: u64,
    /// Bytes of one checkpoint's image.
    pub image_cap: u64,
    /// Containers at once.
    pub max_containers: usize,
    /// What must be equal on both hosts, as name and value.
    pub host: Vec<(String, String)>,
}

/// A listening backup.
#[derive(Debug)]
pub struct Server<I> {
    listener: TcpListener,
    addr: SocketAddr,
    shared: Arc<Shared<I>>,
}

/// Ends [`Server::run`], and shows what is guarded.
#[derive(Debug)]
pub struct Handle<I> {
    addr: SocketAddr,
    shared: Arc<Shared<I>>,
}

#[derive(Debug)]
struct Shared<I> {
    options: Options,
    instance: u64,
    new_image: fn(&Options) -> I,
    events: EventSender<Event<I>>,
    known: Mutex<Known<I>>,
    strangers: AtomicUsize,
    stopped: AtomicBool,
}

/// The containers, and how far those of each name have come.
#[derive(Debug)]
struct Known<I> {
    guards: HashMap<String, Arc<Guard<I>>>,
    reached: HashMap<String, Reached>,
}

impl<I: Image> Server<I> {
    /// Listens at `addr`. Each container gets an image from `new_image`; what happens is told to `events`.
    ///
    /// # Errors
    /// [`StreamError::Listen`], with an address taken already among the reasons.
    pub fn bind(
        addr: SocketAddr,
        options: Options,
        new_image: fn(&Options) -> I,
        events: EventSender<Event<I>>,
    ) -> Result<Self, StreamError> {
        let listener = connect::listen(addr)?;
        let addr = listener
            .local_addr()
            .map_err(|source| StreamError::Listen { addr, source })?;
        // Unique among the runs of this backup: one host's boot-time clock and process number.
        let instance = Nanos::now().0 ^ u64::from(std::process::id()) << 40;
        let known = Mutex::new(Known {
            guards: HashMap::new(),
            reached: HashMap::new(),
        });
        let shared = Shared {
            options,
            instance,
            new_image,
            events,
            known,
            strangers: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
        };
        Ok(Self {
            listener,
            addr,
            shared: Arc::new(shared),
        })
    }

    /// Where it listens, with the port that the kernel chose.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// A handle for other threads.
    #[must_use]
    pub fn handle(&self) -> Handle<I> {
        Handle {
            addr: self.addr,
            shared: Arc::clone(&self.shared),
        }
    }

    /// Accepts connections until stopped. A peer that fails to introduce itself is logged and forgotten.
    ///
    /// # Errors
    /// When the listening socket fails or no thread can be started.
    pub fn run(self) -> io::Result<()> {
        loop {
            let (socket, peer) = match self.listener.accept() {
                Ok(accepted) => accepted,
                Err(e)
                    if matches!(
                        e.kind(),
                        io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted
                    ) =>
                {
                    continue;
                }
                Err(e) => return Err(e),
            };
            if self.shared.stopped.load(Ordering::Acquire) {
                return Ok(());
            }
            if self.shared.strangers.fetch_add(1, Ordering::AcqRel) >= MAX_STRANGERS {
                self.shared.strangers.fetch_sub(1, Ordering::AcqRel);
                tracing::warn!(
                    "{peer} is turned away: {MAX_STRANGERS} peers are introducing themselves already"
                );
                continue;
            }
            let shared = Arc::clone(&self.shared);
            thread::Builder::new()
                .name("connection".to_owned())
                .spawn(move || shared.meet(socket, peer))?;
        }
    }
}

impl<I: Image> Handle<I> {
    /// Every container known.
    #[must_use]
    pub fn guards(&self) -> Vec<Arc<Guard<I>>> {
        self.shared.known().guards.values().cloned().collect()
    }

    /// Ends [`Server::run`] and every connection.
    pub fn stop(&self) {
        self.shared.stopped.store(true, Ordering::Release);
        for guard in self.guards() {
            guard.disconnect();
        }
        // Wakes the accepting thread; if nobody listens any more, it has ended already.
        drop(TcpStream::connect_timeout(
            &self.addr,
            Duration::from_secs(1),
        ));
    }

    /// Forgets a container that runs here no longer, so that its name is free again. Its generation is kept: an old
    /// primary of it stays fenced.
    pub fn forget(&self, name: &str) {
        let mut known = self.shared.known();
        if let Some(guard) = known.guards.remove(name) {
            let reached = Reached {
                generation: guard.generation(),
                run: guard.hello().run,
            };
            known.reached.insert(name.to_owned(), reached);
        }
    }
}

impl<I: Image> Shared<I> {
    fn known(&self) -> MutexGuard<'_, Known<I>> {
        // Every update of the maps is complete in itself.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes one connection from its first byte to its last.
    fn meet(&self, socket: TcpStream, peer: SocketAddr) {
        let met = connect::accept(socket, peer, &self.options.security, HELLO_WITHIN);
        self.strangers.fetch_sub(1, Ordering::AcqRel);
        let pending = match met {
            Ok(pending) => pending,
            // Every primary looks whether somebody listens before it makes anything.
            Err(e @ StreamError::Silent { .. }) => return tracing::debug!("{e}"),
            Err(e) => return tracing::warn!("{e}"),
        };
        let refused = match self.admit(&pending) {
            Ok(guard) => return self.welcome(pending, &guard),
            Err(refusal) => refusal,
        };
        tracing::warn!("{peer} is refused: {refused}");
        if let Err(e) = pending.refuse(refused) {
            tracing::warn!("{e}");
        }
    }

    /// Serves an admitted connection.
    fn welcome(&self, pending: Pending, guard: &Arc<Guard<I>>) {
        let channel = pending.hello.channel;
        let welcome = Welcome {
            generation: guard.generation(),
            instance: self.instance,
        };
        let served = pending
            .welcome(welcome)
            .map_err(Into::into)
            .and_then(|(_, connection)| serve(guard, channel, connection, self.options.image_cap));
        guard.closed(channel);
        if let Err(e) = served {
            guard.tell(Event::Failed(Arc::clone(guard), channel, e));
        }
        // What has ended, or never was protected, is of no use without its primary.
        let mut known = self.known();
        let name = &guard.hello().name;
        if matches!(guard.phase(), Phase::Ended | Phase::Unprotected)
            && !guard.is_connected()
            && known
                .guards
                .get(name)
                .is_some_and(|g| Arc::ptr_eq(g, guard))
        {
            known.guards.remove(name);
            if guard.phase() == Phase::Unprotected {
                // Under the lock: before another run of that name is told.
                guard.tell(Event::Forgotten(Arc::clone(guard)));
            }
        }
    }

    /// The guard that a connection belongs to, with the connection registered there.
    fn admit(&self, pending: &Pending) -> Result<Arc<Guard<I>>, Refusal> {
        let hello = &pending.hello;
        if let Some(refusal) = hello.differs_from(&self.options.host) {
            return Err(refusal);
        }
        let mut known = self.known();
        let guard = match known.guards.get(&hello.name) {
            Some(guard) if guard.hello().session == hello.session => Arc::clone(guard),
            other => {
                if let Some(other) = other {
                    may_replace(other, hello)?;
                }
                if hello.channel != Channel::Log {
                    return Err(Refusal::UnknownSession {
                        name: hello.name.clone(),
                    });
                }
                self.guard_for(&mut known, hello)?
            }
        };
        let ours = guard.generation();
        if hello.generation != 0 && hello.generation != ours || guard.phase() == Phase::Live {
            return Err(Refusal::StaleGeneration {
                theirs: hello.generation,
                ours,
            });
        }
        if hello.channel == Channel::Log && guard.held_log() {
            return Err(Refusal::Twice {
                channel: Channel::Log,
            });
        }
        if !guard.open(hello.channel, pending.sender()) {
            return Err(Refusal::Twice {
                channel: hello.channel,
            });
        }
        Ok(guard)
    }

    /// A guard for a run of a container that is new here.
    fn guard_for(&self, known: &mut Known<I>, hello: &Hello) -> Result<Arc<Guard<I>>, Refusal> {
        if known.guards.len() >= self.options.max_containers
            && !known.guards.contains_key(&hello.name)
        {
            return Err(Refusal::Full {
                containers: known.guards.len(),
            });
        }
        let state = |e: &dyn std::error::Error| Refusal::State {
            reason: e.to_string(),
        };
        let mut reached = known.reached.get(&hello.name).copied().unwrap_or_default();
        let mut file = None;
        let mut spill = None;
        if let Some(dir) = &self.options.state {
            let opened = GenerationFile::open(dir, &hello.name).map_err(|e| state(&e))?;
            reached = reached.max(opened.reached());
            file = Some(opened);
            spill = Some(Spill::new(dir).map_err(|e: StoreError| state(&e))?);
        }
        let generation = match hello.generation {
            0 => reached.generation + 1,
            theirs if hello.run == reached.run && theirs == reached.generation => theirs,
            theirs if hello.run == reached.run && theirs < reached.generation => {
                return Err(Refusal::StaleGeneration {
                    theirs,
                    ours: reached.generation,
                });
            }
            theirs => {
                return Err(Refusal::OtherBackup {
                    name: hello.name.clone(),
                    theirs,
                    ours: reached.generation,
                });
            }
        };
        let reached = Reached {
            generation,
            run: hello.run,
        };
        if let Some(file) = &mut file {
            file.set(reached).map_err(|e| state(&e))?;
        }
        known.reached.insert(hello.name.clone(), reached);
        let details: Details = codec::decode(&hello.details).map_err(|e| state(&e))?;
        let mirror = Mirror::open(self.options.state.as_deref(), &hello.name, &details.mirrors)
            .map_err(|e| state(&e))?;
        let log = LogStore::new(self.options.log_cap, spill);
        let image = (self.new_image)(&self.options);
        let guard = Guard::new(
            hello.clone(),
            generation,
            self.instance,
            log,
            image,
            file,
            self.events.clone(),
        );
        let guard = Arc::new(guard.with_mirror(mirror));
        known.guards.insert(hello.name.clone(), Arc::clone(&guard));
        guard.tell(Event::Connected(Arc::clone(&guard)));
        Ok(guard)
    }
}

/// Another run of a container may take the name of one that is over, or never was protected.
fn may_replace<I: Image>(other: &Guard<I>, hello: &Hello) -> Result<(), Refusal> {
    match other.phase() {
        Phase::Ended => Ok(()),
        Phase::Unprotected if !other.is_connected() => Ok(()),
        Phase::Live if hello.generation != 0 && hello.run == other.hello().run => {
            Err(Refusal::StaleGeneration {
                theirs: hello.generation,
                ours: other.generation(),
            })
        }
        _ => Err(Refusal::NameTaken {
            name: hello.name.clone(),
        }),
    }
}
