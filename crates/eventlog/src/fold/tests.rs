//! Sequences of records as the guest writes them, and what the fold makes of them.

mod merge;
mod process;
mod server;
mod snapshot;
mod tape;
