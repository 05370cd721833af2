//! Takeover: a container whose primary was lost goes on here.
//!
//! In: a container's [`Details`], then an [`Attempt`] with its committed checkpoint and log. Out: the running
//! container ([`Live`]) and a [`Report`] of what it took.
//!
//! ```text
//! Standby::prepare   namespaces, link and closed gate, when the primary connects
//!     ahead          a process that stands still gets the memory of each committed checkpoint
//! Standby::take_over
//!     process        it, or a copy of it, gets threads, registers and the rest, its arena in replay mode
//!     fold           beside it: the kernel's state from the log
//!     replay         every thread runs to its log's end
//!     (fence)        the last promise to the primary has ended
//!     connections    peers are asked where they stand, sockets are rebuilt
//!     backlog        those that nobody has accepted yet, too
//!     objects        everything else that has a descriptor
//!     place          all of it under its numbers
//!     go live        one word turns; held frames are delivered
//! Live               output, new connections, the end
//! ```

mod ahead;
mod arena;
mod backlog;
mod checkpoint;
mod children;
mod clock;
mod connections;
mod continued;
mod dead;
mod described;
mod error;
mod folding;
mod handshakes;
mod holds;
mod killed;
mod late;
mod live;
mod log;
mod names;
mod objects;
mod options;
mod pairs;
mod peers;
mod pending;
mod place;
mod population;
mod privileges;
mod process;
mod rehearsal;
mod resets;
mod search;
mod session;
mod spinning;
mod stage;
mod standby;
mod timeline;
mod timers;
mod timing;
mod waiting;

pub use checkpoint::Checkpoint;
pub use error::TakeoverError;
pub(crate) use handshakes::Handshakes;
pub use live::Live;
pub use rehearsal::rehearse;
pub use search::Search;
pub use standby::Report;
pub use waiting::{Standby, Tell};

pub use eventlog::handover::Details;
