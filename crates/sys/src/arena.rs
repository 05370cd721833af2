//! The host's view of the memory it shares with the guests: control page, rings, output buffers.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::Duration;

use guest::abi::{
    ARENA_LEN, ARENA_MAGIC, CONNS_AT, Conn, Control, INHERIT_AT, INHERIT_FDS, MAX_CONNS, MAX_SLOTS,
    OUTPUT_LEN, OUTPUTS_AT, RING_LEN, RINGS_AT, SLOTS_AT, Slot,
};

/// One container's arena: a memory file and its mapping here.
#[derive(Debug)]
pub struct Arena {
    file: OwnedFd,
    base: NonNull<u8>,
}

// SAFETY: the mapping lives as long as the value, and everything in it is reached through atomics or
// copied as bytes whose ownership the ring positions hand over.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    /// Makes an empty arena in this mode (one of [`guest::abi::mode`]) with these switches
    /// ([`guest::abi::flag`]).
    ///
    /// # Errors
    /// When the kernel has no memory for it.
    pub fn new(mode: u32, flags: u32) -> io::Result<Self> {
        // SAFETY: the name is a C string; the call makes a descriptor that nobody else owns.
        let fd = unsafe { libc::memfd_create(c"understudy-arena".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just made, owned by nobody else.
        let file = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: changes only the length of our own file.
        if unsafe { libc::ftruncate(fd, ARENA_LEN.cast_signed()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let flags_mmap = libc::MAP_SHARED | libc::MAP_NORESERVE;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                ARENA_LEN as usize,
                prot,
                flags_mmap,
                fd,
                0,
            )
        };
        let base = if base == libc::MAP_FAILED {
            None
        } else {
            NonNull::new(base.cast())
        };
        let arena = Self {
            file,
            base: base.ok_or_else(io::Error::last_os_error)?,
        };
        arena.begin(mode, flags);
        Ok(arena)
    }

    /// Makes it empty again, as [`Self::new`] does. Nobody else may use it meanwhile.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn clear(&self, mode: u32, flags: u32) -> io::Result<()> {
        let how = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: the file is our own; its mapping stays, and reads as zeroes.
        let done =
            unsafe { libc::fallocate(self.file.as_raw_fd(), how, 0, ARENA_LEN.cast_signed()) };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
        self.begin(mode, flags);
        Ok(())
    }

    fn begin(&self, mode: u32, flags: u32) {
        let control = self.control();
        control.mode.store(mode, Relaxed);
        control.flags.store(flags, Relaxed);
        control.next_stream.store(1, Relaxed);
        control.magic.store(ARENA_MAGIC, Relaxed);
    }

    /// The descriptor to hand to the container's processes.
    #[must_use]
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The control page.
    #[must_use]
    pub fn control(&self) -> &Control {
        self.at(0)
    }

    /// Whoever looks at rings and connections calls this before it looks: what is asked for from now on is not
    /// covered by that look.
    pub fn begin_look(&self) {
        self.control().drain_wanted.store(0, SeqCst);
    }

    /// Whether a look was asked for since the last one began.
    #[must_use]
    pub fn is_look_wanted(&self) -> bool {
        self.control().drain_wanted.load(SeqCst) != 0
    }

    /// Asks for a look at rings and connections, as the guest does.
    pub fn ask_for_look(&self) {
        let control = self.control();
        control.drain_wanted.store(1, SeqCst);
        if control.drainer_asleep.swap(0, SeqCst) != 0 {
            futex_wake(&control.drainer_asleep);
        }
    }

    /// Sleeps until a look is asked for, `at_most` so long.
    pub fn sleep_until_asked(&self, at_most: Duration) {
        let control = self.control();
        control.drainer_asleep.store(1, SeqCst);
        if control.drain_wanted.load(SeqCst) == 0 {
            futex_wait(&control.drainer_asleep, 1, at_most);
        }
        control.drainer_asleep.store(0, SeqCst);
    }

    /// A ring's header.
    ///
    /// # Panics
    /// If there is no such ring.
    #[must_use]
    pub fn slot(&self, index: usize) -> &Slot {
        assert!(index < MAX_SLOTS, "ring {index}");
        self.at(SLOTS_AT + (index * size_of::<Slot>()) as u64)
    }

    /// A connection's entry.
    ///
    /// # Panics
    /// If there is no such entry.
    #[must_use]
    pub fn conn(&self, index: usize) -> &Conn {
        assert!(index < MAX_CONNS, "connection {index}");
        self.at(CONNS_AT + (index * size_of::<Conn>()) as u64)
    }

    /// The kinds of descriptors that the process on a ring hands to its next image.
    ///
    /// # Panics
    /// If there is no such ring.
    #[must_use]
    pub fn inherited(&self, index: usize) -> &[AtomicU32; INHERIT_FDS] {
        assert!(index < MAX_SLOTS, "ring {index}");
        self.at(INHERIT_AT + (index * INHERIT_FDS * 4) as u64)
    }

    /// Appends bytes `from..to` of a ring's stream to `out`. The caller has seen `to` in the ring's head.
    ///
    /// # Panics
    /// If the range is longer than a ring.
    pub fn read_ring(&self, index: usize, from: u64, to: u64, out: &mut Vec<u8>) {
        self.read_circle(RINGS_AT + index as u64 * RING_LEN, RING_LEN, from, to, out);
    }

    /// Writes bytes into a ring at a stream position. The caller has seen room for them.
    ///
    /// # Panics
    /// If they are longer than a ring.
    pub fn write_ring(&self, index: usize, at: u64, bytes: &[u8]) {
        self.write_circle(RINGS_AT + index as u64 * RING_LEN, RING_LEN, at, bytes);
    }

    /// Appends bytes `from..to` of a connection's output to `out`.
    ///
    /// # Panics
    /// If the range is longer than the buffer.
    pub fn read_output(&self, index: usize, from: u64, to: u64, out: &mut Vec<u8>) {
        self.read_circle(
            OUTPUTS_AT + index as u64 * OUTPUT_LEN,
            OUTPUT_LEN,
            from,
            to,
            out,
        );
    }

    /// Writes bytes into a connection's output at a position of its stream (restoring an image).
    ///
    /// # Panics
    /// If they are longer than the buffer.
    pub fn write_output(&self, index: usize, at: u64, bytes: &[u8]) {
        self.write_circle(
            OUTPUTS_AT + index as u64 * OUTPUT_LEN,
            OUTPUT_LEN,
            at,
            bytes,
        );
    }

    fn read_circle(&self, base: u64, len: u64, from: u64, to: u64, out: &mut Vec<u8>) {
        let n = to.wrapping_sub(from);
        assert!(n <= len, "bytes {from}..{to} of a circle of {len}");
        let at = from % len;
        let first = n.min(len - at);
        for (at, n) in [(at, first), (0, n - first)] {
            self.check(base + at, n);
            // SAFETY: inside the mapping (checked); the guest does not write bytes that it has committed
            // before they are consumed, and if it breaks that promise the bytes are wrong, which the
            // decoder and the checksums have to bear, but they are plain bytes.
            let bytes = unsafe {
                std::slice::from_raw_parts(self.base.as_ptr().add((base + at) as usize), n as usize)
            };
            out.extend_from_slice(bytes);
        }
    }

    fn write_circle(&self, base: u64, len: u64, at: u64, bytes: &[u8]) {
        assert!(
            bytes.len() as u64 <= len,
            "{} bytes for a circle of {len}",
            bytes.len()
        );
        let at = at % len;
        let first = bytes.len().min((len - at) as usize);
        for (at, part) in [(at, &bytes[..first]), (0, &bytes[first..])] {
            self.check(base + at, part.len() as u64);
            // SAFETY: inside the mapping (checked); the caller owns this part of the circle.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    part.as_ptr(),
                    self.base.as_ptr().add((base + at) as usize),
                    part.len(),
                );
            }
        }
    }

    fn check(&self, at: u64, n: u64) {
        assert!(at + n <= ARENA_LEN, "bytes {at}..{} of the arena", at + n);
    }

    fn at<T>(&self, offset: u64) -> &T {
        self.check(offset, size_of::<T>() as u64);
        // SAFETY: inside the mapping (checked), aligned by the layout's assertions; the types hold atomics
        // alone, for which any bytes are values.
        unsafe { &*self.base.as_ptr().add(offset as usize).cast() }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: our own mapping; borrows of it ended with the value.
        unsafe { libc::munmap(self.base.as_ptr().cast(), ARENA_LEN as usize) };
    }
}

/// Sleeps while a shared word has this value, at most so long.
pub fn futex_wait(word: &AtomicU32, value: u32, at_most: Duration) {
    let limit = libc::timespec {
        tv_sec: at_most.as_secs().cast_signed(),
        tv_nsec: i64::from(at_most.subsec_nanos()),
    };
    // SAFETY: the word is live for the call; the kernel reads it and the limit.
    unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT,
            value,
            &raw const limit,
        )
    };
}

/// Wakes everybody who sleeps on a shared word.
pub fn futex_wake(word: &AtomicU32) {
    // SAFETY: the kernel uses the address alone.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}

/// A duplicate of a descriptor under a fixed number, inherited across execve; for a child before its exec.
///
/// # Errors
/// When the number is above the limit.
pub fn place_descriptor(fd: BorrowedFd<'_>, number: i32) -> io::Result<()> {
    // SAFETY: dup2 has no memory effects; the number is reserved for this use.
    if unsafe { libc::dup2(fd.as_raw_fd(), number) } < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest::abi::mode;

    #[test]
    fn a_circle_gives_back_what_was_put_in_across_its_end() {
        let arena = Arena::new(mode::RECORD, 0).unwrap();
        let bytes: Vec<u8> = (0..100_000u32).map(|i| i as u8).collect();
        let at = 3 * RING_LEN - 50_000;
        arena.write_ring(7, at, &bytes);
        let mut back = Vec::new();
        arena.read_ring(7, at, at + bytes.len() as u64, &mut back);
        assert_eq!(back, bytes);
        assert_eq!(arena.control().magic.load(Relaxed), ARENA_MAGIC);
    }
}
