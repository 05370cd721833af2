//! What the guest keeps for each process: kinds of descriptors and the application's signal actions.
//!
//! They lie in the process' own memory, so that fork copies them and a checkpoint holds them. A child that
//! shares the memory but not the descriptors (vfork, `posix_spawn`) gets a set of its own until it execs.

use core::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

use guest::abi::{TABLES, ThreadBlock, inherited};

use crate::signals::Action;

/// Descriptors above this number are treated as [`Kind::Other`].
pub(crate) const MAX_FDS: usize = 32_768;
/// Signals, and one because they count from 1.
pub(crate) const SIGNALS: usize = 65;

/// The tables of one process.
pub(crate) struct Tables {
    used: AtomicU32,
    highest: AtomicU32,
    descriptors: [AtomicU32; MAX_FDS],
    actions: [[AtomicU64; 4]; SIGNALS],
}

static SETS: [Tables; TABLES] = [const {
    Tables {
        used: AtomicU32::new(0),
        highest: AtomicU32::new(0),
        descriptors: [const { AtomicU32::new(0) }; MAX_FDS],
        actions: [const { [const { AtomicU64::new(0) }; 4] }; SIGNALS],
    }
}; TABLES];

/// What a descriptor refers to, as far as the guest treats it differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Not open.
    Closed,
    /// A regular file: replay opens it, too, so that it can be mapped.
    File,
    /// Memory in the shape of a file: a memory file, or one in `/dev/shm`. It is the container's, so replay makes, maps and
    /// writes it as the program did.
    Memory,
    /// A connection to the outside; the number is its output entry plus one, 0 without one.
    Connection(u32),
    /// A TCP socket that is not connected.
    Tcp,
    /// A pipe, UNIX socket, eventfd: a channel inside the container.
    Internal,
    /// The standard input the container was started with.
    Stdin,
    /// Its standard output.
    Stdout,
    /// Its standard error.
    Stderr,
    /// A signalfd.
    Signals,
    /// Anything else.
    Other,
}

impl Kind {
    const fn encode(self) -> u32 {
        match self {
            Self::Closed => 0,
            Self::File => 1,
            Self::Connection(n) => 2 | n << 4,
            Self::Tcp => 3,
            Self::Internal => 4,
            Self::Stdin => inherited::STDIN,
            Self::Stdout => inherited::STDOUT,
            Self::Stderr => inherited::STDERR,
            Self::Other => 8,
            Self::Signals => 9,
            Self::Memory => 10,
        }
    }

    /// Whether replay has a descriptor of its own with the same number.
    pub(crate) const fn is_real(self) -> bool {
        matches!(self, Self::File | Self::Memory)
    }

    /// Reads a stored kind.
    pub(crate) const fn decode(word: u32) -> Self {
        match word & 15 {
            0 => Self::Closed,
            1 => Self::File,
            2 => Self::Connection(word >> 4),
            3 => Self::Tcp,
            4 => Self::Internal,
            inherited::STDIN => Self::Stdin,
            inherited::STDOUT => Self::Stdout,
            inherited::STDERR => Self::Stderr,
            9 => Self::Signals,
            10 => Self::Memory,
            _ => Self::Other,
        }
    }
}

/// The tables of the calling thread's process.
#[inline(always)]
pub(crate) fn of(t: &ThreadBlock) -> &'static Tables {
    &SETS[t.tables.load(Relaxed) as usize % TABLES]
}

/// Marks the first set as the process' own.
pub(crate) fn claim_first() {
    SETS[0].used.store(1, Relaxed);
}

/// A copy of a thread's tables for a child that shares its memory. `None` if too many such children live.
pub(crate) fn fork_set(t: &ThreadBlock) -> Option<u32> {
    let from = of(t);
    for (index, set) in SETS.iter().enumerate() {
        if set.used.compare_exchange(0, 1, Acquire, Relaxed).is_ok() {
            let highest = from.highest.load(Relaxed).max(set.highest.load(Relaxed));
            set.highest.store(highest, Relaxed);
            for fd in 0..=(highest as usize).min(MAX_FDS - 1) {
                set.descriptors[fd].store(from.descriptors[fd].load(Relaxed), Relaxed);
            }
            for (to, from) in set.actions.iter().zip(&from.actions) {
                for (to, from) in to.iter().zip(from) {
                    to.store(from.load(Relaxed), Relaxed);
                }
            }
            return u32::try_from(index).ok();
        }
    }
    None
}

/// Gives a set back.
pub(crate) fn release_set(index: u32) {
    SETS[index as usize % TABLES].used.store(0, Release);
}

impl Tables {
    /// What a descriptor is.
    #[inline(always)]
    pub(crate) fn kind(&self, fd: u64) -> Kind {
        usize::try_from(fd as u32)
            .ok()
            .and_then(|n| self.descriptors.get(n))
            .map_or(Kind::Other, |word| Kind::decode(word.load(Relaxed)))
    }

    /// The stored kind of a descriptor, for the next image.
    pub(crate) fn word(&self, fd: u64) -> u32 {
        self.kind(fd).encode()
    }

    /// Notes what a descriptor is.
    pub(crate) fn set_kind(&self, fd: u64, kind: Kind) {
        let fd = fd as u32;
        if let Some(word) = self.descriptors.get(fd as usize) {
            word.store(kind.encode(), Relaxed);
            self.highest.fetch_max(fd, Relaxed);
        }
    }

    /// One above the highest descriptor ever noted.
    pub(crate) fn end(&self) -> u64 {
        (u64::from(self.highest.load(Relaxed)) + 1).min(MAX_FDS as u64)
    }

    /// The application's action for a signal.
    pub(crate) fn action(&self, signal: usize) -> Action {
        let words = &self.actions[signal % SIGNALS];
        Action(core::array::from_fn(|i| words[i].load(Relaxed)))
    }

    /// Notes the application's action for a signal.
    pub(crate) fn set_action(&self, signal: usize, action: Action) {
        for (to, from) in self.actions[signal % SIGNALS].iter().zip(action.0) {
            to.store(from, Relaxed);
        }
    }
}
