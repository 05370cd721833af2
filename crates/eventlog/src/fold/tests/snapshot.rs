//! Snapshots: folding on from one gives what folding everything gives.

use proptest::prelude::*;

use super::tape::*;
use crate::fold::{Merge, SnapshotError};
use crate::record::kind;

/// Some call on some small descriptors: not always one that the kernel could have answered so.
fn any_event() -> impl Strategy<Value = Event> {
    (0..30usize, 0..12u64, 0..12u64, 1..4u32, 0..6u64).prop_map(|(which, a, b, stream, version)| {
        let (fd, small) = (b as i64, [a as u8; 12]);
        let long = |n: usize| vec![b as u8; n];
        let event = match which {
            0 => Event::call("openat", &[a, 0, b], fd, &[b"some/file\0"]).version(version),
            1 => Event::call("socket", &[2 - (a & 1), 1, 0], fd, &[]).version(version),
            2 => Event::call("bind", &[a], 0, &[&inet([0; 4], 80)]),
            3 => Event::call("listen", &[a, b], 0, &[]),
            4 | 5 => Event::call(
                "accept4",
                &[a, 0, 0, 0x800],
                fd,
                &[&LEN16, &inet([1; 4], b as u16), &LEN16],
            )
            .version(version),
            6 | 7 => Event::call("close", &[a], 0, &[]).version(version),
            8 => Event::call("dup2", &[a, b], fd, &[]).version(version),
            9 => Event::call("pipe2", &[0, 0x800], 0, &[&pair(a as u32, b as u32 + 3)]),
            10 => Event::call("write", &[a], fd, &[]).data(&long(b as usize)),
            11 => Event::call("write", &[a], 0, &[])
                .data(&long(b as usize))
                .intended(),
            12 => Event::call("read", &[a], fd, &[&long(b as usize)]),
            13 => Event::other(kind::OUTPUT, a as u32, fd),
            14 => Event::call("epoll_create1", &[0], fd, &[]).version(version),
            15 | 16 => Event::call("epoll_ctl", &[a, 1 + b % 3, b], 0, &[&small]),
            17 => Event::call("epoll_wait", &[a], 1, &[&small]),
            18 => Event::call(
                "socketpair",
                &[1, 1 + (a & 1), 0],
                0,
                &[&pair(a as u32, b as u32)],
            ),
            19 => Event::call("connect", &[a], 0, &[&[&[1, 0][..], b"/run/x\0"].concat()]),
            20 => Event::clone("fork", 20 + fd, 2 + (a as u32 & 1), 0x100 * (a >> 3)),
            21 => Event::other(kind::BIRTH, 0, 20 + fd),
            22 => Event::other(kind::EXIT, b as u32 & 1, fd),
            23 => Event::call("setsockopt", &[a, 1, b], 0, &[&small]),
            24 => Event::call("eventfd2", &[a, 0], fd, &[]),
            25 => Event::call("inotify_init1", &[0], fd, &[]),
            26 => Event::call("inotify_add_watch", &[a, 0, 1], fd, &[b"/tmp\0"]),
            27 => Event::call("setitimer", &[a], 0, &[&long(32), &[]]),
            28 => Event::clone("clone3", 20 + fd, 2 + (a as u32 & 1), 0x1_0f00),
            _ => Event::call("wait4", &[0], 20 + fd, &[&[0; 4], &[]]),
        };
        event.on(stream)
    })
}

fn whole(events: &[Event]) -> Merge {
    let mut merge = container();
    feed(&mut merge, events);
    merge
}

fn feed(merge: &mut Merge, events: &[Event]) {
    for event in events {
        // Whatever is refused is refused in both runs.
        let _ = event.feed(merge);
    }
}

proptest! {
    #[test]
    fn halves_give_the_whole(events in proptest::collection::vec(any_event(), 0..120), cut in 0..120usize) {
        let (before, after) = events.split_at(cut.min(events.len()));
        let mut halves = Merge::restore(&whole(before).snapshot().unwrap()).unwrap();
        feed(&mut halves, after);
        let mut once = whole(&events);
        prop_assert_eq!(halves.fold().describe(), once.fold().describe());
        prop_assert_eq!(halves.snapshot().unwrap(), once.snapshot().unwrap());
        prop_assert_eq!(halves, once);
    }

    #[test]
    fn references_are_balanced(events in proptest::collection::vec(any_event(), 0..120)) {
        let merge = whole(&events);
        let mut ids: Vec<u64> = merge.fold().processes().iter().filter(|(_, process)| process.ended.is_none())
            .flat_map(|(pid, _)| merge.fold().table(*pid).unwrap().entries.values().map(|entry| entry.description)).collect();
        ids.sort_unstable();
        for (id, description) in merge.fold().descriptions() {
            let references = ids.iter().filter(|other| *other == id).count();
            prop_assert_eq!(description.references as usize, references, "{}", merge.fold().describe());
        }
        prop_assert!(ids.iter().all(|id| merge.fold().descriptions().contains_key(id)));
    }

    #[test]
    fn damaged_snapshots_never_panic(events in proptest::collection::vec(any_event(), 0..40), at: prop::sample::Index, bit in 0..8u8) {
        let mut bytes = whole(&events).snapshot().unwrap();
        let i = at.index(bytes.len());
        prop_assert!(Merge::restore(&bytes[..i]).is_err());
        bytes[i] ^= 1 << bit;
        if let Ok(mut merge) = Merge::restore(&bytes) {
            feed(&mut merge, &events);
            let _ = merge.fold().describe();
        }
    }
}

#[test]
fn a_snapshot_says_what_is_wrong_with_it() {
    let bytes = container().snapshot().unwrap();
    assert!(matches!(
        Merge::restore(b"not one at all"),
        Err(SnapshotError::Magic { .. })
    ));
    assert!(matches!(
        Merge::restore(&bytes[..bytes.len() - 1]),
        Err(SnapshotError::Truncated { .. })
    ));
    let twice = [&bytes[..], &bytes[8..]].concat();
    assert!(matches!(
        Merge::restore(&twice),
        Err(SnapshotError::Sections { .. })
    ));
}
