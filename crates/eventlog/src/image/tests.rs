//! What is written is read back; what is damaged is refused.

use std::borrow::Cow;

use proptest::prelude::*;

use super::*;

fn kin(parent: u32) -> Kin {
    Kin {
        parent,
        group: 17,
        session: 16,
        birth: 1 << 40,
    }
}

fn sample() -> Image<'static> {
    let actions = std::array::from_fn(|signal| [signal as u64, 4, 0x7000, 1 << signal]);
    let process = Process {
        pid: 17,
        kin: kin(1),
        umask: 0o22,
        layout: std::array::from_fn(|index| 0x1000 * index as u64),
        actions,
        auxv: vec![3; 40],
        exe: "/usr/bin/redis-check-rdb".into(),
        cwd: "/".into(),
        pending: vec![[9; 128]],
    };
    let thread = |tid| Thread {
        tid,
        registers: std::array::from_fn(|index| u64::from(tid) << 32 | index as u64),
        sigmask: 5,
        robust: [1, 24],
        rseq: 0x7000,
        rseq_len: 32,
        rseq_signature: 0x5305_3053,
        dispatch: [1, 2, 3, 4],
        altstack: [0x9000, 0, 8192],
        clear_tid: 0x1234,
        name: *b"worker\0\0\0\0\0\0\0\0\0\0",
        xstate: vec![7; 2691],
        pending: vec![[1; 128], [2; 128]],
    };
    let mapping = |start: u64, path: &str| Mapping {
        start,
        end: start + 3 * PAGE,
        protection: 5,
        shared: path.is_empty(),
        backing: if path.is_empty() {
            Backing::SharedMemory
        } else {
            Backing::File
        },
        flags: 3,
        offset: 0x2000,
        device: 0xfe00_0000_0002,
        inode: 99,
        path: path.into(),
    };
    let dead = Dead {
        pid: 19,
        status: 0x0b,
        kin: kin(17),
    };
    Image {
        sequence: 12,
        dead: vec![dead],
        names: vec![NamedMemory {
            name: "sem.x".into(),
            device: 0x0000_0000_0031,
            inode: 7,
            mode: 0o640,
            owner: 33,
            group: 34,
            len: 32,
            contents: vec![1, 2, 3],
        }],
        base: 11,
        process,
        threads: vec![thread(17), thread(18)],
        mappings: Some(vec![mapping(0x10000, "/lib/x.so"), mapping(0x20000, "")]),
        dropped: vec![Span {
            start: 0x30000,
            end: 0x40000,
        }],
        runs: vec![
            Run {
                start: 0x10000,
                pages: 2,
            },
            Run {
                start: 0x20000,
                pages: 1,
            },
        ],
        pieces: vec![Cow::Owned((0..3 * PAGE).map(|at| at as u8).collect())],
        vdso: Cow::Owned(vec![0xcc; 100]),
        opaque: vec![
            (section::OPAQUE, Cow::Owned(vec![1, 2, 3])),
            (section::OPAQUE + 9, Cow::Owned(Vec::new())),
        ],
    }
}

#[test]
fn images_that_follow_one_another_are_told_apart() {
    let one = encode(&sample());
    let both = [&one[..], &one].concat();
    assert_eq!(split(&both), Ok(vec![&one[..], &one[..]]));
    assert!(split(&both[..both.len() - 1]).is_err());
    assert!(split(&both[1..]).is_err());
    assert!(split(&[0; HEADER_LEN]).is_err());
}

#[test]
fn an_image_is_read_back() {
    let image = sample();
    let bytes = encode(&image);
    assert_eq!(bytes.len() % 8, 0);
    assert_eq!(decode(&bytes).unwrap(), image);
}

#[test]
fn a_full_image_needs_its_map() {
    let image = Image {
        base: 0,
        mappings: None,
        ..sample()
    };
    assert_eq!(
        decode(&encode(&image)),
        Err(ImageError::Section(section::MAPPINGS))
    );
}

#[test]
fn runs_out_of_order_are_refused() {
    let mut image = sample();
    image.runs.reverse();
    assert_eq!(decode(&encode(&image)), Err(ImageError::Order(0x10000)));
}

proptest! {
    #[test]
    fn a_flipped_bit_is_found(at in 0usize..20_000, bit in 0u8..8) {
        let mut bytes = encode(&sample());
        let at = at % bytes.len();
        bytes[at] ^= 1 << bit;
        prop_assert!(decode(&bytes).is_err());
    }

    #[test]
    fn a_cut_image_is_refused(len in 0usize..20_000) {
        let bytes = encode(&sample());
        let len = len % bytes.len();
        prop_assert!(decode(&bytes[..len]).is_err());
    }

    #[test]
    fn sections_of_anything_are_survived(kind in 1u32..7, payload in prop::collection::vec(any::<u8>(), 0..600)) {
        let mut image = sample();
        image.opaque = vec![(kind, Cow::Owned(payload))];
        let _ = decode(&encode(&image));
    }

    #[test]
    fn any_pages_are_read_back(starts in prop::collection::btree_set(0u64..1000, 0..40), fill in any::<u8>()) {
        let mut image = sample();
        image.runs = starts.iter().map(|page| Run { start: page * PAGE, pages: 1 }).collect();
        image.pieces = if image.runs.is_empty() { Vec::new() } else {
            vec![Cow::Owned(vec![fill; image.runs.len() * PAGE as usize])]
        };
        let bytes = encode(&image);
        prop_assert_eq!(decode(&bytes).unwrap(), image);
    }
}
