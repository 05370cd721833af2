//! Putting the image's pages into the new process.

use std::fs::File;
use std::io::IoSlice;
use std::os::unix::fs::FileExt;

use eventlog::image::{Backing, Mapping, PAGE};
use libc::pid_t;
use sys::memory::{self, Mem};

use super::memory::Files;
use super::{RestoreError, Result};
use crate::store::ImageStore;

/// Pages written with one call at most: the unit that the workers share.
const PAGES: usize = 512;

/// Pages that follow one another inside one mapping.
struct Job<'a> {
    start: u64,
    pages: Vec<IoSlice<'a>>,
    forced: bool,
}

/// Fills all mappings; the writable ones with two threads, since fresh memory is slow.
pub(super) fn fill(pid: pid_t, store: &ImageStore, files: &Files) -> Result<()> {
    let mem = Mem::open(pid).map_err(|source| RestoreError::Io {
        what: "opening the child's memory",
        source,
    })?;
    let mut jobs = Vec::new();
    for mapping in store.mappings() {
        if mapping.backing == Backing::SharedMemory {
            fill_shared(store, mapping, files)?;
        } else {
            collect(store, mapping, &mut jobs);
        }
    }
    let (forced, plain): (Vec<_>, Vec<_>) = jobs.into_iter().partition(|job| job.forced);
    for job in forced {
        for (index, page) in job.pages.iter().enumerate() {
            mem.write(job.start + index as u64 * PAGE, page)?;
        }
    }
    let run = |jobs: &[Job<'_>]| {
        jobs.iter()
            .try_for_each(|job| memory::write_gather(pid, job.start, &job.pages))
    };
    let (one, two) = plain.split_at(plain.len() / 2);
    std::thread::scope(|scope| {
        // A process whose children live in another PID namespace cannot have a second thread.
        let helper = std::thread::Builder::new().spawn_scoped(scope, move || run(two));
        let own = run(one);
        own.and(match helper {
            Ok(helper) => helper.join().unwrap_or_else(|_| run(two)),
            Err(_) => run(two),
        })
    })?;
    Ok(())
}

fn collect<'a>(store: &'a ImageStore, mapping: &Mapping, jobs: &mut Vec<Job<'a>>) {
    let forced = mapping.protection & libc::PROT_WRITE as u32 == 0;
    let mut behind = 0;
    for (address, page) in store.pages(mapping.start, mapping.end) {
        match jobs.last_mut() {
            Some(job) if address == behind && job.pages.len() < PAGES => {
                job.pages.push(IoSlice::new(page))
            }
            _ => jobs.push(Job {
                start: address,
                pages: vec![IoSlice::new(page)],
                forced,
            }),
        }
        behind = address + PAGE;
    }
}

/// Pages of shared memory go into its file, whatever the mapping allows.
fn fill_shared(store: &ImageStore, mapping: &Mapping, files: &Files) -> Result<()> {
    let failed = |source| RestoreError::Io {
        what: "filling shared memory",
        source,
    };
    let Some(file) = files.shared_file(mapping) else {
        return Ok(());
    };
    let file = File::from(file.try_clone().map_err(failed)?);
    for (address, page) in store.pages(mapping.start, mapping.end) {
        file.write_all_at(page, address - mapping.start + mapping.offset)
            .map_err(failed)?;
    }
    Ok(())
}
