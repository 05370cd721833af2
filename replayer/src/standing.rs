//! Where the threads of a replay stand that does not go on, in words.

use std::fmt;
use std::sync::atomic::Ordering::Acquire;

use eventlog::record::{Header, MAX_PAYLOAD, Records, kind, stored_len};
use guest::abi::{MAX_SLOTS, slot};
use sys::arena::Arena;
use sysabi::Class;

use crate::divergence::name;
use crate::feed::Source;

/// Where a thread stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Its stream.
    pub stream: u32,
    /// Position up to which it has taken its log; of one that waits for a turn, that of the record that has the turn.
    pub position: u64,
    /// What it does there.
    pub what: Doing,
}

/// What a thread does that does not go on. In the order of what says most about why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// It waits for the turn that this record has at a shared object.
    AwaitsTurn(Option<Header>),
    /// Its log has ended, and it goes on.
    AtLogEnd,
    /// It waits for others to take records that are older.
    AwaitsOthers,
    /// It runs, or waits in a call that is in no log; with the record that it has not come to.
    Runs(Option<Header>),
}

/// Threads that are named; the others are counted.
const NAMED: usize = 8;

impl Doing {
    const fn rank(self) -> u32 {
        match self {
            Self::AwaitsTurn(_) => 0,
            Self::AtLogEnd => 1,
            Self::AwaitsOthers => 2,
            Self::Runs(_) => 3,
        }
    }
}

/// All threads that live, those first that say most about why nothing goes on.
pub(crate) fn standings<S: Source>(arena: &Arena, source: &S) -> Vec<Standing> {
    let mut all = Vec::new();
    for ring in (0..MAX_SLOTS).map(|index| arena.slot(index)) {
        let (stream, tail) = (ring.stream.load(Acquire), ring.tail.load(Acquire));
        let (position, what) = match ring.state.load(Acquire) {
            slot::FREE | slot::CLAIMED | slot::DONE => continue,
            slot::WAITING => {
                let position = ring.awaits.load(Acquire);
                let header = header(source, stream, position);
                (position, Doing::AwaitsTurn(header))
            }
            slot::PARKED => (tail, Doing::AtLogEnd),
            slot::EARLY => (tail, Doing::AwaitsOthers),
            _ => (tail, Doing::Runs(header(source, stream, tail))),
        };
        all.push(Standing {
            stream,
            position,
            what,
        });
    }
    all.sort_by_key(|standing| (standing.what.rank(), standing.stream));
    all
}

fn header<S: Source>(source: &S, stream: u32, position: u64) -> Option<Header> {
    let mut bytes = Vec::new();
    // Without the record, the position alone is told.
    let most = stored_len(true, MAX_PAYLOAD);
    source.read(stream, position, most, &mut bytes).ok()?;
    Some(Records::new(&bytes).next()?.ok()?.header)
}

impl Standings {
    /// Those of the threads that live.
    pub fn of<S: Source>(arena: &Arena, source: &S) -> Self {
        Self(standings(arena, source))
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            stream, position, ..
        } = self;
        match &self.what {
            Doing::AwaitsTurn(header) => {
                write!(f, "stream {stream} waits at position {position} for a turn")?;
                let Some(h) = header else { return Ok(()) };
                write!(f, " ({}", name(h.kind))?;
                match (
                    h.kind,
                    sysabi::lookup(u64::from(h.kind)).map(|row| row.class),
                ) {
                    (kind::LOCK | kind::TRYLOCK, _) => write!(f, " {:#x})", h.result),
                    (_, Some(Class::Ordered(_))) => write!(f, " {:#x})", h.version),
                    _ => write!(f, ")"),
                }
            }
            Doing::AtLogEnd => write!(
                f,
                "stream {stream} ends at position {position}, where its thread goes on"
            ),
            Doing::AwaitsOthers => write!(
                f,
                "stream {stream} waits at position {position} for older records of others"
            ),
            Doing::Runs(next) => {
                write!(f, "stream {stream} runs behind position {position}")?;
                let Some(h) = next else { return Ok(()) };
                let (what, hash) = (name(h.kind), h.hash);
                write!(f, " and does not come to {what} (hash {hash:#06x})")
            }
        }
    }
}

/// Several, one after another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standings(pub Vec<Standing>);

impl fmt::Display for Standings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, one) in self.0.iter().take(NAMED).enumerate() {
            write!(f, "{}{one}", if index == 0 { "" } else { ", " })?;
        }
        match self.0.len().checked_sub(NAMED) {
            Some(more @ 1..) => write!(f, ", and {more} more"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_told_with_stream_and_position() {
        let turn = Header {
            kind: kind::LOCK,
            result: 17,
            ..Header::default()
        };
        let standing = |stream, what| Standing {
            stream,
            position: 160,
            what,
        };
        let mut all = vec![
            standing(2, Doing::AwaitsTurn(Some(turn))),
            standing(3, Doing::AtLogEnd),
        ];
        assert_eq!(
            Standings(all.clone()).to_string(),
            "stream 2 waits at position 160 for a turn (lock 0x11), \
             stream 3 ends at position 160, where its thread goes on"
        );
        all.extend((4..20).map(|stream| standing(stream, Doing::Runs(None))));
        let said = Standings(all).to_string();
        assert!(
            said.ends_with("stream 9 runs behind position 160, and 10 more"),
            "{said}"
        );
    }
}
