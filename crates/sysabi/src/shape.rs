//! What a row means for one call: lengths of buffers, shapes that depend on a command, object of order.

use crate::{Arg, Class, Len, Object, Syscall};

/// Bytes of a page.
const PAGE: u64 = 4096;

impl Len {
    /// Bytes of a buffer of this length in a call with these arguments and this result. `pointee` is the
    /// word behind a [`Len::Pointee`] argument, already bounded by what it said before the call.
    /// `None` for [`Len::CStr`], whose length only memory knows. Saturates; the caller bounds it.
    #[inline]
    #[must_use]
    pub fn bytes(self, args: &[u64; 6], result: i64, pointee: u32) -> Option<u64> {
        let arg = |i: u8| args.get(usize::from(i)).copied().unwrap_or(0);
        let returned = u64::try_from(result).unwrap_or(0);
        Some(match self {
            Self::Fixed(n) => u64::from(n),
            Self::Arg(i) => arg(i),
            Self::ArgTimes(i, unit) => arg(i).saturating_mul(u64::from(unit)),
            Self::ArgBits(i) => arg(i).div_ceil(64).saturating_mul(8),
            Self::ArgPages(i) => arg(i).div_ceil(PAGE),
            Self::Result => returned,
            Self::ResultUpTo(i) => returned.min(arg(i)),
            Self::ResultTimes(unit) => returned.saturating_mul(u64::from(unit)),
            Self::Pointee(_) => u64::from(pointee),
            Self::CStr => return None,
        })
    }
}

impl Arg {
    /// True if the call reads the buffer, so that a capturing record holds it.
    #[inline]
    #[must_use]
    pub const fn is_input(self) -> bool {
        matches!(self, Self::In(_) | Self::InOut(_))
    }

    /// True if the call fills the buffer, so that every record of a call that worked holds it.
    #[inline]
    #[must_use]
    pub const fn is_filled(self) -> bool {
        matches!(self, Self::Out(_) | Self::InOut(_))
    }
}

/// −EINTR: a call that was interrupted, whose work may go on.
const EINTR: i64 = -4;
/// −EINPROGRESS: a connect that goes on.
const EINPROGRESS: i64 = -115;

impl Syscall {
    /// The object whose version a record of this call carries, if it changes one. A record whose version
    /// is 0 did not change it (a failed call; fcntl of another command), and is not ordered.
    #[inline]
    #[must_use]
    pub const fn object(&self) -> Option<Object> {
        if let Class::Ordered(object) = self.class {
            return Some(object);
        }
        match self.nr {
            // open, close, pipe, dup, dup2, socket, accept, recvmsg (passed descriptors), socketpair, fcntl,
            // creat, epoll_create, inotify_init, openat, signalfd, timerfd_create, eventfd, accept4, signalfd4,
            // eventfd2, epoll_create1, dup3, pipe2, inotify_init1, memfd_create, pidfd_open, close_range, openat2
            2
            | 3
            | 22
            | 32
            | 33
            | 41
            | 43
            | 47
            | 53
            | 72
            | 85
            | 213
            | 253
            | 257
            | 282
            | 283
            | 284
            | 288
            | 289..=294
            | 319
            | 434
            | 436
            | 437 => Some(Object::Descriptors),
            // rt_sigaction
            13 => Some(Object::Signals),
            // clone, fork, vfork, wait4, waitid, clone3
            56..=58 | 61 | 247 | 435 => Some(Object::Pids),
            _ => None,
        }
    }

    /// True if a record with this result holds the arguments and the input: a failed call changed nothing.
    #[inline]
    #[must_use]
    pub const fn captures(&self, result: i64) -> bool {
        self.capture && (result >= 0 || result == EINTR || result == EINPROGRESS)
    }

    /// True if a record with this result holds what the call filled. Calls that failed filled nothing,
    /// but for sleeps and polls (the time left) and capget (the version the kernel prefers).
    #[inline]
    #[must_use]
    pub const fn fills(&self, result: i64) -> bool {
        // select, nanosleep, capget, clock_nanosleep, pselect6, ppoll
        result >= 0 || matches!(self.nr, 23 | 35 | 125 | 230 | 270 | 271)
    }

    /// The arguments of a call with these values: the row's, made exact where a command decides (ioctl,
    /// fcntl, prctl, arch_prctl). `None` if the command is not supported; it is answered with ENOTTY for
    /// an ioctl, else with EINVAL, and not executed.
    #[inline]
    #[must_use]
    pub fn shape(&self, args: &[u64; 6]) -> Option<[Arg; 6]> {
        crate::command::shape(self, args)
    }
}
