//! The guest: the blob that is injected into every process of a protected container.
//!
//! This library is what the host needs of it: the shared layout ([`abi`]) and, with the default feature
//! `embed`, the blob itself (`Blob`). The blob's own code is the binary in `src/blob`.
#![cfg_attr(not(feature = "embed"), no_std)]

pub mod abi;
pub mod prologue;

#[cfg(feature = "embed")]
mod image;
#[cfg(feature = "embed")]
pub use image::{Blob, Segment};
