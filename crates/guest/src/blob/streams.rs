//! Streams of the C library (`FILE`), whose locks' order is recorded.
//!
//! A stream's lock is taken and given back inside the library's functions, in code of their own. So each function that
//! takes it is called with it held: taken here, at its turn, as `flockfile` takes it. Its owner may take it again, which
//! the function then does, and only counts.
//!
//! While a process has never had a second thread, functions are called as they are, as they leave out the lock then. What
//! a thread holds is given back when it ends: one that is cancelled in a function leaves it through our frame, where the
//! stack cannot be unwound further.
//!
//! Layout (glibc x86-64): of a `FILE`, flags at 0, a pointer to its lock at 136, the version of that in bytes that nobody
//! uses, at 208; of a lock, a word at 0, how often its owner has it at 4, its owner (a `pthread_t`) at 8.

mod functions;

use core::arch::{asm, naked_asm};
use core::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

use eventlog::record::kind;
use guest::abi::ThreadBlock;

use crate::locks::{Replacement, emit, inside, take, version_word, word};
use crate::log::{self, Mode};
use crate::raw::{self, nr};
use crate::symbols::Library;
use crate::{baton, delivery, order, user};

use functions::{FUNCTIONS, Found, Of};

/// A stream that has no lock, or whose user locks it otherwise (`_IO_USER_LOCK`).
const USER_LOCK: u32 = 0x8000;
const FLAGS_AT: u64 = 0;
const LOCK_AT: u64 = 136;
const VERSION_AT: u64 = 208;
const COUNT_AT: u64 = 4;
const OWNER_AT: u64 = 8;

/// The functions that are replaced.
static REPLACED: &[Replacement] = &[
    Replacement {
        name: b"flockfile",
        function: lock_file as *const (),
    },
    Replacement {
        name: b"ftrylockfile",
        function: try_lock_file as *const (),
    },
    Replacement {
        name: b"funlockfile",
        function: unlock_file as *const (),
    },
];

/// Where the functions go on that are wrapped.
static ORIGINALS: [AtomicU64; FUNCTIONS.len()] = [const { AtomicU64::new(0) }; FUNCTIONS.len()];
/// Standard input and output.
static STANDARD: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
/// 1 once this process, or the one that it was forked from, has had a second thread.
static THREADS: AtomicU32 = AtomicU32::new(0);

/// Wraps the functions of a library that was just mapped, if it is the C library. `wrap` replaces one and says where its
/// original is called, `replace` makes a function's code go on in ours.
pub(crate) fn adopt(
    library: &Library,
    wrap: impl Fn(u64, u64) -> Option<u64>,
    replace: impl Fn(u64, u64),
) {
    let standard = [&b"_IO_2_1_stdin_"[..], b"_IO_2_1_stdout_"];
    let [Some(input), Some(output)] = standard.map(|name| library.function(name)) else {
        return;
    };
    if STANDARD[0].load(Relaxed) != 0 {
        return;
    }
    STANDARD[0].store(input, Relaxed);
    STANDARD[1].store(output, Relaxed);
    for (locked, original) in FUNCTIONS.iter().zip(&ORIGINALS) {
        let named = library.function(locked.name);
        let address = match locked.found {
            Found::Named => named,
            Found::Behind => named.and_then(target_of),
        };
        let wrapped = address.and_then(|address| wrap(address, locked.wrapper as *const () as u64));
        original.store(wrapped.unwrap_or(0), Relaxed);
    }
    for replacement in REPLACED {
        if let Some(address) = library.function(replacement.name) {
            replace(address, replacement.address());
        }
    }
}

/// Where a function jumps to that does nothing but set its last argument: `xor ecx, ecx; jmp`.
fn target_of(address: u64) -> Option<u64> {
    const ENDBR: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];
    const CLEAR: [u8; 3] = [0x31, 0xc9, 0xe9];
    let begins = user::read::<[u8; 4]>(address).ok()?;
    let at = address + if begins == ENDBR { 4 } else { 0 };
    let [a, b, c, distance @ ..] = user::read::<[u8; 7]>(at).ok()?;
    let distance = i32::from_le_bytes(distance);
    ([a, b, c] == CLEAR).then(|| (at + 7).wrapping_add_signed(distance.into()))
}

/// A second thread is made.
pub(crate) fn thread_begins() {
    THREADS.store(1, Relaxed);
}

/// A thread ends: whoever waits for a stream that it holds, gets it.
pub(crate) fn thread_ends(t: &ThreadBlock) {
    let held = t.stream_held.load(Relaxed);
    if let Some(stream) = Stream::of(held).filter(Stream::is_own) {
        stream.lock_word_at(COUNT_AT).store(0, Relaxed);
        stream.release(t);
    }
}

/// What a function's code goes on in: the original between [`enter`] and [`leave`], or alone where there is nothing to
/// lock.
#[unsafe(naked)]
unsafe extern "C" fn wrapper<const AT: usize, const INDEX: usize>() {
    naked_asm!(
        "cmp dword ptr [rip + {threads}], 0",
        "je 3f",
        "push rbp",
        "mov rbp, rsp",
        "push rbx",
        "sub rsp, 56",
        "mov [rsp], rdi",
        "mov [rsp + 8], rsi",
        "mov [rsp + 16], rdx",
        "mov [rsp + 24], rcx",
        "mov [rsp + 32], r8",
        "mov edi, {index}",
        "mov rsi, rsp",
        "call {enter}",
        "mov rdi, [rsp]",
        "mov rsi, [rsp + 8]",
        "mov rdx, [rsp + 16]",
        "mov rcx, [rsp + 24]",
        "mov r8, [rsp + 32]",
        "test rax, rax",
        "je 2f",
        "mov rbx, rax",
        "call qword ptr [rip + {originals} + {at}]",
        "mov [rsp], rax",
        "mov rdi, rbx",
        "call {leave}",
        "mov rax, [rsp]",
        "add rsp, 56",
        "pop rbx",
        "pop rbp",
        "ret",
        "2:",
        "add rsp, 56",
        "pop rbx",
        "pop rbp",
        "3:",
        "jmp qword ptr [rip + {originals} + {at}]",
        threads = sym THREADS,
        originals = sym ORIGINALS,
        enter = sym enter,
        leave = sym leave,
        index = const INDEX,
        at = const AT,
    )
}

/// Takes the lock for one of [`FUNCTIONS`]: the stream whose lock is to be given back after it, 0 for none.
extern "C" fn enter(index: usize, arguments: &[u64; 5]) -> u64 {
    let of = FUNCTIONS[index].stream;
    let at = match of {
        Of::Argument(n) | Of::Gone(n) => arguments[n],
        Of::Input => STANDARD[0].load(Relaxed),
        Of::Output => STANDARD[1].load(Relaxed),
    };
    let Some(stream) = Stream::of(at).filter(|stream| !stream.is_own()) else {
        return 0;
    };
    inside(|t| stream.lock(t));
    if matches!(of, Of::Gone(_)) {
        inside(|t| stream.unlock(t));
        return 0;
    }
    at
}

extern "C" fn leave(at: u64) {
    if let Some(stream) = Stream::with_lock(at) {
        inside(|t| stream.unlock(t));
    }
}

extern "C" fn lock_file(at: u64) {
    if let Some(stream) = Stream::with_lock(at) {
        inside(|t| stream.lock(t));
    }
}

extern "C" fn try_lock_file(at: u64) -> i64 {
    Stream::with_lock(at).map_or(0, |stream| inside(|t| stream.try_lock(t)))
}

extern "C" fn unlock_file(at: u64) {
    if let Some(stream) = Stream::with_lock(at) {
        inside(|t| stream.unlock(t));
    }
}

/// A stream with a lock.
struct Stream {
    at: u64,
    lock: u64,
}

impl Stream {
    /// `None` if functions do not take its lock.
    fn of(at: u64) -> Option<Self> {
        let flags = user::read::<u32>(at.checked_add(FLAGS_AT).filter(|at| *at != 0)?).ok()?;
        (flags & USER_LOCK == 0).then(|| Self::with_lock(at))?
    }

    /// `None` if it has none.
    fn with_lock(at: u64) -> Option<Self> {
        let lock = user::read::<u64>(at + LOCK_AT).ok()?;
        (lock != 0).then_some(Self { at, lock })
    }

    fn lock_word_at(&self, offset: u64) -> &AtomicU32 {
        word(self.lock, offset)
    }

    fn owner(&self) -> &AtomicU64 {
        version_word(self.lock, OWNER_AT)
    }

    fn version(&self) -> &AtomicU64 {
        version_word(self.at, VERSION_AT)
    }

    fn is_own(&self) -> bool {
        self.owner().load(Relaxed) == this_thread()
    }

    fn count(&self, by: u32) {
        self.lock_word_at(COUNT_AT).fetch_add(by, Relaxed);
    }

    fn own(&self, t: &ThreadBlock) {
        self.owner().store(this_thread(), Relaxed);
        self.count(1);
        let _ = t.stream_held.compare_exchange(0, self.at, Relaxed, Relaxed);
    }

    fn try_acquire(&self) -> bool {
        let lock_word = self.lock_word_at(0);
        lock_word.compare_exchange(0, 1, Acquire, Relaxed).is_ok()
    }

    fn lock(&self, t: &ThreadBlock) {
        if self.is_own() {
            return self.count(1);
        }
        let mut contended = false;
        loop {
            delivery::at_lock(t);
            if log::now() == Mode::Replay {
                match take(t, kind::LOCK, self.at) {
                    Some(turn) if self.take_turn(t, turn) => return,
                    _ => continue,
                }
            }
            let lock_word = self.lock_word_at(0);
            let free = if contended {
                lock_word.swap(2, Acquire) == 0
            } else {
                self.try_acquire()
            };
            if free || lock_word.swap(2, Acquire) == 0 {
                break;
            }
            contended = true;
            // Private, as glibc's wake.
            const WAIT: u64 = 128;
            let args = [self.lock, WAIT, 2, 0, 0, 0];
            baton::leave(t);
            let _ = raw::call_waiting(nr::FUTEX, &args, &t.pending);
        }
        self.own(t);
        let version = self.version().load(Relaxed).cast_signed();
        emit(t, kind::LOCK, self.at, version);
    }

    fn try_lock(&self, t: &ThreadBlock) -> i64 {
        if self.is_own() {
            self.count(1);
            return 0;
        }
        delivery::at_lock(t);
        if log::now() == Mode::Replay
            && let Some(turn) = take(t, kind::TRYLOCK, self.at)
        {
            if turn < 0 {
                return -turn;
            }
            if self.take_turn(t, turn) {
                return 0;
            }
        }
        if !self.try_acquire() {
            emit(t, kind::TRYLOCK, self.at, -raw::EBUSY);
            return raw::EBUSY;
        }
        self.own(t);
        let version = self.version().load(Relaxed).cast_signed();
        emit(t, kind::TRYLOCK, self.at, version);
        0
    }

    /// Takes the lock at the turn that its record gave. False if replay ended meanwhile.
    fn take_turn(&self, t: &ThreadBlock, turn: i64) -> bool {
        if !order::await_value(t, self.version(), turn.cast_unsigned()) {
            return false;
        }
        let mut spins = 0;
        while !self.try_acquire() {
            order::pause(&mut spins);
        }
        self.own(t);
        true
    }

    fn unlock(&self, t: &ThreadBlock) {
        if self.lock_word_at(COUNT_AT).fetch_sub(1, Relaxed) == 1 {
            self.release(t);
        }
    }

    fn release(&self, t: &ThreadBlock) {
        const WAKE: u64 = 1 | 128;
        let _ = t.stream_held.compare_exchange(self.at, 0, Relaxed, Relaxed);
        self.owner().store(0, Relaxed);
        self.version().fetch_add(1, AcqRel);
        if self.lock_word_at(0).swap(0, Release) == 2 {
            raw::call(nr::FUTEX, [self.lock, WAKE, 1, 0, 0, 0]);
        }
    }
}

/// The calling thread's `pthread_t`.
fn this_thread() -> u64 {
    let this: u64;
    // SAFETY: the C library keeps a pointer to a thread's own block there, and its functions run on threads that have one.
    unsafe {
        asm!("mov {}, fs:[16]", out(reg) this, options(nostack, readonly, preserves_flags));
    }
    this
}
