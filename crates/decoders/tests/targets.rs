//! Every target gets any bytes, its seeds, and its seeds damaged, and is held to its bound of memory.

use decoders::{TARGETS, Target};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use sys::counting::{Counting, peak_of};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Inputs for each target; the fuzzer gives it more.
const CASES: u32 = 2000;

/// A change to an input.
#[derive(Clone, Debug)]
enum Damage {
    Byte(prop::sample::Index, u8),
    Word(prop::sample::Index, u64),
    Cut(prop::sample::Index),
    Repeat(prop::sample::Index, prop::sample::Index),
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        (any::<prop::sample::Index>(), any::<u8>()).prop_map(|(at, byte)| Damage::Byte(at, byte)),
        (
            any::<prop::sample::Index>(),
            prop_oneof![Just(u64::MAX), Just(1 << 40), 0u64..200, any::<u64>()]
        )
            .prop_map(|(at, word)| Damage::Word(at, word)),
        any::<prop::sample::Index>().prop_map(Damage::Cut),
        any::<(prop::sample::Index, prop::sample::Index)>()
            .prop_map(|(from, to)| Damage::Repeat(from, to)),
    ]
}

impl Damage {
    fn apply(&self, bytes: &mut Vec<u8>) {
        let place = |at: &prop::sample::Index| at.index(bytes.len() + 1);
        match self {
            Self::Byte(at, byte) => {
                let at = place(at);
                bytes.splice(at..bytes.len().min(at + 1), [*byte]);
            }
            Self::Word(at, word) => {
                let at = place(at);
                bytes.splice(at..bytes.len().min(at + 8), word.to_le_bytes());
            }
            Self::Cut(at) => bytes.truncate(place(at)),
            Self::Repeat(one, other) => {
                let (one, other) = (place(one), place(other));
                let piece = bytes[one.min(other)..one.max(other)].to_vec();
                bytes.splice(one..one, piece);
            }
        }
    }
}

/// Any bytes, or a seed with some damage.
fn inputs(target: &'static Target) -> impl Strategy<Value = Vec<u8>> {
    let seeds = (target.seeds)();
    let damaged = (
        prop::sample::select(seeds),
        prop::collection::vec(damage(), 0..6),
    )
        .prop_map(|(mut bytes, all)| {
            all.iter().for_each(|one| one.apply(&mut bytes));
            bytes
        });
    prop_oneof![
        1 => prop::collection::vec(any::<u8>(), 0..3000),
        5 => damaged,
    ]
}

#[test]
fn no_input_makes_a_decoder_panic_or_take_more_than_its_bound() {
    let config = Config {
        cases: CASES,
        failure_persistence: None,
        ..Config::default()
    };
    for target in TARGETS {
        let mut runner = TestRunner::new(config.clone());
        let ended = runner.run(&inputs(target), |data| {
            target.check(&data);
            Ok(())
        });
        if let Err(e) = ended {
            panic!("{}: {e}", target.name);
        }
    }
}

#[test]
fn seeds_are_taken_and_memory_is_counted() {
    assert!(peak_of(|| drop(vec![0u8; 5000])) >= 5000);
    for target in TARGETS {
        let seeds = (target.seeds)();
        assert!(!seeds.is_empty());
        for seed in &seeds {
            target.check(seed);
        }
    }
}

#[test]
fn names_are_different() {
    for (i, target) in TARGETS.iter().enumerate() {
        let found = TARGETS.iter().position(|other| other.name == target.name);
        assert_eq!(found, Some(i));
    }
}
