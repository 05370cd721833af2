//! What a thread has registered with the kernel: its rseq area and system-call user dispatch.

use libc::pid_t;

use super::{Result, request};

/// The rseq registration of a thread.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RseqConfig {
    /// Address of its `struct rseq`, 0 without registration.
    pub address: u64,
    /// Length it was registered with.
    pub len: u32,
    /// The signature in front of its abort handlers.
    pub signature: u32,
    /// Flags of the registration.
    pub flags: u32,
    /// Reserved.
    pub pad: u32,
}

/// System-call user dispatch of a thread; all zero when off.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SudConfig {
    /// 1 when on.
    pub mode: u64,
    /// Address of the byte that allows or blocks calls, 0 without one.
    pub selector: u64,
    /// Start of the text whose calls are always allowed.
    pub offset: u64,
    /// Length of that text.
    pub len: u64,
}

const PTRACE_GET_RSEQ_CONFIGURATION: u32 = 0x420f;
const PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG: u32 = 0x4210;
const PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG: u32 = 0x4211;

/// The rseq registration of a stopped thread.
///
/// # Errors
/// When it is not stopped.
pub fn rseq(tid: pid_t) -> Result<RseqConfig> {
    let mut config = RseqConfig::default();
    let data = (&raw mut config) as usize;
    request(
        "reading the rseq registration",
        PTRACE_GET_RSEQ_CONFIGURATION,
        tid,
        size_of::<RseqConfig>(),
        data,
    )?;
    Ok(config)
}

/// System-call user dispatch of a stopped thread.
///
/// # Errors
/// When it is not stopped.
pub fn sud(tid: pid_t) -> Result<SudConfig> {
    let mut config = SudConfig::default();
    let data = (&raw mut config) as usize;
    request(
        "reading user dispatch",
        PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG,
        tid,
        size_of::<SudConfig>(),
        data,
    )?;
    // A thread that was just cloned has its creator's values, switched off: nothing that could be set again.
    Ok(if config.mode == 0 {
        SudConfig::default()
    } else {
        config
    })
}

/// Sets system-call user dispatch of a stopped thread; the default value turns it off.
///
/// # Errors
/// When it is not stopped, or the values are not allowed.
pub fn set_sud(tid: pid_t, config: &SudConfig) -> Result<()> {
    let data = std::ptr::from_ref(config) as usize;
    request(
        "setting user dispatch",
        PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG,
        tid,
        size_of::<SudConfig>(),
        data,
    )
    .map(drop)
}
