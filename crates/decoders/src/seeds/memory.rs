//! Images and snapshots.

use std::borrow::Cow;

use eventlog::fold::Merge;
use eventlog::handover::{ConnectionCut, GuestState, ThreadState, section};
use eventlog::image::{
    Backing, Dead, Image, Kin, Mapping, NamedMemory, PAGE, Process, Run, Span, Thread, encode,
};
use eventlog::{codec, record};

use super::wire;
use crate::calls;

/// The state after each record of the life, and of the empty container.
pub(crate) fn snapshots() -> Vec<Vec<u8>> {
    let mut merge = Merge::new();
    // The first introduction makes the first process.
    let _ = merge.introduce(1, 1, 1);
    let mut seeds = vec![merge.snapshot()];
    for (stream, bytes) in calls::life() {
        if let Ok((record, _)) = record::decode(&bytes) {
            // A record that is refused leaves a state like any other.
            let _ = merge.feed(u32::from(stream), &record);
            seeds.push(merge.snapshot());
        }
    }
    seeds.into_iter().flatten().collect()
}

/// A full image with the sections of a hand-over, and a difference.
pub(crate) fn images() -> Vec<Vec<u8>> {
    let full = Image {
        sequence: 1,
        base: 0,
        process: process(),
        threads: vec![thread(17, 2691), thread(18, 0)],
        mappings: Some(vec![
            mapping(0x10000, "/lib/x.so", Backing::File),
            mapping(0x20000, "", Backing::SharedMemory),
            mapping(0x30000, "[vdso]", Backing::Anonymous),
        ]),
        runs: vec![Run {
            start: 0x10000,
            pages: 1,
        }],
        pieces: vec![Cow::Owned(vec![5; PAGE as usize])],
        vdso: Cow::Owned(vec![0xcc; 100]),
        opaque: opaque(),
        dead: vec![Dead {
            pid: 19,
            status: 9,
            kin: process().kin,
        }],
        names: vec![NamedMemory {
            name: "sem.x".to_owned(),
            inode: 7,
            len: 32,
            contents: vec![1; 32],
            ..NamedMemory::default()
        }],
        ..Image::default()
    };
    let difference = Image {
        sequence: 2,
        base: 1,
        process: process(),
        threads: vec![thread(17, 512)],
        dropped: vec![Span {
            start: 0x30000,
            end: 0x40000,
        }],
        ..Image::default()
    };
    let bare = Image {
        runs: Vec::new(),
        pieces: Vec::new(),
        threads: vec![thread(17, 0)],
        ..full.clone()
    };
    let both = [encode(&full), encode(&bare)].concat();
    vec![encode(&full), encode(&bare), encode(&difference), both]
}

/// The sections of a hand-over.
fn opaque() -> Vec<(u32, Cow<'static, [u8]>)> {
    let guest = GuestState {
        next_stream: 3,
        threads: vec![ThreadState {
            stream: 1,
            tid: 1,
            pid: 1,
            ..ThreadState::default()
        }],
        connections: vec![ConnectionCut::default()],
        ..GuestState::default()
    };
    let output = [&4u32.to_le_bytes()[..], &3u32.to_le_bytes(), b"out"].concat();
    let fold = snapshots().pop().unwrap_or_default();
    vec![
        (section::FOLD, Cow::Owned(fold)),
        (
            section::GUEST,
            Cow::Owned(codec::encode(&guest).unwrap_or_default()),
        ),
        (section::OUTPUT, Cow::Owned(output)),
        (section::HANDSHAKES, Cow::Owned(wire::own_stream())),
    ]
}

fn process() -> Process {
    Process {
        pid: 17,
        kin: Kin {
            parent: 1,
            group: 17,
            session: 1,
            birth: 99,
        },
        umask: 0o22,
        auxv: vec![3; 40],
        exe: "/usr/bin/redis-server".into(),
        cwd: "/".into(),
        pending: vec![[9; 128]],
        ..Process::default()
    }
}

fn thread(tid: u32, xstate: usize) -> Thread {
    Thread {
        tid,
        name: *b"worker\0\0\0\0\0\0\0\0\0\0",
        xstate: vec![7; xstate],
        pending: vec![[1; 128]],
        ..Thread::default()
    }
}

fn mapping(start: u64, path: &str, backing: Backing) -> Mapping {
    Mapping {
        start,
        end: start + 3 * PAGE,
        protection: 5,
        backing,
        path: path.into(),
        ..Mapping::default()
    }
}
