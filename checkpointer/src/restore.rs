//! Making a process from an image: the same numbers, the same addresses, the same registers.
//!
//! The caller is inside the PID namespace that the process shall live in (or made one for its children),
//! with a root directory in which the image's files are found. The process is forked from the caller, so
//! the caller should be small, and inherits its descriptors; those named in [`Plan::keep`] stay.
//!
//! Credentials, resource limits, sessions and descriptors are the caller's: they follow from its own, or
//! are set through [`Restored::run`].

mod fill;
mod handle;
mod memory;
mod threads;

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use eventlog::image::Mapping;
use libc::pid_t;
use sys::memory::{MemoryError, Range};
use sys::ptrace::{self, Options, Stop, TraceError};
use sys::remote::RemoteError;

use crate::facts::own_vdso_bytes;
use crate::store::ImageStore;

pub use handle::{Restored, RestoredThread};

/// A mapping that is not in the image.
#[derive(Clone, Debug)]
pub struct ExtraMapping {
    /// Where.
    pub range: Range,
    /// `PROT_*`.
    pub protection: u32,
    /// Shared, else private.
    pub shared: bool,
    /// A descriptor of the caller's.
    pub fd: RawFd,
    /// Offset in it.
    pub offset: u64,
}

/// Opens a file that the image maps, or its executable: for reading, and for writing when the second
/// argument says so.
pub type OpenFile<'a> = dyn FnMut(&Path, bool) -> io::Result<OwnedFd> + 'a;

/// Makes a process with this number that does nothing and holds these descriptors under these numbers, among
/// others; gives its number as we see it.
pub type MakeChild<'a> = dyn FnOnce(u32, &[(BorrowedFd<'_>, RawFd)]) -> io::Result<pid_t> + 'a;

/// What the caller adds to an image.
pub struct Plan<'a> {
    /// Mappings that the image leaves out.
    pub extra: Vec<ExtraMapping>,
    /// Descriptors of the caller's that the process keeps, under the same numbers.
    pub keep: Vec<RawFd>,
    /// Opens the image's files. The default opens the path as it is.
    pub open: Box<OpenFile<'a>>,
    /// Makes the process; without, it is forked from the caller. The numbers in `extra` and `keep` are then
    /// the new process's.
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

impl Default for Plan<'_> {
    fn default() -> Self {
        let open = |path: &Path, write: bool| {
            std::fs::OpenOptions::new()
                .read(true)
                .write(write)
                .open(path)
                .map(OwnedFd::from)
        };
        Self {
            extra: Vec::new(),
            keep: Vec::new(),
            open: Box::new(open),
            child: None,
        }
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

/// Makes the process. All its threads are traced by the calling thread and stopped, with registers set
/// such that letting them go continues at the cut; user dispatch is still off ([`Restored::arm`]).
///
/// # Errors
/// When anything cannot be made as it was; nothing is left behind then.
pub fn restore(store: &ImageStore, mut plan: Plan<'_>) -> Result<Restored> {
    check(store)?;
    let child = plan.child.take();
    let mut files = memory::Files::open(store, plan)?;
    let wanted = store.process().pid;
    let pid = make_child(wanted, child, &files)?;
    let child = Child { pid };
    let mut restored = memory::rebuild(pid, store, &mut files)?;
    threads::create(&mut restored, store)?;
    fill::fill(pid, store, &files)?;
    memory::finish(&restored, store, &files)?;
    threads::register(&mut restored, store)?;
    std::mem::forget(child);
    Ok(restored)
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
struct Child {
    pid: pid_t,
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

/// A child with the image's number, stopped.
fn make_child(
    wanted: u32,
    make: Option<Box<MakeChild<'_>>>,
    files: &memory::Files,
) -> Result<pid_t> {
    let failed = |source| RestoreError::Number {
        pid: wanted,
        source,
    };
    let made = match make {
        Some(make) => make(wanted, &files.descriptors()),
        None => sys::process::fork_with_pid(wanted as pid_t),
    };
    let pid = made.map_err(failed)?;
    let child = Child { pid };
    ptrace::seize(pid, Options::TRACECLONE | Options::EXITKILL)?;
    ptrace::interrupt(pid)?;
    loop {
        match ptrace::wait(pid)? {
            Stop::Interrupt => break,
            Stop::Signal(_) => ptrace::cont(pid, 0)?,
            stop => return Err(RestoreError::Unexpected { tid: pid, stop }),
        }
    }
    std::mem::forget(child);
    Ok(pid)
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
