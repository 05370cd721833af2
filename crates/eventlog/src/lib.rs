//! The only definition of bytes: what the guest writes, what crosses to the backup, what lies on disk.
//!
//! In: nothing but byte slices and values. Out: records, frames, the image index and the *fold*, the
//! kernel state that a sequence of records implies. This room does no I/O and has no unsafe code.
//!
//! * [`record`]: one event of one thread, as the guest writes it into its ring.
//! * [`payload`]: what lies behind the header of a record of a system call.
//! * [`fold`]: descriptors, sockets, epoll sets and the rest of the kernel's state, from records alone.
//! * [`change`]: what happened to files, for copies of them.
//! * [`frame`]: a run of records of one stream, with position, length and checksum: the unit on the
//!   wire and on disk.
//! * [`image`], [`handover`]: a process at a cut, and what a primary tells its backup beside it.
//! * [`recording`]: what an offline recording says of itself.
//! * [`codec`]: metadata and control messages (serde and bincode, behind this module alone).
//! * [`fuzz`]: entries for a fuzzer.
//!
//! It depends on [`sysabi`], which is a table without code that acts: which parts the payload of a call has
//! is a row of that table, and the fold reads from the same rows which calls a version orders. The guest
//! writes payloads by these rows, so a copy of them here would be a second definition of bytes.
#![cfg_attr(not(feature = "std"), no_std)]
#![forbid(unsafe_code)]

pub mod payload;
pub mod record;

#[cfg(feature = "std")]
pub mod change;
#[cfg(feature = "std")]
pub mod codec;
#[cfg(feature = "std")]
pub mod fold;
#[cfg(feature = "std")]
pub mod frame;
#[cfg(feature = "std")]
pub mod fuzz;
#[cfg(feature = "std")]
pub mod handover;
#[cfg(feature = "std")]
pub mod image;
#[cfg(feature = "std")]
pub mod recording;
