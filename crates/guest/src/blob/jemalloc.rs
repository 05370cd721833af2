//! jemalloc's background thread stays off.
//!
//! That thread gives memory back and reads, without a lock, what other threads count; how long it sleeps and
//! who takes which of jemalloc's locks follows from the moment at which it looks. Without it the threads that
//! allocate do the same work, at points that follow from their own calls.

use crate::raw;
use crate::symbols::{Function, Library};
use crate::user;

static CONTROL: Function<extern "C" fn(u64, u64, u64, u64, u64) -> i32> = Function::unknown();

/// The switch, with its terminating zero.
const SWITCH: [u8; 18] = *b"background_thread\0";

/// Replaces `mallctl` if this library is jemalloc; `wrap` as in [`crate::stacks::adopt`].
pub(crate) fn adopt(library: &Library, wrap: impl Fn(u64, u64) -> Option<u64>) {
    if !CONTROL.is_known()
        && let Some(address) = library.function(b"mallctl")
        && let Some(original) = wrap(address, control as *const () as u64)
    {
        CONTROL.set(original);
    }
}

/// `mallctl(name, old, old_len, new, new_len)`: switching the thread on fails as if it could not be made.
extern "C" fn control(name: u64, old: u64, old_len: u64, new: u64, new_len: u64) -> i32 {
    let switches_on = user::read::<[u8; 18]>(name).is_ok_and(|found| found == SWITCH)
        && new != 0
        && user::read::<u8>(new).is_ok_and(|value| value != 0);
    if switches_on {
        return raw::EAGAIN as i32;
    }
    CONTROL.get()(name, old, old_len, new, new_len)
}
