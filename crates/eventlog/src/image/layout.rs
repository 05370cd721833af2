//! Offsets inside the fixed parts of the sections.

use super::{LAYOUT, REGISTERS, SIGNALS};

/// PROCESS: pid (u32), umask (u32), kin, layout, actions, then the lengths of auxv, exe and cwd and the count
/// of pending signals (u32 each), then these, each padded.
pub(super) mod process {
    use super::{LAYOUT, SIGNALS};
    /// Process number.
    pub(crate) const PID: usize = 0;
    /// File creation mask.
    pub(crate) const UMASK: usize = 4;
    /// Its place among the others.
    pub(crate) const KIN: usize = 8;
    /// Memory layout.
    pub(crate) const LAYOUT_AT: usize = KIN + super::kin::LEN;
    /// Signal actions.
    pub(crate) const ACTIONS: usize = LAYOUT_AT + LAYOUT * 8;
    /// Length of auxv.
    pub(crate) const AUXV_LEN: usize = ACTIONS + SIGNALS * 32;
    /// Length of the executable's path.
    pub(crate) const EXE_LEN: usize = AUXV_LEN + 4;
    /// Length of the working directory.
    pub(crate) const CWD_LEN: usize = EXE_LEN + 4;
    /// Count of pending signals.
    pub(crate) const PENDING: usize = CWD_LEN + 4;
    /// Bytes of the fixed part.
    pub(crate) const LEN: usize = PENDING + 4;
}

/// A place among processes: parent, group, session and a zero (u32 each), then the birth (u64).
pub(super) mod kin {
    /// Parent.
    pub(crate) const PARENT: usize = 0;
    /// Process group.
    pub(crate) const GROUP: usize = 4;
    /// Session.
    pub(crate) const SESSION: usize = 8;
    /// When it was made.
    pub(crate) const BIRTH: usize = 16;
    /// Bytes of it.
    pub(crate) const LEN: usize = 24;
}

/// DEAD: for each process its number and its status (u32 each), then its place.
pub(super) mod dead {
    /// Number.
    pub(crate) const PID: usize = 0;
    /// Status.
    pub(crate) const STATUS: usize = 4;
    /// Place.
    pub(crate) const KIN: usize = 8;
    /// Bytes of it.
    pub(crate) const LEN: usize = KIN + super::kin::LEN;
}

/// NAMES: for each file this fixed part, then its name and its contents, each padded.
pub(super) mod name {
    /// Device.
    pub(crate) const DEVICE: usize = 0;
    /// Inode.
    pub(crate) const INODE: usize = 8;
    /// Length.
    pub(crate) const LENGTH: usize = 16;
    /// Length of the contents.
    pub(crate) const CONTENTS_LEN: usize = 24;
    /// Permissions.
    pub(crate) const MODE: usize = 32;
    /// Owner.
    pub(crate) const OWNER: usize = 36;
    /// Group.
    pub(crate) const GROUP: usize = 40;
    /// Length of the name.
    pub(crate) const NAME_LEN: usize = 44;
    /// Bytes of the fixed part.
    pub(crate) const LEN: usize = NAME_LEN + 4;
}

/// THREADS: for each thread this fixed part, then extended state and pending signals, each padded.
pub(super) mod thread {
    use super::REGISTERS;
    /// Thread number.
    pub(crate) const TID: usize = 0;
    /// Length of the extended state.
    pub(crate) const XSTATE_LEN: usize = 4;
    /// Count of pending signals.
    pub(crate) const PENDING: usize = 8;
    /// Length of the rseq registration.
    pub(crate) const RSEQ_LEN: usize = 12;
    /// Signature of the rseq registration.
    pub(crate) const RSEQ_SIGNATURE: usize = 16;
    /// General registers.
    pub(crate) const REGS: usize = 24;
    /// Blocked signals.
    pub(crate) const SIGMASK: usize = REGS + REGISTERS * 8;
    /// Robust list.
    pub(crate) const ROBUST: usize = SIGMASK + 8;
    /// Address of `struct rseq`.
    pub(crate) const RSEQ: usize = ROBUST + 16;
    /// User dispatch.
    pub(crate) const DISPATCH: usize = RSEQ + 8;
    /// Alternate stack.
    pub(crate) const ALTSTACK: usize = DISPATCH + 32;
    /// Cleared at the end.
    pub(crate) const CLEAR_TID: usize = ALTSTACK + 24;
    /// Name.
    pub(crate) const NAME: usize = CLEAR_TID + 8;
    /// Bytes of the fixed part.
    pub(crate) const LEN: usize = NAME + 16;
}

/// MAPPINGS: for each mapping this fixed part, then its path, padded.
pub(super) mod mapping {
    /// First byte.
    pub(crate) const START: usize = 0;
    /// Behind the last byte.
    pub(crate) const END: usize = 8;
    /// Offset in the file.
    pub(crate) const OFFSET: usize = 16;
    /// Device.
    pub(crate) const DEVICE: usize = 24;
    /// Inode.
    pub(crate) const INODE: usize = 32;
    /// Protection in bits 0 to 2, shared in bit 3, backing in bits 4 and 5.
    pub(crate) const BITS: usize = 40;
    /// Flags.
    pub(crate) const FLAGS: usize = 44;
    /// Length of the path.
    pub(crate) const PATH_LEN: usize = 48;
    /// Bytes of the fixed part.
    pub(crate) const LEN: usize = 56;
    /// In `BITS`.
    pub(crate) const SHARED: u32 = 1 << 3;
}
