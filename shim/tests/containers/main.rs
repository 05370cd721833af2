//! Containers for real. Needs root, `ip` and redis-server; makes network namespaces `us-…-PID-N` and
//! removes them.

mod bed;
mod life;
mod network;
