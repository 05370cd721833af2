//! The first event that differs, in words.

use std::fmt;
use std::sync::atomic::Ordering::Acquire;

use eventlog::record::{Header, Records, kind};
use guest::abi::{Control, failure};

use crate::feed::Source;

/// Where and how a replay left its log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Divergence {
    /// The thread's stream.
    pub stream: u32,
    /// Position of the event in that stream.
    pub position: u64,
    /// What differs: one of [`guest::abi::failure`].
    pub code: u32,
    /// What the log holds (see the code).
    pub expected: u64,
    /// What the program did.
    pub actual: u64,
    /// Events around it: position and header.
    pub neighbours: Vec<(u64, Header)>,
}

/// Events shown before and behind the one that differs.
const BEFORE: usize = 4;
const BEHIND: usize = 2;
/// Bytes read behind the one that differs, to find them.
const BEHIND_BYTES: u64 = 64 << 10;

impl Divergence {
    /// The divergence that a guest has reported, if any.
    pub(crate) fn reported<S: Source>(control: &Control, source: &S) -> Option<Self> {
        let f = &control.failure;
        let code = f.code.load(Acquire);
        if code == 0 || code == failure::CLAIMED {
            return None;
        }
        let (stream, position) = (f.stream.load(Acquire), f.position.load(Acquire));
        Some(Self {
            stream,
            position,
            code,
            expected: f.expected.load(Acquire),
            actual: f.actual.load(Acquire),
            neighbours: neighbours(source, stream, position),
        })
    }
}

fn neighbours<S: Source>(source: &S, stream: u32, position: u64) -> Vec<(u64, Header)> {
    let mut all = Vec::new();
    let (start, mut bytes) = (source.start(stream), Vec::new());
    let wanted = position.saturating_sub(start).saturating_add(BEHIND_BYTES);
    // Without the bytes the divergence is told without its neighbours.
    let _ = source.read(
        stream,
        start,
        usize::try_from(wanted).unwrap_or(0),
        &mut bytes,
    );
    let mut walk = Records::new(&bytes);
    loop {
        let at = start + walk.consumed() as u64;
        let Some(Ok(record)) = walk.next() else { break };
        if at < position && all.len() == BEFORE {
            all.remove(0);
        }
        all.push((at, record.header));
        if at > position && all.iter().filter(|(at, _)| *at > position).count() == BEHIND {
            break;
        }
    }
    all
}

/// Name of a kind of record.
pub(crate) fn name(event: u16) -> String {
    let own = match event {
        kind::EXEC => "new image",
        kind::BIRTH => "birth",
        kind::SIGNAL => "signal",
        kind::CLOCK => "clock",
        kind::LOCK => "lock",
        kind::TRYLOCK => "trylock",
        kind::CONDWAIT => "condition wait",
        kind::EXIT => "exit",
        kind::INTENT => "intent",
        kind::GETCPU => "getcpu",
        kind::OUTPUT => "output",
        kind::CONNECTION => "connection",
        kind::ONCE => "once",
        kind::BATON => "baton",
        _ => {
            return sysabi::lookup(u64::from(event))
                .map_or_else(|| format!("event {event}"), |r| r.name.to_owned());
        }
    };
    own.to_owned()
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "replay diverged in stream {} at position {}: ",
            self.stream, self.position
        )?;
        let (expected, actual) = (self.expected, self.actual);
        let parts = |v: u64| (name((v >> 32) as u16), v as u32);
        match self.code {
            failure::CALL => write!(
                f,
                "the log has {}, the program did {}",
                name(expected as u16),
                name(actual as u16)
            )?,
            failure::ARGUMENTS => {
                let ((call, logged), (_, made)) = (parts(expected), parts(actual));
                write!(
                    f,
                    "the arguments of {call} hash to {made:#06x}, the log has {logged:#06x}"
                )?;
            }
            failure::OUTPUT => write!(
                f,
                "the output hashes to {actual:#x}, the log has {expected:#x}"
            )?,
            failure::RESULT => {
                write!(
                    f,
                    "a call returned {:#x}, the log has {:#x}",
                    actual.cast_signed(),
                    expected.cast_signed()
                )?;
            }
            failure::PAYLOAD => write!(
                f,
                "from byte {expected} on, the log's payload of {} is not what the program passed",
                name(actual as u16)
            )?,
            failure::CAPACITY => write!(f, "more threads or connections than the arena holds")?,
            code => write!(
                f,
                "code {code}, the log has {expected:#x}, the program {actual:#x}"
            )?,
        }
        write!(f, "; around it:")?;
        for (at, h) in &self.neighbours {
            let mark = if *at == self.position { " ->" } else { "" };
            write!(
                f,
                "{mark} {at}: {} = {:#x} (fd {}, hash {:#06x}),",
                name(h.kind),
                h.result,
                h.arg0,
                h.hash
            )?;
        }
        Ok(())
    }
}
