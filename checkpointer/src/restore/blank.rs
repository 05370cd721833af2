//! The address space of the new process, emptied: scratch, vDSO and the caller's additions alone.

use eventlog::image::Mapping;
use libc::pid_t;
use sys::memory::Range;
use sys::proc_maps::MapsFile;
use sys::ptrace;
use sys::remote::{self, Batch, SCRATCH_LEN};

use super::{ExtraMapping, RestoreError, Result, vdso_group};

/// Behind the last address a process can map.
const TASK_END: u64 = 0x7fff_ffff_f000;

/// Empties the child for an image with these mappings, and adds the caller's. Gives the scratch's address.
pub(super) fn make(pid: pid_t, image: &[Mapping], extra: &[ExtraMapping]) -> Result<u64> {
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
    let scratch = hole(&own, image, extra)?;
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
    clear(pid, scratch, &own, image)?;
    add(pid, scratch, extra)?;
    Ok(scratch)
}

/// A place for the scratch that is free in the child, in the image and in the caller's additions, with as
/// much again behind it for moving the vDSO.
fn hole(own: &[Mapping], image: &[Mapping], extra: &[ExtraMapping]) -> Result<u64> {
    let len = SCRATCH_LEN * 2;
    let mappings = own
        .iter()
        .chain(image)
        .map(|mapping| (mapping.start, mapping.end));
    let extra = extra
        .iter()
        .map(|extra| (extra.range.start, extra.range.end));
    let taken: Vec<_> = mappings.chain(extra).collect();
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
fn clear(pid: pid_t, scratch: u64, own: &[Mapping], image: &[Mapping]) -> Result<()> {
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
    if let (Some(here), Some(there)) = (here, vdso_group(image))
        && here != there
    {
        move_vdso(&mut batch, own, here, there, scratch);
    }
    batch.run_checked(pid, scratch)?;
    Ok(())
}

/// By way of the room behind the scratch: source and destination must not overlap.
fn move_vdso(batch: &mut Batch, own: &[Mapping], here: Range, there: Range, scratch: u64) {
    let parts: Vec<_> = own
        .iter()
        .filter(|m| m.is_kernels() && m.path != "[vsyscall]")
        .collect();
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

fn add(pid: pid_t, scratch: u64, extra: &[ExtraMapping]) -> Result<()> {
    let mut batch = Batch::new();
    for extra in extra {
        let sharing = if extra.shared {
            libc::MAP_SHARED
        } else {
            libc::MAP_PRIVATE
        };
        let flags = (sharing | libc::MAP_FIXED_NOREPLACE) as u64;
        let (start, len) = (extra.range.start, extra.range.len() as u64);
        let (protection, fd) = (extra.protection.into(), extra.fd as u64);
        batch.push(
            libc::SYS_mmap,
            [start, len, protection, flags, fd, extra.offset],
        );
    }
    batch.run_checked(pid, scratch)?;
    Ok(())
}
