//! The first instructions of a function, told apart from code that cannot run elsewhere.

/// Bytes that [`movable`] looks at.
pub const WINDOW: usize = 32;

/// Instructions at a function's start that do the same wherever they stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prologue {
    /// Their bytes.
    pub len: usize,
    /// A conditional jump that comes behind them.
    pub branch: Option<Branch>,
}

/// A conditional jump forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Branch {
    /// Its own bytes.
    pub len: usize,
    /// When it jumps: the low half of its opcode.
    pub condition: u8,
    /// How far behind it.
    pub distance: u32,
}

impl Prologue {
    /// Bytes of all.
    #[must_use]
    pub fn end(&self) -> usize {
        self.len + self.branch.map_or(0, |branch| branch.len)
    }
}

/// Whole instructions at a function's start, of `least` bytes at least.
///
/// Only what compilers begin functions with is known: saving registers, copying and setting them, loading or looking at a
/// field of an argument, making room on the stack; and, as the last, a jump forwards that leaves early. Nothing else in
/// that list reads the instruction pointer or branches, and no loop leads back to where registers are saved. `None` for
/// everything else.
#[must_use]
pub fn movable(code: &[u8; WINDOW], least: usize) -> Option<Prologue> {
    let mut len = 0;
    while len < least {
        let next = code.get(len..len + 7)?;
        if let Some(branch) = branch(next) {
            let branch = Some(branch);
            return Some(Prologue { len, branch }).filter(|all| all.end() >= least);
        }
        len += instruction(next)?;
    }
    let branch = None;
    Some(Prologue { len, branch })
}

fn branch(b: &[u8]) -> Option<Branch> {
    let (len, opcode, distance) = match *b {
        [opcode @ 0x70..=0x7f, distance, ..] => (2, opcode, i32::from(distance.cast_signed())),
        [0x0f, opcode @ 0x80..=0x8f, a, b, c, d, ..] => {
            (6, opcode, i32::from_le_bytes([a, b, c, d]))
        }
        _ => return None,
    };
    Some(Branch {
        len,
        condition: opcode & 15,
        distance: u32::try_from(distance).ok()?,
    })
}

fn instruction(b: &[u8]) -> Option<usize> {
    let [b0, b1, b2, b3, ..] = *b else {
        return None;
    };
    const DIRECT: core::ops::RangeInclusive<u8> = 0xc0..=0xff;
    /// Register numbers of esp and rsp in the two operands: such a move is no part of a plain prologue.
    const STACK: u8 = 4;
    /// In the place of a register whose memory is meant: what the instruction pointer points to.
    const IP: u8 = 5;
    let plain = |modrm: u8| DIRECT.contains(&modrm) && modrm & 7 != STACK;
    Some(match (b0, b1) {
        (0xf3, 0x0f) if (b2, b3) == (0x1e, 0xfa) => 4, // endbr64
        (0x50..=0x57, _) => 1,                         // push r64
        (0x41, 0x50..=0x57) => 2,                      // push r8 to r15
        (0x40..=0x4f, 0x89 | 0x8b) if plain(b2) => 3,  // mov r, r
        (0x89 | 0x8b, m) if plain(m) => 2,             // mov r32, r32
        (0x40..=0x4f, 0x31 | 0x33 | 0x85) if plain(b2) => 3, // xor r, r; test r, r
        (0x31 | 0x33, m) if plain(m) => 2,             // xor r32, r32
        (0xb8..=0xbb | 0xbd..=0xbf, _) => 5,           // mov r32, imm32
        (0x41, 0xb8..=0xbf) => 6,                      // mov r8d to r15d, imm32
        (0x83, m) if plain(m) && m >= 0xf8 => 3,       // cmp r32, imm8
        (0x8b, m) if m >> 6 == 0 && !matches!(m & 7, STACK | IP) => 2, // mov r32, [r64]
        (0x8b, m) if m >> 6 == 2 && m & 7 != STACK => 6, // mov r32, [r64+disp32]
        (0xf6, m) if m >> 3 == 8 && m & 7 != STACK => 4, // test byte [r64+disp8], imm8
        (0x48, 0x83) if b2 == 0xec => 4,               // sub rsp, imm8
        (0x48, 0x81) if b2 == 0xec => 7,               // sub rsp, imm32
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prologue(code: &[u8]) -> Option<Prologue> {
        let mut window = [0xcc; WINDOW];
        window[..code.len()].copy_from_slice(code);
        movable(&window, 5)
    }

    fn moved(code: &[u8]) -> Option<usize> {
        prologue(code).filter(|p| p.branch.is_none()).map(|p| p.len)
    }

    #[test]
    fn prologues_of_compilers_are_cut_at_whole_instructions() {
        // push r15; push r14; push r13; push r12
        assert_eq!(
            moved(&[0x41, 0x57, 0x41, 0x56, 0x41, 0x55, 0x41, 0x54]),
            Some(6)
        );
        // push r13; mov r13d, esi; push r12
        assert_eq!(moved(&[0x41, 0x55, 0x41, 0x89, 0xf5, 0x41, 0x54]), Some(5));
        // endbr64; push rbp; mov rbp, rsp
        assert_eq!(
            moved(&[0xf3, 0x0f, 0x1e, 0xfa, 0x55, 0x48, 0x89, 0xe5]),
            Some(5)
        );
        // push rbx; sub rsp, 0x118
        assert_eq!(moved(&[0x53, 0x48, 0x81, 0xec, 0x18, 1, 0, 0]), Some(8));
        // mov ecx, 7
        assert_eq!(moved(&[0xb9, 7, 0, 0, 0, 0x41, 0x56]), Some(5));
        // mov eax, [rdi+0x2d0]; test eax, eax
        assert_eq!(moved(&[0x8b, 0x87, 0xd0, 2, 0, 0, 0x85, 0xc0]), Some(6));
        // mov rcx, rdx; mov r8d, 1
        assert_eq!(moved(&[0x48, 0x89, 0xd1, 0x41, 0xb8, 1, 0, 0, 0]), Some(9));
        // push rbp; xor eax, eax; sub rsp, 8
        assert_eq!(moved(&[0x55, 0x31, 0xc0, 0x48, 0x83, 0xec, 8]), Some(7));
        // push r12; push rbp; push rbx; mov eax, [rdi]
        assert_eq!(moved(&[0x41, 0x54, 0x55, 0x53, 0x8b, 0x07]), Some(6));
        // mov edx, [rdi]; test byte [rdi+0x74], 0x80
        assert_eq!(moved(&[0x8b, 0x17, 0xf6, 0x47, 0x74, 0x80]), Some(6));
    }

    #[test]
    fn a_jump_that_leaves_early_may_be_the_last() {
        let leaves = |len, condition, distance| {
            let branch = Branch {
                len,
                condition,
                distance,
            };
            let branch = Some(branch);
            Some(Prologue { len: 3, branch })
        };
        // test rdi, rdi; je
        assert_eq!(
            prologue(&[0x48, 0x85, 0xff, 0x74, 0x79]),
            leaves(2, 4, 0x79)
        );
        let far = [0x48, 0x85, 0xff, 0x0f, 0x84, 0xb0, 1, 0, 0];
        assert_eq!(prologue(&far), leaves(6, 4, 0x1b0));
        // cmp edi, -1; jne
        assert_eq!(
            prologue(&[0x83, 0xff, 0xff, 0x75, 0x10]),
            leaves(2, 5, 0x10)
        );
        // test rdi, rdi; je, backwards
        assert_eq!(prologue(&[0x48, 0x85, 0xff, 0x74, 0xf0]), None);
        // xor eax, eax; je: a jump back may lead to what is overwritten behind it
        assert_eq!(prologue(&[0x31, 0xc0, 0x74, 0x10, 0x90, 0x90]), None);
    }

    #[test]
    fn what_depends_on_its_place_or_is_unknown_is_refused() {
        for code in [
            &[0x55, 0x48, 0x8d, 0x05, 1, 2, 3, 4][..], // lea rax, [rip+..]
            &[0x48, 0x8b, 0x05, 1, 2, 3, 4],           // mov rax, [rip+..]
            &[0x8b, 0x05, 1, 2, 3, 4],                 // mov eax, [rip+..]
            &[0x55, 0xe8, 1, 2, 3, 4],                 // call
            &[0x53, 0xeb, 0x10, 0x90, 0x90],           // jmp short
            &[0x31, 0xc0, 0x74, 0x10, 0x90, 0x90],     // jz
            &[0xe9, 1, 2, 3, 4],                       // jmp
            &[0x41, 0x57, 0xc3, 0x90, 0x90],           // ret
            &[0x80, 0x3d, 1, 2, 3, 4, 0],              // cmp byte [rip+..], 0
            &[0x48, 0x89, 0xec, 0x55, 0x55],           // mov rsp, rbp
            &[],
        ] {
            assert_eq!(moved(code), None, "{code:02x?}");
        }
    }

    #[test]
    fn an_instruction_that_the_window_cuts_is_refused() {
        let mut window = [0x55; WINDOW];
        window[WINDOW - 7..].copy_from_slice(&[0x48, 0x81, 0xec, 0, 1, 0, 0]);
        let (len, branch) = (WINDOW, None);
        assert_eq!(movable(&window, WINDOW), Some(Prologue { len, branch }));
        assert_eq!(movable(&[0x55; WINDOW], WINDOW), None);
    }
}
