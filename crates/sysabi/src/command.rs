//! Calls whose arguments depend on a command: ioctl, fcntl, prctl, arch_prctl.

use crate::Arg::{Addr, In, InOut, Int, None as Nothing, Out};
use crate::Len::{CStr, Fixed, Result};
use crate::{Arg, Syscall};

const IOCTL: u16 = 16;
const FCNTL: u16 = 72;
const PRCTL: u16 = 157;
const ARCH_PRCTL: u16 = 158;

/// A buffer of 4 bytes that is read.
const WORD_IN: Arg = In(Fixed(4));
/// A buffer of 4 bytes that is filled.
const WORD: Arg = Out(Fixed(4));
/// `struct ifreq`.
const IFREQ: Arg = InOut(Fixed(40));
/// `struct flock`.
const FLOCK: Arg = In(Fixed(32));
/// The same, answered.
const FLOCK_OUT: Arg = InOut(Fixed(32));

/// See [`Syscall::shape`].
pub(crate) fn shape(row: &Syscall, args: &[u64; 6]) -> Option<[Arg; 6]> {
    let mut shape = row.args;
    match row.nr {
        IOCTL => shape[2] = ioctl(args[1] & 0xffff_ffff)?,
        FCNTL => shape[2] = fcntl(args[1] & 0xffff_ffff)?,
        PRCTL => [shape[1], shape[2], shape[3], shape[4]] = prctl(args[0] & 0xffff_ffff)?,
        ARCH_PRCTL => shape[1] = arch_prctl(args[0] & 0xffff_ffff)?,
        _ => {}
    }
    Some(shape)
}

/// The third argument of an ioctl: terminals, sockets, descriptors. Source: asm-generic/ioctls.h, sockios.h.
const fn ioctl(request: u64) -> Option<Arg> {
    Some(match request {
        0x5401 => Out(Fixed(36)),         // TCGETS
        0x5402..=0x5404 => In(Fixed(36)), // TCSETS, TCSETSW, TCSETSF
        0x5409..=0x540b => Int,           // TCSBRK, TCXONC, TCFLSH
        0x540e => Int,                    // TIOCSCTTY
        0x540f => WORD,                   // TIOCGPGRP
        0x5410 => WORD_IN,                // TIOCSPGRP
        0x5411 => WORD,                   // TIOCOUTQ, SIOCOUTQ
        0x5413 => Out(Fixed(8)),          // TIOCGWINSZ
        0x5414 => In(Fixed(8)),           // TIOCSWINSZ
        0x541b => WORD,                   // FIONREAD, SIOCINQ
        0x5421 => WORD_IN,                // FIONBIO
        0x5422 => Nothing,                // TIOCNOTTY
        0x5425 => Int,                    // TCSBRKP
        0x5429 => WORD,                   // TIOCGSID
        0x5450 | 0x5451 => Nothing,       // FIONCLEX, FIOCLEX
        0x5452 => WORD_IN,                // FIOASYNC
        0x8905 => WORD,                   // SIOCATMARK
        // SIOCGIFNAME, SIOCGIFFLAGS, SIOCGIFADDR, SIOCGIFBRDADDR, SIOCGIFNETMASK, SIOCGIFMTU, SIOCGIFHWADDR,
        // SIOCGIFINDEX
        0x8910 | 0x8913 | 0x8915 | 0x8919 | 0x891b | 0x8921 | 0x8927 | 0x8933 => IFREQ,
        0x8008_6601 => WORD, // FS_IOC_GETFLAGS
        _ => return None,
    })
}

/// The third argument of a fcntl. Source: linux/fcntl.h.
const fn fcntl(command: u64) -> Option<Arg> {
    Some(match command {
        // F_GETFD, F_GETFL, F_GETOWN, F_GETSIG, F_GETLEASE, F_CREATED_QUERY, F_GETPIPE_SZ, F_GET_SEALS
        1 | 3 | 9 | 11 | 1025 | 1028 | 1032 | 1034 => Nothing,
        // F_DUPFD, F_SETFD, F_SETFL, F_SETOWN, F_SETSIG, F_SETLEASE, F_DUPFD_QUERY, F_DUPFD_CLOEXEC,
        // F_SETPIPE_SZ, F_ADD_SEALS
        0 | 2 | 4 | 8 | 10 | 1024 | 1027 | 1030 | 1031 | 1033 => Int,
        5 | 36 => FLOCK_OUT,          // F_GETLK, F_OFD_GETLK
        6 | 7 | 37 | 38 => FLOCK,     // F_SETLK, F_SETLKW, F_OFD_SETLK, F_OFD_SETLKW
        15 => In(Fixed(8)),           // F_SETOWN_EX
        16 => Out(Fixed(8)),          // F_GETOWN_EX
        1035 | 1037 => Out(Fixed(8)), // F_GET_RW_HINT, F_GET_FILE_RW_HINT
        1036 | 1038 => In(Fixed(8)),  // F_SET_RW_HINT, F_SET_FILE_RW_HINT
        _ => return None,
    })
}

/// The second to fifth argument of a prctl. Source: linux/prctl.h. Not supported: seccomp, system call
/// dispatch, PR_SET_MM, PR_SET_TSC, since they would take the process out of the guest's hands.
const fn prctl(option: u64) -> Option<[Arg; 4]> {
    const NONE: [Arg; 4] = [Nothing; 4];
    const ONE: [Arg; 4] = [Int, Nothing, Nothing, Nothing];
    Some(match option {
        // GET_DUMPABLE, GET_KEEPCAPS, GET_SECCOMP, GET_SECUREBITS, GET_TIMERSLACK, GET_NO_NEW_PRIVS,
        // GET_THP_DISABLE, GET_IO_FLUSHER
        3 | 7 | 21 | 27 | 30 | 39 | 42 | 58 => NONE,
        // SET_PDEATHSIG, SET_DUMPABLE, SET_KEEPCAPS, CAPBSET_READ, CAPBSET_DROP, SET_SECUREBITS, SET_TIMERSLACK,
        // SET_CHILD_SUBREAPER, SET_NO_NEW_PRIVS, SET_THP_DISABLE, SET_IO_FLUSHER, SET_PTRACER
        1 | 4 | 8 | 23 | 24 | 28 | 29 | 36 | 38 | 41 | 57 | 0x5961_6d61 => ONE,
        2 | 37 => [WORD, Nothing, Nothing, Nothing], // GET_PDEATHSIG, GET_CHILD_SUBREAPER
        15 => [In(CStr), Nothing, Nothing, Nothing], // SET_NAME
        16 => [Out(Fixed(16)), Nothing, Nothing, Nothing], // GET_NAME
        40 => [Out(Fixed(8)), Nothing, Nothing, Nothing], // GET_TID_ADDRESS
        47 => [Int, Int, Int, Int],                  // CAP_AMBIENT
        52 => [Int, Nothing, Nothing, Nothing],      // GET_SPECULATION_CTRL
        53 => [Int, Int, Nothing, Nothing],          // SET_SPECULATION_CTRL
        0x4155_5856 => [Out(Result), Int, Nothing, Nothing], // GET_AUXV
        0x5356_4d41 => [Int, Addr, Int, In(CStr)],   // SET_VMA: names of anonymous memory
        _ => return None,
    })
}

/// The second argument of an arch_prctl. Source: asm/prctl.h. Not supported: the gs base, which is the
/// guest's, shadow stacks and CPUID faulting.
const fn arch_prctl(code: u64) -> Option<Arg> {
    Some(match code {
        0x1002 => Int,                             // ARCH_SET_FS
        0x1003 | 0x1021 | 0x1022 => Out(Fixed(8)), // ARCH_GET_FS, ARCH_GET_XCOMP_SUPP, ARCH_GET_XCOMP_PERM
        0x1011 => Nothing,                         // ARCH_GET_CPUID
        _ => return None,
    })
}
