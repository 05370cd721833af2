//! The address space of the new process: emptied, then rebuilt from the image's map.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use eventlog::image::{Backing, LAYOUT, Mapping, SIGNALS};
use libc::pid_t;
use sys::memory::{self, Range};
use sys::proc_maps::{MapsFile, VmFlags};
use sys::ptrace;
use sys::remote::{self, Batch, SCRATCH_DATA_AT, SCRATCH_DATA_LEN, SCRATCH_LEN};

use super::handle::Restored;
use super::{ExtraMapping, Plan, RestoreError, Result, vdso_group};
use crate::store::ImageStore;

/// Behind the last address a process can map.
const TASK_END: u64 = 0x7fff_ffff_f000;
/// Calls in one batch at most; fewer than the interpreter's table holds.
const CALLS: usize = 4000;

/// What backs the image's mappings here.
pub(super) struct Files {
    by_path: HashMap<(String, bool), OwnedFd>,
    shared: HashMap<(u64, u64), OwnedFd>,
    exe: OwnedFd,
    keep: Vec<RawFd>,
    extra: Vec<ExtraMapping>,
}

impl Files {
    /// Opens all files, before the child is forked.
    pub(super) fn open(store: &ImageStore, mut plan: Plan<'_>) -> Result<Self> {
        let mut open = |path: &str, write| {
            let failed = |source| RestoreError::File {
                path: path.to_owned(),
                source,
            };
            (plan.open)(Path::new(path), write).map_err(failed)
        };
        let mut by_path = HashMap::new();
        let mut shared = HashMap::new();
        for mapping in store
            .mappings()
            .iter()
            .filter(|mapping| !mapping.is_kernels())
        {
            let key = path_key(mapping);
            match mapping.backing {
                Backing::File if !by_path.contains_key(&key) => {
                    let file = open(&mapping.path, key.1)?;
                    by_path.insert(key, file);
                }
                Backing::SharedMemory => {
                    let id = (mapping.device, mapping.inode);
                    if let Entry::Vacant(place) = shared.entry(id) {
                        place.insert(shared_memory(store, id)?);
                    }
                }
                _ => {}
            }
        }
        let exe = open(&store.process().exe, false)?;
        Ok(Self {
            by_path,
            shared,
            exe,
            keep: plan.keep,
            extra: plan.extra,
        })
    }

    /// What a child that is not forked from here must hold, under our numbers.
    pub(super) fn descriptors(&self) -> Vec<(BorrowedFd<'_>, RawFd)> {
        let all = self.by_path.values().chain(self.shared.values());
        all.chain([&self.exe])
            .map(|fd| (fd.as_fd(), fd.as_raw_fd()))
            .collect()
    }

    /// The descriptor behind a mapping.
    fn fd(&self, mapping: &Mapping) -> Option<RawFd> {
        match mapping.backing {
            Backing::Anonymous => None,
            Backing::File => self.by_path.get(&path_key(mapping)).map(AsRawFd::as_raw_fd),
            Backing::SharedMemory => self.shared_fd(mapping),
        }
    }

    /// The memory file behind a mapping of shared memory.
    pub(super) fn shared_fd(&self, mapping: &Mapping) -> Option<RawFd> {
        self.shared
            .get(&(mapping.device, mapping.inode))
            .map(AsRawFd::as_raw_fd)
    }

    /// The same, to write to.
    pub(super) fn shared_file(&self, mapping: &Mapping) -> Option<&OwnedFd> {
        self.shared.get(&(mapping.device, mapping.inode))
    }
}

fn path_key(mapping: &Mapping) -> (String, bool) {
    (
        mapping.path.clone(),
        mapping.shared && mapping.protection & libc::PROT_WRITE as u32 != 0,
    )
}

/// A memory file as large as all mappings of one shared object need.
fn shared_memory(store: &ImageStore, id: (u64, u64)) -> Result<OwnedFd> {
    let failed = |what| {
        move |errno: nix::Error| RestoreError::Io {
            what,
            source: errno.into(),
        }
    };
    let of_it = |mapping: &&Mapping| (mapping.device, mapping.inode) == id;
    let ends = store
        .mappings()
        .iter()
        .filter(of_it)
        .map(|mapping| mapping.offset + mapping.end - mapping.start);
    let file = nix::sys::memfd::memfd_create("restored", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)
        .map_err(failed("making a memory file"))?;
    let len = i64::try_from(ends.max().unwrap_or(0)).unwrap_or(i64::MAX);
    nix::unistd::ftruncate(&file, len).map_err(failed("sizing a memory file"))?;
    Ok(file)
}

/// Gives the child the image's (empty) mappings and vDSO.
pub(super) fn rebuild(pid: pid_t, store: &ImageStore, files: &mut Files) -> Result<Restored> {
    let failed = |source| RestoreError::Io {
        what: "reading the child's memory map",
        source,
    };
    let own = MapsFile::open(pid)
        .and_then(|mut file| file.read())
        .map_err(failed)?;
    let own: Vec<Mapping> = own
        .iter()
        .map(|mapping| Mapping {
            start: mapping.range.start,
            end: mapping.range.end,
            path: mapping.path.clone(),
            ..Mapping::default()
        })
        .collect();
    let scratch = hole(&own, store, &files.extra)?;
    let vdso = own.iter().find(|mapping| mapping.path == "[vdso]");
    let (start, end) = vdso.map_or((0, 0), |mapping| (mapping.start, mapping.end));
    let syscall = remote::find_syscall(pid, start, end)?;
    let flags =
        (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE | libc::MAP_POPULATE)
            as u64;
    remote::syscall_checked(
        pid,
        syscall,
        libc::SYS_mmap,
        [scratch, SCRATCH_LEN, 7, flags, u64::MAX, 0],
    )?;
    remote::install(pid, scratch)?;
    clear(pid, scratch, &own, store)?;
    map_all(pid, scratch, store, files)?;
    Ok(Restored::new(pid, scratch, files.keep.clone()))
}

/// A place for the scratch that is free in the child, in the image and in the caller's additions, with as
/// much again behind it for moving the vDSO.
fn hole(own: &[Mapping], store: &ImageStore, extra: &[ExtraMapping]) -> Result<u64> {
    let len = SCRATCH_LEN * 2;
    let mappings = own
        .iter()
        .chain(store.mappings())
        .map(|mapping| (mapping.start, mapping.end));
    let taken: Vec<_> = mappings
        .chain(
            extra
                .iter()
                .map(|extra| (extra.range.start, extra.range.end)),
        )
        .collect();
    let free = |at: &u64| {
        !taken
            .iter()
            .any(|(start, end)| *start < at + len && at < end)
    };
    (0x2000_0000_0000..0x2fff_0000_0000)
        .step_by(1 << 32)
        .find(free)
        .ok_or(RestoreError::NoRoom { len })
}

/// Removes everything but scratch and vDSO, and moves the vDSO to the image's place.
fn clear(pid: pid_t, scratch: u64, own: &[Mapping], store: &ImageStore) -> Result<()> {
    let mut batch = Batch::new();
    let rseq = ptrace::rseq(pid)?;
    if rseq.address != 0 {
        let unregister = 1;
        let signature = u64::from(rseq.signature);
        batch.push(
            libc::SYS_rseq,
            [
                rseq.address,
                u64::from(rseq.len),
                unregister,
                signature,
                0,
                0,
            ],
        );
    }
    let here = vdso_group(own);
    let mut kept = vec![(scratch, scratch + SCRATCH_LEN), (TASK_END, TASK_END)];
    kept.extend(here.map(|here| (here.start, here.end)));
    kept.sort_unstable();
    let mut at = 0;
    for (start, end) in kept {
        if at < start {
            batch.push(libc::SYS_munmap, [at, start - at, 0, 0, 0, 0]);
        }
        at = end;
    }
    if let (Some(here), Some(there)) = (here, vdso_group(store.mappings()))
        && here != there
    {
        let parts: Vec<_> = own
            .iter()
            .filter(|m| m.is_kernels() && m.path != "[vsyscall]")
            .collect();
        // By way of the room behind the scratch: source and destination must not overlap.
        let middle = scratch + SCRATCH_LEN;
        for (from, to) in [(here.start, middle), (middle, there.start)] {
            for part in &parts {
                let (offset, len) = (part.start - here.start, part.end - part.start);
                let how = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
                batch.push(
                    libc::SYS_mremap,
                    [from + offset, len, len, how, to + offset, 0],
                );
            }
        }
    }
    batch.run_checked(pid, scratch)?;
    Ok(())
}

fn map_all(pid: pid_t, scratch: u64, store: &ImageStore, files: &Files) -> Result<()> {
    let mut batch = Batch::new();
    let mut made: Vec<(usize, &Mapping)> = Vec::new();
    for mapping in store
        .mappings()
        .iter()
        .filter(|mapping| !mapping.is_kernels())
    {
        made.push((
            batch.push(libc::SYS_mmap, mmap_args(mapping, files.fd(mapping))),
            mapping,
        ));
        advise(&mut batch, mapping);
        if batch.len() > CALLS {
            run_mappings(pid, scratch, &mut batch, &mut made)?;
        }
    }
    run_mappings(pid, scratch, &mut batch, &mut made)?;
    for extra in &files.extra {
        let sharing = if extra.shared {
            libc::MAP_SHARED
        } else {
            libc::MAP_PRIVATE
        };
        let flags = (sharing | libc::MAP_FIXED_NOREPLACE) as u64;
        let (start, len) = (extra.range.start, extra.range.len() as u64);
        batch.push(
            libc::SYS_mmap,
            [
                start,
                len,
                extra.protection.into(),
                flags,
                extra.fd as u64,
                extra.offset,
            ],
        );
    }
    batch.run_checked(pid, scratch)?;
    Ok(())
}

fn mmap_args(mapping: &Mapping, fd: Option<RawFd>) -> [u64; 6] {
    let flags = VmFlags(mapping.flags);
    let mut bits = libc::MAP_FIXED_NOREPLACE
        | if mapping.shared {
            libc::MAP_SHARED
        } else {
            libc::MAP_PRIVATE
        };
    let choices = [
        (fd.is_none(), libc::MAP_ANONYMOUS),
        (
            flags.has(VmFlags::GROWSDOWN) || mapping.path == "[stack]",
            libc::MAP_GROWSDOWN,
        ),
        (flags.has(VmFlags::NORESERVE), libc::MAP_NORESERVE),
        (flags.has(VmFlags::LOCKED), libc::MAP_LOCKED),
    ];
    choices
        .iter()
        .filter(|(chosen, _)| *chosen)
        .for_each(|(_, bit)| bits |= bit);
    let (fd, offset) = fd.map_or((u64::MAX, 0), |fd| (fd as u64, mapping.offset));
    [
        mapping.start,
        mapping.end - mapping.start,
        mapping.protection.into(),
        bits as u64,
        fd,
        offset,
    ]
}

fn advise(batch: &mut Batch, mapping: &Mapping) {
    let advice = [
        (VmFlags::HUGE, libc::MADV_HUGEPAGE),
        (VmFlags::NOHUGE, libc::MADV_NOHUGEPAGE),
        (VmFlags::DONTFORK, libc::MADV_DONTFORK),
        (VmFlags::DONTDUMP, libc::MADV_DONTDUMP),
        (VmFlags::WIPEONFORK, libc::MADV_WIPEONFORK),
    ];
    for (flag, advice) in advice
        .into_iter()
        .filter(|(flag, _)| VmFlags(mapping.flags).has(*flag))
    {
        let _ = flag;
        batch.push(
            libc::SYS_madvise,
            [
                mapping.start,
                mapping.end - mapping.start,
                advice as u64,
                0,
                0,
                0,
            ],
        );
    }
}

fn run_mappings(
    pid: pid_t,
    scratch: u64,
    batch: &mut Batch,
    made: &mut Vec<(usize, &Mapping)>,
) -> Result<()> {
    let results = std::mem::take(batch).run(pid, scratch)?;
    for (index, mapping) in made.drain(..) {
        let result = results[index];
        if result as u64 != mapping.start {
            let source = io::Error::from_raw_os_error(-result as i32);
            return Err(RestoreError::Mapping {
                start: mapping.start,
                path: mapping.path.clone(),
                source,
            });
        }
    }
    Ok(())
}

/// The process's own fields, signal actions and descriptors, once its memory is filled.
pub(super) fn finish(restored: &Restored, store: &ImageStore, files: &Files) -> Result<()> {
    let (pid, scratch) = (restored.pid(), restored.scratch());
    let process = store.process();
    let mut data = Data::new(pid, scratch);
    let mut batch = Batch::new();
    let auxv = data.put(&process.auxv)?;
    let layout = mm_map(
        &process.layout,
        auxv,
        process.auxv.len() as u32,
        files.exe.as_raw_fd(),
    );
    let map = data.put(&layout)?;
    let set = [
        libc::PR_SET_MM as u64,
        PR_SET_MM_MAP,
        map,
        layout.len() as u64,
        0,
        0,
    ];
    batch.push(libc::SYS_prctl, set);
    for signal in (1..=SIGNALS as u64).filter(|&signal| signal != 9 && signal != 19) {
        let action: Vec<u8> = process.actions[signal as usize - 1]
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        let at = data.put(&action)?;
        batch.push(libc::SYS_rt_sigaction, [signal, at, 0, 8, 0, 0]);
    }
    batch.push(libc::SYS_umask, [process.umask.into(), 0, 0, 0, 0, 0]);
    let mut cwd = process.cwd.clone().into_bytes();
    cwd.push(0);
    let cwd = data.put(&cwd)?;
    batch.push(libc::SYS_chdir, [cwd, 0, 0, 0, 0, 0]);
    close_all_but(&mut batch, &files.keep);
    batch.run_checked(pid, scratch)?;
    Ok(())
}

const PR_SET_MM_MAP: u64 = 14;

/// `struct prctl_mm_map`.
fn mm_map(layout: &[u64; LAYOUT], auxv: u64, auxv_len: u32, exe: RawFd) -> Vec<u8> {
    let words = layout
        .iter()
        .chain([&auxv])
        .flat_map(|word| word.to_le_bytes());
    words
        .chain(auxv_len.to_le_bytes())
        .chain(exe.to_le_bytes())
        .collect()
}

fn close_all_but(batch: &mut Batch, keep: &[RawFd]) {
    let mut keep: Vec<u64> = keep.iter().map(|&fd| fd as u64).collect();
    keep.sort_unstable();
    let mut at = 0;
    for kept in keep.into_iter().chain([1 << 32]) {
        if at < kept {
            batch.push(libc::SYS_close_range, [at, kept - 1, 0, 0, 0, 0]);
        }
        at = kept + 1;
    }
}

/// The part of the scratch where arguments lie.
pub(super) struct Data {
    pid: pid_t,
    range: Range,
}

impl Data {
    pub(super) fn new(pid: pid_t, scratch: u64) -> Self {
        let start = scratch + SCRATCH_DATA_AT;
        Self {
            pid,
            range: Range {
                start,
                end: start + SCRATCH_DATA_LEN,
            },
        }
    }

    /// Puts bytes there and returns their address.
    pub(super) fn put(&mut self, bytes: &[u8]) -> Result<u64> {
        let at = self.range.start;
        let len = bytes.len().next_multiple_of(16) as u64;
        if at + len > self.range.end {
            return Err(RestoreError::NoRoom { len });
        }
        memory::write(self.pid, at, bytes)?;
        self.range.start += len;
        Ok(at)
    }
}
