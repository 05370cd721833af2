//! What belongs to the process as a whole: its layout, signal actions, directory and descriptors.

use std::io;
use std::os::fd::RawFd;

use eventlog::image::{LAYOUT, Process, SIGNALS};
use libc::pid_t;
use sys::remote::Batch;

use super::data::Data;
use super::{RestoreError, Result};

const PR_SET_MM_MAP: u64 = 14;

/// Gives the process all of it, once its memory is filled; `keep` are the descriptors that stay.
pub(super) fn assume(pid: pid_t, scratch: u64, process: &Process, keep: &[RawFd]) -> Result<()> {
    let exe = open_executable(pid, scratch, &process.exe)?;
    let mut data = Data::new(pid, scratch);
    let mut batch = Batch::new();
    let auxv = data.put(&process.auxv)?;
    let layout = mm_map(&process.layout, auxv, process.auxv.len() as u32, exe);
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
    let cwd = data.put_path(&process.cwd)?;
    batch.push(libc::SYS_chdir, [cwd, 0, 0, 0, 0, 0]);
    close_all_but(&mut batch, keep);
    batch.run_checked(pid, scratch)?;
    Ok(())
}

fn open_executable(pid: pid_t, scratch: u64, path: &str) -> Result<RawFd> {
    let at = Data::new(pid, scratch).put_path(path)?;
    let mut batch = Batch::new();
    let flags = (libc::O_RDONLY | libc::O_CLOEXEC) as u64;
    batch.push(libc::SYS_open, [at, flags, 0, 0, 0, 0]);
    let opened = batch.run(pid, scratch)?[0];
    if opened < 0 {
        return Err(RestoreError::File {
            path: path.to_owned(),
            source: io::Error::from_raw_os_error(-opened as i32),
        });
    }
    Ok(opened as RawFd)
}

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
