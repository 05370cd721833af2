//! Containers for real. Needs root, `ip` and redis-server; makes network namespaces `us-…-PID-N` and
//! removes them.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

mod bed;
mod life;
mod network;
