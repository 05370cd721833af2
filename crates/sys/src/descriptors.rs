//! Handing descriptors over: between processes through a socket, and to fixed numbers before an execve.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::cmsg_space;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// Descriptors that one message carries at most.
pub const MAX_PASSED: usize = 64;

/// Sends one message with descriptors beside it. At most [`MAX_PASSED`]; the kernel refuses over 253.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], passed: &[RawFd]) -> io::Result<()> {
    let parts = [IoSlice::new(bytes)];
    let rights = [ControlMessage::ScmRights(passed)];
    let control = if passed.is_empty() {
        &rights[..0]
    } else {
        &rights[..]
    };
    sendmsg::<()>(
        socket.as_raw_fd(),
        &parts,
        control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    Ok(())
}

/// Receives one message into `buffer`: how many bytes (0: the other side is gone) and the descriptors
/// that came with it, closed on execve.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = cmsg_space!([RawFd; MAX_PASSED]);
    let mut parts = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = loop {
        match recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags) {
            Err(nix::errno::Errno::EINTR) => {}
            other => break other?,
        }
    };
    let mut passed = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = control {
            // SAFETY: the kernel has just made these descriptors for us, and nobody else owns them.
            passed.extend(
                numbers
                    .into_iter()
                    .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
            );
        }
    }
    Ok((message.bytes, passed))
}

/// Where one descriptor goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Its number now.
    pub from: RawFd,
    /// The number it gets; may be the same.
    pub to: RawFd,
    /// Whether it stays open across execve.
    pub inherit: bool,
}

/// Puts each descriptor on its number and closes every one that `map` does not name. A target may be
/// the number of another entry's source.
///
/// For a forked child alone: it closes what other values of this process believe to own, so they must
/// never be used or dropped afterwards.
pub fn place(map: &[Placement]) -> io::Result<()> {
    // Above every number involved nothing can be overwritten.
    let floor = map
        .iter()
        .map(|entry| entry.from.max(entry.to))
        .max()
        .unwrap_or(2)
        + 1;
    let limits = allow_number(floor.saturating_add(i32::try_from(map.len()).unwrap_or(0)))?;
    let mut parked = Vec::with_capacity(map.len());
    for entry in map {
        // SAFETY: fcntl with F_DUPFD takes integers; a bad `from` gives EBADF.
        let high = unsafe { libc::fcntl(entry.from, libc::F_DUPFD_CLOEXEC, floor) };
        if high < 0 {
            return Err(io::Error::last_os_error());
        }
        parked.push(high);
    }
    for (high, entry) in parked.into_iter().zip(map) {
        let flags = if entry.inherit { 0 } else { libc::O_CLOEXEC };
        // SAFETY: integers; whatever lay on the target was duplicated above or is unwanted.
        if unsafe { libc::dup3(high, entry.to, flags) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    if let Some((soft, hard)) = limits {
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
    }
    let mut kept: Vec<RawFd> = map.iter().map(|entry| entry.to).collect();
    kept.sort_unstable();
    close_all_but(&kept)
}

/// Closes every descriptor of this process that `kept` (ascending) does not name. See [`place`] for who
/// may call it.
fn close_all_but(kept: &[RawFd]) -> io::Result<()> {
    let mut first: u32 = 0;
    for fd in kept {
        let fd = u32::try_from(*fd).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))?;
        if fd > first {
            close_range(first, fd - 1)?;
        }
        first = first.max(fd + 1);
    }
    close_range(first, u32::MAX)
}

fn close_range(first: u32, last: u32) -> io::Result<()> {
    // SAFETY: integers only; the caller has vouched that nobody uses these descriptors any more.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Waits for one byte from a descriptor known by its number alone; false at its end.
#[must_use]
pub fn read_byte(fd: RawFd) -> bool {
    let mut byte = 0_u8;
    loop {
        // SAFETY: one byte is writable there; a bad number gives EBADF.
        let got = unsafe { libc::read(fd, (&raw mut byte).cast(), 1) };
        if got >= 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return got == 1;
        }
    }
}

/// Writes a few bytes in one piece to a descriptor known by its number alone, as the last act of a
/// child: whether they were taken is for the other side to find.
pub fn write_all(fd: RawFd, bytes: &[u8]) {
    // SAFETY: the bytes are readable for their length; a bad number gives EBADF.
    unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) };
}

/// Raises the soft limit of open descriptors so that number `highest` can be used; gives the limits as
/// they were, if they were lower.
fn allow_number(highest: RawFd) -> io::Result<Option<(u64, u64)>> {
    let wanted = u64::try_from(highest).unwrap_or(0) + 1;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft >= wanted {
        return Ok(None);
    }
    setrlimit(Resource::RLIMIT_NOFILE, wanted, hard.max(wanted))?;
    Ok(Some((soft, hard)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespaces::fork_pid_one;
    use std::io::Read;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;

    #[test]
    fn descriptors_travel() {
        let (left, right) = UnixDatagram::pair().unwrap();
        let (reader, writer) = nix::unistd::pipe().unwrap();
        send(left.as_fd(), b"take it", &[writer.as_raw_fd()]).unwrap();
        drop(writer);
        let mut buffer = [0; 16];
        let (length, passed) = receive(right.as_fd(), &mut buffer).unwrap();
        assert_eq!((&buffer[..length], passed.len()), (&b"take it"[..], 1));
        nix::unistd::write(&passed[0], b"through").unwrap();
        drop(passed);
        let mut text = String::new();
        std::fs::File::from(reader)
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "through");
    }

    #[test]
    fn placed_descriptors_may_swap_and_the_rest_is_closed() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let (r, w) = (reader.as_raw_fd(), writer.as_raw_fd());
        let child = fork_pid_one(move || {
            // The two exchange their numbers.
            let swap = |from, to| Placement {
                from,
                to,
                inherit: true,
            };
            let placed = place(&[swap(r, w), swap(w, r)]).is_ok();
            // SAFETY: only asks whether the number is open.
            let stray = unsafe { libc::fcntl(0, libc::F_GETFD) } >= 0;
            // SAFETY: the byte outlives the call.
            let wrote = unsafe { libc::write(r, b"x".as_ptr().cast(), 1) } == 1;
            i32::from(placed) + 2 * i32::from(!stray) + 4 * i32::from(wrote)
        });
        let child = child.unwrap();
        let status = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(child.pid), None).unwrap();
        assert!(
            matches!(status, nix::sys::wait::WaitStatus::Exited(_, 7)),
            "{status:?}"
        );
    }
}
