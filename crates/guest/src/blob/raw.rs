//! System calls of the guest's own: they lie in the blob's range, which Syscall User Dispatch exempts.

use core::arch::{asm, global_asm};

/// Numbers the guest uses itself.
pub(crate) mod nr {
    pub(crate) const READ: u64 = 0;
    pub(crate) const WRITE: u64 = 1;
    pub(crate) const CLOSE: u64 = 3;
    pub(crate) const FSTAT: u64 = 5;
    pub(crate) const MMAP: u64 = 9;
    pub(crate) const MPROTECT: u64 = 10;
    pub(crate) const RT_SIGACTION: u64 = 13;
    pub(crate) const RT_SIGPROCMASK: u64 = 14;
    pub(crate) const SCHED_YIELD: u64 = 24;
    pub(crate) const MADVISE: u64 = 28;
    pub(crate) const GETPID: u64 = 39;
    pub(crate) const GETSOCKNAME: u64 = 51;
    pub(crate) const GETPEERNAME: u64 = 52;
    pub(crate) const CLONE: u64 = 56;
    pub(crate) const FORK: u64 = 57;
    pub(crate) const VFORK: u64 = 58;
    pub(crate) const WAIT4: u64 = 61;
    pub(crate) const KILL: u64 = 62;
    pub(crate) const PROCESS_VM_READV: u64 = 310;
    pub(crate) const FCNTL: u64 = 72;
    pub(crate) const PRCTL: u64 = 157;
    pub(crate) const GETTID: u64 = 186;
    pub(crate) const FUTEX: u64 = 202;
    pub(crate) const TIMER_CREATE: u64 = 222;
    pub(crate) const TIMER_SETTIME: u64 = 223;
    pub(crate) const TIMER_DELETE: u64 = 226;
    pub(crate) const GETPGID: u64 = 121;
    pub(crate) const CLOCK_GETTIME: u64 = 228;
    pub(crate) const WAITID: u64 = 247;
    pub(crate) const EXIT_GROUP: u64 = 231;
    pub(crate) const OPENAT: u64 = 257;
    pub(crate) const DUP3: u64 = 292;
    pub(crate) const RT_SIGPENDING: u64 = 127;
    pub(crate) const RT_SIGTIMEDWAIT: u64 = 128;
    pub(crate) const RT_SIGQUEUEINFO: u64 = 129;
    pub(crate) const RT_TGSIGQUEUEINFO: u64 = 297;
    pub(crate) const CLONE3: u64 = 435;
    pub(crate) const CLOSE_RANGE: u64 = 436;
}

pub(crate) const ESRCH: i64 = 3;
pub(crate) const EINTR: i64 = 4;
pub(crate) const ECHILD: i64 = 10;
pub(crate) const EAGAIN: i64 = 11;
pub(crate) const ENOMEM: i64 = 12;
pub(crate) const EFAULT: i64 = 14;
pub(crate) const EBUSY: i64 = 16;
pub(crate) const EINVAL: i64 = 22;
pub(crate) const EBADF: i64 = 9;
pub(crate) const ENOENT: i64 = 2;
pub(crate) const EPERM: i64 = 1;
pub(crate) const EDEADLK: i64 = 35;
pub(crate) const ENOSYS: i64 = 38;
pub(crate) const ETIMEDOUT: i64 = 110;
pub(crate) const EOWNERDEAD: i64 = 130;
pub(crate) const ENOTRECOVERABLE: i64 = 131;

/// Makes a system call.
#[inline(always)]
pub(crate) fn call(nr: u64, a: [u64; 6]) -> i64 {
    let result: i64;
    // SAFETY: the kernel checks what it is given; whatever it changes in this process is what the
    // application asked for or the guest's own memory, neither of which the compiler holds in registers
    // across this statement (memory is clobbered by default).
    unsafe {
        asm!("syscall", inlateout("rax") nr => result, in("rdi") a[0], in("rsi") a[1], in("rdx") a[2],
             in("r10") a[3], in("r8") a[4], in("r9") a[5], lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

// A call that may block. Between the look at `pending` and the `syscall` instruction a signal could come
// and the call would then sleep on it: the signal stub sends a thread that is inside this window back to
// its start (`blocking_window` to `blocking_call`, the instruction itself included).
global_asm!(
    ".globl blocking",
    "blocking:", // rdi: nr, rsi: &[u64; 6], rdx: &pending
    "mov r11, rdx",
    "mov rax, rdi",
    "mov rcx, rsi",
    "mov rdi, [rcx]",
    "mov rsi, [rcx+8]",
    "mov rdx, [rcx+16]",
    "mov r10, [rcx+24]",
    "mov r8, [rcx+32]",
    "mov r9, [rcx+40]",
    "push rax",
    "push r11",
    ".globl blocking_window",
    "blocking_window:",
    "mov rcx, [rsp]",
    "cmp dword ptr [rcx], 0",
    "jne 2f",
    "mov rax, [rsp+8]",
    "syscall",
    ".globl blocking_done",
    "blocking_done:",
    "add rsp, 16",
    "ret",
    "2:",
    "mov rax, -1048576", // NOT_MADE
    "add rsp, 16",
    "ret",
);

// A sleep on a lock of the application, with the same window. A checkpoint may be taken in it: the image's
// thread sees −EINTR behind the instruction (`waiting_done`) and looks again at lock and mode.
global_asm!(
    ".globl waiting",
    "waiting:", // rdi: nr, rsi: &[u64; 6], rdx: &pending
    "mov r11, rdx",
    "mov rax, rdi",
    "mov rcx, rsi",
    "mov rdi, [rcx]",
    "mov rsi, [rcx+8]",
    "mov rdx, [rcx+16]",
    "mov r10, [rcx+24]",
    "mov r8, [rcx+32]",
    "mov r9, [rcx+40]",
    "push rax",
    "push r11",
    ".globl waiting_window",
    "waiting_window:",
    "mov rcx, [rsp]",
    "cmp dword ptr [rcx], 0",
    "jne 2f",
    "mov rax, [rsp+8]",
    "syscall",
    ".globl waiting_done",
    "waiting_done:",
    "add rsp, 16",
    "ret",
    "2:",
    "mov rax, -4",
    "add rsp, 16",
    "ret",
);

unsafe extern "C" {
    fn waiting(nr: u64, args: *const [u64; 6], pending: *const u32) -> i64;
    fn waiting_window();
    fn waiting_done();
    fn blocking(nr: u64, args: *const [u64; 6], pending: *const u32) -> i64;
    fn blocking_window();
    fn blocking_done();
}

/// Where a thread begins again that stood here when a signal came, in front of a call that may block: `None` elsewhere.
pub(crate) fn before_blocking(rip: u64) -> Option<u64> {
    let windows = [
        blocking_window as *const () as u64..blocking_done as *const () as u64,
        waiting_window as *const () as u64..waiting_done as *const () as u64,
    ];
    let window = windows.into_iter().find(|window| window.contains(&rip))?;
    Some(window.start)
}

/// What a call gives that a signal or a stop ended.
pub(crate) const INTERRUPTED: i64 = -EINTR;
/// What a call that may block gives if it was not made: a signal waits for delivery.
pub(crate) const NOT_MADE: i64 = -1_048_576;

/// Makes a system call that may block; [`NOT_MADE`] if a signal waits for delivery.
pub(crate) fn call_blocking(nr: u64, a: &[u64; 6], pending: &core::sync::atomic::AtomicU32) -> i64 {
    // SAFETY: as for `call`; the two pointers are references that live across the call.
    unsafe { blocking(nr, a, pending.as_ptr()) }
}

/// Makes a system call that sleeps on a lock; −EINTR without making it if a signal waits for delivery.
pub(crate) fn call_waiting(nr: u64, a: &[u64; 6], pending: &core::sync::atomic::AtomicU32) -> i64 {
    // SAFETY: as for `call_blocking`.
    unsafe { waiting(nr, a, pending.as_ptr()) }
}

// The host looks it up, to tell a thread that sleeps here.
#[used]
static HOST_LABELS: [unsafe extern "C" fn(); 2] = [waiting_done, blocking_done];

/// Time-stamp counter.
#[inline(always)]
pub(crate) fn cycles() -> u64 {
    // SAFETY: rdtsc has no preconditions in user mode unless PR_SET_TSC forbids it, which `prctl` refuses.
    unsafe { core::arch::x86_64::_rdtsc() }
}

const FUTEX_WAIT: u64 = 0;
const FUTEX_WAKE: u64 = 1;

/// Sleeps while the word is `value` (shared futex: the host wakes, too).
pub(crate) fn futex_wait(word: &core::sync::atomic::AtomicU32, value: u32) {
    call(
        nr::FUTEX,
        [word.as_ptr() as u64, FUTEX_WAIT, u64::from(value), 0, 0, 0],
    );
}

/// As [`futex_wait`], but not longer than so many nanoseconds.
pub(crate) fn futex_wait_for(word: &core::sync::atomic::AtomicU32, value: u32, ns: u64) {
    let limit = [ns / 1_000_000_000, ns % 1_000_000_000];
    call(
        nr::FUTEX,
        [
            word.as_ptr() as u64,
            FUTEX_WAIT,
            u64::from(value),
            limit.as_ptr() as u64,
            0,
            0,
        ],
    );
}

/// Wakes up to `n` sleepers.
pub(crate) fn futex_wake(word: &core::sync::atomic::AtomicU32, n: u32) {
    call(
        nr::FUTEX,
        [word.as_ptr() as u64, FUTEX_WAKE, u64::from(n), 0, 0, 0],
    );
}

/// Ends the process.
pub(crate) fn abort(status: u64) -> ! {
    loop {
        call(nr::EXIT_GROUP, [status, 0, 0, 0, 0, 0]);
    }
}
