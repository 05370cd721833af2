//! The image of a process at a cut: what a checkpoint sends, keeps and is restored from. A checkpoint of several
//! processes is their images one after another ([`split`]): the container's program first, then each behind its
//! parent.
//!
//! An image is full (`base` is 0) or the difference to the image with the sequence number `base`. It is a
//! header and sections; all integers are little-endian, everything starts at a multiple of eight.
//!
//! ```text
//! header     0 magic   8 version (u16)  10 zero (u16)  12 sections (u32)  16 sequence  24 base
//!           32 length of the whole image in bytes  40 zero (u32)  44 CRC32C of bytes 0..44 (u32)
//! section    0 kind (u32)  4 CRC32C of kind, length and payload (u32)  8 payload length (u64)
//!           16 payload, padded with zeroes to a multiple of eight
//! ```
//!
//! Sections, each at most once, those marked * always:
//!
//! * [`section::PROCESS`] *: identity, memory layout, signal actions ([`Process`]).
//! * [`section::THREADS`] *: every thread's registers and registrations ([`Thread`]).
//! * [`section::MAPPINGS`]: the whole memory map ([`Mapping`]); absent when it is the base's.
//! * [`section::DROPPED`]: pairs of addresses whose stored pages are void, before the new pages apply.
//! * [`section::PAGES`]: a count (u64), as many runs (address u64, pages u64), then the pages' bytes.
//! * [`section::VDSO`]: the kernel's vDSO, in full images: whoever restores must run the same one.
//! * [`section::DEAD`]: processes that have ended and nobody has waited for ([`Dead`]), 32 bytes each.
//! * [`section::NAMES`]: the files in the container's directory of shared memory ([`NamedMemory`]).
//! * [`section::OPAQUE`] and above: the caller's (the fold's snapshot, unacknowledged output).
//!
//! A page that is stored nowhere holds what its mapping gives: zeroes, or the file's bytes.

mod decode;
mod encode;
mod layout;

pub use decode::{decode, split};
pub use encode::encode;

use std::borrow::Cow;

/// First word of an image: `USIMAGE1`.
pub const MAGIC: u64 = u64::from_le_bytes(*b"USIMAGE1");
/// Version of the layout.
pub const VERSION: u16 = 3;
/// Bytes of the header.
pub const HEADER_LEN: usize = 48;
/// Offset of the version.
pub const VERSION_AT: usize = 8;
/// Offset of the number of sections.
pub const SECTIONS_AT: usize = 12;
/// Offset of the sequence number.
pub const SEQUENCE_AT: usize = 16;
/// Offset of the base's sequence number.
pub const BASE_AT: usize = 24;
/// Offset of the image's length.
pub const LENGTH_AT: usize = 32;
/// Offset of the header's checksum.
pub const HEADER_CRC_AT: usize = 44;
/// Bytes of a section's header.
pub const SECTION_LEN: usize = 16;
/// Bytes of a page.
pub const PAGE: u64 = 4096;
/// Words of a thread's general registers, in the order of the kernel's `user_regs_struct`.
pub const REGISTERS: usize = 27;
/// Signal actions of a process.
pub const SIGNALS: usize = 64;
/// Words of the memory layout: see [`Process::layout`].
pub const LAYOUT: usize = 11;
/// Most sections of one image.
pub const MAX_SECTIONS: u32 = 64;
/// Most processes of one checkpoint.
pub const MAX_PROCESSES: usize = 4096;
/// Most bytes of a thread's extended state.
pub const MAX_XSTATE: usize = 16 << 10;
/// Most bytes of a path.
pub const MAX_PATH: usize = 4096;
/// Most bytes that the files of one image hold which nobody maps ([`NamedMemory::contents`]).
pub const MAX_UNMAPPED: usize = 64 << 20;

/// Kinds of section.
pub mod section {
    /// [`super::Process`].
    pub const PROCESS: u32 = 1;
    /// [`super::Thread`]s.
    pub const THREADS: u32 = 2;
    /// [`super::Mapping`]s.
    pub const MAPPINGS: u32 = 3;
    /// Addresses whose stored pages are void.
    pub const DROPPED: u32 = 4;
    /// Pages.
    pub const PAGES: u32 = 5;
    /// The vDSO's bytes.
    pub const VDSO: u32 = 6;
    /// [`super::Dead`]s.
    pub const DEAD: u32 = 7;
    /// [`super::NamedMemory`].
    pub const NAMES: u32 = 8;
    /// The first of the caller's own kinds.
    pub const OPAQUE: u32 = 0x1000;
}

/// An image, as values. `'a` is the life of the pages' bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image<'a> {
    /// Number of this image, from 1.
    pub sequence: u64,
    /// Number of the image that this one changes, 0 when it is full.
    pub base: u64,
    /// The process.
    pub process: Process,
    /// Its threads, the leader first.
    pub threads: Vec<Thread>,
    /// The memory map by address, `None` when it is the base's.
    pub mappings: Option<Vec<Mapping>>,
    /// Addresses whose stored pages are void.
    pub dropped: Vec<Span>,
    /// Where the pages belong: ascending, disjoint.
    pub runs: Vec<Run>,
    /// The pages' bytes, in pieces that follow one another.
    pub pieces: Vec<Cow<'a, [u8]>>,
    /// Processes that have ended and nobody has waited for: in the image of the container's program.
    pub dead: Vec<Dead>,
    /// Names of shared memory, by name: in the image of the container's program.
    pub names: Vec<NamedMemory>,
    /// The vDSO's bytes; empty when the section is absent.
    pub vdso: Cow<'a, [u8]>,
    /// The caller's sections.
    pub opaque: Vec<(u32, Cow<'a, [u8]>)>,
}

/// A part of the address space, whole pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First byte.
    pub start: u64,
    /// Behind the last byte.
    pub end: u64,
}

/// Pages that follow one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Address of the first.
    pub start: u64,
    /// How many.
    pub pages: u64,
}

/// Where a process stands among the others. Numbers are those of its own PID namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kin {
    /// Its parent; 1 is the container's init.
    pub parent: u32,
    /// Its process group.
    pub group: u32,
    /// Its session.
    pub session: u32,
    /// When it was made, in clock ticks since its host started: tells processes apart that had the same number.
    pub birth: u64,
}

/// A process that has ended and that its parent has not waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dead {
    /// Its number.
    pub pid: u32,
    /// As wait(2) will tell it.
    pub status: u32,
    /// Its place.
    pub kin: Kin,
}

/// A file in the container's directory of shared memory (`shm_open`, `sem_open`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamedMemory {
    /// Its name in that directory.
    pub name: String,
    /// As in [`Mapping::device`].
    pub device: u64,
    /// As in [`Mapping::inode`]; two names may have the same.
    pub inode: u64,
    /// Permissions.
    pub mode: u32,
    /// Its owner.
    pub owner: u32,
    /// Its group.
    pub group: u32,
    /// Its length, bytes.
    pub len: u64,
    /// Its bytes from the first on, where no process maps all of them; zeroes behind them. Else the pages of the
    /// mappings have them.
    pub contents: Vec<u8>,
}

/// What belongs to the process as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number in its own PID namespace.
    pub pid: u32,
    /// Its place among the others.
    pub kin: Kin,
    /// File creation mask.
    pub umask: u32,
    /// start_code, end_code, start_data, end_data, start_brk, brk, start_stack, arg_start, arg_end,
    /// env_start, env_end.
    pub layout: [u64; LAYOUT],
    /// Actions of signals 1 to 64: handler, flags, restorer, mask.
    pub actions: [[u64; 4]; SIGNALS],
    /// The auxiliary vector's bytes.
    pub auxv: Vec<u8>,
    /// Path of the executable.
    pub exe: String,
    /// Working directory.
    pub cwd: String,
    /// Pending signals of the process, as siginfo, oldest first.
    pub pending: Vec<[u8; 128]>,
}

impl Default for Process {
    fn default() -> Self {
        Self {
            pid: 0,
            kin: Kin::default(),
            umask: 0,
            layout: [0; LAYOUT],
            actions: [[0; 4]; SIGNALS],
            auxv: Vec::new(),
            exe: String::new(),
            cwd: String::new(),
            pending: Vec::new(),
        }
    }
}

/// One thread.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Thread {
    /// Its number in its own PID namespace.
    pub tid: u32,
    /// General registers to go on with: calls that the cut interrupted are set to be made again.
    pub registers: [u64; REGISTERS],
    /// Blocked signals.
    pub sigmask: u64,
    /// Head and length of the robust futex list.
    pub robust: [u64; 2],
    /// Address of `struct rseq`, 0 without registration.
    pub rseq: u64,
    /// Length of the rseq registration.
    pub rseq_len: u32,
    /// Its signature.
    pub rseq_signature: u32,
    /// System-call user dispatch: mode, selector, offset, length.
    pub dispatch: [u64; 4],
    /// Alternate signal stack: address, flags, size.
    pub altstack: [u64; 3],
    /// Cleared by the kernel when the thread ends (`set_tid_address`).
    pub clear_tid: u64,
    /// Its name, padded with zeroes.
    pub name: [u8; 16],
    /// Extended state in XSAVE format.
    pub xstate: Vec<u8>,
    /// Pending signals of the thread, as siginfo, oldest first.
    pub pending: Vec<[u8; 128]>,
}

/// What backs a mapping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backing {
    /// Zeroes.
    #[default]
    Anonymous,
    /// The file at the mapping's path.
    File,
    /// Memory that several mappings share, told apart by device and inode; its pages are in the image.
    SharedMemory,
}

/// One mapping.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mapping {
    /// First byte.
    pub start: u64,
    /// Behind the last byte.
    pub end: u64,
    /// `PROT_*`.
    pub protection: u32,
    /// Writes are seen by others who map the same.
    pub shared: bool,
    /// What backs it.
    pub backing: Backing,
    /// Flags of the mapping, bits in this order: grows down, no reserve, huge, no huge, not forked, not
    /// dumped, wiped on fork, locked.
    pub flags: u32,
    /// Offset in the file, bytes.
    pub offset: u64,
    /// Device, major in the upper half.
    pub device: u64,
    /// Inode.
    pub inode: u64,
    /// Path of the file, or the kernel's name in brackets.
    pub path: String,
}

impl Mapping {
    /// Whether the kernel provides it at exec (vDSO and its data, vsyscall).
    #[must_use]
    pub fn is_kernels(&self) -> bool {
        self.path.starts_with("[v")
    }
}

/// Bytes that are no image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// Another kind of data.
    #[error("this is no image: it begins with {0:#018x}")]
    Magic(u64),
    /// Written by another version.
    #[error("image version {0} is not understood, only {VERSION}")]
    Version(u16),
    /// Shorter than it says.
    #[error("the image ends where {wanted} more bytes should be ({left} are left)")]
    Truncated {
        /// Bytes needed.
        wanted: u64,
        /// Bytes there.
        left: u64,
    },
    /// Damaged. Section 0 is the header.
    #[error(
        "section {section} of the image is damaged: its checksum is {computed:#010x}, not {stored:#010x}"
    )]
    Checksum {
        /// The section's kind.
        section: u32,
        /// What the image says.
        stored: u32,
        /// What its bytes give.
        computed: u32,
    },
    /// A section that is unknown, comes twice or is missing.
    #[error("section {0} of the image is unknown, comes twice or is missing")]
    Section(u32),
    /// A number beyond its bound.
    #[error("{what} of the image is {value}, beyond its bound")]
    Bound {
        /// Which number.
        what: &'static str,
        /// Its value.
        value: u64,
    },
    /// Addresses that are not whole pages in ascending order.
    #[error("the addresses of the image are not whole pages in order at {0:#x}")]
    Order(u64),
    /// What is no name in a directory.
    #[error("{0:?} of the image is no name of shared memory")]
    Name(String),
    /// A path or name that is not UTF-8.
    #[error("a path of the image is not valid text")]
    Text,
}

#[cfg(test)]
mod tests;
