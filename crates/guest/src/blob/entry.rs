//! Ways in and out: the hook that patched sites jump to, its exits, and the first steps of a child.

use core::arch::global_asm;

use guest::abi::ThreadBlock;

/// The application's registers at a call, as the entry code saved them.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Regs {
    /// System-call number, then the result.
    pub(crate) rax: u64,
    pub(crate) rdi: u64,
    pub(crate) rsi: u64,
    pub(crate) rdx: u64,
    pub(crate) r10: u64,
    pub(crate) r8: u64,
    pub(crate) r9: u64,
    pub(crate) rbx: u64,
    pub(crate) rbp: u64,
    pub(crate) r12: u64,
    pub(crate) r13: u64,
    pub(crate) r14: u64,
    pub(crate) r15: u64,
    /// Where the application goes on.
    pub(crate) rcx: u64,
    pub(crate) flags: u64,
    pub(crate) rsp: u64,
}

impl Regs {
    /// The call's arguments.
    #[inline(always)]
    pub(crate) fn args(&self) -> [u64; 6] {
        [self.rdi, self.rsi, self.rdx, self.r10, self.r8, self.r9]
    }
}

// gs:[8] is hook_sp, gs:[24] hook_top, gs:[0] the block; see `guest::abi::ThreadBlock`.
global_asm!(
    r#"
.globl hook_entry
hook_entry:                 // rax: number, rcx: where to go on; r11 is free, the red zone is not
    mov r11, gs:[8]
    lea r11, [r11-16384]
    mov gs:[8], r11
    lea r11, [r11+16384]
    mov [r11-8], rsp
    lea rsp, [r11-8]
    pushfq
    push rcx
    push r15
    push r14
    push r13
    push r12
    push rbp
    push rbx
    push r9
    push r8
    push r10
    push rdx
    push rsi
    push rdi
    push rax
    cld
    mov rdi, rsp
    mov rbp, rsp
    and rsp, -16
    call {on_syscall}
    mov rsp, rbp
    jmp hook_exit

.globl hook_redo
hook_redo:                  // begin the call again from its saved registers
    mov rsp, gs:[8]
    lea rsp, [rsp+16384-128]
    cld
    mov rdi, rsp
    mov rbp, rsp
    and rsp, -16
    call {on_syscall}
    mov rsp, rbp

.globl hook_exit
hook_exit:
    mov r11, gs:[8]
    lea r11, [r11+16384]
    mov gs:[8], r11
    add rsp, 8              // rax is the result
    pop rdi
    pop rsi
    pop rdx
    pop r10
    pop r8
    pop r9
    pop rbx
    pop rbp
    pop r12
    pop r13
    pop r14
    pop r15
    pop rcx
    popfq
    pop rsp
    jmp rcx

.globl exit_delivering      // rdi: &Regs (rax is final), rsi: 1 to begin the call again after the handler
exit_delivering:
    mov rbx, rdi
    mov r12, rsi
    mov rdx, [rbx+120]      // below the application's red zone
    lea rdx, [rdx-256]
    mov rsi, rbx
    mov rdi, rdx
    mov ecx, 16
    rep movsq
    mov r11, gs:[24]
    mov gs:[8], r11
    mov rsp, rdx
    mov edi, 2              // SIG_SETMASK: the waiting signal comes when this call returns
    mov rsi, gs:[0]
    add rsi, 32
    xor edx, edx
    mov r10d, 8
    mov eax, 14
    syscall
    test r12, r12
    jnz 2f
    pop rax
    pop rdi
    pop rsi
    pop rdx
    pop r10
    pop r8
    pop r9
    pop rbx
    pop rbp
    pop r12
    pop r13
    pop r14
    pop r15
    pop rcx
    popfq
    pop rsp
    jmp rcx
2:  pop rax
    pop rdi
    pop rsi
    pop rdx
    pop r10
    pop r8
    pop r9
    pop rbx
    pop rbp
    pop r12
    pop r13
    pop r14
    pop r15
    pop rcx
    popfq
    pop rsp
    jmp hook_entry

.globl do_sigreturn         // rdi: the application's stack pointer
do_sigreturn:
    mov r11, gs:[24]
    mov gs:[8], r11
    mov rsp, rdi
    mov eax, 15
    syscall
    ud2

.globl sigsys_restorer      // also the restorer of every handler: in the exempt range
sigsys_restorer:
    mov eax, 15
    syscall
    ud2

.globl do_clone             // rdi: number, rsi: &[u64; 6], rdx: the child's block; in the parent, the result
do_clone:
    push rbx
    push rbp
    push r12
    push r13
    mov r12, rdx
    mov rax, rdi
    mov r13, rsi
    mov rdi, [r13]
    mov rsi, [r13+8]
    mov rdx, [r13+16]
    mov r10, [r13+24]
    mov r8, [r13+32]
    mov r9, [r13+40]
    syscall
    test rax, rax
    jz 2f
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret
2:                          // the child: its block is r12, its registers are in block.birth
    wrgsbase r12
    mov rsp, gs:[24]
    and rsp, -16
    mov rdi, r12
    call {child_started}
    mov r11, r12
    add r11, {birth}
    mov rdi, [r11+8]
    mov rsi, [r11+16]
    mov rdx, [r11+24]
    mov r10, [r11+32]
    mov r8, [r11+40]
    mov r9, [r11+48]
    mov rbx, [r11+56]
    mov rbp, [r11+64]
    mov r13, [r11+80]
    mov r14, [r11+88]
    mov r15, [r11+96]
    mov rcx, [r11+104]
    mov rsp, [r11+120]
    mov r12, [r11+72]
    xor eax, eax
    jmp rcx
"#,
    on_syscall = sym crate::dispatch::on_syscall,
    child_started = sym crate::calls::process::child_started,
    birth = const core::mem::offset_of!(ThreadBlock, birth),
);

unsafe extern "C" {
    fn hook_entry();
    fn hook_redo();
    fn exit_delivering(regs: *const Regs, again: u64) -> !;
    fn do_sigreturn(rsp: u64) -> !;
    fn do_clone(nr: u64, args: *const [u64; 6], block: *const ThreadBlock) -> i64;
    fn sigsys_restorer();
}

// The host looks these up: the label a blocked thread's image starts at, and the exit it is held before.
#[used]
static HOST_LABELS: [unsafe extern "C" fn(); 1] = [hook_redo];

/// Address of the hook.
pub(crate) fn hook() -> u64 {
    hook_entry as *const () as u64
}

/// Address of the signal restorer.
pub(crate) fn restorer() -> u64 {
    sigsys_restorer as *const () as u64
}

/// Leaves the hook, letting the kernel deliver what waits; see `signals`.
pub(crate) fn leave_delivering(regs: &Regs, again: bool) -> ! {
    // SAFETY: `regs` is the frame the entry code saved on this hook stack; the stack below the
    // application's red zone is the application's to lose.
    unsafe { exit_delivering(regs, u64::from(again)) }
}

/// Returns from a signal handler of the application.
pub(crate) fn sigreturn(rsp: u64) -> ! {
    // SAFETY: rsp is the application's stack pointer at its own rt_sigreturn.
    unsafe { do_sigreturn(rsp) }
}

/// Makes a clone-like call whose child starts on `block`. The child does not return here.
pub(crate) fn clone_into(nr: u64, args: &[u64; 6], block: &ThreadBlock) -> i64 {
    // SAFETY: `block` is claimed for the child and holds its registers; the child's first instructions use
    // its own hook stack only.
    unsafe { do_clone(nr, args, block) }
}
