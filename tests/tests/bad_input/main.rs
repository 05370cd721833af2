//! What goes wrong before or beside a program: each ends in one sentence and a status, and nothing stays behind.
#![expect(
    clippy::unwrap_used,
    reason = "the helpers of a test fail as the test does"
)]

mod command_line;
mod disk;
mod features;
mod ground;
mod network;
mod peers;
mod recordings;
mod refused_calls;
