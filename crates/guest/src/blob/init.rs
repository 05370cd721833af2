//! The first code of the guest in a fresh image, called by the injector.

use core::sync::atomic::Ordering::{Relaxed, Release};

use eventlog::record::{Header, kind};
use guest::abi::{BLOB_BASE, Boot, INHERIT_FDS, ThreadBlock, slot, trap};

use crate::log::{self, Mode};
use crate::order::{self, MEMORY};
use crate::raw::{self, nr};
use crate::tables::{self, Kind};
use crate::{connections, pace, patch, signals, thread, vdso};

/// What the injector fills in before it calls [`guest_init`].
#[unsafe(no_mangle)]
static mut BOOT: Boot = Boot {
    slot: 0,
    pad: 0,
    at_random: 0,
    mask: 0,
    blob_len: 0,
    vdso: [0; 2],
    vdso_entries: [0; 4],
    text: [[0; 2]; 4],
};

/// Bytes of AT_RANDOM.
const RANDOM_LEN: u64 = 16;

/// Sets the process up and ends in a breakpoint with [`trap::READY`] in the first thread block.
#[unsafe(no_mangle)]
extern "C" fn guest_init() -> ! {
    // SAFETY: the injector wrote it before this thread, the only one, was started here.
    let boot = unsafe { (&raw const BOOT).read_volatile() };
    tables::claim_first();
    crate::heap::init();
    let Some(t) = thread::claim_block() else {
        raw::abort(crate::PANIC_STATUS)
    };
    thread::set_gs(t);
    take_over(t, &boot);
    vdso::init(&boot);
    signals::init(t, boot.mask);
    {
        let held = order::lock(t, &MEMORY);
        for [start, end] in boot.text {
            if start != 0 {
                patch::adopt_text(start, end);
            }
        }
        drop(held);
    }
    announce(t, &boot);
    dispatch_on();
    crate::dispatch::hold(t, trap::READY);
    raw::abort(crate::PANIC_STATUS)
}

/// The stream of the thread that called execve goes on in this image; its siblings are gone.
fn take_over(t: &ThreadBlock, boot: &Boot) {
    let ring = thread::slot_of(boot.slot);
    let pid = raw::call(nr::GETPID, [0; 6]) as u32;
    t.slot.store(boot.slot, Relaxed);
    ring.lent.store(0, Release);
    t.stream.store(ring.stream.load(Relaxed), Relaxed);
    t.tid.store(raw::call(nr::GETTID, [0; 6]) as u32, Relaxed);
    t.pid.store(pid, Relaxed);
    pace::inherit(t);
    let position = if log::now() == Mode::Replay {
        &ring.tail
    } else {
        &ring.head
    };
    t.position.store(position.load(Relaxed), Relaxed);
    // Its number may have been another, and what the lock was kept for is over.
    order::unlock_for(ring.tid.load(Relaxed), &thread::control().stdio);
    ring.tid.store(t.tid.load(Relaxed), Relaxed);
    ring.pid.store(pid, Relaxed);
    ring.block.store(t.this.load(Relaxed), Release);
    for index in (0..guest::abi::MAX_SLOTS as u32).filter(|i| *i != boot.slot) {
        let other = thread::slot_of(index);
        if other.state.load(Relaxed) != slot::FREE && other.pid.load(Relaxed) == pid {
            other.state.store(slot::DONE, Release);
        }
    }
    thread::prefault(boot.slot);
}

/// Logs what the image started with, or puts the logged values in their places.
fn announce(t: &ThreadBlock, boot: &Boot) {
    let inherited = thread::inherited(t.slot.load(Relaxed));
    let set = tables::of(t);
    if log::now() == Mode::Replay
        && let Some(taken) = log::take(t, kind::EXEC)
    {
        let _ = taken.get(0, boot.at_random, RANDOM_LEN);
        let mut at = RANDOM_LEN;
        while at + 4 <= u64::from(taken.header.payload_len) {
            let fd = taken.value::<u32>(at);
            if let Some(word) = inherited.get(fd as usize) {
                set.set_kind(u64::from(fd), Kind::decode(word.swap(0, Relaxed)));
            }
            at += 4;
        }
        taken.finish();
        drop_closed(inherited);
        return;
    }
    let mut open = [0_u32; INHERIT_FDS];
    let mut n = 0;
    for (fd, word) in inherited.iter().enumerate() {
        const F_GETFD: u64 = 1;
        if word.load(Relaxed) != 0 && raw::call(nr::FCNTL, [fd as u64, F_GETFD, 0, 0, 0, 0]) >= 0 {
            set.set_kind(fd as u64, Kind::decode(word.swap(0, Relaxed)));
            open[n] = fd as u32;
            n += 1;
        }
    }
    drop_closed(inherited);
    if log::now() == Mode::Record {
        let len = RANDOM_LEN + n as u64 * 4;
        let header = Header {
            kind: kind::EXEC,
            payload_len: len as u32,
            ..Header::default()
        };
        let mut w = log::begin(t, header);
        w.bytes(boot.at_random, RANDOM_LEN);
        w.bytes(open.as_ptr() as u64, n as u64 * 4);
        w.commit(false);
    }
}

/// Connections that were closed by the execve.
fn drop_closed(inherited: &[core::sync::atomic::AtomicU32; INHERIT_FDS]) {
    for word in inherited {
        if let Some(index) = connections::index_of(Kind::decode(word.swap(0, Relaxed))) {
            connections::release(index);
        }
    }
}

/// Before execve: what the next image has to know of its descriptors.
pub(crate) fn hand_over(t: &ThreadBlock) {
    pace::hand_over(t.slot.load(Relaxed), t.tsc.load(Relaxed));
    let set = tables::of(t);
    for (fd, word) in thread::inherited(t.slot.load(Relaxed)).iter().enumerate() {
        word.store(set.word(fd as u64), Relaxed);
    }
}

/// Lets Syscall User Dispatch catch every call from outside the blob.
pub(crate) fn dispatch_on() {
    const PR_SET_SYSCALL_USER_DISPATCH: u64 = 59;
    const ON: u64 = 1;
    // SAFETY: a plain value that the injector wrote before the first thread ran.
    let len = unsafe { (&raw const BOOT.blob_len).read_volatile() };
    raw::call(
        nr::PRCTL,
        [PR_SET_SYSCALL_USER_DISPATCH, ON, BLOB_BASE, len, 0, 0],
    );
}
