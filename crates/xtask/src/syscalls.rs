//! `docs/SYSCALLS.md`, generated from the system-call table.

use std::fmt::Write as _;

use sysabi::{Arg, Class, Len, Object, Syscall, TABLE};

/// The text of `docs/SYSCALLS.md`.
pub(crate) fn markdown() -> String {
    let mut text = String::from(INTRODUCTION);
    text.push_str("\n## How many of which class\n\n| class | calls |\n|---|---|\n");
    let calls = || TABLE.iter().filter(|row| !row.name.is_empty());
    for name in [
        "fed",
        "suppressed",
        "ordered",
        "executed",
        "unlogged",
        "filtered",
        "refused",
    ] {
        let count = calls().filter(|row| family(row.class) == name).count();
        let _ = writeln!(text, "| {name} | {count} |");
    }
    text.push_str("\n## The calls\n\n| number | name | class | arguments | kept | orders |\n|---|---|---|---|---|---|\n");
    for row in calls() {
        let kept = if row.capture { "arguments, input" } else { "" };
        let orders = row.object().map_or("", object);
        let (class, args) = (class(row.class), arguments(row));
        let _ = writeln!(
            text,
            "| {} | {} | {class} | {args} | {kept} | {orders} |",
            row.nr, row.name
        );
    }
    text.push_str("\n## Notes\n");
    let mut told: Vec<&str> = Vec::new();
    for note in calls().filter_map(|row| sysabi::note(row.nr)) {
        if told.contains(&note) {
            continue;
        }
        told.push(note);
        let names: Vec<_> = calls()
            .filter(|row| sysabi::note(row.nr) == Some(note))
            .map(|row| row.name)
            .collect();
        let _ = writeln!(text, "\n**{}**: {note}", names.join(", "));
    }
    text
}

const INTRODUCTION: &str = "\
# System calls

Generated from `crates/sysabi` by `cargo xtask syscalls`; edit the table, not this page. It describes every \
x86-64 system call of Linux 6.18. Numbers without a row are refused.

* **fed**: recorded with result and filled buffers; replay does not execute it, both come from the log.
* **suppressed**: output; recorded with result and a hash of the bytes; replay does not execute it and compares.
* **ordered** by an object that threads share: executed on both sides, in the recorded order of that object.
* **executed** on both sides; the application gets the logged result.
* **unlogged**: executed on both sides, leaves no record.
* **filtered**: the guest has code of its own, see the notes.
* **refused**: answered with ENOSYS and named once on standard error.

Arguments: *int* is hashed and compared in replay, *fd* is a descriptor, *addr* a pointer that is not followed, \
*in* a buffer that is read, *out* one that is filled, *inout* both, with its length in bytes (*argN* is the value \
of the N-th argument, counted from 0). *kept*: a record of a call that worked begins with its arguments and the \
buffers it read. *orders*: the object whose version a record carries if the call changed it.
";

/// The class without its object.
const fn family(class: Class) -> &'static str {
    match class {
        Class::Fed => "fed",
        Class::Suppressed => "suppressed",
        Class::Ordered(_) => "ordered",
        Class::Executed => "executed",
        Class::Unlogged => "unlogged",
        Class::Filtered => "filtered",
        Class::Refused => "refused",
    }
}

fn class(class: Class) -> String {
    match class {
        Class::Ordered(by) => format!("ordered by {}", object(by)),
        other => family(other).to_owned(),
    }
}

const fn object(object: Object) -> &'static str {
    match object {
        Object::Memory => "memory map",
        Object::Descriptors => "descriptors",
        Object::Signals => "signals",
        Object::Pids => "process numbers",
    }
}

fn arguments(row: &Syscall) -> String {
    let args: Vec<_> = row.args[..row.arity()]
        .iter()
        .map(|arg| argument(*arg))
        .collect();
    args.join(", ")
}

fn argument(arg: Arg) -> String {
    match arg {
        Arg::None => "-".to_owned(),
        Arg::Int => "int".to_owned(),
        Arg::Fd => "fd".to_owned(),
        Arg::Addr => "addr".to_owned(),
        Arg::In(Len::CStr) => "string".to_owned(),
        Arg::In(len) => format!("in {}", length(len)),
        Arg::Out(len) => format!("out {}", length(len)),
        Arg::InOut(len) => format!("inout {}", length(len)),
        Arg::InVec => "in iovec".to_owned(),
        Arg::OutVec => "out iovec".to_owned(),
        Arg::InMsg => "in msghdr".to_owned(),
        Arg::OutMsg => "out msghdr".to_owned(),
    }
}

fn length(len: Len) -> String {
    match len {
        Len::Fixed(bytes) => bytes.to_string(),
        Len::Arg(i) => format!("arg{i}"),
        Len::ArgTimes(i, unit) => format!("arg{i}×{unit}"),
        Len::ArgBits(i) => format!("arg{i} bits"),
        Len::ArgPages(i) => format!("pages of arg{i}"),
        Len::Result => "result".to_owned(),
        Len::ResultUpTo(i) => format!("result ≤ arg{i}"),
        Len::ResultTimes(unit) => format!("result×{unit}"),
        Len::Pointee(i) => format!("\\*arg{i}"),
        Len::CStr => "string".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_has_its_line() {
        let text = markdown();
        for row in TABLE.iter().filter(|row| !row.name.is_empty()) {
            assert!(
                text.contains(&format!("| {} | {} |", row.nr, row.name)),
                "{}",
                row.name
            );
        }
        assert!(text.contains("| 3 | close | filtered | fd |  | descriptors |"));
    }
}
