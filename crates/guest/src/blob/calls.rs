//! Calls that need code of their own.

pub(crate) mod files;
pub(crate) mod leaving;
pub(crate) mod memory;
pub(crate) mod output;
pub(crate) mod parts;
pub(crate) mod process;

use guest::abi::ThreadBlock;
use sysabi::Syscall;

use crate::entry::Regs;
use crate::{connections, dispatch, epoll, raw, replayed_signals, signals, tables, vdso};

/// Runs the call if the guest has code for it.
#[inline(always)]
pub(crate) fn special(t: &ThreadBlock, regs: &mut Regs, row: &'static Syscall) -> Option<i64> {
    Some(match row.nr {
        // open, creat, openat, openat2, memfd_create
        2 | 85 | 257 | 319 | 437 => files::open(t, regs, row),
        3 => files::close(t, regs, row),
        // dup, dup2, fcntl, dup3
        32 | 33 | 72 | 292 => files::duplicate(t, regs, row),
        436 => files::close_range(t, regs, row),
        // ftruncate, fchmod, fchown, fallocate
        77 | 91 | 93 | 285 => files::change(t, regs, row),
        // rename, link, unlink, chmod, chown; fchownat, unlinkat, renameat, linkat, fchmodat, renameat2, fchmodat2
        82 | 86 | 87 | 90 | 92 | 260 | 263..=265 | 268 | 316 | 452 => files::named(t, regs, row),
        // connect, accept, accept4
        42 | 43 | 288 => connections::made(t, regs, row),
        // recvfrom
        45 if parts::waits_for_all(regs) => parts::receive_all(t, regs, row),
        // shutdown
        48 => match connections::index_of(tables::of(t).kind(regs.rdi)) {
            Some(index) => connections::shut(t, regs, row, index),
            None => return None,
        },
        // epoll_ctl; epoll_wait, epoll_pwait, epoll_pwait2
        233 => epoll::control(t, regs, row),
        232 | 281 | 441 => epoll::wait(t, regs, row),
        13 => signals::sigaction(t, &regs.args()),
        14 => signals::sigprocmask(t, &regs.args()),
        15 => signals::sigreturn(t, regs),
        // clone, fork, vfork, clone3
        56 | 57 | 58 | 435 => process::clone(t, regs, row),
        // execve, execveat
        59 | 322 => leaving::exec(t, regs, row),
        60 => leaving::exit(t, regs),
        231 => leaving::exit_group(t, regs.rdi),
        // wait4, waitid
        61 | 247 => leaving::wait(t, regs, row),
        // set_robust_list
        273 => {
            let result = dispatch::executed(t, regs, row);
            if result == 0 {
                t.robust
                    .store(regs.rdi, core::sync::atomic::Ordering::Relaxed);
            }
            result
        }
        // gettimeofday, time, clock_gettime
        96 | 201 | 228 => vdso::called(t, regs, row),
        // kill, rt_sigqueueinfo, tkill, tgkill, rt_tgsigqueueinfo
        62 | 129 | 200 | 234 | 297 => replayed_signals::called(t, regs, row),
        // mlockall
        151 => memory::lock_all(t, regs, row),
        // setpgid, setsid
        109 | 112 => process::regroup(t, regs, row),
        // prctl, arch_prctl: they change this process alone, in replay too
        157 | 158 => dispatch::executed(t, regs, row),
        // recvmmsg, sendmmsg: their callers fall back to single messages
        299 | 307 => dispatch::refuse(row),
        // rseq is refused without a word: every C library tries it and does without
        334 => -raw::ENOSYS,
        _ => return None,
    })
}
