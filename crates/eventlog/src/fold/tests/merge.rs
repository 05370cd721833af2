//! Streams of several threads, in whatever order they arrive.

use proptest::prelude::*;

use super::tape::*;
use crate::fold::{FoldError, Merge};
use crate::record::kind;

const THREAD: u64 = 0x1_0f00;

/// A main thread that accepts and hands over, and a worker that serves and closes, for two connections that
/// get the same number; versions as the guest stamps them.
fn memcached() -> [Vec<Event>; 2] {
    let accept = |port: u16, version| {
        let peer = inet([10, 0, 0, 9], port);
        Event::call("accept4", &[3, 0, 0, 0x800], 7, &[&LEN16, &peer, &LEN16]).version(version)
    };
    let main = vec![
        Event::call("socket", &[2, 1, 0], 3, &[]).version(1),
        Event::call("bind", &[3, 0, 16], 0, &[&inet([0; 4], 11211)]),
        Event::call("listen", &[3, 64], 0, &[]),
        Event::call("epoll_create1", &[0], 4, &[]).version(2),
        Event::clone("clone", 2, 2, THREAD),
        accept(1000, 3),
        accept(2000, 5),
        Event::call("close", &[7], 0, &[]).version(6),
        accept(3000, 7),
    ];
    let worker = vec![
        Event::other(kind::BIRTH, 1, 2),
        Event::call("epoll_ctl", &[4, 1, 7], 0, &[&event(1, 70)]).version(3),
        Event::call("epoll_wait", &[4], 1, &[&event(1, 70)]).version(3),
        Event::call("read", &[7], 10, &[&[0; 10]]),
        Event::other(kind::OUTPUT, 7, 11),
        Event::call("close", &[7], 0, &[]).version(4),
        Event::call("epoll_ctl", &[4, 1, 7], 0, &[&event(1, 71)]).version(5),
        Event::call("epoll_wait", &[4], 1, &[&event(1, 71)]).version(5),
        Event::call("read", &[7], 20, &[&[0; 20]]),
        Event::other(kind::OUTPUT, 7, 22),
    ];
    [main, worker.into_iter().map(|event| event.on(2)).collect()]
}

fn fed(order: &[bool]) -> Merge {
    let [main, worker] = memcached();
    let (mut main, mut worker) = (main.into_iter(), worker.into_iter());
    let mut merge = container();
    for first in order {
        let next = if *first { main.next() } else { worker.next() };
        play(&mut merge, next);
    }
    play(&mut merge, main.chain(worker));
    merge
}

proptest! {
    #[test]
    fn every_interleaving_counts_alike(order in proptest::collection::vec(any::<bool>(), 0..20)) {
        let merge = fed(&order);
        prop_assert_eq!(merge.remains(), vec![]);
        let counts: Vec<_> = merge.fold().orphans().iter().map(|o| (o.close, o.socket.read, o.socket.written)).collect();
        prop_assert_eq!(counts, vec![(1, 10, 11), (2, 20, 22)]);
        prop_assert_eq!(socket(&merge, 1, 7).read, 0);
        prop_assert_eq!(socket(&merge, 1, 7).peer.clone(), inet([10, 0, 0, 9], 3000));
        prop_assert_eq!(merge.fold().strays(), 0);
    }
}

#[test]
fn a_record_waits_for_the_version_before_it() {
    let mut merge = container();
    play(
        &mut merge,
        [
            Event::clone("clone", 2, 2, THREAD),
            Event::call("dup", &[1], 3, &[]).version(1),
            Event::other(kind::BIRTH, 1, 2).on(2),
            Event::call("close", &[4], 0, &[]).version(3).on(2),
            Event::call("dup", &[0], 5, &[]).version(4).on(2),
        ],
    );
    assert!(!is_open(&merge, 1, 5));
    let remains = merge.remains();
    assert_eq!(
        (
            remains[0].stream,
            remains[0].records,
            remains[0].kind,
            remains[0].version
        ),
        (2, 2, 3, 3)
    );
    play(&mut merge, [Event::call("dup", &[1], 4, &[]).version(2)]);
    assert!(!is_open(&merge, 1, 4) && is_open(&merge, 1, 5) && merge.remains().is_empty());
    play(
        &mut merge,
        [Event::call("close", &[5], 0, &[]).version(6).on(2)],
    );
    assert_eq!(merge.finish().len(), 1, "version 5 was never received");
    assert!(is_open(&merge, 1, 5), "so that nobody has seen 6");
}

#[test]
fn what_waits_is_bounded() {
    let mut merge = container();
    play(
        &mut merge,
        [
            Event::call("dup", &[1], 3, &[]).version(1),
            Event::call("close", &[3], 0, &[]).version(9),
        ],
    );
    let block = Event::call("read", &[0], 1 << 19, &[&vec![0; (1 << 19) - 4]]);
    let error = (0..200).find_map(|_| block.feed(&mut merge).err());
    assert!(
        matches!(error, Some(FoldError::TooMany { .. })),
        "{error:?}"
    );
}

#[test]
fn nonsense_is_refused_by_name() {
    let mut merge = container();
    let refused = |event: Event| event.feed(&mut merge.clone()).unwrap_err().to_string();
    let mut short = Event::call("socket", &[2, 1, 0], 3, &[]);
    short.payload.truncate(20);
    assert_eq!(
        refused(short),
        "record 1 of stream 1 is malformed: payload of call 41 cut short, 4 bytes missing"
    );
    let mut bare = Event::call("socket", &[2, 1, 0], 3, &[]);
    bare.payload.clear();
    assert_eq!(
        refused(bare),
        "record 1 of stream 1 has no arguments, which call 41 needs"
    );
    assert_eq!(
        refused(Event::other(400, 0, 0)),
        "record 1 of stream 1 names call 400, which does not exist"
    );
    assert_eq!(
        refused(Event::other(kind::EXEC, 0, 0).on(8)),
        "stream 8 belongs to no known thread"
    );
    play(&mut merge, [Event::call("close", &[99], 0, &[])]);
    assert_eq!(merge.fold().strays(), 1);
}
