//! Bringing pages of the new process to what the image says of them.

use eventlog::image::{Backing, Mapping, PAGE, Span};
use libc::pid_t;
use sys::memory::{self, Mem};
use sys::proc_maps::VmFlags;
use sys::remote::Batch;

use super::difference::{flags, is_writable};
use super::mappings::CALLS;
use super::shared::Shared;
use super::{RestoreError, Result};
use crate::store::ImageStore;

/// Pages written with one call at most: the unit that the workers share.
const PAGES: usize = 512;
/// From so many pages on two threads write them, since fresh memory is slow.
const MANY: usize = 8192;
/// `MADV_DONTNEED_LOCKED`.
const DONTNEED_LOCKED: i32 = 24;

/// A page and its address.
type Piece<'a> = (u64, &'a [u8]);

/// What is to be done with some pages.
#[derive(Default)]
struct Work<'a> {
    plain: Vec<Piece<'a>>,
    /// Where the process itself may not write.
    forced: Vec<Piece<'a>>,
    /// What the mapping gives: zeroes, or the file's bytes.
    void: Vec<(Span, i32)>,
}

/// Brings these pages, by address, to what the store holds: those that it does not hold are given back.
pub(super) fn put(
    (pid, scratch, mem): (pid_t, u64, &Mem),
    store: &ImageStore,
    pages: &[u64],
    shared: &mut Shared,
) -> Result<()> {
    let work = sort(store, pages, shared)?;
    give_back(pid, scratch, &work.void)?;
    for (address, page) in &work.forced {
        mem.write(*address, page)?;
    }
    write(pid, &work.plain)
}

fn sort<'a>(store: &'a ImageStore, pages: &[u64], shared: &mut Shared) -> Result<Work<'a>> {
    let mut work = Work::default();
    let mut mappings = store.mappings();
    for &address in pages {
        while let [first, rest @ ..] = mappings
            && first.end <= address
        {
            mappings = rest;
        }
        let Some(mapping) = mappings.first().filter(|first| first.start <= address) else {
            continue;
        };
        let page = store.page(address);
        match (mapping.backing, page) {
            _ if mapping.is_kernels() => match page {
                Some(page) => work.forced.push((address, page)),
                None => return Err(RestoreError::Stranger { what: "its vDSO" }),
            },
            (Backing::SharedMemory, Some(page)) => shared.write(mapping, address, page)?,
            (Backing::SharedMemory, None) => shared.distrust(mapping),
            (Backing::File, _) if mapping.shared => {}
            (_, Some(page)) if is_writable(mapping) => work.plain.push((address, page)),
            (_, Some(page)) => work.forced.push((address, page)),
            (_, None) => work.give_back(address, mapping),
        }
    }
    Ok(work)
}

impl Work<'_> {
    fn give_back(&mut self, address: u64, mapping: &Mapping) {
        let advice = if flags(mapping).has(VmFlags::LOCKED) {
            DONTNEED_LOCKED
        } else {
            libc::MADV_DONTNEED
        };
        match self.void.last_mut() {
            Some((last, same)) if last.end == address && *same == advice => last.end += PAGE,
            _ => self.void.push((
                Span {
                    start: address,
                    end: address + PAGE,
                },
                advice,
            )),
        }
    }
}

fn give_back(pid: pid_t, scratch: u64, void: &[(Span, i32)]) -> Result<()> {
    for part in void.chunks(CALLS) {
        let mut batch = Batch::new();
        for (span, advice) in part {
            let len = span.end - span.start;
            batch.push(
                libc::SYS_madvise,
                [span.start, len, *advice as u64, 0, 0, 0],
            );
        }
        batch.run_checked(pid, scratch)?;
    }
    Ok(())
}

fn write(pid: pid_t, pieces: &[Piece<'_>]) -> Result<()> {
    let run = |pieces: &[Piece<'_>]| {
        pieces
            .chunks(PAGES)
            .try_for_each(|part| memory::write_scattered(pid, part))
    };
    if pieces.len() < MANY {
        return Ok(run(pieces)?);
    }
    let (one, two) = pieces.split_at(pieces.len() / 2);
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
