//! The threads of the new process: made under their numbers, then given all that belongs to them.

use eventlog::image::Thread;
use libc::pid_t;
use sys::memory;
use sys::process::CloneArgs;
use sys::ptrace::{self, Regs, Stop, SudConfig};
use sys::remote::{self, Batch, SCRATCH_SYSCALL_AT};

use super::data::Data;
use super::handle::{Restored, RestoredThread};
use super::{RestoreError, Result};
use crate::store::ImageStore;

const THREAD: libc::c_int = libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM;

/// Makes all threads but the leader, which is there; each arrives stopped.
pub(super) fn create(restored: &mut Restored, store: &ImageStore) -> Result<()> {
    let leader = restored.pid();
    let mut images = store.threads().iter();
    let first = images.next().ok_or(RestoreError::Empty)?;
    restored.add(RestoredThread {
        tid: leader,
        number: first.tid,
        dispatch: dispatch(first),
    });
    for image in images {
        let tid = create_one(leader, restored.scratch(), image.tid, THREAD, 0)?;
        restored.add(RestoredThread {
            tid,
            number: image.tid,
            dispatch: dispatch(image),
        });
    }
    Ok(())
}

fn dispatch(image: &Thread) -> SudConfig {
    let [mode, selector, offset, len] = image.dispatch;
    SudConfig {
        mode,
        selector,
        offset,
        len,
    }
}

/// Makes a thread, or a child that tells its end by `exit_signal`, with this number; it arrives stopped.
pub(super) fn create_one(
    maker: pid_t,
    scratch: u64,
    wanted: u32,
    flags: libc::c_int,
    exit_signal: libc::c_int,
) -> Result<pid_t> {
    let mut data = Data::new(maker, scratch);
    let set_tid = data.put(&wanted.to_le_bytes())?;
    let args = CloneArgs {
        flags: flags as u64,
        exit_signal: exit_signal as u64,
        set_tid,
        set_tid_size: 1,
        ..CloneArgs::default()
    }
    .to_bytes();
    let at = data.put(&args)?;
    let call = [at, args.len() as u64, 0, 0, 0, 0];
    let (got, child) =
        remote::syscall_and_child(maker, scratch + SCRATCH_SYSCALL_AT, libc::SYS_clone3, call)?;
    let Some(tid) = child.filter(|_| got == i64::from(wanted)) else {
        return Err(RestoreError::Thread { wanted, got });
    };
    match ptrace::wait(tid)? {
        Stop::Interrupt => Ok(tid),
        stop => Err(RestoreError::Unexpected { tid, stop }),
    }
}

/// Gives every thread its registrations, pending signals and registers.
pub(super) fn register(restored: &mut Restored, store: &ImageStore) -> Result<()> {
    let pid = restored.pid();
    for (image, thread) in store.threads().iter().zip(restored.threads().to_vec()) {
        let mut regs = ptrace::from_words(image.registers);
        leave_section(pid, image, &mut regs)?;
        let shared = if thread.tid == pid {
            &store.process().pending[..]
        } else {
            &[]
        };
        register_one(restored, image, thread, store.process().pid, shared)?;
        ptrace::set_xstate(thread.tid, &image.xstate)?;
        ptrace::set_regs(thread.tid, &regs)?;
        ptrace::set_sigmask(thread.tid, image.sigmask)?;
    }
    Ok(())
}

fn register_one(
    restored: &Restored,
    image: &Thread,
    thread: RestoredThread,
    pid: u32,
    shared: &[[u8; 128]],
) -> Result<()> {
    let mut data = Data::new(thread.tid, restored.scratch());
    let mut batch = Batch::new();
    batch.push(libc::SYS_set_tid_address, [image.clear_tid, 0, 0, 0, 0, 0]);
    if image.robust[0] != 0 {
        batch.push(
            libc::SYS_set_robust_list,
            [image.robust[0], image.robust[1], 0, 0, 0, 0],
        );
    }
    let altstack: Vec<u8> = image
        .altstack
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    // Also where there is none: the leader was made with its maker's.
    batch.push(libc::SYS_sigaltstack, [data.put(&altstack)?, 0, 0, 0, 0, 0]);
    if image.rseq != 0 {
        let (len, signature) = (u64::from(image.rseq_len), u64::from(image.rseq_signature));
        batch.push(libc::SYS_rseq, [image.rseq, len, 0, signature, 0, 0]);
    }
    let name = data.put(&image.name)?;
    batch.push(
        libc::SYS_prctl,
        [libc::PR_SET_NAME as u64, name, 0, 0, 0, 0],
    );
    let signal =
        |info: &[u8; 128]| u64::from(u32::from_le_bytes([info[0], info[1], info[2], info[3]]));
    for info in shared {
        let at = data.put(info)?;
        batch.push(
            libc::SYS_rt_sigqueueinfo,
            [pid.into(), signal(info), at, 0, 0, 0],
        );
    }
    for info in &image.pending {
        let at = data.put(info)?;
        batch.push(
            libc::SYS_rt_tgsigqueueinfo,
            [pid.into(), image.tid.into(), signal(info), at, 0, 0],
        );
    }
    // Queued signals must wait for the thread's own mask, which comes last.
    ptrace::set_sigmask(thread.tid, u64::MAX)?;
    batch.run_checked(thread.tid, restored.scratch())?;
    Ok(())
}

/// A thread cut inside a restartable sequence goes on at its abort handler, as after any preemption.
fn leave_section(pid: pid_t, image: &Thread, regs: &mut Regs) -> Result<()> {
    if image.rseq == 0 {
        return Ok(());
    }
    let section = memory::read_u64(pid, image.rseq + 8)?;
    if section == 0 {
        return Ok(());
    }
    let start = memory::read_u64(pid, section + 8)?;
    let len = memory::read_u64(pid, section + 16)?;
    if regs.rip.wrapping_sub(start) < len {
        regs.rip = memory::read_u64(pid, section + 24)?;
    }
    Ok(())
}
