//! Stacks of threads, from a region of the guest's own, so that replay gives each thread its recorded one.
//!
//! glibc keeps the stacks of ended threads for new ones. Which of them a new thread gets depends on who
//! takes an internal lock first and on the moment at which the kernel reports a thread's end. Here
//! `pthread_create` is called with a stack that was chosen before, and glibc's cache is never asked; the
//! choice is one record. It needs no order among threads: a stack counts how often it was given away, the
//! record names stack and count, and replay waits until that stack is free again after as many uses. It
//! becomes free for certain, for it had been free when the choice was recorded, and whatever the threads did
//! until then has its place in their logs.
//!
//! A stack is free for the next thread when nobody can touch it any more:
//! * glibc has let go of it. It says so by `_dl_deallocate_tls`, which it calls for a stack that is not its
//!   own after a join, or when a detached thread ends, or when one that has ended is detached.
//! * The kernel has cleared the thread's number (or a join, which waits for that, has set it to −1): then
//!   the thread runs no instruction of its own and the kernel has done with its list of robust locks.
//!
//! glibc calls `_dl_deallocate_tls` with its internal lock held, in an order that nobody recorded, and for a
//! thread that ends while it is detached, in whichever of two threads comes last. So nothing is freed there:
//! the thread that gets the stack next frees what the last one left.

mod layout;

use eventlog::record::kind;
use guest::abi::{STACKS_BASE, ThreadBlock};

use crate::dispatch::wrong_result;
use crate::log::{self, Mode};
use crate::symbols::{Function, Library};
use crate::{heap, locks, order, raw, user};
use layout::{Stack, Want};

pub(crate) use layout::is_one;

/// Takes attributes.
type OfAttributes = extern "C" fn(*mut Attributes) -> i32;

static CREATE: Function<extern "C" fn(u64, u64, u64, u64) -> i32> = Function::unknown();
static GET_ATTRIBUTES: Function<extern "C" fn(u64, u64) -> i32> = Function::unknown();
static DEALLOCATE: Function<extern "C" fn(u64, bool)> = Function::unknown();
static DEFAULT_ATTRIBUTES: Function<OfAttributes> = Function::unknown();
static DESTROY_ATTRIBUTES: Function<OfAttributes> = Function::unknown();

/// Replaces the functions of a library that was just mapped, if it is the loader or the C library. `wrap`
/// replaces one and says where its original is called.
pub(crate) fn adopt(library: &Library, wrap: impl Fn(u64, u64) -> Option<u64>) {
    if !DEALLOCATE.is_known()
        && let Some(address) = library.function(b"_dl_deallocate_tls")
        && let Some(original) = wrap(address, deallocate as *const () as u64)
    {
        DEALLOCATE.set(original);
    }
    // Stacks that nobody hears the end of are not given out; the loader is there before the C library.
    if DEALLOCATE.is_known() && !GET_ATTRIBUTES.is_known() && library.function(heap::MARK).is_some()
    {
        let _ = adopt_create(library, wrap);
    }
}

fn adopt_create(library: &Library, wrap: impl Fn(u64, u64) -> Option<u64>) -> Option<()> {
    let create_at = library.function(b"pthread_create")?;
    let get_at = library.function(b"pthread_getattr_np")?;
    DEFAULT_ATTRIBUTES.set(library.function(b"pthread_getattr_default_np")?);
    DESTROY_ATTRIBUTES.set(library.function(b"pthread_attr_destroy")?);
    GET_ATTRIBUTES.set(wrap(get_at, get_attributes as *const () as u64)?);
    CREATE.set(wrap(create_at, create as *const () as u64)?);
    Some(())
}

/// `pthread_attr_t`, as words. Layout (glibc x86-64): scheduling parameter and policy at 0, flags at 8,
/// size of the guard at 16, top of the stack at 24, its size at 32, what else there is behind a pointer at 40.
type Attributes = [u64; 7];
const FLAGS: usize = 1;
const GUARD: usize = 2;
const TOP: usize = 3;
const SIZE: usize = 4;
/// In [`FLAGS`]: the stack is the caller's own.
const HAS_STACK: u64 = 8;
/// In place of attributes: none, but the function returns an `int` (`thrd_create`).
const C11: u64 = u64::MAX;

extern "C" fn create(thread: u64, attributes: u64, function: u64, argument: u64) -> i32 {
    let original = |attributes| CREATE.get()(thread, attributes, function, argument);
    let has_none = matches!(attributes, 0 | C11);
    let Some(mut own) = attributes_of(if has_none { 0 } else { attributes }) else {
        return original(attributes);
    };
    let result = match choose(own[SIZE], own[GUARD]) {
        Some(stack) => {
            free_remains(stack);
            own[FLAGS] |= HAS_STACK;
            own[TOP] = stack.top();
            own[SIZE] = own[SIZE].next_multiple_of(layout::PAGE);
            let result = original((&raw const own) as u64);
            if result != 0 {
                stack.was_not_used();
            }
            result
        }
        None => original(attributes),
    };
    if has_none {
        DESTROY_ATTRIBUTES.get()(&raw mut own);
    }
    result
}

/// A copy of the attributes with the stack's size filled in; the defaults for 0. `None` if they name a stack
/// or cannot be read.
fn attributes_of(at: u64) -> Option<Attributes> {
    let defaults = || {
        let mut found: Attributes = [0; 7];
        (DEFAULT_ATTRIBUTES.get()(&raw mut found) == 0).then_some(found)
    };
    if at == 0 {
        return defaults();
    }
    let mut own = user::read::<Attributes>(at).ok()?;
    if own[FLAGS] & HAS_STACK != 0 {
        return None;
    }
    if own[SIZE] == 0 {
        let mut found = defaults()?;
        own[SIZE] = found[SIZE];
        DESTROY_ATTRIBUTES.get()(&raw mut found);
    }
    Some(own)
}

/// Chooses a stack, or takes the recorded one. `None` if the region has none: then glibc finds its own.
fn choose(size: u64, guard: u64) -> Option<&'static Stack> {
    let want = Want::new(size, guard)?;
    locks::inside(|t| {
        if log::now() == Mode::Replay
            && let Some(choice) = locks::take(t, kind::LOCK, STACKS_BASE)
        {
            if choice < 0 {
                return None;
            }
            if let Some(stack) = chosen(t, &want, choice) {
                return Some(stack);
            }
            // Replay ended before the stack was free: nobody has seen the choice, so another one will do.
        }
        let found = layout::take_any(&want);
        let choice = found.map_or(-raw::EAGAIN, |stack| stack.last_choice().cast_signed());
        locks::emit(t, kind::LOCK, STACKS_BASE, choice);
        found
    })
}

/// Takes the recorded stack when it is free. `None` when replay ended meanwhile.
fn chosen(t: &ThreadBlock, want: &Want, choice: i64) -> Option<&'static Stack> {
    let stack = layout::named(want, choice.cast_unsigned());
    let is_free = || stack.next_choice() == choice.cast_unsigned() && stack.is_free();
    order::await_that(t, is_free).then_some(())?;
    if !stack.take(want) {
        wrong_result(t, choice, -raw::ENOMEM);
    }
    Some(stack)
}

/// Frees what glibc kept for the last thread of a stack.
fn free_remains(stack: &Stack) {
    let thread = stack.remains();
    if thread != 0 {
        DEALLOCATE.get()(thread, false);
    }
}

/// glibc lets go of a thread's local storage. `with_block`: and of the block that it made for it.
extern "C" fn deallocate(thread: u64, with_block: bool) {
    match layout::holding(thread) {
        Some(stack) if !with_block => stack.release(thread),
        _ => DEALLOCATE.get()(thread, with_block),
    }
}

/// `pthread_getattr_np`: glibc reports no guard for a stack that it did not map.
extern "C" fn get_attributes(thread: u64, attributes: u64) -> i32 {
    let result = GET_ATTRIBUTES.get()(thread, attributes);
    if result == 0
        && let Some(stack) = layout::holding(thread)
        && user::read::<Attributes>(attributes).is_ok_and(|found| found[TOP] == stack.top())
    {
        let _ = user::write(attributes + 8 * GUARD as u64, &stack.guard());
    }
    result
}

/// A thread is about to be made whose end the kernel reports by clearing the word at this address.
pub(crate) fn thread_begins(word: u64) {
    if let Some(stack) = layout::holding(word) {
        stack.ended_at(word);
    }
}

/// The calling thread ends with its stack pointer here: the memory below is given back. It costs what glibc
/// does for the stacks that it maps.
pub(crate) fn trim(stack_pointer: u64) {
    if let Some(stack) = layout::holding(own_thread())
        && layout::is_one(stack_pointer, 1)
        && layout::holding(stack_pointer).is_some_and(|other| core::ptr::eq(stack, other))
    {
        stack.trim(stack_pointer);
    }
}

/// In a fork child: all threads but the calling one are gone. Their stacks may still be looked at by the C
/// library's first steps in the child; they are wiped when a thread gets them.
pub(crate) fn after_fork() {
    layout::keep_only(layout::holding(own_thread()));
}

/// The calling thread's descriptor.
fn own_thread() -> u64 {
    let base: u64;
    // SAFETY: FSGSBASE is on wherever the injector accepts the host.
    unsafe {
        core::arch::asm!("rdfsbase {}", out(reg) base, options(nostack, nomem, preserves_flags));
    }
    base
}
