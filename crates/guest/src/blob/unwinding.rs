//! The library that unwinds stacks: glibc loads it when a thread first leaves by `pthread_exit`, is cancelled
//! or asks for a backtrace.
//!
//! Whether that is done is looked up without a lock, so threads that come at the same time may or may not
//! load it again. Here the look-up is made under a lock whose order is recorded.

use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use crate::locks;
use crate::symbols::{Function, Library};

/// glibc's look-up of the library's functions.
static LOOK_UP: Function<extern "C" fn() -> u64> = Function::unknown();

/// A mutex as `locks` knows them. It is recursive: a signal handler may ask for a backtrace.
static MUTEX: Mutex = Mutex([
    AtomicU32::new(0),
    AtomicU32::new(0),
    AtomicU32::new(0),
    AtomicU32::new(0),
    AtomicU32::new(locks::RECURSIVE),
    AtomicU32::new(0),
    AtomicU32::new(0),
    AtomicU32::new(0),
]);

#[repr(align(8))]
struct Mutex([AtomicU32; 8]);

impl Mutex {
    fn address(&self) -> u64 {
        self.0.as_ptr() as u64
    }
}

/// Replaces the look-up if this library has it; `wrap` as in [`crate::stacks::adopt`].
pub(crate) fn adopt(library: &Library, wrap: impl Fn(u64, u64) -> Option<u64>) {
    if !LOOK_UP.is_known()
        && let Some(address) = library.function(b"__libc_unwind_link_get")
        && let Some(original) = wrap(address, look_up as *const () as u64)
    {
        LOOK_UP.set(original);
    }
}

extern "C" fn look_up() -> u64 {
    locks::mutex_lock(MUTEX.address());
    let found = LOOK_UP.get()();
    locks::mutex_unlock(MUTEX.address());
    found
}

/// In a fork child: nobody holds the lock.
pub(crate) fn after_fork() {
    const KIND: usize = 4;
    for (i, word) in MUTEX.0.iter().enumerate() {
        word.store(if i == KIND { locks::RECURSIVE } else { 0 }, Relaxed);
    }
}
