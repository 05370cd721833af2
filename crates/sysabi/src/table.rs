//! The rows, by subject, and the one array that holds them at their numbers.
//!
//! Source: `arch/x86/entry/syscalls/syscall_64.tbl` of Linux 6.18 and the calls' manual pages. Numbers
//! that the kernel does not use keep an empty name and are refused.

mod files;
mod ipc;
mod kernel;
mod memory;
mod network;
mod paths;
mod process;
mod signals;
mod time;
mod wait;

use crate::{Arg, Class, Syscall};

/// One more than the highest number of Linux 6.18 (`file_setattr`).
pub const COUNT: usize = 470;
/// Numbers in use: 0 to 336 and 424 to 469.
pub const NAMED: usize = 337 + 46;

/// Every call at its number.
pub static TABLE: [Syscall; COUNT] = assemble(&[
    files::ROWS,
    paths::ROWS,
    network::ROWS,
    wait::ROWS,
    memory::ROWS,
    process::ROWS,
    signals::ROWS,
    time::ROWS,
    ipc::ROWS,
    kernel::ROWS,
]);

/// The most frequent shape of an argument: a path.
const PATH: Arg = Arg::In(crate::Len::CStr);

/// A row that keeps neither arguments nor input.
const fn row(nr: u16, name: &'static str, class: Class, args: &[Arg]) -> Syscall {
    let mut all = [Arg::None; 6];
    let mut i = 0;
    while i < args.len() {
        all[i] = args[i];
        i += 1;
    }
    Syscall {
        nr,
        name,
        class,
        args: all,
        capture: false,
    }
}

/// A row whose records keep arguments and input, for the fold.
const fn captured(nr: u16, name: &'static str, class: Class, args: &[Arg]) -> Syscall {
    Syscall {
        capture: true,
        ..row(nr, name, class, args)
    }
}

/// A call that is answered with ENOSYS.
const fn refused(nr: u16, name: &'static str) -> Syscall {
    row(nr, name, Class::Refused, &[])
}

/// Puts each row at its number; a number used twice or left out does not compile.
const fn assemble(groups: &[&[Syscall]]) -> [Syscall; COUNT] {
    let mut table = [refused(0, ""); COUNT];
    let mut nr = 0;
    while nr < COUNT {
        table[nr].nr = nr as u16;
        nr += 1;
    }
    let mut named = 0;
    let mut g = 0;
    while g < groups.len() {
        let mut i = 0;
        while i < groups[g].len() {
            let new = groups[g][i];
            assert!(
                table[new.nr as usize].name.is_empty(),
                "a number has two rows"
            );
            table[new.nr as usize] = new;
            named += 1;
            i += 1;
        }
        g += 1;
    }
    assert!(named == NAMED, "a call of the kernel has no row");
    table
}

const _: () = {
    let mut nr = 0;
    while nr < COUNT {
        assert!(TABLE[nr].nr as usize == nr);
        assert!(TABLE[nr].name.is_empty() == (nr > 336 && nr < 424));
        nr += 1;
    }
};
