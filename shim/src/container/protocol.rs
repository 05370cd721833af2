//! What the container's handle and its init tell each other, one message each way, in native order.
//!
//! Both ends are the same program on the same machine; init still checks what it gets, since it must
//! answer or end, never misread.

use sys::clocks::Offsets;

use super::error::Step;
use super::{Ended, descriptors};

/// Bytes of the longest message.
pub(super) const MAX: usize = 12 + 4 * descriptors::MAX_PASSED;

const START: i32 = 1;
const SPAWN: i32 = 2;
const LAST_NUMBER: i32 = 3;
const MAIN: i32 = 4;
const CLEAR: i32 = 5;
const CLOCKS: i32 = 6;

/// From the handle to init.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// Fork the planned program; the answer carries its pidfd.
    Start,
    /// Fork an empty process; the descriptors beside the message go to `targets`. The answer carries
    /// its pidfd.
    Spawn {
        number: Option<i32>,
        main: bool,
        targets: Vec<i32>,
    },
    /// Set the last number given.
    LastNumber(i32),
    /// Take the process with this number for the program.
    Main(i32),
    /// End every process inside but init, and but the one with this number, 0 for none; there is no program then.
    Clear(i32),
    /// Enter a time namespace, as all that are forked from then on.
    Clocks(Offsets),
}

fn halves(long: i64) -> [i32; 2] {
    [(long >> 32) as i32, long as i32]
}

fn whole(high: i32, low: i32) -> i64 {
    i64::from(high) << 32 | i64::from(low.cast_unsigned())
}

fn words(list: &[i32]) -> Vec<u8> {
    list.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn parse(bytes: &[u8]) -> Option<Vec<i32>> {
    let (chunks, rest) = bytes.as_chunks::<4>();
    rest.is_empty().then(|| {
        chunks
            .iter()
            .map(|chunk| i32::from_ne_bytes(*chunk))
            .collect()
    })
}

impl Request {
    pub(crate) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Start => words(&[START]),
            Self::LastNumber(last) => words(&[LAST_NUMBER, *last]),
            Self::Main(number) => words(&[MAIN, *number]),
            Self::Clear(but) => words(&[CLEAR, *but]),
            Self::Clocks(by) => {
                let [monotonic, boottime] = [by.monotonic, by.boottime].map(halves);
                words(&[&[CLOCKS], &monotonic[..], &boottime].concat())
            }
            Self::Spawn {
                number,
                main,
                targets,
            } => {
                let head = [SPAWN, number.unwrap_or(0), i32::from(*main)];
                words(&[&head, targets.as_slice()].concat())
            }
        }
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        match parse(bytes)?.as_slice() {
            [START] => Some(Self::Start),
            [LAST_NUMBER, last] => Some(Self::LastNumber(*last)),
            [MAIN, number] => Some(Self::Main(*number)),
            [CLEAR, but] => Some(Self::Clear(*but)),
            [CLOCKS, m1, m0, b1, b0] => Some(Self::Clocks(Offsets {
                monotonic: whole(*m1, *m0),
                boottime: whole(*b1, *b0),
            })),
            [SPAWN, number, main @ (0 | 1), targets @ ..] => Some(Self::Spawn {
                number: (*number != 0).then_some(*number),
                main: *main == 1,
                targets: targets.to_vec(),
            }),
            _ => None,
        }
    }
}

/// From init to the handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// Done; the process's number inside, where one was made.
    Done { number: i32 },
    /// Not done.
    Failed { step: Step, errno: i32 },
}

impl Reply {
    pub(crate) fn encode(self) -> Vec<u8> {
        match self {
            Self::Done { number } => words(&[0, number]),
            Self::Failed { step, errno } => words(&[step as i32, errno]),
        }
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        match parse(bytes)?.as_slice() {
            [0, number] => Some(Self::Done { number: *number }),
            [code, errno] => {
                let step = Step::ALL.into_iter().find(|step| *step as i32 == *code)?;
                Some(Self::Failed {
                    step,
                    errno: *errno,
                })
            }
            _ => None,
        }
    }
}

/// What init writes when the program has ended.
pub(crate) fn encode_end(ended: Ended) -> Vec<u8> {
    match ended {
        Ended::Exited(code) => words(&[0, code]),
        Ended::Signaled(signal) => words(&[1, signal]),
        Ended::Lost => Vec::new(),
    }
}

/// Nothing, or anything unknown, is what a killed init leaves.
pub(crate) fn decode_end(bytes: &[u8]) -> Ended {
    match parse(bytes).as_deref() {
        Some([0, code]) => Ended::Exited(*code),
        Some([1, signal]) => Ended::Signaled(*signal),
        _ => Ended::Lost,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_back() {
        let spawn = Request::Spawn {
            number: Some(7),
            main: true,
            targets: vec![0, 1022],
        };
        let any = Request::Spawn {
            number: None,
            main: false,
            targets: vec![],
        };
        for request in [
            Request::Start,
            spawn,
            any,
            Request::LastNumber(9),
            Request::Main(2),
            Request::Clear(0),
            Request::Clear(70_000),
            Request::Clocks(Offsets {
                monotonic: -1,
                boottime: 1 << 40 | 1 << 31,
            }),
        ] {
            assert_eq!(Request::decode(&request.encode()), Some(request));
        }
        for step in Step::ALL {
            let reply = Reply::Failed { step, errno: 5 };
            assert_eq!(Reply::decode(&reply.encode()), Some(reply));
        }
        for ended in [Ended::Exited(3), Ended::Signaled(9), Ended::Lost] {
            assert_eq!(decode_end(&encode_end(ended)), ended);
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for bytes in [
            &b""[..],
            b"abc",
            &words(&[99]),
            &words(&[SPAWN, 1]),
            &words(&[SPAWN, 0, 2]),
        ] {
            assert_eq!(Request::decode(bytes), None, "{bytes:?}");
        }
        assert_eq!(Reply::decode(&words(&[42, 0])), None);
    }
}
