//! What a single copy of a key would answer.

/// What a key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A number: INCR, GET.
    Counter,
    /// A list: RPUSH, LINDEX.
    List,
    /// A value: compare and set, by a script; GET.
    Register,
}

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// One more; answers the number.
    Increment,
    /// This item at the end; answers the length.
    Push(u64),
    /// This value if the one before is `from`; answers the one before.
    Swap {
        /// What it is to replace.
        from: u64,
        /// What it is to be.
        to: u64,
    },
    /// The number, the value, or the last item.
    Read,
    /// A hash over all items.
    ReadAll,
}

/// What it is answered: a number, a length, a value, an item, a hash.
pub type Answer = u64;

/// A key's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct State {
    kind: Kind,
    /// The number, the value, or the last item; 0 before there is any.
    value: u64,
    /// Items.
    len: u64,
    /// Over all of them.
    hash: u64,
}

impl State {
    /// Before the first command.
    pub(super) const fn new(kind: Kind) -> Self {
        Self {
            kind,
            value: 0,
            len: 0,
            hash: EMPTY,
        }
    }

    /// The state behind a command, and its answer.
    pub(super) fn after(self, call: Call) -> (Self, Answer) {
        match (self.kind, call) {
            (_, Call::Read) => (self, self.value),
            (_, Call::ReadAll) => (self, self.hash),
            (Kind::Register, Call::Swap { from, to }) => {
                let value = if self.value == from { to } else { self.value };
                (Self { value, ..self }, self.value)
            }
            (Kind::List, Call::Push(item)) => {
                let (len, hash) = (self.len + 1, chain(self.hash, item));
                let value = item;
                (
                    Self {
                        value,
                        len,
                        hash,
                        ..self
                    },
                    len,
                )
            }
            // Every other command leaves a key of another kind alone, as the server would.
            (Kind::Counter, Call::Increment) => {
                let value = self.value + 1;
                (Self { value, ..self }, value)
            }
            _ => (self, Answer::MAX),
        }
    }
}

const EMPTY: u64 = 0xcbf2_9ce4_8422_2325;

/// A hash over items, in their order.
pub(super) fn hash_of(items: impl Iterator<Item = u64>) -> u64 {
    items.fold(EMPTY, chain)
}

const fn chain(before: u64, item: u64) -> u64 {
    (before ^ item)
        .wrapping_mul(0x0100_0000_01b3)
        .rotate_left(29)
}
