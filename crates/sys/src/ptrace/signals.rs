//! Signals: blocked, pending, about to be delivered.

use libc::pid_t;

use super::{Result, request};

/// A pending signal, as the kernel's `siginfo_t`.
pub type SigInfo = [u8; 128];

const PTRACE_PEEKSIGINFO: u32 = 0x4209;
const PTRACE_GETSIGMASK: u32 = 0x420a;
const PTRACE_SETSIGMASK: u32 = 0x420b;

/// Blocked signals of a stopped thread, bit n for signal n + 1.
///
/// # Errors
/// When it is not stopped.
pub fn sigmask(tid: pid_t) -> Result<u64> {
    let mut mask = 0u64;
    request(
        "reading the signal mask",
        PTRACE_GETSIGMASK,
        tid,
        size_of::<u64>(),
        (&raw mut mask) as usize,
    )?;
    Ok(mask)
}

/// Sets the blocked signals of a stopped thread.
///
/// # Errors
/// When it is not stopped.
pub fn set_sigmask(tid: pid_t, mask: u64) -> Result<()> {
    request(
        "setting the signal mask",
        PTRACE_SETSIGMASK,
        tid,
        size_of::<u64>(),
        (&raw const mask) as usize,
    )
    .map(drop)
}

/// Signals pending for a stopped thread (or, `shared`, for its whole process), oldest first.
///
/// # Errors
/// When it is not stopped.
pub fn pending(tid: pid_t, shared: bool) -> Result<Vec<SigInfo>> {
    #[repr(C)]
    struct Peek {
        offset: u64,
        flags: u32,
        count: i32,
    }
    const CHUNK: usize = 32;
    let mut all = Vec::new();
    loop {
        let mut chunk = [[0u8; 128]; CHUNK];
        let peek = Peek {
            offset: all.len() as u64,
            flags: u32::from(shared),
            count: CHUNK as i32,
        };
        let (addr, data) = ((&raw const peek) as usize, chunk.as_mut_ptr() as usize);
        let got = request(
            "reading pending signals",
            PTRACE_PEEKSIGINFO,
            tid,
            addr,
            data,
        )? as usize;
        all.extend_from_slice(&chunk[..got]);
        if got < CHUNK {
            return Ok(all);
        }
    }
}

/// The signal that a thread in [`Stop::Signal`](super::Stop::Signal) is about to receive.
///
/// # Errors
/// When it is not in such a stop.
pub fn siginfo(tid: pid_t) -> Result<SigInfo> {
    let mut info = [0u8; 128];
    request(
        "reading the signal",
        libc::PTRACE_GETSIGINFO,
        tid,
        0,
        info.as_mut_ptr() as usize,
    )?;
    Ok(info)
}
