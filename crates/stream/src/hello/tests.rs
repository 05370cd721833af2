//! What is checked, and that the bytes are those of `docs/FORMATS.md`.

use super::*;
use eventlog::codec::{decode, encode};
use eventlog::handover::Details;

fn hello() -> Hello {
    Hello {
        channel: Channel::Log,
        name: "redis-server".to_owned(),
        session: 1,
        run: 2,
        generation: 0,
        timing: Timing {
            heartbeat: Duration::from_millis(10),
            detect: Duration::from_millis(50),
        },
        host: vec![("kernel".to_owned(), "6.18".to_owned())],
        details: Vec::new(),
    }
}

#[test]
fn names_and_times_are_checked() {
    assert_eq!(hello().check(), Ok(()));
    for name in ["", "..", "a/b", "a b", ".hidden", &"x".repeat(MAX_NAME + 1)] {
        assert!(
            matches!(
                Hello {
                    name: name.to_owned(),
                    ..hello()
                }
                .check(),
                Err(Refusal::Name { .. })
            ),
            "{name}"
        );
    }
    for (heartbeat, detect) in [(0, 50), (30, 50), (10, 60_001)] {
        let timing = Timing {
            heartbeat: Duration::from_millis(heartbeat),
            detect: Duration::from_millis(detect),
        };
        assert_eq!(
            Hello { timing, ..hello() }.check(),
            Err(Refusal::Timing { timing })
        );
    }
    let long = Hello {
        details: vec![0; MAX_DETAILS + 1],
        ..hello()
    };
    assert!(matches!(long.check(), Err(Refusal::TooLong { .. })));
}

#[test]
fn the_promise_covers_the_lease_and_ends_before_detection() {
    for ms in [2, 50, 1000, 60_000] {
        let t = Timing {
            heartbeat: MIN_HEARTBEAT,
            detect: Duration::from_millis(ms),
        };
        assert!(t.lease() < t.promise() && t.promise() < t.detect);
    }
}

#[test]
fn a_differing_host_is_named() {
    let own = |v: &str| vec![("kernel".to_owned(), v.to_owned())];
    assert_eq!(hello().differs_from(&own("6.18")), None);
    assert!(
        matches!(hello().differs_from(&own("6.1")), Some(Refusal::Host { what, .. }) if what == "kernel")
    );
    let more = vec![("avx512".to_owned(), "yes".to_owned())];
    assert!(
        matches!(hello().differs_from(&more), Some(Refusal::Host { primary, .. }) if primary.is_empty())
    );
}

/// Fields one after another.
fn stored<const N: usize>(fields: [&[u8]; N]) -> Vec<u8> {
    fields.concat()
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

#[test]
fn the_layout_of_a_hello_is_the_documented_one() {
    let said = Hello {
        channel: Channel::Control,
        session: 0x0807_0605_0403_0201,
        run: 0x2827_2625_2423_2221,
        generation: 2,
        details: vec![7, 8],
        ..hello()
    };
    let times =
        |seconds: u64, nanos: u32| [&seconds.to_le_bytes()[..], &nanos.to_le_bytes()].concat();
    let bytes = stored([
        &[3, 0, 0, 0],
        &text("redis-server"),
        &[1, 2, 3, 4, 5, 6, 7, 8],
        &[0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27, 0x28],
        &2u64.to_le_bytes(),
        &times(0, 10_000_000),
        &times(0, 50_000_000),
        &1u64.to_le_bytes(),
        &text("kernel"),
        &text("6.18"),
        &2u64.to_le_bytes(),
        &[7, 8],
    ]);
    assert_eq!(encode(&said).unwrap(), bytes);
    for (number, channel) in [Channel::Log, Channel::Heartbeat, Channel::Checkpoint]
        .iter()
        .enumerate()
    {
        assert_eq!(encode(channel).unwrap(), [number as u8, 0, 0, 0]);
    }
}

#[test]
fn the_layout_of_an_answer_is_the_documented_one() {
    let welcome = Welcome {
        generation: 5,
        instance: 6,
    };
    let bytes = stored([&[0; 4], &5u64.to_le_bytes(), &6u64.to_le_bytes()]);
    assert_eq!(encode(&Answer::Ok(welcome)).unwrap(), bytes);
    let name = || "a".to_owned();
    let (timing, channel) = (hello().timing, Channel::Checkpoint);
    let reasons = [
        (Refusal::StaleGeneration { theirs: 1, ours: 2 }, 16),
        (Refusal::NameTaken { name: name() }, 9),
        (Refusal::UnknownSession { name: name() }, 9),
        (Refusal::Twice { channel }, 4),
        (Refusal::Name { name: name() }, 9),
        (Refusal::Timing { timing }, 24),
        (
            Refusal::TooLong {
                details: 1,
                traits: 2,
            },
            16,
        ),
        (
            Refusal::Host {
                what: name(),
                primary: name(),
                backup: name(),
            },
            27,
        ),
        (Refusal::Full { containers: 3 }, 8),
        (Refusal::State { reason: name() }, 9),
        (
            Refusal::OtherBackup {
                name: name(),
                theirs: 1,
                ours: 0,
            },
            25,
        ),
    ];
    for (number, (refusal, brings)) in reasons.into_iter().enumerate() {
        let bytes = encode(&Answer::Err(refusal)).unwrap();
        assert_eq!(bytes[..8], [1, 0, 0, 0, number as u8, 0, 0, 0]);
        assert_eq!(bytes.len(), 8 + brings);
    }
    assert!(decode::<Answer>(&[1, 0, 0, 0, 11, 0, 0, 0]).is_err());
}

#[test]
fn the_layout_of_details_is_the_documented_one() {
    let details = Details {
        name: "n".to_owned(),
        command: vec![b"cd".to_vec()],
        address: [10, 0, 0, 1],
        prefix: 24,
        gateway: Some([10, 0, 0, 2]),
        mac: [2, 0, 0, 0, 0, 9],
        bridge: "br".to_owned(),
        replays: true,
        mirrors: vec![b"/srv".to_vec()],
    };
    let bytes = stored([
        &text("n"),
        &1u64.to_le_bytes(),
        &text("cd"),
        &[10, 0, 0, 1, 24, 1, 10, 0, 0, 2, 2, 0, 0, 0, 0, 9],
        &text("br"),
        &[1],
        &1u64.to_le_bytes(),
        &text("/srv"),
    ]);
    assert_eq!(encode(&details).unwrap(), bytes);
}
