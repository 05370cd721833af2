//! Streams of several threads.

use std::convert::Infallible;

use proptest::prelude::*;

use super::tape::*;
use crate::fold::{Fed, FeedError, FoldError, Kind};
use crate::record::{self, kind};

const THREAD: u64 = 0x1_0f00;

/// Main accepts and hands over, two workers serve and close; three connections get the same number, the second of them
/// after one worker has closed it and for the other. As it happened, without times.
fn memcached() -> Vec<Event> {
    let accept = |port: u16, version| {
        let peer = inet([10, 0, 0, 9], port);
        Event::call("accept4", &[3, 0, 0, 0x800], 7, &[&LEN16, &peer, &LEN16]).version(version)
    };
    let watch = |data| Event::call("epoll_ctl", &[4, 1, 7], 0, &[&event(1, data)]);
    let delivered = |data| Event::call("epoll_wait", &[4], 1, &[&event(1, data)]);
    let make = |tid, stream| Event::clone("clone", tid, stream, THREAD);
    vec![
        Event::call("socket", &[2, 1, 0], 3, &[]).version(1),
        Event::call("bind", &[3, 0, 16], 0, &[&inet([0; 4], 11211)]),
        Event::call("listen", &[3, 64], 0, &[]),
        Event::call("epoll_create1", &[0], 4, &[]).version(2),
        make(2, 2).intended(),
        make(2, 2),
        make(3, 3).intended(),
        Event::other(kind::BIRTH, 1, 3).on(3),
        make(3, 3),
        Event::other(kind::BIRTH, 1, 2).on(2),
        accept(1000, 3),
        watch(70).on(2),
        delivered(70).on(2),
        Event::call("read", &[7], 10, &[&[0; 10]]).on(2),
        Event::other(kind::OUTPUT, 7, 11).on(2),
        Event::call("close", &[7], 0, &[]).version(4).on(2),
        accept(2000, 5),
        watch(71).on(3),
        delivered(71).on(3),
        Event::call("read", &[7], 20, &[&[0; 20]]).on(3),
        Event::other(kind::OUTPUT, 7, 22).on(3),
        Event::call("close", &[7], 0, &[]).version(6).on(3),
        accept(3000, 7),
        watch(72).on(3),
        Event::call("read", &[7], 30, &[&[0; 30]]).on(2),
    ]
}

proptest! {
    #[test]
    fn streams_are_woven_by_time(order in Just(vec![1, 2, 3]).prop_shuffle(), piece in 1..300usize, cut in 0..25usize) {
        let mut merge = container();
        let all = memcached();
        // Two times, as at a checkpoint and behind it.
        let mut time = Times::default();
        for events in [&all[..cut], &all[cut..]] {
            let mut streams = time.streams(events);
            let fed = merge.feed_by_time(order.clone(), |stream, out| {
                let left = streams.entry(stream).or_default();
                let n = left.len().min(piece);
                out.extend(left.drain(..n));
                Ok::<_, Infallible>(n)
            });
            let records = events.len() as u64;
            prop_assert_eq!(fed.unwrap(), Fed { records, cut_short: vec![] });
        }
        prop_assert_eq!(merge.remains(), vec![]);
        let counts: Vec<_> = merge.fold().orphans().iter().map(|o| (o.close, o.socket.read, o.socket.written)).collect();
        prop_assert_eq!(counts, vec![(1, 10, 11), (2, 20, 22)]);
        prop_assert_eq!(socket(&merge, 1, 7).read, 30);
        prop_assert_eq!(socket(&merge, 1, 7).peer.clone(), inet([10, 0, 0, 9], 3000));
        let Kind::Epoll(interests) = &description(&merge, 1, 4).kind else { panic!() };
        let watched: Vec<_> = interests.iter().map(|((fd, _), interest)| (*fd, interest.data)).collect();
        prop_assert_eq!(watched, vec![(7, 72)]);
        prop_assert_eq!(merge.fold().strays(), 0);
    }
}

#[test]
fn where_a_stream_is_damaged_is_told() {
    let feed = |bytes: Vec<u8>| {
        let mut left = Some(bytes);
        container().feed_by_time([1], |_, out| {
            let bytes = left.take().unwrap_or_default();
            out.extend_from_slice(&bytes);
            Ok::<_, Infallible>(bytes.len())
        })
    };
    let events = [
        Event::call("dup", &[1], 3, &[]),
        Event::call("dup", &[1], 4, &[]),
    ];
    let whole = Times::default().streams(&events).remove(&1).unwrap();
    let cut_short = whole[..whole.len() - 1].to_vec();
    let fed = feed(cut_short).unwrap();
    assert_eq!((fed.records, fed.cut_short), (1, vec![1]));
    let mut damaged = whole.clone();
    let second = whole.len() / 2;
    damaged[second + record::PAYLOAD_LEN_AT..][..4].fill(0xff);
    let offset = second as u64;
    assert!(
        matches!(feed(damaged), Err(FeedError::Damaged { stream: 1, offset: o }) if o == offset)
    );
}

/// The maker's log may have been lost.
#[test]
fn a_thread_that_nobody_has_made_waits_in_vain() {
    let mut streams = Times::default().streams(&[Event::other(kind::BIRTH, 1, 9).on(2)]);
    let mut merge = container();
    let fed = merge.feed_by_time([2], |stream, out| {
        let bytes = streams.remove(&stream).unwrap_or_default();
        out.extend_from_slice(&bytes);
        Ok::<_, Infallible>(bytes.len())
    });
    assert_eq!((fed.unwrap().records, merge.remains().len()), (1, 1));
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
