//! Arguments of calls that are made inside the process.

use libc::pid_t;
use sys::memory::{self, Range};
use sys::remote::{SCRATCH_DATA_AT, SCRATCH_DATA_LEN};

use super::{RestoreError, Result};

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

    /// Puts a path there, ended as the kernel wants it, and returns its address.
    pub(super) fn put_path(&mut self, path: &str) -> Result<u64> {
        self.put(&[path.as_bytes(), &[0]].concat())
    }
}
