//! Checkpoints of all processes of a container, at one cut.
//!
//! Each process has a [`Checkpointer`] of its own, which watches and copies its memory. For the cut all of them are
//! stopped, parents before their children, and none is let go before the last was copied. Which processes there
//! are is read while they run; whoever knows the guests tells ([`Census`]) whether any was made since.
//!
//! Memory that several processes share is copied whole in each pause, from each of them: also where one of them has
//! ended since the last checkpoint, for nobody has seen what that one wrote.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::time::Instant;

use eventlog::image::{Dead, Image, NamedMemory, PAGE};
use libc::pid_t;
use sys::follow::Images;
use sys::process::RealTime;

use crate::CheckpointError;
use crate::build::Capture;
use crate::capture::{Common, is_shared_memory, object};
use crate::checkpoint::{Checkpointer, Cut, Lap, PRIORITY, Settings, Timing};
use crate::kin::{self, Listed};
use crate::names;
use crate::settle::settle;
use crate::stop::Stopped;

/// A process that was made while the others were copied joins them in the pause if it holds no more than this
/// (bytes): another pause would meet another one.
const SMALL: u64 = 16 << 20;
/// … and joins in any case after so many checkpoints that were put off for such a one.
const MOST_DEFERRED: u32 = 3;

/// What whoever knows the guests tells of the container's processes.
pub trait Census {
    /// Whether a process runs on its parent's memory until it executes a program or ends (vfork). Its parent cannot
    /// be stopped before.
    fn is_lent(&self) -> bool;
    /// How many threads and processes have ever been made.
    fn births(&self) -> u64;
    /// How many processes have ever been made.
    fn forks(&self) -> u64;
    /// How often a process has changed what is not asked for in every pause: signal actions, alternate stacks, its
    /// directory. Counted before the call that does it returns.
    fn changes(&self) -> u64;
    /// Whether there is a process that is not among these, by their numbers inside, and has not said that it ends. It
    /// may have been killed.
    fn has_others(&self, known: &[u32]) -> bool;
}

/// Watches all processes of a container.
#[derive(Debug)]
pub struct Tree {
    init: pid_t,
    program: pid_t,
    images: Images,
    settings: Settings,
    /// Parents before their children, the container's program first.
    members: Vec<Member>,
    sequence: u64,
    deferred: u32,
    written: Written,
    /// Changes (see [`Census::changes`]) that the members have been, or will be, asked about.
    changes: u64,
}

/// Where processes that have ended may have written since the last checkpoint.
#[derive(Debug, Default)]
struct Written {
    /// What was shared then.
    shared: Common,
    /// Processes that had been made then.
    forks: u64,
}

/// One process.
#[derive(Debug)]
struct Member {
    checkpointer: Checkpointer,
    /// Programs that it had executed when it was first watched.
    image: u64,
}

/// What one checkpoint took.
#[derive(Debug)]
pub struct TreeCapture {
    captures: Vec<(pid_t, Capture)>,
    dead: Vec<Dead>,
    names: Vec<NamedMemory>,
}

impl TreeCapture {
    /// The images, the container's program first, each behind its parent. Their pages are borrowed; the caller adds
    /// sections of its own to the first.
    #[must_use]
    pub fn images(&self) -> Vec<Image<'_>> {
        let mut images: Vec<_> = self.captures.iter().map(|(_, c)| c.image()).collect();
        if let Some(first) = images.first_mut() {
            first.dead.clone_from(&self.dead);
            first.names.clone_from(&self.names);
        }
        images
    }
}

impl Tree {
    /// Watches nothing yet. `init` is the container's, `program` its child that the container is for; both as we
    /// see them. `images` counts what they execute.
    #[must_use]
    pub fn new(init: pid_t, program: pid_t, images: Images, settings: Settings) -> Self {
        Self {
            init,
            program,
            images,
            settings,
            members: Vec::new(),
            sequence: 0,
            deferred: 0,
            written: Written::default(),
            changes: 0,
        }
    }

    /// The number of the last checkpoint, 0 before the first.
    #[must_use]
    pub const fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Makes the next checkpoint a full one: for a backup that does not hold the last one.
    pub fn make_full(&mut self) {
        for member in &mut self.members {
            member.checkpointer.make_full();
        }
    }

    /// Gives a capture's buffers back, once its images are encoded.
    pub fn recycle(&mut self, taken: TreeCapture) {
        for (pid, capture) in taken.captures {
            let member = self
                .members
                .iter_mut()
                .find(|m| m.checkpointer.pid() == pid);
            if let Some(member) = member {
                member.checkpointer.recycle(capture);
            }
        }
    }

    /// Takes a checkpoint of all processes. `at_cut` is called while all of them stand still, with their numbers
    /// inside.
    ///
    /// # Errors
    /// As [`Checkpointer::checkpoint`]. After others than [`Unsettled`](CheckpointError::Unsettled) and
    /// [`Busy`](CheckpointError::Busy) the next one is full.
    pub fn checkpoint(
        &mut self,
        census: &dyn Census,
        at_cut: &mut dyn FnMut(&[u32]),
    ) -> Result<(TreeCapture, Timing), CheckpointError> {
        let taken = self.try_checkpoint(census, at_cut);
        match &taken {
            Ok(_) => {
                self.sequence += 1;
                self.deferred = 0;
            }
            Err(CheckpointError::Unsettled { .. } | CheckpointError::Busy { .. }) => {}
            Err(_) => self.members.clear(),
        }
        taken
    }

    fn try_checkpoint(
        &mut self,
        census: &dyn Census,
        at_cut: &mut dyn FnMut(&[u32]),
    ) -> Result<(TreeCapture, Timing), CheckpointError> {
        let births = census.births();
        let listed = Listed::read(self.init, self.program);
        if listed.living.first() != Some(&self.program) {
            // With it the container has ended, which is not for a checkpoint to tell.
            return Err(CheckpointError::Gone { pid: self.program });
        }
        let counts: Vec<_> = listed.living.iter().map(|p| self.images.of(*p)).collect();
        // Held until the processes go on: none executes another program, which would replace its memory.
        let held = hold(&listed.living, &counts)?;
        if census.is_lent() {
            return Err(CheckpointError::Busy { pid: self.program });
        }
        let images: Vec<u64> = held.iter().map(|count| **count).collect();
        self.follow(&listed.living, &images)?;
        if self.has_changed(census) {
            let members = self.members.iter_mut();
            members.for_each(|member| member.checkpointer.refresh());
        }
        let mut timing = Timing::default();
        let began = Instant::now();
        self.live(&mut timing)?;
        timing.live = began.elapsed();

        // Only now: see `Checkpointer::checkpoint`.
        let real_time = RealTime::enter(PRIORITY);
        let mut pause = Pause {
            births,
            dead: listed.dead,
            lap: Lap::since(Instant::now()),
            stopped: Vec::new(),
        };
        let began = Instant::now();
        let cut = self.cut(&mut pause, census, at_cut, &mut timing);
        let resumed = self.resume(pause.stopped);
        timing.resume = pause.lap.time();
        timing.pause = began.elapsed();
        drop(real_time);
        drop(held);
        let WholeCut { cuts, dead, names } = cut?;
        resumed?;
        let captures = cuts
            .into_iter()
            .zip(&mut self.members)
            .map(|(cut, member)| {
                let capture = member.checkpointer.capture(cut)?;
                Ok((member.checkpointer.pid(), capture))
            });
        let captures = captures.collect::<Result<_, CheckpointError>>()?;
        let taken = TreeCapture {
            captures,
            dead,
            names,
        };
        Ok((taken, timing))
    }

    /// Watches these processes and no others.
    fn follow(&mut self, living: &[pid_t], images: &[u64]) -> Result<(), CheckpointError> {
        let old = std::mem::take(&mut self.members).into_iter();
        let mut old: HashMap<pid_t, Member> = old.map(|m| (m.checkpointer.pid(), m)).collect();
        for (&pid, &image) in living.iter().zip(images) {
            let same = |m: &Member| {
                m.image == image
                    && kin::birth(pid).is_ok_and(|birth| birth == m.checkpointer.birth())
            };
            let member = match old.remove(&pid).filter(same) {
                Some(member) => member,
                None => match Checkpointer::attach(pid, self.settings.clone()) {
                    Ok(checkpointer) => self.adopted(checkpointer, image),
                    Err(_) if pid != self.program && has_ended(pid) => continue,
                    Err(error) => return Err(error),
                },
            };
            self.members.push(member);
        }
        Ok(())
    }

    fn adopted(&self, mut checkpointer: Checkpointer, image: u64) -> Member {
        checkpointer.go_on_behind(self.sequence);
        Member {
            checkpointer,
            image,
        }
    }

    fn live(&mut self, timing: &mut Timing) -> Result<(), CheckpointError> {
        let program = self.program;
        let mut outcome = Ok(());
        self.members.retain_mut(|member| {
            if outcome.is_err() {
                return true;
            }
            let pid = member.checkpointer.pid();
            match member.checkpointer.live(timing) {
                Ok(()) => true,
                Err(_) if pid != program && has_ended(pid) => false,
                Err(error) => {
                    outcome = Err(error);
                    true
                }
            }
        });
        outcome
    }

    /// What happens while the processes stand still.
    fn cut(
        &mut self,
        pause: &mut Pause,
        census: &dyn Census,
        at_cut: &mut dyn FnMut(&[u32]),
        timing: &mut Timing,
    ) -> Result<WholeCut, CheckpointError> {
        let gone = self.stop(pause)?;
        timing.stop = pause.lap.time();
        self.settle(&mut pause.stopped)?;
        // One that gets another parent while the processes are listed may be overlooked.
        if census.births() != pause.births || census.has_others(&self.numbers()) {
            self.take_in(pause, census)?;
        }
        if self.has_changed(census) {
            let mut members = self.members.iter_mut();
            members.try_for_each(|member| member.checkpointer.look_again())?;
        }
        timing.settle = pause.lap.time();
        let dead = pause.dead.iter().chain(&gone).copied();
        let dead: HashSet<pid_t> = dead.collect();
        let dead = dead.into_iter().filter_map(kin::dead).collect();
        let mut cuts = Vec::new();
        for (member, stopped) in self.members.iter_mut().zip(&pause.stopped) {
            cuts.push(member.checkpointer.look(stopped)?);
        }
        let names = self.names(&cuts)?;
        at_cut(&self.numbers());
        timing.threads = pause.lap.time();
        let common = self.written.common(census.forks(), &cuts);
        for (member, cut) in self.members.iter_mut().zip(&cuts) {
            member.checkpointer.copy_always(&common);
            timing.pause_pages += member.checkpointer.copy(cut)?;
        }
        timing.pages = pause.lap.time();
        Ok(WholeCut { cuts, dead, names })
    }

    fn names(&self, cuts: &[Cut]) -> Result<Vec<NamedMemory>, CheckpointError> {
        if !self.settings.names {
            return Ok(Vec::new());
        }
        let maps: Vec<_> = cuts.iter().map(|cut| &cut.maps[..]).collect();
        names::read(self.init, &maps)
    }

    /// Whether anything was changed that the members have to be asked about again.
    fn has_changed(&mut self, census: &dyn Census) -> bool {
        let changes = census.changes();
        std::mem::replace(&mut self.changes, changes) != changes
    }

    fn numbers(&self) -> Vec<u32> {
        let all = self.members.iter();
        all.map(|m| m.checkpointer.number()).collect()
    }

    /// Stops all members; those that are gone are none any more.
    fn stop(&mut self, pause: &mut Pause) -> Result<Vec<pid_t>, CheckpointError> {
        let mut gone = Vec::new();
        for member in &self.members {
            let pid = member.checkpointer.pid();
            match Stopped::all(pid) {
                Ok(stopped) => pause.stopped.push(stopped),
                Err(_) if pid != self.program && has_ended(pid) => gone.push(pid),
                Err(error) => return Err(error),
            }
        }
        self.members
            .retain(|member| !gone.contains(&member.checkpointer.pid()));
        Ok(gone)
    }

    fn settle(&self, stopped: &mut [Stopped]) -> Result<(), CheckpointError> {
        match self.settings.guest {
            Some(guest) => settle(stopped, self.settings.settle, guest),
            None => Ok(()),
        }
    }

    /// Takes in processes that were made since the others were listed.
    fn take_in(&mut self, pause: &mut Pause, census: &dyn Census) -> Result<(), CheckpointError> {
        loop {
            let listed = Listed::read(self.init, self.program);
            let known = |pid: &pid_t| pause.stopped.iter().any(|s| s.pid() == *pid);
            let Some(&new) = listed.living.iter().find(|pid| !known(pid)) else {
                pause.dead = listed.dead;
                return Ok(());
            };
            if census.is_lent() {
                return Err(CheckpointError::Busy { pid: new });
            }
            if resident(new) > SMALL && self.deferred < MOST_DEFERRED {
                self.deferred += 1;
                return Err(CheckpointError::Busy { pid: new });
            }
            let count = self.images.of(new);
            let image = *hold(&[new], std::slice::from_ref(&count))?[0];
            let mut stopped = match Stopped::all(new) {
                Ok(stopped) => [stopped],
                Err(_) if has_ended(new) => continue,
                Err(error) => return Err(error),
            };
            let settled = self.settle(&mut stopped);
            let [stopped] = stopped;
            let attached = settled.and_then(|()| {
                let mut checkpointer =
                    Checkpointer::attach_stopped(&stopped, self.settings.clone())?;
                checkpointer.start_stopped()?;
                Ok(checkpointer)
            });
            let member = self.adopted(attached?, image);
            self.members.push(member);
            pause.stopped.push(stopped);
        }
    }

    /// Lets all go on; those that were not taken in, too.
    fn resume(&mut self, stopped: Vec<Stopped>) -> Result<(), CheckpointError> {
        let mut outcome = Ok(());
        for stopped in stopped.into_iter().rev() {
            let pid = stopped.pid();
            let member = self
                .members
                .iter_mut()
                .find(|m| m.checkpointer.pid() == pid);
            let resumed = match member {
                Some(member) => member.checkpointer.resume(stopped),
                None => stopped.release(),
            };
            outcome = outcome.and(resumed);
        }
        outcome
    }
}

/// A pause under way.
struct Pause {
    /// How many threads and processes had been made when the processes were listed.
    births: u64,
    /// Processes that may have ended.
    dead: Vec<pid_t>,
    lap: Lap,
    /// In the order of the members.
    stopped: Vec<Stopped>,
}

/// What all processes were when they stood still.
struct WholeCut {
    cuts: Vec<Cut>,
    dead: Vec<Dead>,
    names: Vec<NamedMemory>,
}

/// Keeps processes from executing another program.
fn hold<'a>(
    pids: &[pid_t],
    counts: &'a [Arc<Mutex<u64>>],
) -> Result<Vec<MutexGuard<'a, u64>>, CheckpointError> {
    let hold = |(&pid, count): (&pid_t, &'a Arc<Mutex<u64>>)| match count.try_lock() {
        Ok(held) => Ok(held),
        Err(TryLockError::Poisoned(held)) => Ok(held.into_inner()),
        Err(TryLockError::WouldBlock) => Err(CheckpointError::Busy { pid }),
    };
    pids.iter().zip(counts).map(hold).collect()
}

impl Written {
    /// Shared memory of which a process cannot tell what was written: that of more than one of these, or of one that
    /// has ended. `forks` processes have been made.
    fn common(&mut self, forks: u64, cuts: &[Cut]) -> Common {
        let mut common = std::mem::take(&mut self.shared);
        let (shared, all) = shared(cuts);
        common.extend(&shared);
        if std::mem::replace(&mut self.forks, forks) != forks {
            common.extend(all);
        }
        self.shared = shared;
        common
    }
}

/// Shared memory that more than one of these processes map, and all.
fn shared(cuts: &[Cut]) -> (Common, Common) {
    let (mut shared, mut all) = (Common::new(), Common::new());
    for cut in cuts {
        let own: Common = cut
            .maps
            .iter()
            .filter(|m| is_shared_memory(m))
            .map(object)
            .collect();
        shared.extend(own.iter().filter(|object| all.contains(*object)));
        all.extend(own);
    }
    (shared, all)
}

/// Whether a process has ended, or is about to and holds nothing any more.
fn has_ended(pid: pid_t) -> bool {
    // One that is killed has no memory any more shortly before that shows in its state.
    kin::has_ended(pid) || resident(pid) == 0 && !kin::is_without_leader(pid)
}

/// Bytes of memory that a process holds.
fn resident(pid: pid_t) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
    let pages = text.split_ascii_whitespace().nth(1);
    pages.and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) * PAGE
}
