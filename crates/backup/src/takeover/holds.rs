//! Threads that stand between two of their instructions while others pass: see [`Hold`].
//!
//! The guest tells when a thread has taken the record behind which it is to be held. It is stepped from there, one
//! instruction after another (ptrace(2), PTRACE_SINGLESTEP), some ten microseconds each, those of the guest too; or, where
//! an attempt before has seen the way it goes, runs into a breakpoint. It goes on untraced when the other thread has
//! passed.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use guest::abi::{ARENA_BASE, BLOB_BASE, CALLED, Hold as Entry, MAX_SLOTS, Slot, hold, slot};
use nix::libc::SIGTRAP;
use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;
use sys::arena::Arena;
use sys::process::{Hurried, RealTime, queue_to_thread};
use sys::ptrace::{self, Options, Stop, TraceError};
use sys::threads::find_thread;

use super::late::Late;
use super::timing::{Breakpoint, Hold, Timing};

/// A thread is stepped for so long at most: others wait for it, and go on without it a little later.
const STEPPING: Duration = Duration::from_millis(60);
/// One that does not come out of a step is called so often: the instruction may be a call in which it waits for somebody
/// who is let go only behind this hold.
const CALLING: Duration = Duration::from_millis(5);
/// The other thread is waited for so long: it may wait for the one that stands.
const PASSING: Duration = Duration::from_millis(5);
/// How often threads are looked at.
const NAP: Duration = Duration::from_micros(20);
/// Priority of the thread that steps, among real-time ones: it hurries others.
const PRIORITY: i32 = 2;
/// The calling thread.
const THIS: Pid = Pid::from_raw(0);

/// Where a thread stood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stood {
    /// Instructions that it had done.
    pub(super) steps: u32,
    /// Whether it then did what the log says.
    pub(super) fits: bool,
    /// Whether the other had done so when it passed.
    pub(super) other_fits: bool,
}

/// What came of a hold.
#[derive(Clone, Debug, Default)]
pub(super) struct Held {
    /// Where the thread stood, if it came so far.
    pub(super) stood: Option<Stood>,
    /// Addresses of the instructions that it was stepped to.
    pub(super) path: Vec<u64>,
}

/// Serves the holds of an attempt until it is `over`, and lets threads go that start late: what came of each hold. `init`
/// is the container's first process.
pub(super) fn serve(arena: &Arena, init: i32, timing: &Timing, over: &AtomicBool) -> Vec<Held> {
    let mut all = vec![Held::default(); timing.holds.len()];
    let mut late = Late::new(arena, init, &timing.starts);
    // Without the privilege others may come in between.
    let _priority = RealTime::enter(PRIORITY);
    while !over.load(Acquire) {
        let entries = arena.control().holds.iter();
        for ((entry, hold), held) in entries.zip(&timing.holds).zip(&mut all) {
            if entry.state.load(Acquire) != hold::REACHED {
                continue;
            }
            if let Err(error) = stand(arena, init, entry, hold, held) {
                tracing::debug!(?hold, %error, "a thread could not be held");
            }
            // Whatever came of it, nobody is to wait any more.
            entry.state.store(hold::GONE, Release);
        }
        late.look();
        thread::sleep(NAP);
    }
    all
}

/// Lets one thread stand behind its steps until the other has passed, and waits until it has come to its next record.
fn stand(
    arena: &Arena,
    init: i32,
    entry: &Entry,
    hold: &Hold,
    held: &mut Held,
) -> Result<(), TraceError> {
    let ring = arena.slot(entry.slot.load(Relaxed) as usize % MAX_SLOTS);
    let Some(thread) = find_thread(init, ring.tid.load(Acquire)) else {
        return Ok(());
    };
    let (_, tid) = thread;
    let first = hold
        .passes
        .first()
        .map_or((0, 0), |turn| (turn.stream, turn.position));
    let other = rings(arena).find(|ring| ring.stream.load(Acquire) == first.0);
    // It may wait for the one, and comes later then.
    wait_until(|| other.is_none_or(|ring| has_come(ring, first.1)));
    ptrace::seize(tid, Options::NONE)?;
    ptrace::interrupt(tid)?;
    let Some(Came { steps, signal }) = come(thread, entry, ring, hold, &mut held.path)? else {
        return Ok(());
    };
    entry.state.store(hold::STANDS, SeqCst);
    // One that has left its log goes nowhere, and one that is gone has done all of it.
    let passed = || other.is_none_or(|ring| has_come(ring, hold.until));
    wait_until(|| passed() || other.is_some_and(is_lost));
    ptrace::detach(tid, signal)?;
    let came = wait_until(|| is_lost(ring) || has_taken(ring, hold.next));
    held.stood = came.then(|| Stood {
        steps,
        fits: !left_at(ring, hold.next),
        other_fits: !other.is_some_and(|ring| left_at(ring, hold.until)),
    });
    Ok(())
}

/// Where a thread came, and the signal that came with it.
struct Came {
    steps: u32,
    signal: i32,
}

/// Lets a thread that stops come to where it is to stand: `None` if it does not come there, and is stopped elsewhere or
/// has ended.
fn come(
    thread: (i32, i32),
    entry: &Entry,
    ring: &Slot,
    hold: &Hold,
    path: &mut Vec<u64>,
) -> Result<Option<Came>, TraceError> {
    let (_, tid) = thread;
    let Some(signal) = signal_of(ptrace::wait(tid)?) else {
        return Ok(None);
    };
    entry.state.store(hold::STEPPED, SeqCst);
    match hold.stop() {
        // Refused where another has all breakpoints.
        Some(stop) if ptrace::break_at(tid, stop.address).is_ok() => run(tid, signal, hold, stop),
        _ => watched(thread, || step(tid, signal, ring, hold, path)),
    }
}

/// Lets a thread run to an address.
fn run(
    tid: i32,
    mut signal: i32,
    hold: &Hold,
    mut stop: Breakpoint,
) -> Result<Option<Came>, TraceError> {
    let _hurried = Hurried::new(tid);
    while stop.times > 0 {
        ptrace::cont(tid, signal)?;
        let mut stopped = None;
        wait_until(|| {
            stopped = ptrace::try_wait(tid).transpose();
            stopped.is_some()
        });
        let Some(stopped) = stopped.transpose()? else {
            ptrace::interrupt(tid)?;
            return match signal_of(ptrace::wait(tid)?) {
                Some(signal) => {
                    ptrace::clear_break(tid)?;
                    ptrace::detach(tid, signal)?;
                    Ok(None)
                }
                None => Ok(None),
            };
        };
        let Some(came) = signal_of(stopped) else {
            return Ok(None);
        };
        signal = came;
        if ptrace::regs(tid)?.rip == stop.address {
            stop.times -= 1;
        }
    }
    ptrace::clear_break(tid)?;
    let steps = hold.steps;
    Ok(Some(Came { steps, signal }))
}

/// Steps a thread, of a process, and calls it out of a step that lasts.
fn watched<T>((process, tid): (i32, i32), steps: impl FnOnce() -> T) -> T {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let caller = scope.spawn(|| {
            let began = Instant::now();
            while !over.load(Acquire) {
                thread::park_timeout(STEPPING.saturating_sub(began.elapsed()).max(CALLING));
                if began.elapsed() > STEPPING && !over.load(Acquire) {
                    // One that is gone is told of by the wait for it.
                    let called = queue_to_thread(process, tid, SIGTRAP, CALLED);
                    tracing::debug!(tid, ?called, "a step lasts");
                }
            }
        });
        let stepped = steps();
        over.store(true, Release);
        caller.thread().unpark();
        stepped
    })
}

/// Steps a thread, and tells which way it went.
fn step(
    tid: i32,
    mut signal: i32,
    ring: &Slot,
    hold: &Hold,
    path: &mut Vec<u64>,
) -> Result<Option<Came>, TraceError> {
    let _together = Together::new(tid);
    let began = Instant::now();
    loop {
        let steps = path.len() as u32;
        if steps >= hold.steps || has_come(ring, hold.next) || began.elapsed() > STEPPING {
            return Ok(Some(Came { steps, signal }));
        }
        ptrace::step(tid, signal)?;
        let Some(came) = signal_of(ptrace::wait(tid)?) else {
            return Ok(None);
        };
        signal = came;
        let rip = ptrace::regs(tid)?.rip;
        if !is_guest(rip) {
            path.push(rip);
        }
    }
}

/// The signal that a stopped thread is to get when it goes on: `None` if it has ended.
fn signal_of(stop: Stop) -> Option<i32> {
    match stop {
        Stop::Exited(_) | Stop::Killed(_) => None,
        Stop::Signal(signal) if signal != SIGTRAP => Some(signal),
        _ => Some(0),
    }
}

/// The calling thread and one that it steps, on one processor and before all others: each is woken a thousand times.
struct Together {
    tid: Pid,
    before: [Option<CpuSet>; 2],
    _hurried: Option<Hurried>,
}

impl Together {
    fn new(tid: i32) -> Self {
        let tid = Pid::from_raw(tid);
        let before = [THIS, tid].map(|one| sched_getaffinity(one).ok());
        let mut here = CpuSet::new();
        if sched_getcpu().is_ok_and(|cpu| here.set(cpu).is_ok()) {
            // It is slower without.
            let _ = [THIS, tid].map(|one| sched_setaffinity(one, &here));
        }
        let _hurried = Hurried::new(tid.as_raw());
        Self {
            tid,
            before,
            _hurried,
        }
    }
}

impl Drop for Together {
    fn drop(&mut self) {
        for (one, before) in [THIS, self.tid].iter().zip(&self.before) {
            // Refused only when the thread is gone.
            let _ = before.map(|before| sched_setaffinity(*one, &before));
        }
    }
}

/// Waits until something is so; whether it was in time.
fn wait_until(mut so: impl FnMut() -> bool) -> bool {
    let since = Instant::now();
    loop {
        if so() {
            return true;
        }
        if since.elapsed() > PASSING {
            return false;
        }
        thread::sleep(NAP);
    }
}

/// Whether an instruction there is the guest's.
fn is_guest(rip: u64) -> bool {
    (BLOB_BASE..ARENA_BASE).contains(&rip)
}

/// The rings of threads.
pub(super) fn rings(arena: &Arena) -> impl Iterator<Item = &Slot> {
    let rings = (0..MAX_SLOTS).map(|index| arena.slot(index));
    rings.filter(|ring| {
        !matches!(
            ring.state.load(Acquire),
            slot::FREE | slot::CLAIMED | slot::DONE
        )
    })
}

/// Whether a thread has come to its record at this position, or to one behind it.
pub(super) fn has_come(ring: &Slot, position: u64) -> bool {
    ring.tail.load(Acquire) > position
        || ring.tail.load(Acquire) == position && ring.taken_at.load(Acquire) == 0
}

/// Whether a thread has taken its record at this position, or waits for its turn to do so.
fn has_taken(ring: &Slot, position: u64) -> bool {
    let waits = || {
        matches!(
            ring.state.load(Acquire),
            slot::EARLY | slot::WAITING | slot::PARKED
        )
    };
    ring.tail.load(Acquire) > position || has_come(ring, position) && waits()
}

/// Whether a thread has left its log.
pub(super) fn is_lost(ring: &Slot) -> bool {
    ring.state.load(Acquire) == slot::LOST
}

/// Whether it has left it at this position or before.
fn left_at(ring: &Slot, position: u64) -> bool {
    is_lost(ring) && ring.tail.load(Acquire) <= position
}
