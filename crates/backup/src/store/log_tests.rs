use super::*;
use proptest::prelude::*;
use std::collections::HashMap;

fn cut(streams: &[(u32, u64)], next_stream: u32) -> Cut {
    Cut {
        streams: streams.to_vec(),
        next_stream,
    }
}

fn all(log: &LogStore, stream: u32, from: u64) -> Vec<u8> {
    let mut out = Vec::new();
    log.read(stream, from, usize::MAX, &mut out).unwrap();
    out
}

#[test]
fn gaps_and_repetitions_are_errors() {
    let mut log = LogStore::new(1 << 20, None);
    log.append(1, 0, b"abc").unwrap();
    assert!(matches!(
        log.append(1, 4, b"x"),
        Err(StoreError::Gap {
            stream: 1,
            expected: 3,
            found: 4
        })
    ));
    assert!(matches!(
        log.append(1, 0, b"x"),
        Err(StoreError::Gap { .. })
    ));
    log.append(2, u64::MAX - 1, b"").unwrap();
    assert!(matches!(
        log.append(2, u64::MAX - 1, b"xyz"),
        Err(StoreError::Overflow { stream: 2 })
    ));
    assert!(matches!(
        log.read(1, 9, 1, &mut Vec::new()),
        Err(StoreError::Absent {
            wanted: 9,
            end: 3,
            ..
        })
    ));
}

#[test]
fn what_lay_before_the_last_drain_but_one_is_settled() {
    let mut log = LogStore::new(1 << 20, None);
    let settled = |log: &LogStore| log.streams().map(|r| r.settled).collect::<Vec<_>>();
    log.append(1, 0, b"abc").unwrap();
    log.mark_drain();
    assert_eq!(settled(&log), [0]);
    log.append(1, 3, b"de").unwrap();
    log.append(2, 0, b"x").unwrap();
    log.mark_drain();
    assert_eq!(settled(&log), [3, 0]);
    log.append(1, 5, b"f").unwrap();
    assert_eq!(settled(&log), [3, 0]);
    log.mark_drain();
    assert_eq!(settled(&log), [5, 1]);
}

#[test]
fn what_comes_behind_a_drain_is_not_replayed_before_the_next() {
    let mut log = LogStore::new(1 << 20, None);
    let drained = |log: &LogStore| log.streams().map(|r| r.drained).collect::<Vec<_>>();
    log.append(1, 0, b"abc").unwrap();
    assert_eq!(drained(&log), [0]);
    log.mark_drain();
    log.append(1, 3, b"de").unwrap();
    log.append(2, 0, b"x").unwrap();
    assert_eq!(drained(&log), [3, 0]);
    log.drop_before(&cut(&[(1, 4), (2, 0)], 3));
    assert_eq!(drained(&log), [4, 0], "an image is a cut, too");
    log.mark_drain();
    assert_eq!(drained(&log), [5, 1]);
}

#[test]
fn a_commit_drops_what_lies_before_its_cut() {
    let mut log = LogStore::new(1 << 20, None);
    for s in 1..=4 {
        log.append(s, 0, &[s as u8; 1000]).unwrap();
    }
    let c = cut(&[(1, 1000), (2, 400)], 4);
    assert!(log.reached(&c) && !log.reached(&cut(&[(1, 1001)], 4)));
    log.drop_before(&c);
    let kept: Vec<_> = log.streams().map(|r| (r.stream, r.start, r.end)).collect();
    assert_eq!(
        kept,
        [(1, 1000, 1000), (2, 400, 1000), (4, 0, 1000)],
        "3 has ended, 4 is new"
    );
    assert_eq!(all(&log, 2, 400), [2; 600]);
    assert!(log.read(2, 399, 1, &mut Vec::new()).is_err());
    log.append(1, 1000, b"on").unwrap();
    assert_eq!(all(&log, 1, 1000), b"on");
    log.append(3, 1000, b"late").unwrap();
    assert_eq!(
        log.streams().count(),
        3,
        "the end of a stream that is in the image already"
    );
}

#[test]
fn the_cap_holds_the_log_back_but_not_from_a_cut() {
    let mut log = LogStore::new(10_000, None);
    log.append(1, 0, &[0; 10_000]).unwrap();
    assert!(!log.has_room());
    let c = cut(&[(1, 12_000)], 2);
    log.await_cut(Some(c.clone())).unwrap();
    assert!(log.has_room());
    log.append(1, 10_000, &[0; 2000]).unwrap();
    assert!(!log.has_room(), "the cut is reached");
    log.drop_before(&c);
    assert!(log.has_room());
    assert_eq!(log.bytes(), 0);
    assert!(
        log.await_cut(Some(cut(&[(1, 900_000)], 2))).is_err(),
        "a cut that far would not be bounded"
    );
}

#[test]
fn streams_are_bounded() {
    let mut log = LogStore::new(u64::MAX, None);
    for s in 0..MAX_STREAMS as u32 {
        log.append(s, 0, b"").unwrap();
    }
    assert!(matches!(
        log.append(u32::MAX, 0, b""),
        Err(StoreError::Streams)
    ));
    let mut log = LogStore::new(10_000, None);
    for s in 0..200 {
        log.append(s, 0, b"").unwrap();
    }
    assert!(!log.has_room(), "empty streams count, too");
}

#[test]
fn spilled_log_is_read_back_and_its_room_used_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = LogStore::new(1 << 20, Some(Spill::new(dir.path()).unwrap()));
    assert_eq!(
        std::fs::read_dir(dir.path()).unwrap().count(),
        0,
        "a file without a name"
    );
    let piece: Vec<u8> = (0..100_000).map(|i| (i % 251) as u8).collect();
    let mut slots = Vec::new();
    for round in 0..4u64 {
        let base = round * 5_000_000;
        for i in 0..50 {
            log.append(1, base + i * 100_000, &piece).unwrap();
            assert!(log.memory() <= 1 << 20 && log.has_room());
        }
        assert_eq!(log.bytes(), 5_000_000);
        assert!(log.on_disk > 3_000_000);
        let got = all(&log, 1, base + 42);
        assert!(
            got.len() == 5_000_000 - 42
                && got[..99_958] == piece[42..]
                && got[4_899_958..] == piece[..]
        );
        log.drop_before(&cut(&[(1, base + 5_000_000)], 2));
        assert_eq!(log.bytes(), 0);
        slots.push(log.spill.as_ref().unwrap().slots);
    }
    assert!(slots[3] <= slots[0] + 4, "{slots:?}");
}

#[test]
fn a_missing_state_directory_is_named() {
    let e = Spill::new(std::path::Path::new("/nonexistent/state")).unwrap_err();
    assert!(matches!(e, StoreError::State { .. }), "{e}");
}

proptest! {
    /// Any appends, reads and commits agree with a model that keeps everything.
    #[test]
    fn it_agrees_with_a_model(
        steps in proptest::collection::vec((0u32..4, 0usize..60_000, any::<u8>(), any::<bool>()), 1..40),
        spilled: bool,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let spill = spilled.then(|| Spill::new(dir.path()).unwrap());
        let mut log = LogStore::new(300_000, spill);
        let mut model: HashMap<u32, Vec<u8>> = HashMap::new();
        for (stream, len, byte, commit) in steps {
            let whole = model.entry(stream).or_default();
            log.append(stream, whole.len() as u64, &vec![byte; len]).unwrap();
            whole.resize(whole.len() + len, byte);
            if commit {
                let streams: Vec<_> = model.iter().map(|(s, b)| (*s, b.len() as u64 / 2)).collect();
                let c = cut(&streams, 4);
                if log.reached(&c) {
                    log.drop_before(&c);
                }
            }
            for range in log.streams() {
                let expected = &model[&range.stream];
                prop_assert_eq!(range.end, expected.len() as u64);
                prop_assert!(all(&log, range.stream, range.start) == expected[range.start as usize..]);
            }
            let in_segments: u64 = log.streams.values().flat_map(|k| &k.segments).map(|s| s.len as u64).sum();
            prop_assert_eq!(log.bytes(), in_segments);
        }
    }
}
