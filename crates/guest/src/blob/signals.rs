//! Signals: caught at once, kept until a point where they are delivered and recorded: [`crate::delivery`].
//!
//! For every signal the application handles, the kernel knows the guest's stub. The stub keeps the siginfo
//! in the thread block and blocks further signals; the next such point logs it and lets the kernel deliver
//! it again with the application's registers in place (`entry::leave_delivering`), so that the frame is the
//! kernel's own and siglongjmp out of the handler works. In replay the logged siginfo is raised at the same
//! point, and signals that come by themselves stay pending: [`crate::replayed_signals`].

use core::sync::atomic::Ordering::{Relaxed, Release};

use guest::abi::{CALLED, ThreadBlock};

use crate::entry::{self, Regs};
use crate::log::{self, Mode};
use crate::raw::{self, nr};
use crate::tables::{self, SIGNALS};
use crate::{delivery, exchanged, patch, replayed_signals, starved, thread, user};

/// `struct sigaction` as the kernel has it: handler, flags, restorer, mask.
#[derive(Clone, Copy)]
pub(crate) struct Action(pub(crate) [u64; 4]);

const SA_NOCLDSTOP: u64 = 1;
const SA_NOCLDWAIT: u64 = 2;
const SA_SIGINFO: u64 = 4;
const SA_RESTORER: u64 = 0x0400_0000;
const SA_ONSTACK: u64 = 0x0800_0000;
pub(crate) const SA_RESTART: u64 = 0x1000_0000;
const SA_NODEFER: u64 = 0x4000_0000;
const SA_RESETHAND: u64 = 0x8000_0000;

const SIG_DFL: u64 = 0;
const SIG_IGN: u64 = 1;
const SIG_SETMASK: u64 = 2;

const SIGILL: usize = 4;
const SIGTRAP: usize = 5;
const SIGBUS: usize = 7;
const SIGFPE: usize = 8;
const SIGSEGV: usize = 11;
const SIGSYS: usize = 31;

pub(crate) const SIGINFO_LEN: u64 = 128;
/// Where `si_code` lies in the siginfo.
const SI_CODE_AT: u64 = 8;
/// Codes of SIGTRAP: of the guest's timer, and of a single step.
const SI_TIMER: i32 = -2;
const TRAP_TRACE: i32 = 2;

/// Offsets in the kernel's ucontext.
mod uc {
    pub(super) const RAX: u64 = 40 + 13 * 8;
    pub(super) const RCX: u64 = 40 + 14 * 8;
    pub(super) const RIP: u64 = 40 + 16 * 8;
    pub(super) const MASK: u64 = 296;
}

pub(crate) const fn bit(signal: usize) -> u64 {
    1 << (signal - 1)
}

/// Signals whose handler is always the guest's: calls that are dispatched, bad pointers, single steps.
const OWN: [usize; 4] = [SIGSYS, SIGSEGV, SIGBUS, SIGTRAP];
/// Those of them that the application cannot block.
pub(crate) const UNMASKED: u64 = bit(SIGSYS) | bit(SIGTRAP);

/// Signals that are never blocked while the guest works: SIGSYS is its own, the others are faults.
const NEVER_BLOCKED: u64 =
    bit(SIGSYS) | bit(SIGSEGV) | bit(SIGBUS) | bit(SIGILL) | bit(SIGFPE) | bit(SIGTRAP);
/// Everything that can be put off.
const ALL: u64 = !NEVER_BLOCKED;

const fn is_fault(signal: usize) -> bool {
    matches!(signal, SIGILL | SIGTRAP | SIGBUS | SIGFPE | SIGSEGV)
}

/// Sets the kernel's mask of this thread.
pub(crate) fn set_kernel_mask(mask: u64) {
    let mask = mask & !UNMASKED;
    raw::call(
        nr::RT_SIGPROCMASK,
        [SIG_SETMASK, (&raw const mask) as u64, 0, 8, 0, 0],
    );
}

/// Blocks what can be blocked, around steps that a signal must not see half done.
pub(crate) fn block_all() {
    set_kernel_mask(ALL);
}

/// Back to the application's mask, or, in replay, to one that holds everything back; a signal that waits for delivery
/// does that, too.
pub(crate) fn unblock(t: &ThreadBlock) {
    if t.pending.load(Relaxed) == 0 {
        set_kernel_mask(kernel_mask(t));
    }
}

/// The mask that the kernel has while the application runs.
pub(crate) fn kernel_mask(t: &ThreadBlock) -> u64 {
    let replaying = log::now() == Mode::Replay;
    t.held_back.store(u32::from(replaying), Relaxed);
    if replaying { ALL } else { t.mask.load(Relaxed) }
}

/// The mask that the next image begins with.
pub(crate) fn bequeath(t: &ThreadBlock) {
    set_kernel_mask(t.mask.load(Relaxed));
}

/// Lets in what replay held back, if it has ended.
#[inline(always)]
pub(crate) fn let_in(t: &ThreadBlock) {
    if t.held_back.load(Relaxed) != 0 {
        go_live(t);
    }
}

#[cold]
fn go_live(t: &ThreadBlock) {
    forget_replay(t);
    unblock(t);
}

/// [`let_in`] for a thread that was interrupted in the application's own code, and may not leave it.
pub(crate) fn go_live_outside(t: &ThreadBlock, context: u64) {
    forget_replay(t);
    if t.pending.load(Relaxed) == 0 {
        restore(t, context);
    }
}

fn forget_replay(t: &ThreadBlock) {
    replayed_signals::go_live();
    exchanged::forget(t);
    // The image's timer stayed behind.
    t.timer.store(0, Relaxed);
    if t.pending.load(Relaxed) != 0 {
        t.held_back.store(0, Relaxed);
        starved::watch(t);
    }
}

/// Installs the guest's own handlers in a fresh image and learns what it inherited.
pub(crate) fn init(t: &ThreadBlock, mask: u64) {
    let own = [
        stub as *const () as u64,
        SA_SIGINFO | SA_RESTORER | SA_ONSTACK,
        entry::restorer(),
        u64::MAX,
    ];
    for signal in 1..SIGNALS {
        let mut old = [0_u64; 4];
        raw::call(
            nr::RT_SIGACTION,
            [signal as u64, 0, old.as_mut_ptr() as u64, 8, 0, 0],
        );
        if old[0] == SIG_IGN {
            tables::of(t).set_action(signal, Action(old));
        }
    }
    for signal in OWN {
        raw::call(
            nr::RT_SIGACTION,
            [signal as u64, own.as_ptr() as u64, 0, 8, 0, 0],
        );
    }
    t.mask.store(mask, Relaxed);
}

/// `rt_sigaction`: the application's actions are the guest's to keep.
pub(crate) fn sigaction(t: &ThreadBlock, a: &[u64; 6]) -> i64 {
    let [signal, new, old, size, ..] = *a;
    let index = signal as usize;
    if size != 8 || index == 0 || index >= SIGNALS {
        return -raw::EINVAL;
    }
    let set = tables::of(t);
    let before = set.action(index);
    if new != 0 {
        let Ok(words) = user::read::<[u64; 4]>(new) else {
            return -raw::EFAULT;
        };
        let result = install(index, Action(words));
        if result != 0 {
            return result;
        }
        set.set_action(index, Action(words));
    }
    if old != 0 && user::write(old, &before.0).is_err() {
        return -raw::EFAULT;
    }
    0
}

fn install(signal: usize, Action(app): Action) -> i64 {
    if OWN.contains(&signal) {
        return 0;
    }
    let mut kernel = app;
    kernel[3] &= !UNMASKED;
    if app[0] != SIG_DFL && app[0] != SIG_IGN {
        let keep = SA_NOCLDSTOP | SA_NOCLDWAIT | SA_ONSTACK;
        kernel = [
            stub as *const () as u64,
            (app[1] & keep) | SA_SIGINFO | SA_RESTORER,
            entry::restorer(),
            ALL,
        ];
    }
    let result = raw::call(
        nr::RT_SIGACTION,
        [signal as u64, kernel.as_ptr() as u64, 0, 8, 0, 0],
    );
    thread::control().changes.fetch_add(1, Release);
    result
}

/// `rt_sigprocmask`: the mask is the guest's to keep, the kernel's follows it.
pub(crate) fn sigprocmask(t: &ThreadBlock, a: &[u64; 6]) -> i64 {
    let [how, new, old, size, ..] = *a;
    if size != 8 {
        return -raw::EINVAL;
    }
    let before = t.mask.load(Relaxed);
    if new != 0 {
        let Ok(set) = user::read::<u64>(new) else {
            return -raw::EFAULT;
        };
        let after = match how {
            0 => before | set,
            1 => before & !set,
            SIG_SETMASK => set,
            _ => return -raw::EINVAL,
        };
        t.mask.store(after, Relaxed);
        unblock(t);
    }
    if old != 0 && user::write(old, &before).is_err() {
        return -raw::EFAULT;
    }
    0
}

/// `rt_sigreturn` made by the application itself.
pub(crate) fn sigreturn(t: &ThreadBlock, regs: &Regs) -> ! {
    if let Ok(mask) = user::read::<u64>(regs.rsp + uc::MASK) {
        t.mask.store(mask, Relaxed);
        restore(t, regs.rsp);
    }
    entry::sigreturn(regs.rsp)
}

/// Whether a call that a signal interrupted begins again after the handler (signal(7)).
fn restarts(t: &ThreadBlock, call: u64) -> bool {
    const RESTARTABLE: &[u64] = &[
        0, 1, 16, 17, 18, 19, 20, 42, 43, 44, 45, 46, 47, 61, 72, 73, 202, 247, 257, 288, 318,
    ];
    let action = tables::of(t).action(t.pending.load(Relaxed) as usize);
    action.0[1] & SA_RESTART != 0 && RESTARTABLE.contains(&call)
}

/// After a blocking call returned −EINTR: what the hook does.
pub(crate) enum Interrupted {
    /// It was one of our own stops: make the call again.
    Retry,
    /// Deliver, then begin the call again.
    Restart,
    /// The application sees EINTR.
    Report,
}

/// Decides about an interrupted call.
pub(crate) fn interrupted(t: &ThreadBlock, call: u64) -> Interrupted {
    if t.pending.load(Relaxed) == 0 {
        Interrupted::Retry
    } else if call == nr::FUTEX || restarts(t, call) {
        Interrupted::Restart
    } else {
        Interrupted::Report
    }
}

/// The kernel calls this for every signal that the application handles and for the guest's own.
extern "C" fn stub(signal: u32, info: u64, context: u64) {
    let t = thread::current();
    let index = signal as usize;
    let rip = user::read::<u64>(context + uc::RIP).unwrap_or(0);
    if index == SIGSYS {
        return dispatched(context, rip);
    }
    if let Some(next) = user::recover(rip).filter(|_| is_fault(index)) {
        let _ = user::write(context + uc::RIP, &next);
        return;
    }
    if t.delivering.load(Relaxed) == signal {
        t.delivering.store(0, Relaxed);
        let _ = user::write(context + uc::MASK, &t.mask.load(Relaxed));
        exchanged::delivered(t, signal, info);
        // In a lock's function: what the handler does is the application's, and it may not come back.
        let inside = t.inside.swap(0, Relaxed);
        handle(t, index, info, context);
        return t.inside.store(inside, Relaxed);
    }
    let code = user::read::<i32>(info + SI_CODE_AT).unwrap_or(0);
    if index == SIGTRAP {
        match code {
            SI_TIMER => return starved::look(t, context),
            CALLED => return starved::called(t, context),
            TRAP_TRACE => return starved::stepped(t, context),
            _ => {}
        }
    }
    if is_fault(index) && code > 0 {
        return fault(t, index, info, context);
    }
    if log::now() == Mode::Replay {
        hold_back(t, signal, info, context);
    } else {
        keep(t, signal, info, context, rip);
    }
}

/// The mask that the end of a handler brings back. An application that blocks everything must not block the
/// guest's own signal: the next site that is not patched yet would be its death.
pub(crate) fn restore(t: &ThreadBlock, context: u64) {
    let mask = kernel_mask(t) & !UNMASKED;
    let _ = user::write(context + uc::MASK, &mask);
}

/// The mask that the end of this frame brings back.
pub(crate) fn set_mask_behind(context: u64, mask: u64) {
    let _ = user::write(context + uc::MASK, &mask);
}

/// One that came in replay before the kernel was told to hold signals back: it is pending again.
fn hold_back(t: &ThreadBlock, signal: u32, info: u64, context: u64) {
    t.held_back.store(1, Relaxed);
    let _ = user::write(context + uc::MASK, &ALL);
    replayed_signals::was_held_back(t, signal, info);
    send_again(t, signal, info);
}

pub(crate) fn send_again(t: &ThreadBlock, signal: u32, info: u64) {
    let (pid, tid) = (
        u64::from(t.pid.load(Relaxed)),
        u64::from(t.tid.load(Relaxed)),
    );
    raw::call(
        nr::RT_TGSIGQUEUEINFO,
        [pid, tid, u64::from(signal), info, 0, 0],
    );
}

/// Keeps a signal for the next hook point and blocks others until then.
fn keep(t: &ThreadBlock, signal: u32, info: u64, context: u64, rip: u64) {
    let _ = user::write(context + uc::MASK, &ALL);
    if t.pending.load(Relaxed) != 0 {
        return send_again(t, signal, info);
    }
    exchanged::came(t, signal, info);
    let _ = user::copy(t.signal.as_ptr() as u64, info, SIGINFO_LEN);
    t.pending.store(signal, Relaxed);
    starved::watch(t);
    if let Some(window) = raw::before_blocking(rip) {
        let _ = user::write(context + uc::RIP, &window);
    }
}

/// A fault of the application: the same in replay, so delivered on the spot.
fn fault(t: &ThreadBlock, signal: usize, info: u64, context: u64) {
    let handler = tables::of(t).action(signal).0[0];
    if handler == SIG_DFL || handler == SIG_IGN {
        let default = [SIG_DFL, SA_RESTORER, entry::restorer(), 0];
        raw::call(
            nr::RT_SIGACTION,
            [signal as u64, default.as_ptr() as u64, 0, 8, 0, 0],
        );
        return;
    }
    handle(t, signal, info, context);
}

/// Runs the application's handler on the frame the kernel made.
fn handle(t: &ThreadBlock, signal: usize, info: u64, context: u64) {
    let set = tables::of(t);
    let Action([handler, flags, _, mask]) = set.action(signal);
    if handler == SIG_DFL || handler == SIG_IGN {
        return;
    }
    if flags & SA_RESETHAND != 0 {
        let default = Action([SIG_DFL, SA_RESTORER, entry::restorer(), 0]);
        set.set_action(signal, default);
        install(signal, default);
    }
    let own = if flags & SA_NODEFER == 0 {
        bit(signal)
    } else {
        0
    };
    t.mask.store(t.mask.load(Relaxed) | mask | own, Relaxed);
    unblock(t);
    // SAFETY: the address is the handler that the application registered for this signal; it is called as
    // the kernel would call it, on the frame the kernel built.
    let handler: extern "C" fn(u64, u64, u64) = unsafe { core::mem::transmute(handler) };
    handler(signal as u64, info, context);
    block_all();
    if let Ok(mask) = user::read::<u64>(context + uc::MASK) {
        t.mask.store(mask, Relaxed);
    }
    restore(t, context);
    delivery::at_end_of_handler(t, context);
}

/// First hit of a system-call site: patch it and go on in the hook.
fn dispatched(context: u64, rip: u64) {
    let call = user::read::<u64>(context + uc::RAX).unwrap_or(0);
    if crate::vdso::contains(rip) {
        let args: [u64; 6] = registers(context);
        let result = raw::call(call, args);
        let _ = user::write(context + uc::RAX, &result);
        return;
    }
    let resume = patch::first_hit(rip - 2);
    let _ = user::write(context + uc::RCX, &resume);
    let _ = user::write(context + uc::RIP, &entry::hook());
}

/// The argument registers in a ucontext: rdi, rsi, rdx, r10, r8, r9.
fn registers(context: u64) -> [u64; 6] {
    const INDEX: [u64; 6] = [8, 9, 12, 2, 0, 1];
    INDEX.map(|i| user::read::<u64>(context + 40 + i * 8).unwrap_or(0))
}
