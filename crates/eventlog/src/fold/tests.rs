//! Sequences of records as the guest writes them, and what the fold makes of them.

mod changed;
mod merge;
mod process;
mod server;
mod snapshot;
mod tape;
