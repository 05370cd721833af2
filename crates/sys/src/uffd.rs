//! userfaultfd in its asynchronous write-protect mode: the kernel notes first writes by itself.
//!
//! The descriptor must be made inside the target (an injected `userfaultfd` call), because it belongs to
//! the address space of whoever opens it; [`crate::process::PidFd::take_descriptor`] fetches it.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use crate::memory::Range;

/// Flags for the injected `userfaultfd` call: user-mode faults alone, so that no privilege is needed.
pub const OPEN_FLAGS: u64 = (libc::O_CLOEXEC | libc::O_NONBLOCK) as u64 | 1;

const UFFD_API: u64 = 0xaa;
const FEATURE_PAGEFAULT_FLAG_WP: u64 = 1;
const FEATURE_WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
const FEATURE_WP_ASYNC: u64 = 1 << 15;
const REGISTER_MODE_WP: u64 = 2;
/// `_IOWR(0xaa, 0x3f, struct uffdio_api)`.
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
/// `_IOWR(0xaa, 0x00, struct uffdio_register)`.
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;

/// Another process's userfaultfd.
#[derive(Debug)]
pub struct Uffd {
    fd: OwnedFd,
}

impl Uffd {
    /// Takes a fresh descriptor and switches it to asynchronous write protection.
    ///
    /// # Errors
    /// When the kernel lacks a feature (before 6.7).
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let mut api = [
            UFFD_API,
            FEATURE_PAGEFAULT_FLAG_WP
                | FEATURE_WP_HUGETLBFS_SHMEM
                | FEATURE_WP_UNPOPULATED
                | FEATURE_WP_ASYNC,
            0,
        ];
        // SAFETY: `api` has the three words of struct uffdio_api.
        let done = unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API, api.as_mut_ptr()) };
        if done == 0 {
            Ok(Self { fd })
        } else {
            Err(io::Error::last_os_error())
        }
    }

    /// Registers a range, so that [`crate::pagemap::Pagemap`] can protect and collect its pages.
    ///
    /// # Errors
    /// When the range has a hole or holds a mapping that cannot be tracked.
    pub fn track(&self, range: Range) -> io::Result<()> {
        let mut register = [range.start, range.end - range.start, REGISTER_MODE_WP, 0];
        // SAFETY: `register` has the four words of struct uffdio_register.
        let done =
            unsafe { libc::ioctl(self.fd.as_raw_fd(), UFFDIO_REGISTER, register.as_mut_ptr()) };
        if done == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error())
        }
    }
}
