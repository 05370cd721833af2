//! Functions of a shared library that is being mapped, found in its own tables (System V gABI, GNU hash).

use core::marker::PhantomData;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::user;

/// `__errno_location` of the C library, 0 until one is mapped.
static ERRNO_LOCATION: AtomicU64 = AtomicU64::new(0);

const MAGIC: [u8; 4] = *b"\x7fELF";
const PT_DYNAMIC: u32 = 2;
const DT_STRTAB: u64 = 5;
const DT_SYMTAB: u64 = 6;
const DT_GNU_HASH: u64 = 0x6fff_fef5;
const DT_VERSYM: u64 = 0x6fff_fff0;
const HIDDEN: u16 = 0x8000;
/// How far before its text a library's header is looked for, in pages.
const SEARCH_PAGES: u64 = 4096;
/// Bounds on what a library's tables may make us read.
const MAX_HEADERS: u64 = 64;
const MAX_DYNAMIC: u64 = 256;
const MAX_CHAIN: u32 = 100_000;

/// A function of the C library, of type `F`; its address is 0 until the library is mapped.
pub(crate) struct Function<F> {
    address: AtomicU64,
    kind: PhantomData<F>,
}

impl<F: Copy> Function<F> {
    pub(crate) const fn unknown() -> Self {
        Self {
            address: AtomicU64::new(0),
            kind: PhantomData,
        }
    }

    /// Whether its library is there.
    pub(crate) fn is_known(&self) -> bool {
        self.address.load(Relaxed) != 0
    }

    /// Notes where it is called.
    pub(crate) fn set(&self, address: u64) {
        self.address.store(address, Relaxed);
    }

    /// The function, to be called.
    pub(crate) fn get(&self) -> F {
        // SAFETY: `F` is a function pointer, of the type that the function has in the C library's headers;
        // the address was found under its name in the library's own table, or is that of the stub that
        // continues it. Callers are replacements that came into force once it was known.
        unsafe { core::mem::transmute_copy(&self.address) }
    }
}

/// A library's symbol tables.
pub(crate) struct Library {
    base: u64,
    strings: u64,
    symbols: u64,
    hash: u64,
    versions: u64,
}

impl Library {
    /// The library whose text starts at this address; `None` if it has no dynamic symbols.
    pub(crate) fn containing(text: u64) -> Option<Self> {
        let base = (0..SEARCH_PAGES)
            .map(|k| (text & !4095).wrapping_sub(k * 4096))
            .find_map(|at| match user::read::<[u8; 4]>(at) {
                Ok(MAGIC) => Some(Some(at)),
                Ok(_) => None,
                Err(_) => Some(None),
            })??;
        let headers = base + user::read::<u64>(base + 0x20).ok()?;
        let count = u64::from(user::read::<u16>(base + 0x38).ok()?).min(MAX_HEADERS);
        for i in 0..count {
            let at = headers + i * 56;
            if user::read::<u32>(at).ok()? == PT_DYNAMIC {
                let offset = user::read::<u64>(at + 8).ok()?;
                let address = user::read::<u64>(at + 16).ok()?;
                // While the loader still maps the file, its dynamic section lies at its file offset.
                return Self::from_dynamic(base, base + offset)
                    .or_else(|| Self::from_dynamic(base, base + address));
            }
        }
        None
    }

    fn from_dynamic(base: u64, dynamic: u64) -> Option<Self> {
        let mut found = Self {
            base,
            strings: 0,
            symbols: 0,
            hash: 0,
            versions: 0,
        };
        for i in 0..MAX_DYNAMIC {
            let [tag, value] = user::read::<[u64; 2]>(dynamic + i * 16).ok()?;
            let place = if value < base { base + value } else { value };
            match tag {
                0 => break,
                DT_STRTAB => found.strings = place,
                DT_SYMTAB => found.symbols = place,
                DT_GNU_HASH => found.hash = place,
                DT_VERSYM => found.versions = place,
                _ => {}
            }
        }
        (found.strings != 0 && found.symbols != 0 && found.hash != 0).then_some(found)
    }

    /// Address of the function with this name, in its default version.
    pub(crate) fn function(&self, name: &[u8]) -> Option<u64> {
        let [buckets, first, bloom, _] = user::read::<[u32; 4]>(self.hash).ok()?;
        if buckets == 0 {
            return None;
        }
        let bucket_at = self.hash + 16 + u64::from(bloom) * 8;
        let chain_at = bucket_at + u64::from(buckets) * 4;
        let wanted = gnu_hash(name);
        let start: u32 = user::read(bucket_at + u64::from(wanted % buckets) * 4).ok()?;
        if start < first {
            return None;
        }
        for index in start..start.saturating_add(MAX_CHAIN) {
            let hash: u32 = user::read(chain_at + u64::from(index - first) * 4).ok()?;
            if hash | 1 == wanted | 1
                && let Some(address) = self.matching(index, name)
            {
                return Some(address);
            }
            if hash & 1 != 0 {
                break;
            }
        }
        None
    }

    /// Remembers where the C library keeps errno, if this is it.
    pub(crate) fn find_errno(&self) {
        if let Some(address) = self.function(b"__errno_location") {
            ERRNO_LOCATION.store(address, Relaxed);
        }
    }

    fn matching(&self, index: u32, name: &[u8]) -> Option<u64> {
        let symbol = self.symbols + u64::from(index) * 24;
        let text = self.strings + u64::from(user::read::<u32>(symbol).ok()?);
        for (i, byte) in name.iter().chain(&[0]).enumerate() {
            if user::read::<u8>(text + i as u64).ok()? != *byte {
                return None;
            }
        }
        let section: u16 = user::read(symbol + 6).ok()?;
        let value: u64 = user::read(symbol + 8).ok()?;
        let hidden = self.versions != 0
            && user::read::<u16>(self.versions + u64::from(index) * 2).ok()? & HIDDEN != 0;
        (section != 0 && value != 0 && !hidden).then_some(self.base + value)
    }
}

fn gnu_hash(name: &[u8]) -> u32 {
    name.iter().fold(5381_u32, |h, b| {
        h.wrapping_mul(33).wrapping_add(u32::from(*b))
    })
}

/// Sets the calling thread's errno.
pub(crate) fn set_errno(value: i32) {
    let address = ERRNO_LOCATION.load(Relaxed);
    if address == 0 {
        return;
    }
    // SAFETY: the address of the C library's `__errno_location`, which takes nothing and returns the place.
    let location: extern "C" fn() -> u64 = unsafe { core::mem::transmute(address) };
    let _ = user::write(location(), &value);
}
