//! Putting the guest into a process that has just called execve.
//!
//! The caller traces the process and has seen its exec event. The steps are those that work on every kind
//! of program (dynamic, static, in an empty root directory): run to the end of the execve itself, or the
//! kernel would overwrite rax; map the blob, the thread blocks and the arena at their fixed addresses; point
//! the program's vDSO at a copy whose entries lead to the guest; run `guest_init`; give gs its base.

use std::io;

use guest::Blob;
use guest::abi::{
    ARENA_BASE, ARENA_FD, ARENA_LEN, BLOB_BASE, Boot, HEAP_BASE, HEAP_LEN, MAX_THREADS,
    STACKS_BASE, STACKS_LEN, THREAD_LEN, THREADS_BASE, VDSO_COPY,
};
use libc::pid_t;
use object::{Object, ObjectSymbol};

use crate::memory::{self, MemoryError};
use crate::proc_maps::{Mapping, MapsFile};
use crate::ptrace::{self, Stop, TraceError};
use crate::remote::{self, RemoteError};

/// Why the guest could not be injected.
#[derive(Debug, thiserror::Error)]
pub enum InjectError {
    /// A tracing request failed.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// Work inside the process failed.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// Its memory could not be reached.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Its memory map could not be read.
    #[error("reading the memory map of process {pid} failed: {source}")]
    Maps {
        /// The process.
        pid: pid_t,
        /// The kernel's answer.
        source: io::Error,
    },
    /// It stopped for another reason than the end of its execve.
    #[error("process {pid} stopped before its execve was over: {stop:?}")]
    Early {
        /// The process.
        pid: pid_t,
        /// Why.
        stop: Stop,
    },
    /// It has no vDSO, or one that is no ELF file.
    #[error("process {pid} has no usable vDSO")]
    Vdso {
        /// The process.
        pid: pid_t,
    },
}

type Result<T> = std::result::Result<T, InjectError>;

const PROT_NONE: u64 = libc::PROT_NONE as u64;
const PROT_READ: u64 = libc::PROT_READ as u64;
const PROT_WRITE: u64 = libc::PROT_WRITE as u64;
const PROT_EXEC: u64 = libc::PROT_EXEC as u64;
const PRIVATE: u64 = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE) as u64;

/// Injects the guest. The process is traced and stopped at its exec event; afterwards it is stopped at its
/// first instruction. `slot` is the ring of its first thread.
///
/// # Errors
/// [`InjectError`]; the process is then in no state to run.
pub fn inject(pid: pid_t, blob: &Blob, slot: u32) -> Result<()> {
    finish_execve(pid)?;
    let start = ptrace::regs(pid)?;
    let maps = mappings(pid)?;
    let vdso = maps
        .iter()
        .find(|m| m.path == "[vdso]")
        .ok_or(InjectError::Vdso { pid })?;
    let (vdso_start, vdso_end) = (vdso.range.start, vdso.range.end);
    let call = Remote {
        pid,
        instruction: remote::find_syscall(pid, vdso_start, vdso_end)?,
    };
    map_regions(&call, blob)?;
    write_blob(&call, blob)?;
    let stack = Stack::read(pid, start.rsp)?;
    let mut boot = Boot {
        slot,
        at_random: stack.value(libc::AT_RANDOM).unwrap_or(0),
        mask: ptrace::sigmask(pid)?,
        blob_len: blob.len,
        vdso: [vdso_start, vdso_end],
        ..Boot::default()
    };
    boot.vdso_entries = copy_vdso(&call, blob, vdso_start, vdso_end)?;
    if let Some(at) = stack.place(libc::AT_SYSINFO_EHDR) {
        memory::write_u64(pid, at, VDSO_COPY)?;
    }
    let text = maps
        .iter()
        .filter(|m| m.protection() & libc::PROT_EXEC as u32 != 0 && m.path.starts_with('/'));
    for (to, mapping) in boot.text.iter_mut().zip(text) {
        *to = [mapping.range.start, mapping.range.end];
    }
    memory::write(pid, blob.boot, boot_bytes(&boot).as_slice())?;
    let first_stack = THREADS_BASE + THREAD_LEN - 256;
    remote::call(
        pid,
        &remote::Call {
            function: blob.init,
            args: [0; 6],
            stack: first_stack,
            trap: 0,
        },
    )?;
    let mut regs = start;
    regs.gs_base = THREADS_BASE;
    regs.orig_rax = u64::MAX;
    Ok(ptrace::set_regs(pid, &regs)?)
}

/// Runs to the end of the execve system call.
fn finish_execve(pid: pid_t) -> Result<()> {
    ptrace::cont_syscall(pid, 0)?;
    match ptrace::wait(pid)? {
        Stop::Syscall | Stop::Signal(libc::SIGTRAP) => Ok(()),
        stop => Err(InjectError::Early { pid, stop }),
    }
}

fn mappings(pid: pid_t) -> Result<std::sync::Arc<[Mapping]>> {
    MapsFile::open(pid)
        .and_then(|mut file| file.read())
        .map_err(|source| InjectError::Maps { pid, source })
}

/// Makes system calls in the stopped process.
struct Remote {
    pid: pid_t,
    instruction: u64,
}

impl Remote {
    fn call(&self, nr: i64, args: [u64; 6]) -> Result<u64> {
        Ok(remote::syscall_checked(
            self.pid,
            self.instruction,
            nr,
            args,
        )?)
    }

    fn map(&self, at: u64, len: u64, prot: u64, flags: u64, fd: u64) -> Result<()> {
        self.call(libc::SYS_mmap, [at, len, prot, flags, fd, 0])
            .map(drop)
    }

    fn protect(&self, at: u64, len: u64, prot: u64) -> Result<()> {
        self.call(libc::SYS_mprotect, [at, len, prot, 0, 0, 0])
            .map(drop)
    }
}

fn map_regions(call: &Remote, blob: &Blob) -> Result<()> {
    let no_fd = u64::MAX;
    let no_reserve = libc::MAP_NORESERVE as u64;
    let shared = (libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE | libc::MAP_NORESERVE) as u64;
    call.map(BLOB_BASE, blob.len, PROT_READ | PROT_WRITE, PRIVATE, no_fd)?;
    let threads = MAX_THREADS as u64 * THREAD_LEN;
    call.map(
        THREADS_BASE,
        threads,
        PROT_READ | PROT_WRITE,
        PRIVATE | no_reserve,
        no_fd,
    )?;
    call.map(HEAP_BASE, HEAP_LEN, PROT_NONE, PRIVATE | no_reserve, no_fd)?;
    call.map(
        STACKS_BASE,
        STACKS_LEN,
        PROT_NONE,
        PRIVATE | no_reserve,
        no_fd,
    )?;
    call.map(
        ARENA_BASE,
        ARENA_LEN,
        PROT_READ | PROT_WRITE,
        shared,
        ARENA_FD as u64,
    )
}

fn write_blob(call: &Remote, blob: &Blob) -> Result<()> {
    for segment in &blob.segments {
        memory::write(call.pid, segment.address, segment.bytes)?;
    }
    for segment in blob.segments.iter().filter(|s| !s.writable) {
        let start = segment.address & !4095;
        let end = (segment.address + segment.len).next_multiple_of(4096);
        let prot = if segment.executable {
            PROT_READ | PROT_EXEC
        } else {
            PROT_READ
        };
        call.protect(start, end - start, prot)?;
    }
    Ok(())
}

/// Makes the copy of the vDSO; returns the kernel's own entry points, in the order of [`Boot`].
fn copy_vdso(call: &Remote, blob: &Blob, start: u64, end: u64) -> Result<[u64; 4]> {
    let mut image = vec![0; (end - start) as usize];
    memory::read(call.pid, start, &mut image)?;
    let mut entries = [0; 4];
    let mut patches = Vec::new();
    let file = object::File::parse(&*image).map_err(|_| InjectError::Vdso { pid: call.pid })?;
    for symbol in file.dynamic_symbols() {
        let found = blob
            .vdso
            .iter()
            .position(|(name, _)| symbol.name() == Ok(name));
        if let Some(index) = found.filter(|_| symbol.address() != 0) {
            if let Some(entry) = entries.get_mut(index) {
                *entry = start + symbol.address();
            }
            patches.push((symbol.address() as usize, blob.vdso[index].1));
        }
    }
    for (at, function) in patches {
        // movabs rax, function; jmp rax
        let mut jump = vec![0x48, 0xb8];
        jump.extend_from_slice(&function.to_le_bytes());
        jump.extend_from_slice(&[0xff, 0xe0]);
        image
            .get_mut(at..at + jump.len())
            .ok_or(InjectError::Vdso { pid: call.pid })?
            .copy_from_slice(&jump);
    }
    call.map(
        VDSO_COPY,
        end - start,
        PROT_READ | PROT_WRITE,
        PRIVATE,
        u64::MAX,
    )?;
    memory::write(call.pid, VDSO_COPY, &image)?;
    call.protect(VDSO_COPY, end - start, PROT_READ | PROT_EXEC)?;
    Ok(entries)
}

/// The auxiliary vector on the stack of a fresh image.
struct Stack {
    /// Address of each entry, its tag and its value.
    entries: Vec<(u64, u64, u64)>,
}

impl Stack {
    fn read(pid: pid_t, rsp: u64) -> Result<Self> {
        let word = |at: u64| memory::read_u64(pid, at);
        let mut at = rsp + 8 + (word(rsp)? + 1) * 8;
        while word(at)? != 0 {
            at += 8;
        }
        at += 8;
        let mut entries = Vec::new();
        loop {
            let tag = word(at)?;
            if tag == libc::AT_NULL {
                return Ok(Self { entries });
            }
            entries.push((at, tag, word(at + 8)?));
            at += 16;
        }
    }

    fn value(&self, tag: u64) -> Option<u64> {
        self.entries.iter().find(|e| e.1 == tag).map(|e| e.2)
    }

    /// Where the entry's value lies.
    fn place(&self, tag: u64) -> Option<u64> {
        self.entries.iter().find(|e| e.1 == tag).map(|e| e.0 + 8)
    }
}

fn boot_bytes(boot: &Boot) -> [u8; size_of::<Boot>()] {
    // SAFETY: `Boot` is integers without padding (its fields are ordered and padded by hand).
    unsafe { std::mem::transmute_copy(boot) }
}
