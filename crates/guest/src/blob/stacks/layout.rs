//! Where the stacks lie, and the books about each.
//!
//! The region has an equal part for each class of sizes. Every stack has its place there for good; only what
//! a thread asked for is accessible, at the place's upper end, so that the rest below is its guard.

use core::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

use guest::abi::{MAX_THREADS, STACKS_BASE, STACKS_LEN};

use crate::raw::{self, nr};

pub(super) const PAGE: u64 = 4096;
/// Classes: the room of a stack doubles from one to the next.
const CLASSES: usize = 16;
/// Room of the smallest class is two to this power: 128 KiB.
const FIRST_SHIFT: u32 = 17;
const CLASS_LEN: u64 = STACKS_LEN / CLASSES as u64;
/// Most stacks of one class: joinable threads keep theirs after their end.
const MOST: usize = 2 * MAX_THREADS;
/// Stacks begin at different pages of the processor's caches.
const COLOURS: u64 = 16;
/// Below the stack pointer of a thread that ends, this much is left alone: it is used until the very end.
const TAIL: u64 = 16 << 10;

const _: () = assert!(1 << (FIRST_SHIFT as usize + CLASSES - 1) <= CLASS_LEN);

/// Values of [`Stack::state`].
mod state {
    /// Nobody's.
    pub(super) const FREE: u32 = 0;
    /// A thread's, or one's that is being made.
    pub(super) const TAKEN: u32 = 1;
    /// glibc has let go of it; its last thread may still be ending.
    pub(super) const RELEASED: u32 = 2;
}

/// What is known about a stack.
pub(super) struct Stack {
    state: AtomicU32,
    /// How often it was given away.
    uses: AtomicU32,
    /// Accessible bytes at its upper end.
    open: AtomicU64,
    /// Where the kernel clears the number of its last thread, 0 if it had none.
    number_at: AtomicU64,
    /// The descriptor of its last thread, for which local storage is to be freed; 0 for none.
    remains: AtomicU64,
    /// Size of the guard that its thread asked for.
    guard: AtomicU64,
}

static STACKS: [[Stack; MOST]; CLASSES] = [const {
    [const {
        Stack {
            state: AtomicU32::new(state::FREE),
            uses: AtomicU32::new(0),
            open: AtomicU64::new(0),
            number_at: AtomicU64::new(0),
            remains: AtomicU64::new(0),
            guard: AtomicU64::new(0),
        }
    }; MOST]
}; CLASSES];

/// For each class, one above the last stack that was ever given away.
static USED: [AtomicU32; CLASSES] = [const { AtomicU32::new(0) }; CLASSES];

/// What a new thread asks for.
pub(super) struct Want {
    class: usize,
    size: u64,
    guard: u64,
}

impl Want {
    /// `None` if no class has so much room.
    pub(super) fn new(size: u64, guard: u64) -> Option<Self> {
        let size = size.checked_next_multiple_of(PAGE)?;
        let guard = guard.checked_next_multiple_of(PAGE)?;
        let room = size
            .checked_add(guard.max(PAGE))?
            .checked_add(COLOURS * PAGE)?
            .checked_next_power_of_two()?;
        let class = room.trailing_zeros().saturating_sub(FIRST_SHIFT) as usize;
        (class < CLASSES).then_some(Self { class, size, guard })
    }
}

const fn room(class: usize) -> u64 {
    1 << (FIRST_SHIFT as usize + class)
}

/// Stacks of a class.
fn count(class: usize) -> usize {
    MOST.min((CLASS_LEN / room(class)) as usize)
}

/// Takes the first free stack, or the first that was never used.
pub(super) fn take_any(want: &Want) -> Option<&'static Stack> {
    let stacks = &STACKS[want.class][..count(want.class)];
    let used = (USED[want.class].load(Relaxed) as usize).min(stacks.len());
    stacks[..used]
        .iter()
        .find(|stack| stack.is_free() && stack.take(want))
        .or_else(|| stacks[used..].iter().find(|stack| stack.take(want)))
}

/// The stack that a recorded choice names.
pub(super) fn named(want: &Want, choice: u64) -> &'static Stack {
    &STACKS[want.class][choice as u32 as usize % count(want.class)]
}

/// The stack in whose place this address lies.
pub(super) fn holding(address: u64) -> Option<&'static Stack> {
    let offset = address
        .checked_sub(STACKS_BASE)
        .filter(|n| *n < STACKS_LEN)?;
    let class = (offset / CLASS_LEN) as usize;
    let index = (offset % CLASS_LEN / room(class)) as usize;
    STACKS[class][..count(class)].get(index)
}

/// Whether a range lies in the place of one stack.
pub(crate) fn is_one(start: u64, len: u64) -> bool {
    let Some(last) = len.checked_sub(1).and_then(|n| start.checked_add(n)) else {
        return false;
    };
    match (holding(start), holding(last)) {
        (Some(a), Some(b)) => core::ptr::eq(a, b),
        _ => false,
    }
}

/// Forgets the uses of all stacks but one.
pub(super) fn keep_only(kept: Option<&'static Stack>) {
    for (stacks, used) in STACKS.iter().zip(&USED) {
        let used = (used.load(Relaxed) as usize).min(MOST);
        let others = stacks[..used]
            .iter()
            .filter(|stack| !kept.is_some_and(|kept| core::ptr::eq(kept, *stack)));
        for stack in others {
            for word in [&stack.open, &stack.number_at, &stack.remains] {
                word.store(0, Relaxed);
            }
            stack.uses.store(0, Relaxed);
            stack.state.store(state::FREE, Release);
        }
    }
}

impl Stack {
    fn place(&self) -> (usize, usize) {
        let at =
            (core::ptr::from_ref(self) as usize - STACKS.as_ptr() as usize) / size_of::<Self>();
        (at / MOST, at % MOST)
    }

    fn bottom(&self) -> u64 {
        let (class, index) = self.place();
        STACKS_BASE + class as u64 * CLASS_LEN + index as u64 * room(class)
    }

    /// One above its last byte.
    pub(super) fn top(&self) -> u64 {
        let (class, index) = self.place();
        self.bottom() + room(class) - index as u64 % COLOURS * PAGE
    }

    /// Size of its guard.
    pub(super) fn guard(&self) -> u64 {
        self.guard.load(Relaxed)
    }

    fn choice(&self, uses: u32) -> u64 {
        u64::from(uses & i32::MAX.cast_unsigned()) << 32 | self.place().1 as u64
    }

    /// How a record names the use that comes next.
    pub(super) fn next_choice(&self) -> u64 {
        self.choice(self.uses.load(Acquire))
    }

    /// How a record names the use that was taken last.
    pub(super) fn last_choice(&self) -> u64 {
        self.choice(self.uses.load(Relaxed).wrapping_sub(1))
    }

    /// Whether nobody can touch it any more.
    pub(super) fn is_free(&self) -> bool {
        match self.state.load(Acquire) {
            state::FREE => true,
            state::RELEASED => self.is_over(),
            _ => false,
        }
    }

    fn is_over(&self) -> bool {
        let at = self.number_at.load(Relaxed);
        if at == 0 {
            return true;
        }
        // SAFETY: the word lies in this stack, where the thread that was made last said (`ended_at`), and an
        // opened stack stays mapped for the process' whole life.
        let number = unsafe { (*(at as *const AtomicU32)).load(Acquire) };
        number.cast_signed() <= 0
    }

    /// Takes it for a new thread. False if somebody else was faster, or if it cannot be made accessible.
    pub(super) fn take(&self, want: &Want) -> bool {
        let before = self.state.load(Acquire);
        if before == state::TAKEN
            || self
                .state
                .compare_exchange(before, state::TAKEN, AcqRel, Relaxed)
                .is_err()
        {
            return false;
        }
        // Since the caller looked, it may have been taken and released again.
        if (before == state::RELEASED && !self.is_over()) || !self.reach(want.size) {
            self.state.store(before, Release);
            return false;
        }
        self.number_at.store(0, Relaxed);
        self.guard.store(want.guard, Relaxed);
        self.uses.fetch_add(1, Release);
        let (class, index) = self.place();
        USED[class].fetch_max(index as u32 + 1, Relaxed);
        true
    }

    /// Makes so many bytes accessible. The first use in a process finds zeroes.
    fn reach(&self, size: u64) -> bool {
        const MADV_DONTNEED: u64 = 4;
        const MADV_NOHUGEPAGE: u64 = 15;
        const PROT_RW: u64 = 3;
        if size <= self.open.load(Relaxed) {
            return true;
        }
        let at = self.top() - size;
        if raw::call(nr::MPROTECT, [at, size, PROT_RW, 0, 0, 0]) != 0 {
            return false;
        }
        if self.uses.load(Relaxed) == 0 {
            let all = room(self.place().0);
            raw::call(nr::MADVISE, [self.bottom(), all, MADV_DONTNEED, 0, 0, 0]);
        }
        // One page of a stack must not cost two megabytes. A kernel without huge pages says no.
        raw::call(nr::MADVISE, [at, size, MADV_NOHUGEPAGE, 0, 0, 0]);
        self.open.store(size, Relaxed);
        true
    }

    /// The thread that got it will be over when the word at this address is cleared.
    pub(super) fn ended_at(&self, word: u64) {
        self.number_at.store(word, Relaxed);
    }

    /// glibc has let go of it.
    pub(super) fn release(&self, thread: u64) {
        self.remains.store(thread, Relaxed);
        self.state.store(state::RELEASED, Release);
    }

    /// No thread was made on it. glibc may have let go of it already.
    pub(super) fn was_not_used(&self) {
        let _ = self
            .state
            .compare_exchange(state::TAKEN, state::FREE, Release, Relaxed);
    }

    /// The thread whose storage is to be freed, once.
    pub(super) fn remains(&self) -> u64 {
        self.remains.swap(0, Relaxed)
    }

    /// Gives back memory below the stack pointer of its thread, which ends.
    pub(super) fn trim(&self, stack_pointer: u64) {
        const MADV_DONTNEED: u64 = 4;
        let from = self.top() - self.open.load(Relaxed);
        let to = (stack_pointer & !(PAGE - 1)).saturating_sub(TAIL);
        if from < to {
            raw::call(nr::MADVISE, [from, to - from, MADV_DONTNEED, 0, 0, 0]);
        }
    }
}
