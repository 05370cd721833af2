//! What clients asked one key for, and when.

use super::object::{Answer, Call, Kind};

/// A command of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Whose; no two of one client overlap.
    pub client: usize,
    /// What it asked for.
    pub call: Call,
    /// When, in nanoseconds of a clock that all clients have in common.
    pub asked: u64,
    /// What it was answered, and when; none if it never was.
    pub answered: Option<(u64, Answer)>,
}

/// All commands for one key.
#[derive(Clone, Debug)]
pub struct History {
    /// The key's name.
    pub key: String,
    /// What it is.
    pub kind: Kind,
    /// In any order.
    pub operations: Vec<Operation>,
}
