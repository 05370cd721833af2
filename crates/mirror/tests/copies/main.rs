//! Copies against what they are copies of. These tests run as root.
#![allow(clippy::unwrap_used)]

mod changes;
mod compare;
mod hostile;
mod random;
mod walking;
