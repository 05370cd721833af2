//! The command line from outside: what is refused and how, and a bare container from start to end.
//! Needs root and `ip`; makes network namespaces `us-…-PID-N` and removes them.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

mod bare;
mod bed;
mod refused;
