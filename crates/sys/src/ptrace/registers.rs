//! General registers and extended state.

use libc::pid_t;

use super::{Result, request};

/// General registers of a stopped thread.
pub type Regs = libc::user_regs_struct;

const NT_PRSTATUS: usize = 1;
const NT_X86_XSTATE: usize = 0x202;

/// More than any CPU's extended state.
const XSTATE_MAX: usize = 16 << 10;

/// General registers of a stopped thread.
///
/// # Errors
/// When it is not stopped.
pub fn regs(tid: pid_t) -> Result<Regs> {
    // SAFETY: the structure is integers alone: zeroes are a value of it.
    let mut regs: Regs = unsafe { std::mem::zeroed() };
    let mut vector = libc::iovec {
        iov_base: (&raw mut regs).cast(),
        iov_len: size_of::<Regs>(),
    };
    request(
        "reading registers",
        libc::PTRACE_GETREGSET,
        tid,
        NT_PRSTATUS,
        (&raw mut vector) as usize,
    )?;
    Ok(regs)
}

/// Sets the general registers of a stopped thread.
///
/// # Errors
/// When it is not stopped, or a register holds what the kernel does not allow.
pub fn set_regs(tid: pid_t, regs: &Regs) -> Result<()> {
    let mut copy = *regs;
    let mut vector = libc::iovec {
        iov_base: (&raw mut copy).cast(),
        iov_len: size_of::<Regs>(),
    };
    request(
        "setting registers",
        libc::PTRACE_SETREGSET,
        tid,
        NT_PRSTATUS,
        (&raw mut vector) as usize,
    )
    .map(drop)
}

/// Words of [`Regs`].
pub const REGISTERS: usize = size_of::<Regs>() / 8;

/// Registers as words, in the kernel's order.
#[must_use]
pub fn to_words(regs: &Regs) -> [u64; REGISTERS] {
    // SAFETY: the structure is REGISTERS 64-bit integers without padding.
    unsafe { std::mem::transmute::<Regs, [u64; REGISTERS]>(*regs) }
}

/// The opposite of [`to_words`].
#[must_use]
pub fn from_words(words: [u64; REGISTERS]) -> Regs {
    // SAFETY: the structure is REGISTERS 64-bit integers without padding, for which all values are valid.
    unsafe { std::mem::transmute::<[u64; REGISTERS], Regs>(words) }
}

/// The extended state (XSAVE format) of a stopped thread, into `state`, which gets its length.
///
/// # Errors
/// When it is not stopped.
pub fn xstate(tid: pid_t, state: &mut Vec<u8>) -> Result<()> {
    state.resize(XSTATE_MAX, 0);
    let mut vector = libc::iovec {
        iov_base: state.as_mut_ptr().cast(),
        iov_len: state.len(),
    };
    request(
        "reading the extended state",
        libc::PTRACE_GETREGSET,
        tid,
        NT_X86_XSTATE,
        (&raw mut vector) as usize,
    )?;
    state.truncate(vector.iov_len);
    Ok(())
}

/// Sets the extended state of a stopped thread.
///
/// # Errors
/// When it is not stopped, the length is not this CPU's, or a feature is not this CPU's.
pub fn set_xstate(tid: pid_t, state: &[u8]) -> Result<()> {
    let mut vector = libc::iovec {
        iov_base: state.as_ptr().cast_mut().cast(),
        iov_len: state.len(),
    };
    request(
        "setting the extended state",
        libc::PTRACE_SETREGSET,
        tid,
        NT_X86_XSTATE,
        (&raw mut vector) as usize,
    )
    .map(drop)
}
