//! The memory in which a connection's output waits, as the sender sees it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::sys::socket::{MsgFlags, send};

/// Bytes copied for one send.
const CHUNK: usize = 64 << 10;

/// One connection's output buffer. Positions are stream positions: byte 0 is the first ever written.
///
/// The memory belongs to the container: what it says is checked by [`crate::OutputState`], and copying
/// must be bounded by the buffer whatever the positions are.
pub trait OutputBuffer {
    /// Bytes the application has written.
    fn written(&self) -> u64;

    /// Copies the bytes from position `from` on.
    fn copy_out(&self, from: u64, out: &mut [u8]);

    /// Frees the room of everything before `to`, and wakes a writer that waits for room.
    fn set_trimmed(&self, to: u64);

    /// The kernel gave the connection up with this errno: the application's next write should meet it.
    fn set_error(&self, errno: i32);

    /// Gives the buffer back for another connection.
    fn free(&self);

    /// Bytes the buffer holds.
    fn capacity(&self) -> u64;

    /// Sends bytes `from..to` (at least one) without waiting; returns how many the kernel took.
    /// Implementations that can reach the memory without a copy should.
    ///
    /// # Errors
    /// What send says; `WouldBlock` when the kernel's buffer is full.
    fn send(&self, socket: BorrowedFd<'_>, from: u64, to: u64) -> io::Result<u64> {
        let mut chunk = vec![0; CHUNK.min(usize::try_from(to - from).unwrap_or(CHUNK))];
        self.copy_out(from, &mut chunk);
        let more = if to - from > chunk.len() as u64 {
            nix::libc::MSG_MORE
        } else {
            0
        };
        let flags =
            MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL | MsgFlags::from_bits_retain(more);
        Ok(send(socket.as_raw_fd(), &chunk, flags)? as u64)
    }
}

impl<B: OutputBuffer + ?Sized> OutputBuffer for std::sync::Arc<B> {
    fn written(&self) -> u64 {
        (**self).written()
    }
    fn copy_out(&self, from: u64, out: &mut [u8]) {
        (**self).copy_out(from, out);
    }
    fn set_trimmed(&self, to: u64) {
        (**self).set_trimmed(to);
    }
    fn set_error(&self, errno: i32) {
        (**self).set_error(errno);
    }
    fn free(&self) {
        (**self).free();
    }
    fn capacity(&self) -> u64 {
        (**self).capacity()
    }
    fn send(&self, socket: BorrowedFd<'_>, from: u64, to: u64) -> io::Result<u64> {
        (**self).send(socket, from, to)
    }
}
