//! The image's mappings in the new process: made, changed and taken away by calls inside it.

use std::collections::HashMap;
use std::io;
use std::os::fd::RawFd;

use eventlog::image::{Backing, Mapping};
use libc::pid_t;
use sys::proc_maps::VmFlags;
use sys::remote::{Batch, SCRATCH_DATA_LEN};

use super::data::Data;
use super::difference::{Difference, flags, is_writable};
use super::shared::Shared;
use super::{RestoreError, Result};

/// Calls in one batch at most; fewer than the interpreter's table holds.
pub(super) const CALLS: usize = 4000;

/// Carries a difference out. What is mapped is empty then; memory files must be there.
pub(super) fn change(
    pid: pid_t,
    scratch: u64,
    difference: &Difference,
    shared: &Shared,
) -> Result<()> {
    let mut batch = Batch::new();
    for span in &difference.unmapped {
        let len = span.end - span.start;
        push(
            &mut batch,
            (pid, scratch),
            libc::SYS_munmap,
            [span.start, len, 0, 0, 0, 0],
        )?;
    }
    for (span, protection) in &difference.protected {
        let args = [
            span.start,
            span.end - span.start,
            (*protection).into(),
            0,
            0,
            0,
        ];
        push(&mut batch, (pid, scratch), libc::SYS_mprotect, args)?;
    }
    if !batch.is_empty() {
        batch.run_checked(pid, scratch)?;
    }
    map(pid, scratch, &difference.mapped, shared)
}

/// Adds a call that must succeed; makes those before it where there is no room.
fn push(batch: &mut Batch, (pid, scratch): (pid_t, u64), nr: i64, args: [u64; 6]) -> Result<()> {
    if batch.len() >= CALLS {
        std::mem::take(batch).run_checked(pid, scratch)?;
    }
    batch.push(nr, args);
    Ok(())
}

fn map(pid: pid_t, scratch: u64, mappings: &[Mapping], shared: &Shared) -> Result<()> {
    let files = Opened::open(pid, scratch, mappings)?;
    let mut batch = Batch::new();
    let mut made: Vec<(usize, &Mapping)> = Vec::new();
    for mapping in mappings {
        let fd = match mapping.backing {
            Backing::Anonymous => None,
            Backing::File => files.number(mapping),
            Backing::SharedMemory => shared.number(mapping),
        };
        made.push((batch.push(libc::SYS_mmap, mmap_args(mapping, fd)), mapping));
        advise(&mut batch, mapping);
        if batch.len() > CALLS {
            run(pid, scratch, &mut batch, &mut made)?;
        }
    }
    files.close(&mut batch);
    run(pid, scratch, &mut batch, &mut made)
}

/// Files that the process has opened to map them: by path, for reading or for writing as well.
struct Opened(HashMap<(String, bool), RawFd>);

fn key(mapping: &Mapping) -> (String, bool) {
    (mapping.path.clone(), mapping.shared && is_writable(mapping))
}

impl Opened {
    fn open(pid: pid_t, scratch: u64, mappings: &[Mapping]) -> Result<Self> {
        let mut wanted: Vec<(String, bool)> = mappings
            .iter()
            .filter(|mapping| mapping.backing == Backing::File)
            .map(key)
            .collect();
        wanted.sort_unstable();
        wanted.dedup();
        let mut opened = Self(HashMap::new());
        let mut rest = wanted.into_iter().peekable();
        while rest.peek().is_some() {
            let mut room = SCRATCH_DATA_LEN as usize;
            let mut part = Vec::new();
            while let Some((path, write)) = rest.next_if(|(path, _)| path.len() + 17 <= room) {
                room -= path.len() + 17;
                part.push((path, write));
            }
            if let (true, Some((path, _))) = (part.is_empty(), rest.peek()) {
                let len = path.len() as u64;
                return Err(RestoreError::NoRoom { len });
            }
            opened.open_some(pid, scratch, part)?;
        }
        Ok(opened)
    }

    fn open_some(&mut self, pid: pid_t, scratch: u64, part: Vec<(String, bool)>) -> Result<()> {
        let mut data = Data::new(pid, scratch);
        let mut batch = Batch::new();
        for (path, write) in &part {
            let access = if *write { libc::O_RDWR } else { libc::O_RDONLY };
            let flags = (access | libc::O_CLOEXEC) as u64;
            batch.push(libc::SYS_open, [data.put_path(path)?, flags, 0, 0, 0, 0]);
        }
        for (key, result) in part.into_iter().zip(batch.run(pid, scratch)?) {
            if result < 0 {
                return Err(RestoreError::File {
                    path: key.0,
                    source: io::Error::from_raw_os_error(-result as i32),
                });
            }
            self.0.insert(key, result as RawFd);
        }
        Ok(())
    }

    fn number(&self, mapping: &Mapping) -> Option<RawFd> {
        self.0.get(&key(mapping)).copied()
    }

    fn close(&self, batch: &mut Batch) {
        for number in self.0.values() {
            batch.push(libc::SYS_close, [*number as u64, 0, 0, 0, 0, 0]);
        }
    }
}

fn mmap_args(mapping: &Mapping, fd: Option<RawFd>) -> [u64; 6] {
    let flags = flags(mapping);
    let mut bits = libc::MAP_FIXED_NOREPLACE
        | if mapping.shared {
            libc::MAP_SHARED
        } else {
            libc::MAP_PRIVATE
        };
    let choices = [
        (fd.is_none(), libc::MAP_ANONYMOUS),
        (flags.has(VmFlags::GROWSDOWN), libc::MAP_GROWSDOWN),
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
    let (start, len) = (mapping.start, mapping.end - mapping.start);
    for (flag, advice) in advice {
        if flags(mapping).has(flag) {
            batch.push(libc::SYS_madvise, [start, len, advice as u64, 0, 0, 0]);
        }
    }
}

fn run(
    pid: pid_t,
    scratch: u64,
    batch: &mut Batch,
    made: &mut Vec<(usize, &Mapping)>,
) -> Result<()> {
    if batch.is_empty() {
        return Ok(());
    }
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
