//! The embedded blob: its segments and the addresses that the host has to know.

use object::{Object, ObjectSegment, ObjectSymbol};

use crate::abi::{BLOB_BASE, BLOB_MAX};

static BYTES: &[u8] = include_bytes!(env!("GUEST_BLOB"));

/// A part of the blob in memory.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Where it goes; not aligned to a page.
    pub address: u64,
    /// Its bytes; what follows up to `len` is zero.
    pub bytes: &'static [u8],
    /// Its length in memory.
    pub len: u64,
    /// Whether it is written, or executed; never both.
    pub writable: bool,
    /// See `writable`.
    pub executable: bool,
}

/// The blob, parsed.
#[derive(Clone, Debug)]
pub struct Blob {
    /// Its segments, in the order of their addresses.
    pub segments: Vec<Segment>,
    /// Bytes of address space from [`BLOB_BASE`] on, in whole pages.
    pub len: u64,
    /// `guest_init`: the injector calls it in a fresh image.
    pub init: u64,
    /// Where the injector puts its [`crate::abi::Boot`].
    pub boot: u64,
    /// Where a thread goes on that was stopped in the application's own blocking call: it begins again.
    pub redo: u64,
    /// The instruction pointer of a thread that is in the application's own blocking call.
    pub blocking_done: u64,
    /// The instruction pointer of a thread that sleeps on a lock.
    pub waiting_done: u64,
    /// Replacements of the vDSO's entry points: its symbol and the guest's function.
    pub vdso: [(&'static str, u64); 5],
}

impl Blob {
    /// The file that is embedded: two hosts whose are equal record and replay alike.
    #[must_use]
    pub fn file() -> &'static [u8] {
        BYTES
    }

    /// Parses the embedded blob.
    ///
    /// # Panics
    /// If the build produced a blob without one of the symbols, which a test would have shown.
    #[must_use]
    pub fn embedded() -> Self {
        let file = object::File::parse(BYTES).expect("the embedded blob is an ELF file");
        let symbol = |name: &str| {
            file.symbols()
                .find(|s| s.name() == Ok(name))
                .unwrap_or_else(|| panic!("the embedded blob has the symbol {name}"))
                .address()
        };
        let segments: Vec<Segment> = file.segments().map(|s| segment(&s)).collect();
        let end = segments
            .iter()
            .map(|s| s.address + s.len)
            .max()
            .unwrap_or(BLOB_BASE);
        let len = (end - BLOB_BASE).next_multiple_of(4096);
        assert!(len <= BLOB_MAX, "the blob fits its address space");
        let refused = symbol("vdso_refused");
        Self {
            segments,
            len,
            init: symbol("guest_init"),
            boot: symbol("BOOT"),
            redo: symbol("hook_redo"),
            blocking_done: symbol("blocking_done"),
            waiting_done: symbol("waiting_done"),
            vdso: [
                ("__vdso_clock_gettime", symbol("vdso_clock_gettime")),
                ("__vdso_gettimeofday", symbol("vdso_gettimeofday")),
                ("__vdso_time", symbol("vdso_time")),
                ("__vdso_getcpu", symbol("vdso_getcpu")),
                ("__vdso_getrandom", refused),
            ],
        }
    }
}

fn segment(s: &object::Segment<'static, '_>) -> Segment {
    let object::SegmentFlags::Elf { p_flags, .. } = s.flags() else {
        panic!("the embedded blob is an ELF file")
    };
    Segment {
        address: s.address(),
        bytes: s.data().expect("the embedded blob is whole"),
        len: s.size(),
        writable: p_flags.contains(object::elf::PF_W),
        executable: p_flags.contains(object::elf::PF_X),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_blob_lies_where_the_layout_says() {
        let blob = Blob::embedded();
        assert!(
            blob.segments
                .iter()
                .all(|s| s.address >= BLOB_BASE && !(s.writable && s.executable))
        );
        assert!(
            blob.segments
                .iter()
                .any(|s| s.executable && s.address <= blob.redo && blob.redo < s.address + s.len)
        );
        assert!(blob.boot >= BLOB_BASE && blob.boot < BLOB_BASE + blob.len);
    }
}
