//! Whether a replay that stopped has come to where its recording ended.

use std::collections::BTreeMap;
use std::fmt;

use eventlog::record::{Records, kind, stored_len};

use crate::feed::Taken;
use crate::log::Log;
use crate::standing::{Doing, Standing};

/// A stream that was not taken to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    /// The stream.
    pub stream: u32,
    /// The first record that nobody took.
    pub position: u64,
    /// The stream's end.
    pub end: u64,
}

/// Several, one after another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllLeft(pub Vec<Left>);

impl fmt::Display for AllLeft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return write!(f, "all of the log behind it");
        }
        for (index, left) in self.0.iter().enumerate() {
            let Left {
                stream,
                position,
                end,
            } = left;
            let comma = if index == 0 { "" } else { ", " };
            write!(
                f,
                "{comma}stream {stream} left at position {position} of {end}"
            )?;
        }
        Ok(())
    }
}

/// Whether a status says that a signal ended the program: its threads have no last records then.
pub(crate) const fn by_signal(status: i32) -> bool {
    const SIGNALS: i32 = 64;
    status > 128 && status <= 128 + SIGNALS
}

/// What was left when the program ended by itself. Without `all`, only what its threads would have taken in any case:
/// of those that ended by themselves, and not at the hands of others, who may have been faster or slower than now.
pub(crate) fn left(log: &Log, taken: &BTreeMap<u32, Taken>, all: bool) -> Vec<Left> {
    let mut left: Vec<Left> = log
        .numbers()
        .filter_map(|stream| {
            let bytes = log.stream(stream);
            let end = bytes.len() as u64;
            let Taken { position, for_good } = taken.get(&stream).copied().unwrap_or(Taken {
                position: 0,
                for_good: false,
            });
            let last = Records::new(bytes).flatten().last();
            let by_itself = last.is_some_and(|r| r.header.kind == kind::EXIT);
            (position < end && (all || for_good && by_itself)).then_some(Left {
                stream,
                position,
                end,
            })
        })
        .collect();
    left.sort_by_key(|left| left.stream);
    left
}

/// Whether a thread that waits for a turn waits behind one that was killed before it could log its own, which only the
/// last record of a killed program can do.
pub(crate) fn waits_for_the_killed(log: &Log, standing: &Standing) -> bool {
    match standing.what {
        Doing::AwaitsTurn(Some(header)) => {
            let len = stored_len(header.needs_long(), header.payload_len as usize) as u64;
            by_signal(log.status)
                && standing.position + len == log.stream(standing.stream).len() as u64
        }
        Doing::AwaitsTurn(None) => false,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_of_a_signal_is_known() {
        let told: Vec<i32> = [0, 1, 128, 129, 137, 192, 193, 255]
            .into_iter()
            .filter(|status| by_signal(*status))
            .collect();
        assert_eq!(told, [129, 137, 192]);
    }

    #[test]
    fn what_was_left_is_told_by_position() {
        let left = |stream| Left {
            stream,
            position: 64,
            end: 80,
        };
        assert_eq!(
            AllLeft(vec![left(2), left(5)]).to_string(),
            "stream 2 left at position 64 of 80, stream 5 left at position 64 of 80"
        );
    }
}
