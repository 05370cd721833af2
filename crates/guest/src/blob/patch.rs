//! System-call sites become jumps to the hook; functions that the guest stands in for become jumps to its own.
//!
//! A site is `syscall` and the instructions behind it that fill the five bytes of a jump. They move to a
//! stub near the site: `lea rcx, [resume]; movabs r11, hook_entry; jmp r11; resume: moved bytes; jmp back`.
//! Sites in mapped files are patched when they are mapped, before anybody runs them; others at their first
//! hit, and then with one atomic store, since other threads may run past them.

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use guest::prologue;

use crate::raw::{self, nr};
use crate::{
    barriers, entry, heap, jemalloc, joins, locks, onces, order, rwlocks, semaphores, spins,
    stacks, streams, symbols, thread, unwinding, user,
};

const SYSCALL: [u8; 2] = [0x0f, 0x05];
const JUMP: u8 = 0xe9;
const JUMP_LEN: u64 = 5;
const SHORT_JUMP: u8 = 0xeb;
/// Bytes on each side of a site in which padding is looked for.
const SHORT_REACH: u64 = 120;
/// Bytes of a stub before the moved instructions.
const STUB_HEAD: u64 = 20;
/// Most bytes of a stub.
const STUB_MAX: u64 = 64;
/// Bytes of a stub area.
const AREA_LEN: u64 = 128 << 10;
/// How far a jump reaches, with room to spare.
const REACH: u64 = 0x7000_0000;
const STEP: u64 = 1 << 20;

const PROT_RX: u64 = 5;
const PROT_RWX: u64 = 7;
const MAP_FLAGS: u64 = 0x10_0022; // private, anonymous, fixed without replacing

/// Start of each stub area and how much of it is used.
static AREAS: [[AtomicU64; 2]; 16] = [const { [const { AtomicU64::new(0) }; 2] }; 16];
/// Serialises first hits.
static PATCHING: AtomicU64 = AtomicU64::new(0);

/// Prepares text that was just mapped: room for stubs near it, its sites, its lock functions. The caller
/// holds the order of the memory map, so that replay finds the same free address space.
pub(crate) fn adopt_text(start: u64, end: u64) {
    if !reserve_area(start) {
        return;
    }
    raw::call(nr::MPROTECT, [start, end - start, PROT_RWX, 0, 0, 0]);
    let mut at = start;
    while at + 16 < end {
        match next_candidate(at, end) {
            Some(site) => {
                patch_site(site, true);
                at = site + 2;
            }
            None => break,
        }
    }
    if let Some(library) = symbols::Library::containing(start) {
        library.find_errno();
        let memory = library
            .function(heap::MARK)
            .map_or(&[][..], |_| heap::FUNCTIONS);
        let ordered = [
            locks::FUNCTIONS,
            rwlocks::FUNCTIONS,
            semaphores::FUNCTIONS,
            barriers::FUNCTIONS,
            spins::FUNCTIONS,
        ];
        for replacement in ordered.into_iter().flatten().chain(memory) {
            if let Some(address) = library.function(replacement.name)
                && (start..end - JUMP_LEN).contains(&address)
            {
                replace_function(address, replacement.address());
            }
        }
        let wrap = |address, function| {
            (start..end - prologue::WINDOW as u64)
                .contains(&address)
                .then(|| wrap_function(address, function))?
        };
        stacks::adopt(&library, wrap);
        unwinding::adopt(&library, wrap);
        joins::adopt(&library, wrap);
        jemalloc::adopt(&library, wrap);
        let replace = |address, function| {
            if (start..end - JUMP_LEN).contains(&address) {
                replace_function(address, function);
            }
        };
        onces::adopt(&library, replace);
        streams::adopt(&library, wrap, replace);
    }
    raw::call(nr::MPROTECT, [start, end - start, PROT_RX, 0, 0, 0]);
}

/// The next `mov eax, number; syscall`: the form in which no data can be mistaken for code.
fn next_candidate(mut at: u64, end: u64) -> Option<u64> {
    const MOV_EAX: u8 = 0xb8;
    let mut window = [0_u8; 512];
    while at + 16 < end {
        let n = (end - at).min(512);
        user::copy(window.as_mut_ptr() as u64, at, n).ok()?;
        for i in 5..(n as usize).saturating_sub(1) {
            let is_call = window[i..i + 2] == SYSCALL;
            if is_call
                && window[i - 5] == MOV_EAX
                && window[i - 3] < 2
                && window[i - 2] == 0
                && window[i - 1] == 0
            {
                return Some(at + i as u64);
            }
        }
        at += n.saturating_sub(8).max(1);
    }
    None
}

/// A site that Syscall User Dispatch caught: patches it if that can be done, and says where its caller goes on.
pub(crate) fn first_hit(site: u64) -> u64 {
    let mut spins = 0;
    while PATCHING.swap(1, core::sync::atomic::Ordering::Acquire) != 0 {
        order::pause(&mut spins);
    }
    let resume = resume_of(site);
    PATCHING.store(0, core::sync::atomic::Ordering::Release);
    resume
}

fn resume_of(site: u64) -> u64 {
    let plain = site + 2;
    match user::read::<[u8; 5]>(site) {
        Ok([JUMP, ..]) => target_of(site).map_or(plain, |stub| stub + STUB_HEAD),
        Ok([SHORT_JUMP, distance, ..]) => {
            let relay = plain.wrapping_add_signed(i64::from(distance as i8));
            target_of(relay).map_or(plain, |stub| stub + STUB_HEAD)
        }
        Ok([0x0f, 0x05, ..]) if !is_refused(site) => {
            let page = (site - SHORT_REACH) & !4095;
            let len = ((site + SHORT_REACH) & !4095) + 4096 - page;
            raw::call(nr::MPROTECT, [page, len, PROT_RWX, 0, 0, 0]);
            let stub = patch_site(site, false);
            raw::call(nr::MPROTECT, [page, len, PROT_RX, 0, 0, 0]);
            if stub.is_none() {
                refuse(site);
            }
            stub.map_or(plain, |stub| stub + STUB_HEAD)
        }
        _ => plain,
    }
}

/// Where a five-byte jump leads.
fn target_of(at: u64) -> Option<u64> {
    match user::read::<[u8; 5]>(at) {
        Ok([JUMP, a, b, c, d]) => {
            Some((at + JUMP_LEN).wrapping_add_signed(i64::from(i32::from_le_bytes([a, b, c, d]))))
        }
        _ => None,
    }
}

/// Sites that cannot be patched: looking again at each hit would cost more than the hit.
static REFUSED: [AtomicU64; 64] = [const { AtomicU64::new(0) }; 64];

fn is_refused(site: u64) -> bool {
    REFUSED.iter().any(|word| word.load(Relaxed) == site)
}

fn refuse(site: u64) {
    if let Some(word) = REFUSED.iter().find(|word| word.load(Relaxed) == 0) {
        word.store(site, Relaxed);
    }
}

/// Makes a stub for the site and the jump to it. The stub's address, or `None` if the site stays as it is.
fn patch_site(site: u64, exclusive: bool) -> Option<u64> {
    let code = user::read::<[u8; 24]>(site + 2).ok()?;
    let whole = (exclusive || can_store(site)) && !is_entered(site);
    if let Some(moved) = movable(&code).filter(|_| whole) {
        let stub = make_stub(site, &code[..moved])?;
        return store_jump(site, jump(site, stub), exclusive).then_some(stub);
    }
    patch_short(site)
}

/// Replaces the two bytes of the call itself by a jump to padding in reach, which holds the jump to the
/// stub: nothing behind the call moves, so it does not matter who else comes there.
fn patch_short(site: u64) -> Option<u64> {
    const LINE: u64 = 64;
    if site % LINE == LINE - 1 {
        return None;
    }
    let relay = find_padding(site)?;
    let distance = i8::try_from(relay.wrapping_sub(site + 2).cast_signed()).ok()?;
    let stub = make_stub(site, &[])?;
    user::write(relay, &jump(relay, stub)).ok()?;
    // SAFETY: the site was just read and made writable; two bytes inside a cache line are stored at once,
    // and both the old and the new instruction are whole.
    unsafe {
        (site as *mut u16).write_unaligned(u16::from_le_bytes([SHORT_JUMP, distance as u8]));
    }
    Some(stub)
}

/// Padding behind a `ret` within reach of a short jump, long enough for a jump: nobody runs it.
fn find_padding(site: u64) -> Option<u64> {
    const NOPS: [&[u8]; 6] = [
        &[0x0f, 0x1f, 0x44, 0, 0],
        &[0x66, 0x0f, 0x1f, 0x44, 0, 0],
        &[0x0f, 0x1f, 0x80, 0, 0, 0, 0],
        &[0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0],
        &[0x66, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0],
        &[0x66, 0x2e, 0x0f, 0x1f, 0x84, 0, 0, 0, 0, 0],
    ];
    const RET: u8 = 0xc3;
    let start = site - SHORT_REACH;
    let mut code = [0_u8; 2 * SHORT_REACH as usize];
    user::copy(code.as_mut_ptr() as u64, start, code.len() as u64).ok()?;
    let found = (1..code.len() - 10)
        .filter(|i| code[i - 1] == RET)
        .find(|i| NOPS.iter().any(|nop| code[*i..].starts_with(nop)))?;
    Some(start + found as u64)
}

/// The stub of a site: it enters the hook, and goes on with the moved instructions behind the call.
fn make_stub(site: u64, moved: &[u8]) -> Option<u64> {
    let stub = claim_stub(site, STUB_MAX)?;
    let mut bytes = Code::default();
    bytes.put(&[0x48, 0x8d, 0x0d, 13, 0, 0, 0]); // lea rcx, [rip+13]
    bytes.put(&[0x49, 0xbb]); // movabs r11, hook_entry
    bytes.put(&entry::hook().to_le_bytes());
    bytes.put(&[0x41, 0xff, 0xe3]); // jmp r11
    bytes.put(moved);
    bytes.put(&jump(
        stub + bytes.len as u64,
        site + 2 + moved.len() as u64,
    ));
    write_stub(stub, &bytes);
    Some(stub)
}

/// Makes a function's first instruction a jump to the guest's own function.
fn replace_function(address: u64, function: u64) {
    let Some(stub) = claim_stub(address, 16) else {
        return;
    };
    let mut bytes = Code::default();
    bytes.put(&[0x49, 0xbb]); // movabs r11, function
    bytes.put(&function.to_le_bytes());
    bytes.put(&[0x41, 0xff, 0xe3]); // jmp r11
    write_stub(stub, &bytes);
    let _ = user::write(address, &jump(address, stub));
}

/// As [`replace_function`], and keeps the original: its first instructions move to a stub that goes on behind
/// them. Where the original is called, or `None` if the function stays as it is.
fn wrap_function(address: u64, function: u64) -> Option<u64> {
    let code = user::read::<[u8; prologue::WINDOW]>(address).ok()?;
    let moved = prologue::movable(&code, JUMP_LEN as usize)?;
    let original = claim_stub(address, STUB_MAX)?;
    let behind = address + moved.end() as u64;
    let mut bytes = Code::default();
    bytes.put(&code[..moved.len]);
    if let Some(branch) = moved.branch {
        // The long form: a byte, and then as an unconditional one.
        bytes.put(&[0x0f]);
        let to = behind + u64::from(branch.distance);
        let [_, distance @ ..] = jump(original + bytes.len as u64, to);
        bytes.put(&[0x80 | branch.condition]);
        bytes.put(&distance);
    }
    bytes.put(&jump(original + bytes.len as u64, behind));
    write_stub(original, &bytes);
    replace_function(address, function);
    (user::read::<u8>(address).ok()? == JUMP).then_some(original)
}

fn jump(from: u64, to: u64) -> [u8; 5] {
    let [a, b, c, d] = (to.wrapping_sub(from + JUMP_LEN) as u32).to_le_bytes();
    [JUMP, a, b, c, d]
}

/// Machine code being put together.
struct Code {
    bytes: [u8; STUB_MAX as usize],
    len: usize,
}

impl Default for Code {
    fn default() -> Self {
        Self {
            bytes: [0xcc; STUB_MAX as usize],
            len: 0,
        }
    }
}

impl Code {
    fn put(&mut self, bytes: &[u8]) {
        for b in bytes {
            if let Some(to) = self.bytes.get_mut(self.len) {
                *to = *b;
                self.len += 1;
            }
        }
    }
}

fn write_stub(stub: u64, code: &Code) {
    let _ = user::copy(stub, code.bytes.as_ptr() as u64, code.len as u64);
}

/// Whether a branch nearby leads between the bytes that the jump would replace (a loop, or a shared end of a
/// function, that begins right behind the call).
fn is_entered(site: u64) -> bool {
    let start = site.saturating_sub(BRANCH_WINDOW as u64 / 2);
    let mut code = [0_u8; BRANCH_WINDOW];
    let mut n = BRANCH_WINDOW;
    while user::copy(code.as_mut_ptr() as u64, start, n as u64).is_err() {
        // The text ends inside the window.
        n /= 2;
        if start + n as u64 <= site {
            return true;
        }
    }
    let inner = site + 2..site + JUMP_LEN;
    let rel32 = |i: usize| i64::from(i32::from_le_bytes(core::array::from_fn(|k| code[i + k])));
    (0..n.saturating_sub(6)).any(|i| {
        let (end, offset) = match (code[i], code[i + 1]) {
            (0xeb | 0x70..=0x7f, near) => (i + 2, i64::from(near as i8)),
            (JUMP, _) => (i + 5, rel32(i + 1)),
            (0x0f, 0x80..=0x8f) => (i + 6, rel32(i + 2)),
            _ => return false,
        };
        inner.contains(&(start + end as u64).wrapping_add_signed(offset))
    })
}

/// Bytes around a site in which branches are looked for.
const BRANCH_WINDOW: usize = 4096;

/// Bytes behind the `syscall` that move to the stub: whole instructions, three bytes at least, none that
/// depends on where it stands. A `ret` may end them early if only padding follows.
fn movable(code: &[u8; 24]) -> Option<usize> {
    let mut n = 0;
    while n < 3 {
        let here = &code[n..];
        if here[0] == 0xc3 {
            let padding = here[1..4 - n]
                .iter()
                .all(|b| matches!(b, 0xcc | 0x90 | 0x66 | 0x0f | 0x1f));
            return padding.then_some(n + 1);
        }
        n += instruction(here)?;
    }
    Some(n)
}

/// Length of the instructions that follow system calls in practice.
fn instruction(b: &[u8]) -> Option<usize> {
    let direct = |modrm: u8| modrm >= 0xc0;
    Some(match (b[0], b[1], b[2]) {
        (0x48, 0x3d, _) => 6,              // cmp rax, imm32
        (0x3d, _, _) => 5,                 // cmp eax, imm32
        (0x48, 0x83, m) if direct(m) => 4, // op r64, imm8
        (0x83, m, _) if direct(m) => 3,    // op r32, imm8
        (0x48 | 0x49 | 0x4c | 0x4d, 0x85 | 0x89 | 0x63 | 0x31, m) if direct(m) => 3,
        (0x41 | 0x44 | 0x45, 0x85 | 0x89 | 0x31, m) if direct(m) => 3,
        (0x85 | 0x89 | 0x31, m, _) if direct(m) => 2, // test, mov, xor r32, r32
        (0x48, 0xf7, 0xd8) => 3,                      // neg rax
        (0xf7, 0xd8, _) => 2,                         // neg eax
        (0x89, 0x44, 0x24) => 4,                      // mov [rsp+8], eax
        (0x48, 0x89 | 0x8b, 0x44) if b[3] == 0x24 => 5, // mov [rsp+8], rax and back
        (0x8b, 0x44, 0x24) => 4,                      // mov eax, [rsp+8]
        (0x58..=0x5f, _, _) | (0x90, _, _) => 1,      // pop, nop
        (0x41, 0x58..=0x5f, _) => 2,                  // pop r8 to r15
        _ => return None,
    })
}

/// Whether five bytes can be stored at once while other threads may run them.
fn can_store(site: u64) -> bool {
    site % 16 <= 11 || thread::alone()
}

/// Stores the jump; atomically unless nobody can run it yet.
fn store_jump(site: u64, jump: [u8; 5], exclusive: bool) -> bool {
    if exclusive || thread::alone() {
        return user::write(site, &jump).is_ok();
    }
    let line = site & !15;
    let Ok(old) = user::read::<[u8; 16]>(line) else {
        return false;
    };
    let mut new = old;
    let offset = (site % 16) as usize;
    new[offset..offset + 5].copy_from_slice(&jump);
    let word = |b: &[u8; 16], i: usize| u64::from_le_bytes(core::array::from_fn(|k| b[i + k]));
    let (old_low, old_high) = (word(&old, 0), word(&old, 8));
    let done: u64;
    // SAFETY: the line was just read and made writable; the instruction replaces it whole or not at all.
    unsafe {
        // rbx cannot be an operand, so no operand may be left to the compiler's choice either.
        asm!("mov r9, rbx", "mov rbx, rsi", "lock cmpxchg16b [rdi]", "sete r8b", "mov rbx, r9",
             in("rsi") word(&new, 0), in("rdi") line, out("r8") done, out("r9") _,
             inout("rax") old_low => _, inout("rdx") old_high => _, in("rcx") word(&new, 8), options(nostack));
    }
    done & 0xff != 0
}

fn in_reach(area: u64, site: u64) -> bool {
    area.abs_diff(site) < REACH
}

/// Takes room in an area near the site.
fn claim_stub(site: u64, len: u64) -> Option<u64> {
    for [start, used] in &AREAS {
        let at = start.load(Relaxed);
        if at == 0 {
            break;
        }
        let n = used.load(Relaxed);
        if in_reach(at, site) && n + len <= AREA_LEN {
            used.store(n + len, Relaxed);
            return Some(at + n);
        }
    }
    None
}

/// Makes sure that stubs for text at this place have room.
fn reserve_area(text: u64) -> bool {
    for [start, used] in &AREAS {
        let at = start.load(Relaxed);
        if at == 0 {
            let Some(area) = map_near(text) else {
                return false;
            };
            start.store(area, Relaxed);
            used.store(0, Relaxed);
            return true;
        }
        if in_reach(at, text) && used.load(Relaxed) < AREA_LEN / 2 {
            return true;
        }
    }
    false
}

fn map_near(text: u64) -> Option<u64> {
    let below = (1..1500).map(|k| (text & !(STEP - 1)).checked_sub(k * STEP));
    let above = (1..1500).map(|k| Some((text & !(STEP - 1)) + k * STEP));
    for at in below.chain(above).flatten().filter(|at| *at >= 0x1_0000) {
        let got = raw::call(nr::MMAP, [at, AREA_LEN, PROT_RWX, MAP_FLAGS, u64::MAX, 0]);
        if got == at.cast_signed() {
            return Some(at);
        }
    }
    None
}
