//! Signals that processes of the container send themselves and one another, in replay: those that the log says were
//! sent against those that it says were got.
//!
//! The record of a call that sends is made behind the call, so that its signal may be got first: the receiver then sends
//! it itself, and the sender does not when it comes to its record, or, live, to the call of which the log has none. Of
//! signals without a queue several may be got as one; nothing is owed then.

use core::sync::atomic::Ordering::Relaxed;

use guest::abi::{Sent, ThreadBlock};

use crate::calls::leaving;
use crate::order;
use crate::raw::{self, nr};
use crate::thread::control;

/// By whom, to which process, and which.
#[derive(Clone, Copy)]
pub(crate) struct Passed {
    pub(crate) sender: u32,
    pub(crate) receiver: u32,
    pub(crate) signal: u32,
}

/// Keeps every process of the container from sending, and from looking at what it has been sent.
pub(crate) fn alone<T>(t: &ThreadBlock, look: impl FnOnce() -> T) -> T {
    let _held = order::lock(t, &control().signals);
    look()
}

/// The log says that it was sent. Whether it has to be: it has not been got. Called [`alone`].
pub(crate) fn sent(passed: Passed) -> bool {
    let Some(entry) = find(passed).or_else(|| take_free(passed)) else {
        return true;
    };
    let ahead = entry.ahead.load(Relaxed);
    entry.ahead.store(ahead.saturating_add(1), Relaxed);
    ahead >= 0
}

/// The log says that it was got. Whether it has been sent. Called [`alone`].
pub(crate) fn got(passed: Passed) -> bool {
    let Some(entry) = find(passed).or_else(|| take_free(passed)) else {
        return true;
    };
    let ahead = entry.ahead.load(Relaxed);
    entry.ahead.store(ahead.saturating_sub(1), Relaxed);
    ahead > 0
}

/// Whether the log has said of one more that it was sent than that were got.
pub(crate) fn was_sent(passed: Passed) -> bool {
    find(passed).is_some_and(|entry| entry.ahead.load(Relaxed) > 0)
}

/// Whether one was got that the log does not say to be sent.
pub(crate) fn was_got(passed: Passed) -> bool {
    find(passed).is_some_and(|entry| entry.ahead.load(Relaxed) < 0)
}

/// A process is new, and its number may have been another's.
pub(crate) fn forget(t: &ThreadBlock, process: u32) {
    alone(t, || {
        for entry in &control().sent {
            let ends = [&entry.sender, &entry.receiver];
            if ends.iter().any(|end| end.load(Relaxed) == process) {
                entry.ahead.store(0, Relaxed);
            }
        }
    });
}

fn find(passed: Passed) -> Option<&'static Sent> {
    let is_it = |entry: &&Sent| {
        entry.ahead.load(Relaxed) != 0
            && entry.sender.load(Relaxed) == passed.sender
            && entry.receiver.load(Relaxed) == passed.receiver
            && entry.signal.load(Relaxed) == passed.signal
    };
    control().sent.iter().find(is_it)
}

/// Without a free entry one is not counted: it may be sent a second time at the log's end.
fn take_free(passed: Passed) -> Option<&'static Sent> {
    let mut entries = control().sent.iter();
    let entry = entries.find(|entry| entry.ahead.load(Relaxed) == 0)?;
    entry.sender.store(passed.sender, Relaxed);
    entry.receiver.store(passed.receiver, Relaxed);
    entry.signal.store(passed.signal, Relaxed);
    Some(entry)
}

/// What a call sends, and to whom.
#[derive(Clone, Copy)]
pub(crate) struct Sending {
    pub(crate) signal: u32,
    to: To,
}

#[derive(Clone, Copy)]
enum To {
    Process(u32),
    /// Of this process.
    Group(u32),
    All,
}

impl Sending {
    /// Of one of the calls kill, rt_sigqueueinfo, tkill, tgkill, rt_tgsigqueueinfo.
    pub(crate) fn of(call: u16, args: &[u64; 6]) -> Self {
        const TKILL: u16 = 200;
        let signal = if matches!(call, 62 | 129 | TKILL) {
            args[1]
        } else {
            args[2]
        };
        let to = match args[0] as i32 {
            thread if call == TKILL => To::Process(leaving::process_of(thread.cast_unsigned())),
            0 => To::Group(0),
            -1 => To::All,
            group if group < 0 => To::Group(group.unsigned_abs()),
            process => To::Process(process.cast_unsigned()),
        };
        let signal = signal as u32;
        Self { signal, to }
    }

    /// Whether it names one process or one of its threads.
    pub(crate) fn is_to_one(self) -> bool {
        matches!(self.to, To::Process(_))
    }

    /// Tells of every process that it is sent to (kill(2)).
    pub(crate) fn to_each(self, t: &ThreadBlock, mut tell: impl FnMut(Passed)) {
        let sender = t.pid.load(Relaxed);
        let signal = self.signal;
        let mut tell = |receiver| {
            tell(Passed {
                sender,
                receiver,
                signal,
            });
        };
        match self.to {
            To::Process(receiver) => tell(receiver),
            To::All => leaving::processes()
                .filter(|process| *process != sender)
                .for_each(tell),
            To::Group(group) => {
                let group = if group == 0 {
                    group_of(0)
                } else {
                    group.into()
                };
                leaving::processes()
                    .filter(|process| group_of(*process) == group)
                    .for_each(tell);
            }
        }
    }
}

fn group_of(process: u32) -> i64 {
    raw::call(nr::GETPGID, [process.into(), 0, 0, 0, 0, 0])
}
