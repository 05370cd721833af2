//! Following the processes of a container through execve: the guest asks before it calls execve, and its
//! next image gets the guest before it runs an instruction of its own. Nobody is traced in between.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Release};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use guest::Blob;
use guest::abi::{MAX_SLOTS, Slot, inherited, request, slot};
use libc::pid_t;

use crate::arena::{Arena, futex_wait, futex_wake};
use crate::inject::{self, InjectError};
use crate::process::PidFd;
use crate::ptrace::{self, Options, Stop, TraceError};
use crate::threads::find_thread;

/// Why a process could not be followed.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// The guest could not be injected.
    #[error(transparent)]
    Inject(#[from] InjectError),
    /// A tracing request failed.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// The thread that follows could not be started.
    #[error("starting a thread failed: {0}")]
    Thread(#[from] io::Error),
    /// The program ended before its first image was complete.
    #[error("the program ended before it was started")]
    Ended,
}

enum Job {
    /// Look for requests in the rings.
    Look,
    /// End.
    Stop,
}

/// How often each process has executed a new image, by host number; a count is locked while that process does.
///
/// Whoever looks into a process from outside holds descriptors of one image's memory: it asks here whether
/// they are still those of the process, and keeps the lock while it looks. Counts are locked one by one: a
/// process that waits for its vfork child to execve cannot be stopped before that.
#[derive(Clone, Debug, Default)]
pub struct Images(Arc<Mutex<BTreeMap<pid_t, Arc<Mutex<u64>>>>>);

impl Images {
    /// The count of a process. Lock it for as long as the process shall not change its image.
    #[must_use]
    pub fn of(&self, process: pid_t) -> Arc<Mutex<u64>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(all.entry(process).or_default())
    }
}

/// A thread that follows one container.
#[derive(Debug)]
pub struct Follower {
    images: Images,
    jobs: Sender<Job>,
    thread: Option<JoinHandle<()>>,
    first: Receiver<Result<(), FollowError>>,
    errors: Receiver<FollowError>,
}

/// How often a request for attention is looked at while an execve is under way.
const STEP: Duration = Duration::from_micros(50);
/// How long a process that was killed while it was followed may take to end, in milliseconds.
const ENDING: u16 = 100;

impl Follower {
    /// Attaches to a program that waits before its first execve. It may be let go when this returns; it
    /// then runs into the execve and gets the guest (see [`Self::started`]).
    ///
    /// `init` and `program` are host numbers.
    ///
    /// # Errors
    /// When the program cannot be traced.
    pub fn attach(arena: Arc<Arena>, init: pid_t, program: pid_t) -> Result<Self, FollowError> {
        prepare_first_ring(&arena);
        let (jobs, queue) = channel();
        let (seized, is_seized) = channel();
        let (tell_first, first) = channel();
        let (tell_error, errors) = channel();
        let images = Images::default();
        let counts = images.clone();
        let thread = thread::Builder::new()
            .name("follow".into())
            .spawn(move || {
                let blob = Blob::embedded();
                let attached = ptrace::seize(program, OPTIONS);
                let failed = attached.is_err();
                let _ = seized.send(attached);
                if failed {
                    return;
                }
                let _ = tell_first.send(await_exec(&arena, &blob, 0, program, program).and_then(
                    |done| {
                        if done {
                            Ok(())
                        } else {
                            Err(FollowError::Ended)
                        }
                    },
                ));
                attend(&queue, || serve(&arena, &blob, init, &counts), &tell_error);
            })?;
        is_seized.recv().map_err(|_| FollowError::Ended)??;
        Ok(Self {
            images,
            jobs,
            thread: Some(thread),
            first,
            errors,
        })
    }

    /// Follows a container whose processes are there already: those of a restored one.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn of_restored(arena: Arc<Arena>, init: pid_t) -> Result<Self, FollowError> {
        let (jobs, queue) = channel();
        let (tell_first, first) = channel();
        let (tell_error, errors) = channel();
        let images = Images::default();
        let counts = images.clone();
        let _ = tell_first.send(Ok(()));
        let thread = thread::Builder::new()
            .name("follow".into())
            .spawn(move || {
                let blob = Blob::embedded();
                attend(&queue, || serve(&arena, &blob, init, &counts), &tell_error);
            })?;
        Ok(Self {
            images,
            jobs,
            thread: Some(thread),
            first,
            errors,
        })
    }

    /// Waits until the program's first image has the guest and runs.
    ///
    /// # Errors
    /// When it could not be injected, or ended before.
    pub fn started(&self) -> Result<(), FollowError> {
        self.first.recv().unwrap_or(Err(FollowError::Ended))
    }

    /// How often processes have executed new images.
    #[must_use]
    pub fn images(&self) -> Images {
        self.images.clone()
    }

    /// A handle for whoever sees requests first.
    #[must_use]
    pub fn caller(&self) -> Caller {
        Caller(self.jobs.clone())
    }

    /// The first error since the start, if one came.
    #[must_use]
    pub fn error(&self) -> Option<FollowError> {
        self.errors.try_recv().ok()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.jobs.send(Job::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Serves requests as they are told of, until there will be no more.
fn attend(
    queue: &Receiver<Job>,
    serve: impl Fn() -> Result<Served, FollowError>,
    errors: &Sender<FollowError>,
) {
    let mut later = false;
    loop {
        let job = if later {
            match queue.recv_timeout(STEP) {
                Err(RecvTimeoutError::Timeout) => Ok(Job::Look),
                other => other.map_err(drop),
            }
        } else {
            queue.recv().map_err(drop)
        };
        let Ok(Job::Look) = job else {
            return;
        };
        match serve() {
            Ok(served) => later = served == Served::Later,
            Err(error) => {
                let _ = errors.send(error);
            }
        }
    }
}

/// Calls a [`Follower`]'s attention.
#[derive(Clone, Debug)]
pub struct Caller(Sender<Job>);

impl Caller {
    /// Passes a ring's request on, if there is a new one. Called by whoever looks at the rings anyway.
    pub fn notice(&self, ring: &Slot) {
        let asks = ring.request.load(Acquire) == request::EXEC;
        if asks
            && ring
                .request
                .compare_exchange(request::EXEC, request::SEEN, AcqRel, Acquire)
                .is_ok()
        {
            // The thread ends only when the follower does, and with it the container.
            let _ = self.0.send(Job::Look);
        }
    }
}

const OPTIONS: Options = Options(Options::SYSGOOD.0 | Options::TRACEEXEC.0 | Options::EXITKILL.0);

fn prepare_first_ring(arena: &Arena) {
    let first = arena.slot(0);
    let table = arena.inherited(0);
    for (fd, kind) in [inherited::STDIN, inherited::STDOUT, inherited::STDERR]
        .into_iter()
        .enumerate()
    {
        table[fd].store(kind, Release);
    }
    first
        .stream
        .store(arena.control().next_stream.fetch_add(1, Release), Release);
    arena.control().slots.fetch_max(1, Release);
    first.state.store(slot::LIVE, Release);
}

/// What became of the requests that were there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Served {
    /// All are answered.
    All,
    /// One has to wait: somebody looks into its process.
    Later,
}

/// Serves every request that is there. None waits for another: a process that is being looked into may have to wait
/// for one that was not served yet (its vfork child).
fn serve(arena: &Arena, blob: &Blob, init: pid_t, images: &Images) -> Result<Served, FollowError> {
    let mut served = Served::All;
    for index in 0..MAX_SLOTS {
        let ring = arena.slot(index);
        if ring.request.load(Acquire) != request::SEEN {
            continue;
        }
        // Or it has been killed meanwhile.
        let Some((process, thread)) = find_thread(init, ring.tid.load(Acquire)) else {
            continue;
        };
        let Ok(ending) = PidFd::open(process) else {
            continue;
        };
        let images = images.of(process);
        let mut count = match images.try_lock() {
            Ok(count) => count,
            Err(TryLockError::Poisoned(count)) => count.into_inner(),
            Err(TryLockError::WouldBlock) => {
                served = Served::Later;
                continue;
            }
        };
        match ptrace::seize(thread, OPTIONS) {
            Ok(()) => *count += 1,
            // It is stopped to be looked into.
            Err(error) if error.source.raw_os_error() == Some(libc::EPERM) => {
                served = Served::Later;
                continue;
            }
            Err(_) if ending.ends_within(ENDING) => continue,
            Err(error) => return Err(error.into()),
        }
        match follow_exec(arena, blob, index, process, thread) {
            // Killed meanwhile, with its container or by another process of it. Its tracer has to reap it.
            Err(_) if ending.ends_within(ENDING) => {
                let _ = (ptrace::try_wait(thread), ptrace::try_wait(process));
            }
            followed => followed?,
        }
    }
    Ok(served)
}

/// Lets a traced thread go on to its execve and injects its new image.
fn follow_exec(
    arena: &Arena,
    blob: &Blob,
    index: usize,
    process: pid_t,
    thread: pid_t,
) -> Result<(), FollowError> {
    let ring = arena.slot(index);
    ring.request.store(request::GRANTED, Release);
    futex_wake(&ring.request);
    await_exec(arena, blob, index, process, thread).map(drop)
}

/// Waits for the execve of an attached thread and injects its new image; false if the process ended instead
/// or the execve failed. The process is not traced any more afterwards.
fn await_exec(
    arena: &Arena,
    blob: &Blob,
    index: usize,
    process: pid_t,
    thread: pid_t,
) -> Result<bool, FollowError> {
    let ring = arena.slot(index);
    loop {
        let mut stop = ptrace::try_wait(thread)?.map(|s| (thread, s));
        if stop.is_none() && process != thread {
            stop = ptrace::try_wait(process)
                .ok()
                .flatten()
                .map(|s| (process, s));
        }
        match stop {
            Some((tid, Stop::Exec(_))) => {
                if let Err(e) = inject::inject(tid, blob, index as u32) {
                    return Err(give_up(tid, e));
                }
                ring.request.store(request::NONE, Release);
                ptrace::detach(tid, 0)?;
                return Ok(true);
            }
            Some((_, Stop::Exited(_) | Stop::Killed(_))) => return Ok(false),
            Some((tid, Stop::Signal(signal))) => ptrace::cont(tid, signal)?,
            Some((tid, Stop::Group(_))) => ptrace::listen(tid)?,
            Some((tid, _)) => ptrace::cont(tid, 0)?,
            None if ring.request.load(Acquire) == request::EXEC_FAILED => {
                let_go(thread)?;
                ring.request.store(request::NONE, Release);
                futex_wake(&ring.request);
                return Ok(false);
            }
            None => futex_wait(&ring.request, request::GRANTED, STEP),
        }
    }
}

/// A process that cannot be injected must not run unrecorded.
fn give_up(tid: pid_t, error: InjectError) -> FollowError {
    // SAFETY: sends a signal to a process that we trace, so its number cannot have been reused.
    unsafe { libc::kill(tid, libc::SIGKILL) };
    error.into()
}

fn let_go(thread: pid_t) -> Result<(), FollowError> {
    ptrace::interrupt(thread)?;
    loop {
        match ptrace::wait(thread)? {
            Stop::Signal(signal) => ptrace::cont(thread, signal)?,
            Stop::Exited(_) | Stop::Killed(_) => return Ok(()),
            _ => return Ok(ptrace::detach(thread, 0)?),
        }
    }
}
