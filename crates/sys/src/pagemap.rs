//! Finding pages: PAGEMAP_SCAN on `/proc/PID/pagemap` (Linux 6.7 and later).
//!
//! Tracking by asynchronous write protection: [`Pagemap::collect`] lists the pages written since they
//! were last protected and protects them again in the same step, so that a copy made afterwards misses
//! no write.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use libc::pid_t;

use crate::memory::Range;

const PAGE_IS_WRITTEN: u64 = 1 << 1;
const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PM_SCAN_WP_MATCHING: u64 = 1;
const PM_SCAN_CHECK_WPASYNC: u64 = 2;
/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;
const PAGE: u64 = 4096;
/// Bytes of an entry of the page map, and how many are read at once.
const ENTRY: usize = 8;
const MOST_ENTRIES: usize = 4096;
/// Regions one call returns at most.
const REGIONS: usize = 16 << 10;

/// Adds a range that lies behind all others.
fn append(out: &mut Vec<Range>, range: Range) {
    match out.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => out.push(range),
    }
}

/// Whether an entry of the page map (Documentation/admin-guide/mm/pagemap.rst) is of a page that is nothing but marked:
/// the type of swap is the kernel's highest then (`SWP_PTE_MARKER` in include/linux/swap.h), and the mark is that of
/// write protection alone.
fn is_mark(entry: u64) -> bool {
    const SWAPPED: u64 = 1 << 62;
    const TYPES: u64 = 32;
    const MARKER: u64 = TYPES - 1;
    const WRITE_PROTECTED: u64 = 1;
    let place = entry & ((1 << 55) - 1);
    entry & SWAPPED != 0 && place == MARKER + WRITE_PROTECTED * TYPES
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Scan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

const _: () = assert!(size_of::<Scan>() == 0x60 && size_of::<Region>() == 24);

/// The page map of one process. A reader keeps its file open over the target's life.
pub struct Pagemap {
    file: File,
    regions: Box<[Region]>,
}

impl std::fmt::Debug for Pagemap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pagemap")
            .field("file", &self.file)
            .finish_non_exhaustive()
    }
}

impl Pagemap {
    /// Opens it.
    ///
    /// # Errors
    /// When the process is gone or may not be traced.
    pub fn open(pid: pid_t) -> io::Result<Self> {
        let file = File::open(format!("/proc/{pid}/pagemap"))?;
        Ok(Self {
            file,
            regions: vec![Region::default(); REGIONS].into(),
        })
    }

    /// Appends to `out` the pages of `range` written since they were last protected, and protects them.
    ///
    /// A private anonymous page that was given back (MADV_DONTNEED) counts as written.
    ///
    /// # Errors
    /// EPERM when a part of the range is not registered ([`crate::uffd::Uffd::track`]); written pages
    /// before that part are in `out` and protected.
    pub fn collect(&mut self, range: Range, out: &mut Vec<Range>) -> io::Result<()> {
        let scan = Scan {
            flags: PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
            category_mask: PAGE_IS_WRITTEN,
            return_mask: PAGE_IS_WRITTEN,
            ..Scan::default()
        };
        self.scan(range, scan, |region, _| out.push(region))
    }

    /// Protects the pages of `range` that are not protected, whatever they hold.
    ///
    /// # Errors
    /// As [`collect`](Self::collect).
    pub fn protect(&self, range: Range) -> io::Result<()> {
        let mut scan = Scan {
            size: size_of::<Scan>() as u64,
            flags: PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
            start: range.start,
            end: range.end,
            category_mask: PAGE_IS_WRITTEN,
            ..Scan::default()
        };
        while scan.start < range.end {
            self.ioctl(&mut scan)?;
            scan.start = scan.walk_end;
        }
        Ok(())
    }

    /// Appends to `out` the pages of `range` that hold something of the process's own: present or
    /// swapped and, when `own` is set, not the file's.
    ///
    /// # Errors
    /// When the kernel refuses the scan.
    pub fn populated(&mut self, range: Range, own: bool, out: &mut Vec<Range>) -> io::Result<()> {
        let mut found = Vec::new();
        self.populated_or_marked(range, own, &mut found)?;
        for (range, is_present) in found {
            if is_present {
                append(out, range);
            } else {
                self.swapped(range, out)?;
            }
        }
        Ok(())
    }

    /// Appends the pages of a range that nothing is present of and that hold something yet. The others have the mark by
    /// which the kernel remembers that a page which is not there is protected, which the scan takes for swapped.
    fn swapped(&self, range: Range, out: &mut Vec<Range>) -> io::Result<()> {
        let mut entries = vec![0; (range.len() / PAGE as usize * ENTRY).min(MOST_ENTRIES * ENTRY)];
        let mut start = range.start;
        while start < range.end {
            let pages = ((range.end - start) / PAGE) as usize;
            let len = entries.len().min(pages * ENTRY);
            self.file
                .read_exact_at(&mut entries[..len], start / PAGE * ENTRY as u64)?;
            let (found, _) = entries[..len].as_chunks::<ENTRY>();
            for entry in found {
                let end = start + PAGE;
                if !is_mark(u64::from_le_bytes(*entry)) {
                    append(out, Range { start, end });
                }
                start = end;
            }
        }
        Ok(())
    }

    /// As [`populated`](Self::populated), and pages that are marked; whether they are present.
    fn populated_or_marked(
        &mut self,
        range: Range,
        own: bool,
        out: &mut Vec<(Range, bool)>,
    ) -> io::Result<()> {
        let file = if own { PAGE_IS_FILE } else { 0 };
        let scan = Scan {
            category_inverted: file,
            category_mask: file,
            category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
            return_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
            ..Scan::default()
        };
        self.scan(range, scan, |region, categories| {
            out.push((region, categories & PAGE_IS_PRESENT != 0));
        })
    }

    fn scan(
        &mut self,
        range: Range,
        mut scan: Scan,
        mut each: impl FnMut(Range, u64),
    ) -> io::Result<()> {
        scan.size = size_of::<Scan>() as u64;
        scan.start = range.start;
        scan.end = range.end;
        while scan.start < range.end {
            scan.vec = self.regions.as_mut_ptr() as u64;
            scan.vec_len = self.regions.len() as u64;
            let got = self.ioctl(&mut scan);
            // A failing scan has still stored what it found (and protected) before: the end of that is
            // known because every entry is zero between calls.
            for region in self.regions.iter_mut().take_while(|region| region.end != 0) {
                let (start, end) = (region.start, region.end);
                each(Range { start, end }, region.categories);
                *region = Region::default();
            }
            got?;
            scan.start = scan.walk_end;
        }
        Ok(())
    }

    fn ioctl(&self, scan: &mut Scan) -> io::Result<usize> {
        // SAFETY: `scan` is live and as large as it says; its `vec` is null or this object's own array of
        // `vec_len` regions, which nobody else uses during the call.
        let got = unsafe {
            libc::ioctl(
                self.file.as_raw_fd(),
                PAGEMAP_SCAN,
                std::ptr::from_mut(scan),
            )
        };
        usize::try_from(got).map_err(|_| io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_told_from_what_is_swapped() {
        const SWAPPED: u64 = 1 << 62;
        const WRITE_PROTECTED: u64 = 1 << 57;
        assert!(is_mark(SWAPPED | WRITE_PROTECTED | 63));
        // On a disk, in the first file; on its way to another place; a guard; present; nothing.
        for entry in [1 << 5, (7 << 5) + 30, (4 << 5) + 31].map(|place| SWAPPED | place) {
            assert!(!is_mark(entry), "{entry:x}");
        }
        assert!(!is_mark((1 << 63) + 63));
        assert!(!is_mark(0));
    }
}
