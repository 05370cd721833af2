//! Taking checkpoints of one process.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use eventlog::image::{Backing, Mapping as ImageMapping, Process, Thread};
use libc::pid_t;
use sys::memory::Range;
use sys::proc_maps::{Mapping, MapsFile};
use sys::process::{PidFd, RealTime, robust_list};
use sys::ptrace::{self, Regs};
use sys::remote;
use sys::uffd::{OPEN_FLAGS, Uffd};

use crate::CheckpointError;
use crate::build::Capture;
use crate::capture::{Common, Copier, is_shared_memory};
use crate::facts::{self, Facts};
use crate::kin;
use crate::names;
use crate::pending;
use crate::settle::{Guest, image_regs, is_interrupted, settle};
use crate::stop::{Stopped, StoppedThread, list_threads};
use crate::waits::Waits;

/// Real-time priority of the pause: above that of the threads which are stopped.
pub(crate) const PRIORITY: i32 = 2;

/// How checkpoints are taken.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Live rounds before each pause.
    pub rounds: u32,
    /// The guest, when the process is recorded.
    pub guest: Option<Guest>,
    /// Longest time to bring all threads to clean points.
    pub settle: Duration,
    /// Addresses whose contents are not the image's (and whose mappings are left out of it).
    pub skip: Vec<Range>,
    /// Whether `/dev/shm` is the container's own, and belongs to the checkpoint ([`crate::names`]).
    pub names: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            rounds: 3,
            guest: None,
            settle: Duration::from_micros(200),
            skip: Vec::new(),
            names: false,
        }
    }
}

/// How long the parts of one checkpoint took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timing {
    /// The live rounds.
    pub live: Duration,
    /// From the first thread's interruption to the last one's release.
    pub pause: Duration,
    /// Of it: stopping.
    pub stop: Duration,
    /// Of it: bringing threads to clean points.
    pub settle: Duration,
    /// Of it: the memory map, registers and other state of the threads.
    pub threads: Duration,
    /// Of it: finding and copying pages.
    pub pages: Duration,
    /// Of it: letting go.
    pub resume: Duration,
    /// The longest short stop before the pause (new mappings are watched from such a stop on), 0 without.
    pub extra_stop: Duration,
    /// Pages copied in the live rounds.
    pub live_pages: u64,
    /// Pages copied in the pause.
    pub pause_pages: u64,
}

/// Watches one process and takes its checkpoints.
#[derive(Debug)]
pub struct Checkpointer {
    pid: pid_t,
    settings: Settings,
    maps: MapsFile,
    copier: Copier,
    facts: Facts,
    waits: Waits,
    sequence: u64,
    full: bool,
    refresh: bool,
    sent_mappings: Vec<ImageMapping>,
}

fn failed(what: &'static str, pid: pid_t) -> impl Fn(io::Error) -> CheckpointError {
    move |source| CheckpointError::Process { what, pid, source }
}

impl Checkpointer {
    /// Starts to watch a running process; it is stopped once, for about half a millisecond.
    ///
    /// # Errors
    /// When it cannot be traced or the kernel lacks what watching needs.
    pub fn attach(pid: pid_t, settings: Settings) -> Result<Self, CheckpointError> {
        let mut outside = Outside::read(pid)?;
        let stopped = Stopped::all(pid)?;
        let asked = outside.ask(&stopped);
        let mut waits = Waits::default();
        resume(stopped, &mut waits, outside.facts.handled())?;
        outside.watch(asked?, waits, settings)
    }

    /// Starts to watch a process that stands still.
    pub(crate) fn attach_stopped(
        stopped: &Stopped,
        settings: Settings,
    ) -> Result<Self, CheckpointError> {
        let mut outside = Outside::read(stopped.pid())?;
        let uffd = outside.ask(stopped)?;
        outside.watch(uffd, Waits::default(), settings)
    }

    /// Lets the numbers of checkpoints go on behind `sequence`: for a process whose earlier image was watched
    /// by another checkpointer.
    pub fn go_on_behind(&mut self, sequence: u64) {
        self.sequence = sequence;
    }

    /// The number of the last checkpoint, 0 before the first.
    #[must_use]
    pub const fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Makes the next checkpoint a full one: for a backup that does not hold the last one.
    pub fn make_full(&mut self) {
        self.full = true;
    }

    /// Makes the next checkpoint ask the process again for signal actions and alternate stacks: for a
    /// caller who knows that they changed. (A change of which signals are handled is found without.)
    pub fn refresh(&mut self) {
        self.refresh = true;
    }

    /// [`Checkpointer::refresh`] in the pause: what was read before it counts no more.
    pub(crate) fn look_again(&mut self) -> Result<(), CheckpointError> {
        self.facts.read_proc(self.pid)?;
        self.refresh = true;
        Ok(())
    }

    /// Takes a checkpoint.
    ///
    /// Copies in rounds while the process runs, then stops it, calls `at_cut` and lets it go on.
    ///
    /// # Errors
    /// When a thread is not clean in time or the process is gone. What was copied is kept for the next
    /// attempt.
    pub fn checkpoint(
        &mut self,
        at_cut: &mut dyn FnMut(&[StoppedThread]),
    ) -> Result<(Capture, Timing), CheckpointError> {
        let began = Instant::now();
        let mut timing = Timing::default();
        self.live(&mut timing)?;
        timing.live = began.elapsed();

        // Only now, since the live rounds take long enough to be felt by whoever shares the processors.
        // Without the privilege the pause is longer, and still right.
        let real_time = RealTime::enter(PRIORITY);
        let began = Instant::now();
        let mut stopped = [Stopped::all(self.pid)?];
        let mut lap = Lap::since(began);
        timing.stop = lap.time();
        // Whatever comes, the threads go on as if they had not been stopped.
        let cut = self.cut(&mut stopped, at_cut, &mut lap, &mut timing);
        let [stopped] = stopped;
        let resumed = self.resume(stopped);
        timing.resume = lap.time();
        timing.pause = began.elapsed();
        drop(real_time);
        let cut = cut?;
        resumed?;
        self.capture(cut).map(|capture| (capture, timing))
    }

    /// What happens while the process stands still.
    fn cut(
        &mut self,
        stopped: &mut [Stopped; 1],
        at_cut: &mut dyn FnMut(&[StoppedThread]),
        lap: &mut Lap,
        timing: &mut Timing,
    ) -> Result<Cut, CheckpointError> {
        if let Some(guest) = self.settings.guest {
            settle(stopped, self.settings.settle, guest)?;
        }
        timing.settle = lap.time();
        let cut = self.look(&stopped[0])?;
        at_cut(&cut.seen);
        timing.threads = lap.time();
        timing.pause_pages = self.copy(&cut)?;
        timing.pages = lap.time();
        Ok(cut)
    }

    /// Reads what belongs to the process beside its memory, when its threads are where a cut is allowed.
    pub(crate) fn look(&mut self, stopped: &Stopped) -> Result<Cut, CheckpointError> {
        let maps = self.read_maps()?;
        self.ask(stopped, &maps)?;
        let (threads, seen) = self.read_threads(stopped)?;
        let process = self.read_process(stopped, &maps)?;
        Ok(Cut {
            process,
            threads,
            seen,
            maps,
        })
    }

    /// Copies what the live rounds left. Returns how many pages.
    pub(crate) fn copy(&mut self, cut: &Cut) -> Result<u64, CheckpointError> {
        self.copier.round(&cut.maps, true)
    }

    /// Shared memory that other processes map, too.
    pub(crate) fn copy_always(&mut self, common: &Common) {
        self.copier.copy_always(common);
    }

    /// Lets the process go on.
    pub(crate) fn resume(&mut self, stopped: Stopped) -> Result<(), CheckpointError> {
        resume(stopped, &mut self.waits, self.facts.handled())
    }

    /// What live rounds would have to begin with, for a process that was met in the pause.
    pub(crate) fn start_stopped(&mut self) -> Result<(), CheckpointError> {
        self.copier.start_over();
        let maps = self.read_maps()?;
        if let Some((range, bytes)) = facts::changed_vdso(self.pid, &maps)? {
            self.copier.add(range, bytes);
        }
        Ok(())
    }

    /// Its number, as we see it.
    pub(crate) const fn pid(&self) -> pid_t {
        self.pid
    }

    /// Its number in its own namespace.
    pub(crate) const fn number(&self) -> u32 {
        self.facts.process.pid
    }

    /// When it was made.
    pub(crate) const fn birth(&self) -> u64 {
        self.facts.process.kin.birth
    }

    /// Gives a capture's buffers back, once its image is encoded.
    pub fn recycle(&mut self, capture: Capture) {
        self.copier.recycle(capture.items);
    }

    fn read_maps(&mut self) -> Result<Arc<[Mapping]>, CheckpointError> {
        self.maps
            .read()
            .map_err(failed("reading the memory map", self.pid))
    }

    /// The live rounds.
    pub(crate) fn live(&mut self, timing: &mut Timing) -> Result<(), CheckpointError> {
        self.refresh |= self.facts.read_proc(self.pid)?;
        for tid in list_threads(self.pid)? {
            if !self.facts.threads.contains_key(&tid)
                && let Some(stopped) = Stopped::one(self.pid, tid)?
            {
                let maps = self.read_maps()?;
                self.facts.ask_thread(self.pid, tid, &maps)?;
                resume(stopped, &mut self.waits, self.facts.handled())?;
            }
        }
        if self.full {
            self.facts.read_flags(self.pid)?;
            self.copier.start_over();
            let maps = self.read_maps()?;
            timing.live_pages += self.watch(None, timing)?;
            if let Some((range, bytes)) = facts::changed_vdso(self.pid, &maps)? {
                self.copier.add(range, bytes);
            }
        }
        for _ in 0..self.settings.rounds {
            let maps = self.read_maps()?;
            timing.live_pages += self.copier.round(&maps, false)?;
            if let Some(strangers) = self.copier.strangers() {
                timing.live_pages += self.watch(Some(&strangers), timing)?;
            }
        }
        Ok(())
    }

    /// Stops the process for as long as registering mappings takes (these, where they are unchanged, or
    /// all), then copies them. Returns how many pages.
    fn watch(
        &mut self,
        these: Option<&[Mapping]>,
        timing: &mut Timing,
    ) -> Result<u64, CheckpointError> {
        let began = Instant::now();
        let stopped = Stopped::all(self.pid)?;
        let maps = self.read_maps()?;
        let unchanged: Option<Vec<Mapping>> = these.map(|these| {
            maps.iter()
                .filter(|now| these.contains(now))
                .cloned()
                .collect()
        });
        let registered = self
            .copier
            .register(unchanged.as_deref().unwrap_or(&maps), &maps)?;
        resume(stopped, &mut self.waits, self.facts.handled())?;
        timing.extra_stop = timing.extra_stop.max(began.elapsed());
        self.copier.copy_registered(&registered)
    }

    /// Asks threads for what only they know, where that is missing or out of date.
    fn ask(&mut self, stopped: &Stopped, maps: &[Mapping]) -> Result<(), CheckpointError> {
        if self.refresh {
            self.facts.ask_all(stopped, maps)?;
            self.refresh = false;
        }
        for tid in stopped.threads() {
            if !self.facts.threads.contains_key(&tid) {
                self.facts.ask_thread(self.pid, tid, maps)?;
            }
        }
        Ok(())
    }

    fn read_threads(
        &self,
        stopped: &Stopped,
    ) -> Result<(Vec<Thread>, Vec<StoppedThread>), CheckpointError> {
        let mut threads = Vec::new();
        let mut seen = Vec::new();
        for tid in stopped.threads() {
            let regs = ptrace::regs(tid)?;
            threads.push(self.read_thread(tid, &regs)?);
            seen.push(StoppedThread { tid, regs });
        }
        Ok((threads, seen))
    }

    fn read_thread(&self, tid: pid_t, regs: &Regs) -> Result<Thread, CheckpointError> {
        let facts = self.facts.threads.get(&tid).copied().unwrap_or_default();
        let rseq = ptrace::rseq(tid)?;
        let sud = ptrace::sud(tid)?;
        let (head, len) = robust_list(tid).map_err(failed("reading the robust list", tid))?;
        let mut xstate = Vec::new();
        ptrace::xstate(tid, &mut xstate)?;
        let call = self.waits.number(tid, regs);
        let registers = image_regs(self.pid, regs, call, self.settings.guest)?;
        Ok(Thread {
            tid: facts.tid,
            registers: ptrace::to_words(&registers),
            sigmask: ptrace::sigmask(tid)?,
            robust: [head, len],
            rseq: rseq.address,
            rseq_len: rseq.len,
            rseq_signature: rseq.signature,
            dispatch: [sud.mode, sud.selector, sud.offset, sud.len],
            altstack: facts.altstack,
            clear_tid: facts.clear_tid,
            name: facts.name,
            xstate,
            pending: pending::of_thread(tid)?,
        })
    }

    fn read_process(
        &self,
        stopped: &Stopped,
        maps: &[Mapping],
    ) -> Result<Process, CheckpointError> {
        let mut process = self.facts.process.clone();
        process.layout[5] = self.facts.brk(maps);
        process.pending = ptrace::pending(stopped.threads()[0], true)?;
        Ok(process)
    }

    /// Turns a cut into what an image is made of.
    pub(crate) fn capture(&mut self, cut: Cut) -> Result<Capture, CheckpointError> {
        let Cut {
            process,
            threads,
            maps,
            ..
        } = cut;
        let skipped = |mapping: &&Mapping| {
            !self
                .settings
                .skip
                .iter()
                .any(|skip| skip.start <= mapping.range.start && mapping.range.end <= skip.end)
        };
        let mappings = maps
            .iter()
            .filter(skipped)
            .map(|mapping| self.image_mapping(mapping));
        let mappings = mappings.collect::<Result<Vec<_>, _>>()?;
        let base = if self.full { 0 } else { self.sequence };
        self.sequence += 1;
        let vdso = if self.full {
            facts::own_vdso(self.pid)?
        } else {
            Vec::new()
        };
        let same_mappings = !self.full && mappings == self.sent_mappings;
        self.sent_mappings.clone_from(&mappings);
        self.full = false;
        let items = self.copier.take();
        Ok(Capture {
            sequence: self.sequence,
            base,
            process,
            threads,
            mappings,
            same_mappings,
            vdso,
            items,
        })
    }

    fn image_mapping(&self, mapping: &Mapping) -> Result<ImageMapping, CheckpointError> {
        let backing = if is_shared_memory(mapping) {
            Backing::SharedMemory
        } else if mapping.inode == 0 {
            Backing::Anonymous
        } else {
            Backing::File
        };
        // Of a private mapping of shared memory the pages that were not written would be somebody else's.
        let is_copy = !mapping.shared && names::is_named(&mapping.path);
        if is_copy || mapping.path.starts_with("anon_inode:") {
            return Err(CheckpointError::Unsupported {
                pid: self.pid,
                path: mapping.path.clone(),
            });
        }
        Ok(ImageMapping {
            start: mapping.range.start,
            end: mapping.range.end,
            protection: mapping.protection(),
            shared: mapping.shared,
            backing,
            flags: self.facts.flags_of(mapping).0,
            offset: mapping.offset,
            device: u64::from(mapping.device.0) << 32 | u64::from(mapping.device.1),
            inode: mapping.inode,
            path: mapping.path.clone(),
        })
    }
}

/// Opens a userfaultfd inside the process and takes it over.
fn take_uffd(stopped: &Stopped, pidfd: &PidFd, syscall: u64) -> Result<Uffd, CheckpointError> {
    let pid = stopped.pid();
    let tid = stopped.threads()[0];
    let quiet = facts::Quiet::new(&[tid])?;
    let number = remote::syscall_checked(
        tid,
        syscall,
        libc::SYS_userfaultfd,
        [OPEN_FLAGS, 0, 0, 0, 0, 0],
    )?;
    let taken = pidfd.take_descriptor(number as i32);
    remote::syscall_checked(tid, syscall, libc::SYS_close, [number, 0, 0, 0, 0, 0])?;
    drop(quiet);
    taken
        .and_then(Uffd::new)
        .map_err(failed("watching the memory", pid))
}

/// Lets all threads go on, such that none sees that it was stopped.
fn resume(stopped: Stopped, waits: &mut Waits, handled: u64) -> Result<(), CheckpointError> {
    for tid in stopped.threads() {
        let regs = ptrace::regs(tid)?;
        if is_interrupted(&regs)
            && let Some(again) = waits.again(tid, &regs, handled)?
        {
            ptrace::set_regs(tid, &again)?;
        }
    }
    stopped.release()
}

/// What is known of a process before it is stopped to be watched.
struct Outside {
    pid: pid_t,
    pidfd: PidFd,
    maps: MapsFile,
    facts: Facts,
}

impl Outside {
    fn read(pid: pid_t) -> Result<Self, CheckpointError> {
        // It would have no map: what its first thread leaves behind tells of no memory.
        if kin::is_without_leader(pid) {
            return Err(CheckpointError::NoLeader { pid });
        }
        let pidfd = PidFd::open(pid).map_err(failed("opening a descriptor", pid))?;
        let maps = MapsFile::open(pid).map_err(failed("opening the memory map", pid))?;
        let mut facts = Facts::default();
        facts.read_proc(pid)?;
        facts.read_flags(pid)?;
        Ok(Self {
            pid,
            pidfd,
            maps,
            facts,
        })
    }

    fn ask(&mut self, stopped: &Stopped) -> Result<Uffd, CheckpointError> {
        let read = self.maps.read();
        let now = read.map_err(failed("reading the memory map", self.pid))?;
        self.facts.ask_all(stopped, &now)?;
        take_uffd(stopped, &self.pidfd, self.facts.syscall_at(self.pid, &now)?)
    }

    fn watch(
        self,
        uffd: Uffd,
        waits: Waits,
        settings: Settings,
    ) -> Result<Checkpointer, CheckpointError> {
        let copier = Copier::new(self.pid, uffd, settings.skip.clone())
            .map_err(failed("opening the memory", self.pid))?;
        Ok(Checkpointer {
            pid: self.pid,
            settings,
            maps: self.maps,
            copier,
            facts: self.facts,
            waits,
            sequence: 0,
            full: true,
            refresh: false,
            sent_mappings: Vec::new(),
        })
    }
}

/// State of a process that stood still.
pub(crate) struct Cut {
    process: Process,
    threads: Vec<Thread>,
    seen: Vec<StoppedThread>,
    pub(crate) maps: Arc<[Mapping]>,
}

/// Takes the time of one step after another.
pub(crate) struct Lap(Instant);

impl Lap {
    pub(crate) const fn since(start: Instant) -> Self {
        Self(start)
    }

    pub(crate) fn time(&mut self) -> Duration {
        let now = Instant::now();
        let lap = now - self.0;
        self.0 = now;
        lap
    }
}
