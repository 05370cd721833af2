//! Kernels that lack something: a filter answers system calls with ENOSYS, as a kernel without them would.

use std::path::Path;
use std::process::Command;

use nix::libc;
use understudy_tests::run;

use crate::ground::Ground;

/// A call that is not there, or is not for one value of one argument.
type Lacking = (libc::c_long, Option<(u32, u64)>);

const PAGEMAP_SCAN: u64 = 0xc060_6610;
const NS_GET_TGID_FROM_PIDNS: u64 = 0x8004_b707;
const SYSCALL_USER_DISPATCH: u64 = 59;
const TCP_REPAIR: u64 = 19;
const OWN_NETWORK: u64 = libc::CLONE_NEWNET as u64;
const CONTAINER: u64 =
    (libc::CLONE_NEWNET | libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS) as u64;

/// What a kernel lacks, and the features that are missing then.
const TABLE: &[(Lacking, &[&str])] = &[
    (
        (libc::SYS_prctl, Some((0, SYSCALL_USER_DISPATCH))),
        &["syscall-user-dispatch"],
    ),
    ((libc::SYS_memfd_create, None), &["memfd"]),
    ((libc::SYS_pidfd_getfd, None), &["pidfd-getfd"]),
    ((libc::SYS_ptrace, None), &["ptrace-seize"]),
    ((libc::SYS_personality, None), &["fixed-addresses"]),
    ((libc::SYS_userfaultfd, None), &["userfaultfd-wp-async"]),
    (
        (libc::SYS_ioctl, Some((1, PAGEMAP_SCAN))),
        &["pagemap-scan"],
    ),
    ((libc::SYS_unshare, Some((0, CONTAINER))), &["namespaces"]),
    (
        (libc::SYS_unshare, Some((0, libc::CLONE_NEWTIME as u64))),
        &["time-namespace"],
    ),
    (
        (libc::SYS_ioctl, Some((1, NS_GET_TGID_FROM_PIDNS))),
        &["thread-numbers"],
    ),
    ((libc::SYS_clone3, None), &["clone3-set-tid"]),
    ((libc::SYS_mkdir, None), &["cgroup"]),
    (
        (libc::SYS_unshare, Some((0, OWN_NETWORK))),
        &["veth-bridge", "clsact"],
    ),
    (
        (libc::SYS_setsockopt, Some((2, TCP_REPAIR))),
        &["tcp-repair"],
    ),
    ((libc::SYS_bpf, None), &["bpf-classifier"]),
];

#[test]
fn each_is_named_by_doctor_and_refused_by_what_needs_it() {
    let ground = Ground::new();
    let without = compile(&ground, "without", include_str!("../programs/without.c"));
    for ((call, argument), missing) in TABLE {
        let rule = argument.map_or(format!("{call}"), |(i, value)| {
            format!("{call}:{i}={value}")
        });
        let under = |line: &str| {
            let understudy = ground.understudy("primary", line);
            // Without what leads into the host: it needs some of these calls itself.
            let words = understudy.get_args();
            let words = words.skip_while(|word| !Path::new(word).ends_with("understudy"));
            let mut command = ground.command("primary", &format!("{without} {rule} --"));
            command.args(words);
            command
        };
        let doctor = ground.ended(&mut under("doctor"));
        assert_eq!(doctor.status.code(), Some(1), "{missing:?}: {doctor:?}");
        let shown = String::from_utf8(doctor.stdout).unwrap();
        let lacks = |line: &str| {
            let mut words = line.split_whitespace();
            (words.next() == Some("missing")).then(|| words.next().unwrap().to_owned())
        };
        let named: Vec<String> = shown.lines().filter_map(lacks).collect();
        assert_eq!(named, *missing, "{shown}");
        crate::ground::assert_sentence("doctor", &doctor.stderr, &[&missing.join(", ")]);
        let run = format!("{} true", ground.run_line("--insecure"));
        ground.refused(&mut under(&run), 1, &[missing[0], "understudy doctor"]);
        let backup = format!("backup --listen {} --insecure", ground.backup_address());
        ground.refused(&mut under(&backup), 1, &[missing[0], "understudy doctor"]);
    }
}

/// Compiles a program in C; where it is.
pub(crate) fn compile(ground: &Ground, name: &str, text: &str) -> String {
    let source = ground.path(&format!("{name}.c"));
    std::fs::write(&source, text).unwrap();
    let program = ground.path(name);
    let mut gcc = Command::new("gcc");
    gcc.arg("-O1").arg("-o").arg(&program).arg(&source);
    let ended = run(&mut gcc).unwrap();
    assert!(ended.status.success(), "{}", ended.stderr);
    program.display().to_string()
}
