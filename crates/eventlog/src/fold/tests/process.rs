//! Threads, fork, vfork, exec, exit, and what belongs to a process.

use super::tape::*;
use crate::fold::{Action, Merge};
use crate::record::kind;

/// clone flags of pthread_create: VM, FS, FILES, SIGHAND, THREAD.
const THREAD: u64 = 0x100 | 0x200 | 0x400 | 0x800 | 0x1_0000;

fn sigaction(handler: u64) -> Vec<u8> {
    [handler, 0x0400_0000, 0x1000, 0]
        .iter()
        .flat_map(|field| field.to_le_bytes())
        .collect()
}

#[test]
fn fork_copies_and_exec_closes() {
    let mut merge = container();
    play(
        &mut merge,
        [
            Event::call("pipe2", &[0, 0x80000], 0, &[&pair(3, 4)]).version(1),
            Event::call("dup", &[4], 5, &[]).version(2),
            Event::call(
                "rt_sigaction",
                &[15, 1, 0, 8],
                0,
                &[&sigaction(0x5000), &[]],
            )
            .version(1),
            Event::call("rt_sigaction", &[13, 1, 0, 8], 0, &[&sigaction(1), &[]]).version(2),
            Event::clone("fork", 2, 2, 0),
            Event::other(kind::BIRTH, 0, 2).on(2),
            Event::call("close", &[3], 0, &[]).version(3),
            Event::call("close", &[3], 0, &[]).version(3).on(2),
            Event::call("dup2", &[5, 1], 1, &[]).version(4).on(2),
            Event::call("execve", &[0], 0, &[b"/bin/sh\0"])
                .intended()
                .on(2),
            Event::other(kind::EXEC, 0, 0).on(2),
        ],
    );
    assert!(is_open(&merge, 1, 4) && is_open(&merge, 1, 5) && !is_open(&merge, 1, 3));
    assert!(!is_open(&merge, 2, 4) && is_open(&merge, 2, 5) && is_open(&merge, 2, 1));
    let child = &merge.fold().processes()[&2];
    assert_eq!((child.parent, &child.program[..]), (1, &b"/bin/sh"[..]));
    assert_eq!(
        child.actions.keys().copied().collect::<Vec<_>>(),
        [13],
        "handlers are gone, ignored ones stay"
    );
    let action = Action {
        handler: 0x5000,
        flags: 0x0400_0000,
        restorer: 0x1000,
        mask: 0,
    };
    assert_eq!(merge.fold().processes()[&1].actions[&15], action);
    play(
        &mut merge,
        [
            Event::call("write", &[1], 3, &[])
                .data(b"out")
                .on(2)
                .version(0xabc),
            Event::call("close", &[5], 0, &[]).version(1).on(2),
            Event::other(kind::EXIT, 1, 7).on(2),
        ],
    );
    assert_eq!(merge.fold().processes()[&2].ended, Some(7));
    play(
        &mut merge,
        [Event::call("wait4", &[u64::MAX], 2, &[&[0, 7, 0, 0], &[]])],
    );
    assert!(!merge.fold().processes().contains_key(&2));
    assert_eq!(
        (merge.fold().streams().count(), merge.fold().strays()),
        (1, 0)
    );
    assert_eq!(merge.remains(), []);
}

#[test]
fn a_vfork_child_is_placed_by_the_intent() {
    let mut merge = container();
    let vfork = Event::clone("vfork", 5, 3, 0x4100);
    play(
        &mut merge,
        [
            Event::call("openat", &[0, 0, 0], 3, &[b"/x\0"]).version(1),
            Event::clone("clone3", 2, 2, THREAD),
            Event::other(kind::BIRTH, 0, 5).on(3),
            Event::call("close", &[0], 0, &[]).version(2).on(3),
        ],
    );
    assert!(
        !merge.fold().processes().contains_key(&5),
        "nobody has made it yet"
    );
    play(
        &mut merge,
        [
            vfork.clone().intended(),
            Event::call("openat", &[0, 0, 0], 9, &[b"/y\0"])
                .version(4)
                .on(3),
        ],
    );
    assert!(is_open(&merge, 1, 0) && !is_open(&merge, 5, 0) && is_open(&merge, 5, 3));
    assert_eq!(
        merge.remains().len(),
        1,
        "the parent's memory, and with it the version, is shared"
    );
    play(
        &mut merge,
        [Event::call("dup", &[3], 7, &[]).version(3).on(2)],
    );
    assert!(
        is_open(&merge, 5, 9)
            && !is_open(&merge, 1, 9)
            && is_open(&merge, 1, 7)
            && !is_open(&merge, 5, 7)
    );
    play(
        &mut merge,
        [
            Event::other(kind::EXIT, 0, 127).on(3),
            vfork,
            Event::call("close", &[3], 0, &[]).version(5),
        ],
    );
    assert_eq!(merge.fold().processes()[&5].ended, Some(127));
    assert_eq!((merge.remains(), merge.fold().strays()), (vec![], 0));
}

#[test]
fn an_image_says_what_it_inherited() {
    let mut merge = container();
    let list: Vec<u8> = [0u32, 1, 2, 5]
        .iter()
        .flat_map(|fd| fd.to_le_bytes())
        .collect();
    play(
        &mut merge,
        [
            Event::call("dup", &[0], 3, &[]).version(1),
            Event::other(kind::EXEC, 0, 0).data(&[&[7; 16][..], &list].concat()),
        ],
    );
    assert!(is_open(&merge, 1, 5) && is_open(&merge, 1, 2) && !is_open(&merge, 1, 3));
}

#[test]
fn threads_share_and_processes_end_as_a_whole() {
    let mut merge = container();
    play(
        &mut merge,
        [
            Event::clone("clone3", 2, 2, THREAD),
            Event::other(kind::BIRTH, 1, 2).on(2),
            Event::clone("clone", 3, 3, THREAD),
            Event::other(kind::BIRTH, 1, 3).on(3),
            Event::call("socket", &[2, 1, 0], 3, &[]).version(1).on(2),
            Event::call("close", &[3], 0, &[]).version(2).on(3),
            Event::other(kind::EXIT, 0, 0).on(2),
        ],
    );
    assert_eq!(merge.fold().processes()[&1].threads.len(), 2);
    assert!(!is_open(&merge, 1, 3));
    play(&mut merge, [Event::other(kind::EXIT, 1, 0).on(3)]);
    assert_eq!(merge.fold().processes()[&1].ended, Some(0));
    assert_eq!(merge.fold().streams().count(), 0);
    assert!(merge.fold().descriptions().is_empty());
}

#[test]
fn a_killed_child_ends_when_it_is_waited_for() {
    let mut merge = container();
    play(
        &mut merge,
        [
            Event::clone("fork", 2, 2, 0),
            Event::other(kind::BIRTH, 0, 2).on(2),
            Event::call("wait4", &[2], 2, &[&[0x7f, 19, 0, 0], &[]]),
        ],
    );
    assert!(merge.fold().processes().contains_key(&2), "only stopped");
    play(
        &mut merge,
        [Event::call("wait4", &[2], 2, &[&[9, 0, 0, 0], &[]])],
    );
    assert!(!merge.fold().processes().contains_key(&2));
    play(&mut merge, [Event::call("close", &[0], 0, &[]).on(2)]);
    assert_eq!(merge.fold().strays(), 1, "a late record of the dead");
}

#[test]
fn a_child_whose_end_its_parent_was_told_of_is_known() {
    let mut merge = container();
    let told = |code: u32, child: u32| {
        let mut info = [0; 128];
        for (at, word) in [(0, 17), (8, code), (16, child)] {
            info[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        Event::other(kind::SIGNAL, 0, 0).data(&info)
    };
    const STOPPED: u32 = 5;
    const KILLED: u32 = 2;
    play(
        &mut merge,
        [
            Event::clone("fork", 2, 2, 0),
            Event::clone("fork", 3, 3, 0),
            told(STOPPED, 2),
            told(KILLED, 3),
        ],
    );
    let is_told = |merge: &Merge, pid: u32| merge.fold().processes()[&pid].told;
    assert!(!is_told(&merge, 2) && is_told(&merge, 3));
    play(
        &mut merge,
        [
            Event::call("wait4", &[3], 3, &[&9u32.to_le_bytes(), &[]]),
            Event::clone("fork", 3, 4, 0),
        ],
    );
    assert!(!is_told(&merge, 3), "another of the same number");
    let mut from_descriptor = [0; 128];
    for (at, word) in [(0, 17), (8, 1), (12, 2)] {
        from_descriptor[at] = word;
    }
    let mask = [0, 0, 1, 0, 0, 0, 0, 0];
    play(
        &mut merge,
        [
            Event::call("signalfd4", &[u64::MAX, 0, 8, 0], 3, &[&mask]).version(1),
            Event::call("read", &[3], 128, &[&from_descriptor]),
        ],
    );
    assert!(is_told(&merge, 2));
}

#[test]
fn a_child_waited_for_before_its_log_arrives_is_folded_to_its_end() {
    let mut merge = container();
    play(
        &mut merge,
        [
            Event::call("openat", &[0, 0, 0], 3, &[b"/shared\0"]).version(1),
            Event::clone("fork", 2, 2, 0),
            Event::call("wait4", &[2], 2, &[&[0, 0, 0, 0], &[]]),
            Event::other(kind::BIRTH, 0, 2).on(2),
            Event::call("read", &[3], 50, &[&[0; 50]]).on(2),
            Event::other(kind::EXIT, 1, 0).on(2),
        ],
    );
    assert!(!merge.fold().processes().contains_key(&2));
    assert!(
        merge.fold().describe().contains("file \"/shared\" at 50"),
        "{}",
        merge.fold().describe()
    );
}

#[test]
fn credentials_limits_and_timers_are_kept() {
    let mut merge = container();
    let two = |one: u64, other: u64| [one.to_le_bytes(), other.to_le_bytes()].concat();
    let setting = |interval: u64, value: u64| [two(interval, 0), two(value, 0)].concat();
    play(
        &mut merge,
        [
            Event::call("setgroups", &[2], 0, &[&two(33 << 32 | 4, 0)[..8]]),
            Event::call("setgid", &[33], 0, &[]),
            Event::call("setresuid", &[u64::MAX, 33, u64::MAX], 0, &[]),
            Event::call("setrlimit", &[7], 0, &[&two(1024, 4096)]),
            Event::call("prctl", &[38, 1], 0, &[]),
            Event::call("setitimer", &[0], 0, &[&setting(0, 5), &[]]),
            Event::call("setitimer", &[2], 0, &[&setting(1, 5), &[]]),
            Event::call("timer_create", &[1], 0, &[&[0; 64], &[9, 0, 0, 0]]),
            Event::call("timer_settime", &[9, 0], 0, &[&setting(0, 3), &[]]),
            Event::call("timerfd_create", &[1, 0x80800], 3, &[]),
            Event::call("timerfd_settime", &[3, 1], 0, &[&setting(2, 3), &[]]),
        ],
    );
    let process = merge.fold().processes()[&1].clone();
    assert_eq!(process.credentials.supplementary, Some(vec![4, 33]));
    assert_eq!(
        (process.credentials.groups, process.credentials.users),
        ([Some(33); 3], [None, Some(33), None])
    );
    assert_eq!(
        (process.limits[&7], process.options[&38]),
        ((1024, 4096), 1)
    );
    assert_eq!(
        (
            process.interval_timers.len(),
            process.posix_timers[&9].armed.is_some()
        ),
        (2, true)
    );
    let expired = |signal: u32, code: u32, timer: u32| {
        let mut info = vec![0; 128];
        for (at, field) in [(0, signal), (8, code), (16, timer)] {
            info[at..at + 4].copy_from_slice(&field.to_le_bytes());
        }
        Event::other(kind::SIGNAL, 0, i64::from(signal)).data(&info)
    };
    play(
        &mut merge,
        [
            expired(14, 0x80, 0),
            expired(27, 0x80, 0),
            expired(34, -2i32 as u32, 9),
        ],
    );
    let process = &merge.fold().processes()[&1];
    assert!(
        process.interval_timers[&2].seen.is_some() && !process.interval_timers.contains_key(&0),
        "one had an interval"
    );
    assert!(process.posix_timers[&9].armed.is_none());
}
