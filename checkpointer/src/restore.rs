//! Making a process from an image: the same numbers, the same addresses, the same registers.
//!
//! The caller is inside the PID namespace that the process shall live in (or made one for its children),
//! with a root directory in which the image's files are found. The process is forked from the caller, so
//! the caller should be small, and inherits its descriptors; those named in [`Plan::keep`] stay. Or it is
//! made by the caller's own means ([`Plan::child`]).
//!
//! Memory comes first and may come ahead: a [`Prepared`] process has the image's mappings and pages, and
//! takes over what later images change. Threads, registers and the rest come at its end.
//!
//! Credentials, resource limits, sessions and descriptors are the caller's: they follow from its own, or
//! are set through [`Restored::run`].

mod blank;
mod children;
mod data;
mod difference;
mod fill;
mod handle;
mod identity;
mod mappings;
mod prepared;
mod shared;
mod threads;

use std::io;
use std::os::fd::RawFd;

use eventlog::image::Mapping;
use libc::pid_t;
use sys::memory::{MemoryError, Range};
use sys::ptrace::{self, Options, Stop, TraceError};
use sys::remote::RemoteError;

use crate::changes::Changes;
use crate::facts::own_vdso_bytes;
use crate::store::ImageStore;

pub use handle::{Restored, RestoredThread};
pub use prepared::Prepared;

/// A mapping that is not in the image.
#[derive(Clone, Debug)]
pub struct ExtraMapping {
    /// Where.
    pub range: Range,
    /// `PROT_*`.
    pub protection: u32,
    /// Shared, else private.
    pub shared: bool,
    /// A descriptor that the new process begins with.
    pub fd: RawFd,
    /// Offset in it.
    pub offset: u64,
}

/// Makes a process with this number that does nothing; gives its number as we see it.
pub type MakeChild<'a> = dyn FnOnce(u32) -> io::Result<pid_t> + 'a;

/// What the caller adds to an image.
#[derive(Default)]
pub struct Plan<'a> {
    /// Mappings that the image leaves out.
    pub extra: Vec<ExtraMapping>,
    /// Descriptors that the process begins with and keeps.
    pub keep: Vec<RawFd>,
    /// Makes the process, which then opens the image's files by itself; without, it is forked from the
    /// caller, with all the caller's descriptors.
    pub child: Option<Box<MakeChild<'a>>>,
}

impl std::fmt::Debug for Plan<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plan")
            .field("extra", &self.extra)
            .field("keep", &self.keep)
            .finish_non_exhaustive()
    }
}

/// A process that could not be made. What had been made of it is gone.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The store holds nothing.
    #[error("there is no image to restore")]
    Empty,
    /// The kernel's vDSO is not the one of the image.
    #[error("the image was made on a kernel with another vDSO ({image} bytes there, {here} here)")]
    OtherKernel {
        /// Bytes of the image's.
        image: usize,
        /// Bytes of this kernel's.
        here: usize,
    },
    /// The process's number is taken, or may not be chosen.
    #[error("no process with number {pid} can be made: {source}")]
    Number {
        /// The number.
        pid: u32,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A thread got another number.
    #[error("thread {wanted} of the image could not be made: {got} came instead")]
    Thread {
        /// The number it should have.
        wanted: u32,
        /// What the call returned.
        got: i64,
    },
    /// A file that the image maps cannot be opened.
    #[error("{path}, which the image maps, cannot be opened: {source}")]
    File {
        /// Its path.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// Something of ours failed.
    #[error("{what} failed: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A mapping could not be made at its address.
    #[error("the mapping at {start:#x} ({path}) could not be made: {source}")]
    Mapping {
        /// Its address.
        start: u64,
        /// Its path.
        path: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// No room for the scratch mapping.
    #[error("no free place of {len} bytes in the address spaces of both processes")]
    NoRoom {
        /// Bytes needed.
        len: u64,
    },
    /// The process was made for another one's images.
    #[error("the process was made for images that differ in {what}")]
    Stranger {
        /// In what.
        what: &'static str,
    },
    /// The process stopped for a reason that has no place here.
    #[error("thread {tid} of the new process reported {stop:?} while it was made")]
    Unexpected {
        /// The thread.
        tid: pid_t,
        /// What it reported.
        stop: Stop,
    },
    /// A tracing request failed.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// Work inside the process failed.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// Its memory could not be reached.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

pub(crate) type Result<T> = std::result::Result<T, RestoreError>;

/// Makes the process, as [`Prepared::finish`] leaves it.
///
/// # Errors
/// When anything cannot be made as it was; nothing is left behind then.
pub fn restore(store: &ImageStore, plan: Plan<'_>) -> Result<Restored> {
    let mut prepared = Prepared::new(store, plan)?;
    prepared.follow(store, Changes::default())?;
    prepared.fill(store, usize::MAX)?;
    prepared.complete(store)
}

fn check(store: &ImageStore) -> Result<()> {
    if store.sequence() == 0 {
        return Err(RestoreError::Empty);
    }
    let here = own_vdso_bytes()?;
    if here != store.vdso() {
        return Err(RestoreError::OtherKernel {
            image: store.vdso().len(),
            here: here.len(),
        });
    }
    Ok(())
}

/// Kills and reaps an unfinished process when dropped.
#[derive(Debug)]
struct Child {
    pid: pid_t,
}

impl Child {
    /// Leaves it alone: it is finished.
    fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(self.pid),
            nix::sys::signal::SIGKILL,
        );
        while let Ok(stop) = ptrace::wait(self.pid) {
            if matches!(stop, Stop::Exited(_) | Stop::Killed(_)) {
                break;
            }
        }
    }
}

/// Threads and children that it makes for us are traced, too.
const OPTIONS: Options =
    Options(Options::TRACECLONE.0 | Options::TRACEFORK.0 | Options::EXITKILL.0);

/// A child with the image's number, stopped.
fn make_child(wanted: u32, make: Option<Box<MakeChild<'_>>>) -> Result<Child> {
    let failed = |source| RestoreError::Number {
        pid: wanted,
        source,
    };
    let made = match make {
        Some(make) => make(wanted),
        None => sys::process::fork_with_pid(wanted as pid_t),
    };
    let pid = made.map_err(failed)?;
    let child = Child { pid };
    ptrace::seize(pid, OPTIONS)?;
    ptrace::interrupt(pid)?;
    loop {
        match ptrace::wait(pid)? {
            Stop::Interrupt => break,
            Stop::Signal(_) => ptrace::cont(pid, 0)?,
            stop => return Err(RestoreError::Unexpected { tid: pid, stop }),
        }
    }
    Ok(child)
}

/// The part of a memory map that the kernel's own data and vDSO take, if it has them.
pub(crate) fn vdso_group(mappings: &[Mapping]) -> Option<Range> {
    let own = || {
        mappings
            .iter()
            .filter(|mapping| mapping.is_kernels() && mapping.path != "[vsyscall]")
    };
    let start = own().map(|mapping| mapping.start).min()?;
    let end = own().map(|mapping| mapping.end).max()?;
    Some(Range { start, end })
}
