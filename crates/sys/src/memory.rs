//! Memory of another process: read and written in place.
//!
//! [`read`] and [`write()`] obey the page protections of the target and are the fastest; [`Mem`] goes
//! through `/proc/PID/mem`, which also reaches pages that the target itself may not read or write.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;

use libc::{iovec, pid_t};

/// Memory that could not be reached.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {len} bytes at {address:#x} of process {pid} failed after {done}: {source}")]
pub struct MemoryError {
    /// "reading" or "writing".
    pub operation: &'static str,
    /// The process.
    pub pid: pid_t,
    /// Where the access began.
    pub address: u64,
    /// Its length in bytes.
    pub len: usize,
    /// Bytes that were transferred.
    pub done: usize,
    /// The kernel's answer.
    pub source: io::Error,
}

/// What an access returns.
pub type Result<T> = std::result::Result<T, MemoryError>;

/// Most ranges one vectored call takes (the kernel's UIO_MAXIOV).
pub const MAX_RANGES: usize = 1024;

/// A part of the target's address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First byte.
    pub start: u64,
    /// Behind the last byte.
    pub end: u64,
}

impl Range {
    /// Bytes of the range.
    #[must_use]
    pub const fn len(&self) -> usize {
        (self.end - self.start) as usize
    }

    /// Whether it holds nothing.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.end <= self.start
    }
}

fn outcome(
    operation: &'static str,
    pid: pid_t,
    address: u64,
    len: usize,
    got: isize,
) -> Result<()> {
    let done = usize::try_from(got).unwrap_or(0);
    if got >= 0 && done == len {
        return Ok(());
    }
    let source = if got < 0 {
        io::Error::last_os_error()
    } else {
        io::Error::from_raw_os_error(libc::EFAULT)
    };
    Err(MemoryError {
        operation,
        pid,
        address,
        len,
        done,
        source,
    })
}

/// Fills `buffer` from `address` of a process.
///
/// # Errors
/// When a page is not readable by the target, or the process is gone.
pub fn read(pid: pid_t, address: u64, buffer: &mut [u8]) -> Result<()> {
    let local = iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    let remote = iovec {
        iov_base: address as *mut _,
        iov_len: buffer.len(),
    };
    // SAFETY: the kernel writes only into `buffer`, which is borrowed mutably; the remote address is not
    // dereferenced here.
    let got = unsafe { libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0) };
    outcome("reading", pid, address, buffer.len(), got)
}

/// Writes `bytes` to `address` of a process.
///
/// # Errors
/// When a page is not writable by the target, or the process is gone.
pub fn write(pid: pid_t, address: u64, bytes: &[u8]) -> Result<()> {
    let local = iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    let remote = iovec {
        iov_base: address as *mut _,
        iov_len: bytes.len(),
    };
    // SAFETY: the kernel only reads `bytes`; what changes is memory of the other process.
    let got = unsafe { libc::process_vm_writev(pid, &raw const local, 1, &raw const remote, 1, 0) };
    outcome("writing", pid, address, bytes.len(), got)
}

/// Reads ranges one after another into `buffer`, whose length is their sum.
///
/// # Errors
/// As [`read`]; also when the lengths do not agree.
pub fn read_ranges(pid: pid_t, ranges: &[Range], buffer: &mut [u8]) -> Result<()> {
    let mut at = 0;
    for chunk in ranges.chunks(MAX_RANGES) {
        let len = chunk.iter().map(Range::len).sum();
        let address = chunk.first().map_or(0, |range| range.start);
        let Some(part) = buffer.get_mut(at..at + len) else {
            let source = io::Error::from_raw_os_error(libc::EINVAL);
            return Err(MemoryError {
                operation: "reading",
                pid,
                address,
                len,
                done: 0,
                source,
            });
        };
        let mut remote = [iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        }; MAX_RANGES];
        for (vector, range) in remote.iter_mut().zip(chunk) {
            *vector = iovec {
                iov_base: range.start as *mut _,
                iov_len: range.len(),
            };
        }
        let local = iovec {
            iov_base: part.as_mut_ptr().cast(),
            iov_len: len,
        };
        // SAFETY: the kernel writes only into `part`, which is borrowed mutably and `len` long.
        let got = unsafe {
            libc::process_vm_readv(
                pid,
                &raw const local,
                1,
                remote.as_ptr(),
                chunk.len() as libc::c_ulong,
                0,
            )
        };
        outcome("reading", pid, address, len, got)?;
        at += len;
    }
    Ok(())
}

/// Writes pieces of memory, each to its own address of a process.
///
/// # Errors
/// As [`write()`]; pieces before the failing one are written.
pub fn write_scattered(pid: pid_t, pieces: &[(u64, &[u8])]) -> Result<()> {
    let vector = |base: u64, len| iovec {
        iov_base: base as *mut _,
        iov_len: len,
    };
    for chunk in pieces.chunks(MAX_RANGES) {
        let mut local = Vec::with_capacity(chunk.len());
        let mut remote: Vec<iovec> = Vec::new();
        for (address, bytes) in chunk {
            local.push(vector(bytes.as_ptr() as u64, bytes.len()));
            match remote.last_mut() {
                Some(last) if last.iov_base as u64 + last.iov_len as u64 == *address => {
                    last.iov_len += bytes.len();
                }
                _ => remote.push(vector(*address, bytes.len())),
            }
        }
        // SAFETY: each local vector is a borrowed piece, which the kernel only reads; what changes is
        // memory of the other process.
        let got = unsafe {
            libc::process_vm_writev(
                pid,
                local.as_ptr(),
                local.len() as libc::c_ulong,
                remote.as_ptr(),
                remote.len() as libc::c_ulong,
                0,
            )
        };
        let address = chunk.first().map_or(0, |(address, _)| *address);
        let len = chunk.iter().map(|(_, bytes)| bytes.len()).sum();
        outcome("writing", pid, address, len, got)?;
    }
    Ok(())
}

/// A 64-bit word of a process.
///
/// # Errors
/// As [`read`].
pub fn read_u64(pid: pid_t, address: u64) -> Result<u64> {
    let mut word = [0; 8];
    read(pid, address, &mut word)?;
    Ok(u64::from_le_bytes(word))
}

/// Sets a 64-bit word of a process.
///
/// # Errors
/// As [`write()`].
pub fn write_u64(pid: pid_t, address: u64, value: u64) -> Result<()> {
    write(pid, address, &value.to_le_bytes())
}

/// `/proc/PID/mem`: access beyond page protections, for whoever may trace the process.
#[derive(Debug)]
pub struct Mem {
    pid: pid_t,
    file: File,
}

impl Mem {
    /// Opens it for reading and writing.
    ///
    /// # Errors
    /// When the process is gone or may not be traced.
    pub fn open(pid: pid_t) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(format!("/proc/{pid}/mem"))?;
        Ok(Self { pid, file })
    }

    /// Fills `buffer` from `address`.
    ///
    /// # Errors
    /// When nothing is mapped there.
    pub fn read(&self, address: u64, buffer: &mut [u8]) -> Result<()> {
        self.file
            .read_exact_at(buffer, address)
            .map_err(|source| self.error("reading", address, buffer.len(), source))
    }

    /// Writes `bytes` to `address`; a private page that is not writable is copied first.
    ///
    /// # Errors
    /// When nothing is mapped there, or it is a read-only shared mapping.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<()> {
        self.file
            .write_all_at(bytes, address)
            .map_err(|source| self.error("writing", address, bytes.len(), source))
    }

    fn error(
        &self,
        operation: &'static str,
        address: u64,
        len: usize,
        source: io::Error,
    ) -> MemoryError {
        MemoryError {
            operation,
            pid: self.pid,
            address,
            len,
            done: 0,
            source,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_ranges_and_files_see_the_same_bytes() {
        let pid = std::process::id() as pid_t;
        let place: Box<[u64; 4]> = Box::new([1, 2, 3, 4]);
        let at = place.as_ptr() as u64;
        assert_eq!(read_u64(pid, at + 8).unwrap(), 2);
        let mut two = [0; 16];
        let ranges = [
            Range {
                start: at + 24,
                end: at + 32,
            },
            Range {
                start: at,
                end: at + 8,
            },
        ];
        read_ranges(pid, &ranges, &mut two).unwrap();
        assert_eq!(two[..8], 4u64.to_le_bytes());
        assert_eq!(two[8..], 1u64.to_le_bytes());
        let mut word = [0; 8];
        Mem::open(pid).unwrap().read(at + 16, &mut word).unwrap();
        assert_eq!(word, 3u64.to_le_bytes());
    }

    #[test]
    fn scattered_pieces_arrive_at_their_addresses() {
        let pid = std::process::id() as pid_t;
        let place: Box<[u64; 4]> = Box::new([0; 4]);
        let at = place.as_ptr() as u64;
        let words = [7u64.to_le_bytes(), 8u64.to_le_bytes(), 9u64.to_le_bytes()];
        let pieces = [
            (at, &words[0][..]),
            (at + 8, &words[1][..]),
            (at + 24, &words[2][..]),
        ];
        write_scattered(pid, &pieces).unwrap();
        let mut all = [0; 32];
        read(pid, at, &mut all).unwrap();
        let all: Vec<u64> = all
            .as_chunks::<8>()
            .0
            .iter()
            .map(|w| u64::from_le_bytes(*w))
            .collect();
        assert_eq!(all, [7, 8, 0, 9]);
    }

    #[test]
    fn an_unmapped_address_is_an_error_that_names_it() {
        let error = read_u64(std::process::id() as pid_t, 0x10).unwrap_err();
        assert_eq!(error.address, 0x10);
        assert_eq!(error.source.raw_os_error(), Some(libc::EFAULT));
    }
}
