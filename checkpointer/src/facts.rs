//! What the image needs beside memory and registers, gathered outside the pause and kept.
//!
//! Some of it only the process itself can ask for (signal actions, alternate stacks): it is asked once, by
//! calls made inside it, and again when the signal masks in `/proc` show a change or the caller says so. Whoever is told
//! of changes ([`crate::Census::changes`]) has it asked again in the pause.

use std::collections::HashMap;
use std::fs;
use std::io;

use eventlog::image::{LAYOUT, Process, SIGNALS};
use libc::pid_t;
use sys::memory::{self, Mem, Range};
use sys::proc_maps::{Mapping, VmFlags, read_flags};
use sys::ptrace::{self, SudConfig};
use sys::remote::{self, Batch, RemoteError, SCRATCH_DATA_AT, SCRATCH_LEN};

use crate::stop::Stopped;
use crate::{CheckpointError, kin};

/// What is known of a thread from outside the pause.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ThreadFacts {
    pub(crate) tid: u32,
    pub(crate) name: [u8; 16],
    pub(crate) altstack: [u64; 3],
    pub(crate) clear_tid: u64,
}

/// What is known of a process from outside the pause.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    pub(crate) process: Process,
    pub(crate) threads: HashMap<pid_t, ThreadFacts>,
    pub(crate) flags: Vec<(Range, VmFlags)>,
    masks: [u64; 2],
    brk: u64,
    syscall: u64,
}

fn failed(what: &'static str, pid: pid_t) -> impl Fn(io::Error) -> CheckpointError {
    move |source| CheckpointError::Process { what, pid, source }
}

fn nonsense(what: &'static str, pid: pid_t) -> CheckpointError {
    failed(what, pid)(io::Error::from(io::ErrorKind::InvalidData))
}

impl Facts {
    /// Where a `syscall` instruction lies in the process: found once, in its vDSO.
    pub(crate) fn syscall_at(
        &mut self,
        pid: pid_t,
        maps: &[Mapping],
    ) -> Result<u64, CheckpointError> {
        if self.syscall == 0 {
            let vdso = maps.iter().find(|mapping| mapping.path == "[vdso]");
            let vdso = vdso
                .ok_or_else(|| nonsense("looking for the vDSO", pid))?
                .range;
            self.syscall = remote::find_syscall(pid, vdso.start, vdso.end)?;
        }
        Ok(self.syscall)
    }

    /// Reads what `/proc` tells while the process runs. True when signal actions seem to have changed.
    pub(crate) fn read_proc(&mut self, pid: pid_t) -> Result<bool, CheckpointError> {
        let status = Status::read(pid, pid)?;
        let changed = status.masks != self.masks;
        self.masks = status.masks;
        self.process.pid = status.inner;
        self.process.umask = status.umask;
        self.process.kin = kin::of(pid)?;
        self.process.layout = read_layout(pid)?;
        self.process.auxv =
            fs::read(format!("/proc/{pid}/auxv")).map_err(failed("reading auxv", pid))?;
        self.process.exe = read_link(pid, "exe")?;
        self.process.cwd = read_link(pid, "cwd")?;
        Ok(changed)
    }

    /// The signals that have a handler, as a signal mask.
    pub(crate) fn handled(&self) -> u64 {
        self.masks[1]
    }

    /// Reads the flags of all mappings: milliseconds.
    pub(crate) fn read_flags(&mut self, pid: pid_t) -> Result<(), CheckpointError> {
        self.flags = read_flags(pid).map_err(failed("reading smaps", pid))?;
        Ok(())
    }

    /// The flags of a mapping as last read.
    pub(crate) fn flags_of(&self, mapping: &Mapping) -> VmFlags {
        let at = self
            .flags
            .partition_point(|(range, _)| range.end <= mapping.range.start);
        match self.flags.get(at) {
            Some((range, flags)) if range.start < mapping.range.end => *flags,
            _ => VmFlags::default(),
        }
    }

    /// Asks the process for its signal actions, and every stopped thread for its registrations.
    pub(crate) fn ask_all(
        &mut self,
        stopped: &Stopped,
        maps: &[Mapping],
    ) -> Result<(), CheckpointError> {
        let pid = stopped.pid();
        let syscall = self.syscall_at(pid, maps)?;
        let threads = stopped.threads();
        let first = threads[0];
        let quiet = Quiet::new(&threads)?;
        let flags = (libc::MAP_PRIVATE
            | libc::MAP_ANONYMOUS
            | libc::MAP_FIXED_NOREPLACE
            | libc::MAP_POPULATE) as u64;
        let place = free_place(maps);
        let map = [place, SCRATCH_LEN, 7, flags, u64::MAX, 0];
        let scratch = remote::syscall_checked(first, syscall, libc::SYS_mmap, map)?;
        let asked = self.ask_in(pid, &threads, scratch);
        remote::syscall_checked(
            first,
            syscall,
            libc::SYS_munmap,
            [scratch, SCRATCH_LEN, 0, 0, 0, 0],
        )?;
        drop(quiet);
        asked
    }

    fn ask_in(
        &mut self,
        pid: pid_t,
        threads: &[pid_t],
        scratch: u64,
    ) -> Result<(), CheckpointError> {
        remote::install(pid, scratch)?;
        let data = scratch + SCRATCH_DATA_AT;
        let mut batch = Batch::new();
        for signal in 0..SIGNALS as u64 {
            batch.push(
                libc::SYS_rt_sigaction,
                [signal + 1, 0, data + signal * 32, 8, 0, 0],
            );
        }
        batch.push(libc::SYS_brk, [0; 6]);
        let results = batch.run_checked(threads[0], scratch)?;
        self.brk = results[SIGNALS];
        let mut bytes = [0; SIGNALS * 32];
        memory::read(pid, data, &mut bytes)?;
        for (action, bytes) in self.process.actions.iter_mut().zip(bytes.chunks_exact(32)) {
            *action = words(bytes);
        }
        let mut batch = Batch::new();
        batch.push(libc::SYS_sigaltstack, [0, data, 0, 0, 0, 0]);
        batch.push(
            libc::SYS_prctl,
            [libc::PR_GET_TID_ADDRESS as u64, data + 24, 0, 0, 0, 0],
        );
        self.threads.retain(|tid, _| threads.contains(tid));
        for &tid in threads {
            batch.run_checked(tid, scratch)?;
            let mut answer = [0; 32];
            memory::read(pid, data, &mut answer)?;
            self.note_thread(pid, tid, &answer)?;
        }
        Ok(())
    }

    /// Asks one stopped thread for its registrations, with a little room below its stack pointer.
    pub(crate) fn ask_thread(
        &mut self,
        pid: pid_t,
        tid: pid_t,
        maps: &[Mapping],
    ) -> Result<(), CheckpointError> {
        let syscall = self.syscall_at(pid, maps)?;
        let room = (ptrace::regs(tid)?.rsp - 1024) & !15;
        let quiet = Quiet::new(&[tid])?;
        remote::syscall_checked(tid, syscall, libc::SYS_sigaltstack, [0, room, 0, 0, 0, 0])?;
        let ask = [libc::PR_GET_TID_ADDRESS as u64, room + 24, 0, 0, 0, 0];
        remote::syscall_checked(tid, syscall, libc::SYS_prctl, ask)?;
        drop(quiet);
        let mut answer = [0; 32];
        memory::read(pid, room, &mut answer)?;
        self.note_thread(pid, tid, &answer)
    }

    fn note_thread(
        &mut self,
        pid: pid_t,
        tid: pid_t,
        answer: &[u8; 32],
    ) -> Result<(), CheckpointError> {
        let [sp, flags, size, clear_tid] = words(answer);
        // On the stack that is being used, the kernel says so; the registration itself has no such flag.
        let altstack = [
            sp,
            flags & u64::from(u32::MAX) & !(libc::SS_ONSTACK as u64),
            size,
        ];
        let inner = Status::read(pid, tid)?.inner;
        let text = fs::read(format!("/proc/{pid}/task/{tid}/comm"))
            .map_err(failed("reading a name", tid))?;
        let mut name = [0; 16];
        let len = text
            .iter()
            .position(|&byte| byte == b'\n')
            .unwrap_or(text.len())
            .min(15);
        name[..len].copy_from_slice(&text[..len]);
        self.threads.insert(
            tid,
            ThreadFacts {
                tid: inner,
                name,
                altstack,
                clear_tid,
            },
        );
        Ok(())
    }

    /// The end of the heap: the last one asked for, unless the map says it has moved.
    pub(crate) fn brk(&self, maps: &[Mapping]) -> u64 {
        let heap = maps
            .iter()
            .filter(|mapping| mapping.path == "[heap]")
            .map(|mapping| mapping.range.end)
            .max();
        match heap {
            Some(end) if self.brk.next_multiple_of(4096) != end => end,
            _ => self.brk,
        }
    }
}

/// Switches system-call user dispatch off for some threads while calls are made inside them.
pub(crate) struct Quiet(Vec<(pid_t, SudConfig)>);

impl Quiet {
    pub(crate) fn new(threads: &[pid_t]) -> Result<Self, CheckpointError> {
        let mut quiet = Self(Vec::new());
        for &tid in threads {
            let config = ptrace::sud(tid)?;
            if config != SudConfig::default() {
                ptrace::set_sud(tid, &SudConfig::default())?;
                quiet.0.push((tid, config));
            }
        }
        Ok(quiet)
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        for (tid, config) in &self.0 {
            if let Err(error) = ptrace::set_sud(*tid, config) {
                tracing::error!(%error, "user dispatch could not be switched on again");
            }
        }
    }
}

/// Lines of a `status` file.
struct Status {
    inner: u32,
    umask: u32,
    masks: [u64; 2],
}

impl Status {
    fn read(pid: pid_t, tid: pid_t) -> Result<Self, CheckpointError> {
        let path = format!("/proc/{pid}/task/{tid}/status");
        let text = fs::read_to_string(path).map_err(failed("reading the status", tid))?;
        let field = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name))
                .map(str::trim)
        };
        let mask = |name| field(name).and_then(|text| u64::from_str_radix(text, 16).ok());
        let inner = field("NSpid:").and_then(|numbers| numbers.rsplit(['\t', ' ']).next());
        let umask = field("Umask:").and_then(|text| u32::from_str_radix(text, 8).ok());
        let read = || {
            let masks = [mask("SigIgn:")?, mask("SigCgt:")?];
            Some(Self {
                inner: inner?.parse().ok()?,
                umask: umask?,
                masks,
            })
        };
        read().ok_or_else(|| nonsense("reading the status", tid))
    }
}

/// The memory layout as `/proc/PID/stat` has it; brk is left out.
fn read_layout(pid: pid_t) -> Result<[u64; LAYOUT], CheckpointError> {
    let text =
        fs::read_to_string(format!("/proc/{pid}/stat")).map_err(failed("reading stat", pid))?;
    let fields = text
        .rsplit_once(')')
        .map(|(_, rest)| rest.split_whitespace().collect::<Vec<_>>());
    // Field 3, the state, is the first behind the name.
    let field = |number: usize| fields.as_ref()?.get(number - 3)?.parse::<u64>().ok();
    let read = || {
        Some([
            field(26)?,
            field(27)?,
            field(45)?,
            field(46)?,
            field(47)?,
            0,
            field(28)?,
            field(48)?,
            field(49)?,
            field(50)?,
            field(51)?,
        ])
    };
    read().ok_or_else(|| nonsense("reading stat", pid))
}

fn read_link(pid: pid_t, name: &str) -> Result<String, CheckpointError> {
    let target =
        fs::read_link(format!("/proc/{pid}/{name}")).map_err(failed("following a link", pid))?;
    Ok(target.to_string_lossy().into_owned())
}

/// A free place for the scratch, far from where the kernel puts mappings by itself.
fn free_place(maps: &[Mapping]) -> u64 {
    let taken = |at: u64| {
        maps.iter()
            .any(|mapping| mapping.range.start < at + SCRATCH_LEN && at < mapping.range.end)
    };
    (0x2000_0000_0000..0x2fff_0000_0000)
        .step_by(1 << 32)
        .find(|&at| !taken(at))
        .unwrap_or(0x2000_0000_0000)
}

/// Bytes of the target's vDSO when they are not ours: it was changed after exec.
pub(crate) fn changed_vdso(
    pid: pid_t,
    maps: &[Mapping],
) -> Result<Option<(Range, Vec<u8>)>, CheckpointError> {
    let Some(vdso) = maps.iter().find(|mapping| mapping.path == "[vdso]") else {
        return Ok(None);
    };
    let mut bytes = vec![0; vdso.range.len()];
    let mem = Mem::open(pid).map_err(failed("opening the memory", pid))?;
    mem.read(vdso.range.start, &mut bytes)?;
    let own = own_vdso(pid)?;
    Ok((own != bytes).then_some((vdso.range, bytes)))
}

/// The bytes of this kernel's vDSO.
pub(crate) fn own_vdso(pid: pid_t) -> Result<Vec<u8>, CheckpointError> {
    own_vdso_bytes().map_err(|error| match error {
        RemoteError::Memory(error) => error.into(),
        _ => nonsense("reading our vDSO", pid),
    })
}

pub(crate) fn own_vdso_bytes() -> Result<Vec<u8>, RemoteError> {
    let own = std::process::id() as pid_t;
    let maps = sys::proc_maps::MapsFile::open(own)
        .and_then(|mut file| file.read())
        .unwrap_or_default();
    let range = maps
        .iter()
        .find(|mapping| mapping.path == "[vdso]")
        .map(|mapping| mapping.range);
    let range = range.ok_or(RemoteError::NoInstruction {
        pid: own,
        start: 0,
        end: 0,
    })?;
    let mut bytes = vec![0; range.len()];
    memory::read(own, range.start, &mut bytes)?;
    Ok(bytes)
}

fn words<const N: usize>(bytes: &[u8]) -> [u64; N] {
    std::array::from_fn(|index| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[index * 8..index * 8 + 8]);
        u64::from_le_bytes(word)
    })
}
