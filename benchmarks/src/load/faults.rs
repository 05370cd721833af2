//! What a server may do wrong, counted.

use serde::Serialize;

/// Most examples that are kept.
const EXAMPLES: usize = 10;

/// Counts of wrongs, with the first few spelt out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Faults {
    /// Acknowledged writes whose effect is not there.
    pub lost: u64,
    /// Commands whose effect is there more often than they were sent.
    pub twice: u64,
    /// Replies that no correct server can give, other than the two above.
    pub wrong: u64,
    /// The first of them, one sentence each.
    pub examples: Vec<String>,
}

impl Faults {
    /// Counts lost writes.
    pub(crate) fn lose(&mut self, count: u64, what: impl FnOnce() -> String) {
        self.lost += count;
        self.note(what);
    }

    /// Counts repeated effects.
    pub(crate) fn repeat(&mut self, count: u64, what: impl FnOnce() -> String) {
        self.twice += count;
        self.note(what);
    }

    /// Counts one wrong reply.
    pub(crate) fn mistake(&mut self, what: impl FnOnce() -> String) {
        self.wrong += 1;
        self.note(what);
    }

    /// Keeps an example that is counted elsewhere.
    pub(crate) fn note(&mut self, what: impl FnOnce() -> String) {
        if self.examples.len() < EXAMPLES {
            self.examples.push(what());
        }
    }

    /// True if nothing was counted.
    #[must_use]
    pub const fn none(&self) -> bool {
        self.lost == 0 && self.twice == 0 && self.wrong == 0
    }
}

/// Bytes for a message: the first of them, printable.
pub(crate) fn shown(bytes: &[u8]) -> String {
    let start = bytes[..bytes.len().min(40)].escape_ascii();
    if bytes.len() > 40 {
        format!("\"{start}…\" ({} bytes)", bytes.len())
    } else {
        format!("\"{start}\"")
    }
}
