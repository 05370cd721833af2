//! Where the fields of the eBPF program's maps lie: the mirror of `bpf/gate.bpf.c`, which asserts the same
//! numbers at compile time. Values are in host order, ports inside a key in network order.

/// Connections at once.
pub(crate) const MAX_CONNECTIONS: u32 = 16_384;

/// `struct connection`, by field.
pub(crate) mod connection {
    pub(crate) const LEN: usize = 256;
    pub(crate) const KEY: usize = 0;
    pub(crate) const ISS: usize = 36;
    pub(crate) const IRS: usize = 40;
    /// Two 16-bit values: the container's, then the peer's.
    pub(crate) const MSS: usize = 44;
    /// Four bytes: the container's shift count, the peer's, the options, padding.
    pub(crate) const OPTIONS: usize = 48;
    pub(crate) const ESTABLISHED_NS: usize = 56;
    pub(crate) const STATE: usize = 64;
    pub(crate) const UNA: usize = 68;
    pub(crate) const PEER_WINDOW: usize = 72;
    pub(crate) const PEER_MAX_WINDOW: usize = 76;
    pub(crate) const PEER_NXT: usize = 80;
    pub(crate) const PEER_FIN: usize = 84;
    pub(crate) const PEER_TSVAL: usize = 88;
    pub(crate) const PEER_NS: usize = 96;
    pub(crate) const SND_NXT: usize = 128;
    pub(crate) const KERNEL_ACK: usize = 132;
    pub(crate) const SENT_ACK: usize = 136;
    pub(crate) const WINDOW: usize = 140;
    pub(crate) const EDGE: usize = 144;
    pub(crate) const TSVAL: usize = 148;
    pub(crate) const TSECR: usize = 152;
    pub(crate) const TS_NS: usize = 160;
    pub(crate) const REL_RCV: usize = 192;
    pub(crate) const REL_SND: usize = 196;
    pub(crate) const PERMIT: usize = 200;
}

/// Bits of the permit word.
pub(crate) mod permit {
    pub(crate) const OWNED: u32 = 1;
    pub(crate) const RESET: u32 = 2;
    pub(crate) const HELD: u32 = 4;
    pub(crate) const FIN: u32 = 8;
}

/// Values of the state word.
pub(crate) mod state {
    pub(crate) const OPEN: u32 = 1;
    pub(crate) const RESET: u32 = 2;
    pub(crate) const REPLACED: u32 = 3;
}

/// Bits of the options byte.
pub(crate) mod option {
    pub(crate) const WSCALE: u8 = 1;
    pub(crate) const SACK: u8 = 2;
    pub(crate) const TIMESTAMPS: u8 = 4;
    pub(crate) const ACTIVE: u8 = 8;
}

/// `struct config`, by field.
pub(crate) mod config {
    pub(crate) const LEN: usize = 64;
    pub(crate) const LEASE_NS: usize = 0;
    pub(crate) const FLAGS: usize = 8;
    pub(crate) const MASK: usize = 12;
    pub(crate) const HELD: usize = 24;
}

/// Bits of the flags word.
pub(crate) mod flag {
    pub(crate) const GATE: u32 = 1;
    pub(crate) const MASK: u32 = 2;
    pub(crate) const HOLD: u32 = 4;
    pub(crate) const ANSWERS: u32 = 8;
}

/// `struct held`, by field.
pub(crate) mod held {
    pub(crate) const SLOTS: u32 = 8192;
    pub(crate) const LEN: usize = 2048;
    pub(crate) const STAMP: usize = 0;
    pub(crate) const NS: usize = 8;
    pub(crate) const FRAME_LEN: usize = 16;
    pub(crate) const OFFSET: usize = 20;
    pub(crate) const DATA: usize = 32;
    pub(crate) const DATA_LEN: usize = 2016;
}

/// `struct opening`, by field. The key is its first.
pub(crate) mod opening {
    pub(crate) const LEN: usize = 256;
    pub(crate) const FRAME_LEN: usize = 36;
    pub(crate) const ISS: usize = 40;
    pub(crate) const IRS: usize = 44;
    /// Two 16-bit values: the container's, then the peer's.
    pub(crate) const MSS: usize = 48;
    /// Two bytes: the container's shift count, then the peer's.
    pub(crate) const SCALES: usize = 52;
    pub(crate) const OPTIONS: usize = 54;
    pub(crate) const TSVAL: usize = 64;
    pub(crate) const FRAME: usize = 80;
}

/// How many counters there are.
pub(crate) const COUNTERS: usize = 12;
