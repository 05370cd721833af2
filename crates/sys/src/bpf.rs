//! Maps of eBPF programs as memory: what both sides touch is read and written without a system call.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use nix::time::{ClockId, clock_gettime};

use crate::clocks::own_offsets;

/// An array map created with `BPF_F_MMAPABLE`, mapped shared.
#[derive(Debug)]
pub struct MappedArray {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to the value and is only reached through atomics.
unsafe impl Send for MappedArray {}
// SAFETY: as above.
unsafe impl Sync for MappedArray {}

impl MappedArray {
    /// Maps the first `len` bytes of the array's values (`max_entries` times the value's size).
    ///
    /// # Errors
    /// What mmap says: EINVAL for a map that was not created mappable or is shorter.
    pub fn map(map: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice; nothing existing is touched.
        let p = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len.next_multiple_of(4096),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if p == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(p.cast())
            .map(|base| Self { base, len })
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EFAULT))
    }

    /// Bytes mapped.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// True if nothing is mapped.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn at(&self, offset: usize, size: usize) -> *mut u8 {
        assert!(
            offset.is_multiple_of(size)
                && offset.checked_add(size).is_some_and(|end| end <= self.len),
            "offset {offset} is outside a map of {} bytes or not a multiple of {size}",
            self.len
        );
        // SAFETY: inside the mapping, as just asserted.
        unsafe { self.base.as_ptr().add(offset) }
    }

    /// The 32-bit word at `offset`.
    ///
    /// # Panics
    /// If the word is not aligned or not inside the map.
    #[must_use]
    pub fn word(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: aligned and inside the mapping, which lives as long as `self`; everyone uses atomics.
        unsafe { AtomicU32::from_ptr(self.at(offset, 4).cast()) }
    }

    /// The 64-bit word at `offset`.
    ///
    /// # Panics
    /// If the word is not aligned or not inside the map.
    #[must_use]
    pub fn long(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: as in `word`.
        unsafe { AtomicU64::from_ptr(self.at(offset, 8).cast()) }
    }

    /// Copies bytes out, by words where the offset allows: the kernel may write at the same time.
    ///
    /// # Panics
    /// If the range is not inside the map.
    pub fn read(&self, offset: usize, out: &mut [u8]) {
        assert!(
            offset
                .checked_add(out.len())
                .is_some_and(|end| end <= self.len),
            "{} bytes at {offset} are not inside a map of {}",
            out.len(),
            self.len
        );
        let words = if offset.is_multiple_of(8) {
            out.len() / 8
        } else {
            0
        };
        let (whole, rest) = out.split_at_mut(words * 8);
        for (i, word) in whole.chunks_exact_mut(8).enumerate() {
            // SAFETY: aligned and inside the mapping, as just checked; an atomic, as everywhere.
            let at = unsafe { AtomicU64::from_ptr(self.base.as_ptr().add(offset + i * 8).cast()) };
            word.copy_from_slice(&at.load(Ordering::Relaxed).to_ne_bytes());
        }
        for (i, byte) in rest.iter_mut().enumerate() {
            // SAFETY: inside the mapping, as checked above.
            let at = unsafe { AtomicU8::from_ptr(self.base.as_ptr().add(offset + words * 8 + i)) };
            *byte = at.load(Ordering::Relaxed);
        }
    }

    /// Copies bytes in.
    ///
    /// # Panics
    /// If the range is not inside the map.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        for (i, byte) in bytes.iter().enumerate() {
            // SAFETY: inside the mapping by `at`; an atomic, since others may read at the same time.
            unsafe { AtomicU8::from_ptr(self.at(offset + i, 1)) }.store(*byte, Ordering::Relaxed);
        }
    }
}

impl Drop for MappedArray {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `map`, unmapped once.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len.next_multiple_of(4096)) };
    }
}

/// Nanoseconds since boot, suspension included, as programs in the kernel see it (`bpf_ktime_get_boot_ns`), which know of
/// no time namespace: the clock that leases are counted on. 0 should it not be readable, which every lease and promise
/// takes for expired.
#[must_use]
pub fn boot_ns() -> u64 {
    let Ok(t) = clock_gettime(ClockId::CLOCK_BOOTTIME) else {
        return 0;
    };
    let shown = t.tv_sec() * 1_000_000_000 + t.tv_nsec();
    u64::try_from(shown - own_offsets().boottime).unwrap_or(0)
}
