//! `pthread_once` of the C library, replaced so that the same thread runs the function in replay. C11's `call_once` and
//! C++'s `std::call_once` rest on it.
//!
//! Only who runs the function is recorded: all others wait until it is done, whenever they come. Whoever runs it goes on
//! in glibc's own code, with none of our frames on the stack: the function may leave by an exception or a cancellation,
//! which unwinds it, and the next one tries.
//!
//! Layout of `pthread_once_t`: one word, as in glibc: 0 at first, 2 when done; bit 0 while the function runs, above it how
//! often the process had forked (in a child of another generation nobody runs it any more). Bit 31 is ours: somebody is
//! about to run it.

use core::arch::naked_asm;
use core::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed},
};

use eventlog::record::{Header, kind};
use guest::abi::ThreadBlock;

use crate::locks::{hash_of, inside, word};
use crate::log::{self, Mode};
use crate::raw::{self, nr};
use crate::symbols::Library;
use crate::{baton, delivery, order, pace, user};

const RUNS: u32 = 1;
const DONE: u32 = 2;
const GENERATION: u32 = 4;
const CLAIMED: u32 = 1 << 31;

/// How often this process' line has forked, times [`GENERATION`].
static FORKS: AtomicU32 = AtomicU32::new(0);
/// Where whoever is to run the function goes on: glibc's slow path.
static SLOW_PATH: AtomicU64 = AtomicU64::new(0);

/// Replaces the function if this library has it; `replace` makes its code go on in ours.
pub(crate) fn adopt(library: &Library, replace: impl Fn(u64, u64)) {
    if let Some(address) = library.function(b"pthread_once")
        && let Some(slow_path) = slow_path(address)
    {
        SLOW_PATH.store(slow_path, Relaxed);
        replace(address, once as *const () as u64);
    }
}

/// Where glibc goes from the first look at the word if it does not find it done. `None` if that is not how the function
/// begins: then it is left alone.
fn slow_path(address: u64) -> Option<u64> {
    // mov eax, [rdi]; test al, 2; je
    const LOOK: [u8; 5] = [0x8b, 0x07, 0xa8, 0x02, 0x74];
    let [a, b, c, d, e, distance] = user::read::<[u8; 6]>(address).ok()?;
    ([a, b, c, d, e] == LOOK)
        .then(|| (address + 6).wrapping_add_signed(i64::from(distance.cast_signed())))
}

/// In a fork child.
pub(crate) fn after_fork() {
    FORKS.fetch_add(GENERATION, Relaxed);
}

/// `pthread_once(control, function)`.
#[unsafe(naked)]
unsafe extern "C" fn once(control: u64, function: u64) -> i32 {
    naked_asm!(
        "push rdi",
        "push rsi",
        "sub rsp, 8",
        "call {is_to_run}",
        "add rsp, 8",
        "pop rsi",
        "pop rdi",
        "test eax, eax",
        "jne 2f",
        "ret",
        "2:",
        "jmp qword ptr [rip + {slow_path}]",
        is_to_run = sym is_to_run,
        slow_path = sym SLOW_PATH,
    )
}

/// 1 for the one who is to run the function, for all others 0, when it is done.
extern "C" fn is_to_run(control: u64) -> i32 {
    let once = Once { at: control };
    i32::from(!once.is_done() && inside(|t| once.is_mine(t)))
}

struct Once {
    at: u64,
}

impl Once {
    fn state(&self) -> &AtomicU32 {
        word(self.at, 0)
    }

    fn is_done(&self) -> bool {
        self.state().load(Acquire) & DONE != 0
    }

    fn is_mine(&self, t: &ThreadBlock) -> bool {
        let mut spins = 0;
        loop {
            delivery::at_lock(t);
            let state = self.state().load(Acquire);
            if state & DONE != 0 {
                return false;
            }
            if log::now() == Mode::Replay {
                if self.was_mine(t) {
                    order::await_that(t, || !is_taken(self.state().load(Acquire)));
                    self.claim(self.state().load(Acquire));
                    return true;
                }
                if order::await_that(t, || self.is_done()) {
                    return false;
                }
            } else if !is_taken(state) {
                if self.claim(state) {
                    self.emit(t);
                    return true;
                }
            } else if state & RUNS != 0 {
                // Private, as glibc's wake.
                const WAIT: u64 = 128;
                let value = u64::from(state);
                baton::leave(t);
                let _ = raw::call_waiting(nr::FUTEX, &[self.at, WAIT, value, 0, 0, 0], &t.pending);
            } else {
                order::pause(&mut spins);
            }
        }
    }

    /// Makes all others wait; false if somebody else came first. What another generation has begun is left to glibc.
    fn claim(&self, state: u32) -> bool {
        let claimed = CLAIMED | FORKS.load(Relaxed);
        state & RUNS != 0
            || self
                .state()
                .compare_exchange(state, claimed, AcqRel, Relaxed)
                .is_ok()
    }

    /// Whether the log says that this thread ran it.
    fn was_mine(&self, t: &ThreadBlock) -> bool {
        pace::arrive(t);
        let Some(next) = log::peek_behind(t) else {
            return false;
        };
        let mine = next.header.kind == kind::ONCE && next.header.hash == hash_of(self.at);
        if mine {
            next.finish();
        }
        mine
    }

    fn emit(&self, t: &ThreadBlock) {
        if log::now() == Mode::Record {
            let (kind, hash) = (kind::ONCE, hash_of(self.at));
            log::emit(
                t,
                Header {
                    kind,
                    hash,
                    ..Header::default()
                },
            );
        }
    }
}

/// Whether somebody of this generation runs it, or is about to.
fn is_taken(state: u32) -> bool {
    state & (RUNS | CLAIMED) != 0 && state & !(RUNS | CLAIMED) == FORKS.load(Relaxed)
}
