//! A whole backup over TCP on loopback.
#![allow(
    clippy::unwrap_used,
    reason = "what cannot be unwrapped here fails the test"
)]

mod bed;
mod joining;
mod keeping;
mod refusing;
mod takeover;
