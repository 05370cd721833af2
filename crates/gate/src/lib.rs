//! The gate between a container and the world: what leaves, when, and what is kept until the peer has it.
//!
//! * [`Gate`] is the kernel half, a tc eBPF program on the host's end of the container's veth. It holds the
//!   lease, cuts acknowledgements back to what the log holds, lets payload, FIN and RST leave only when
//!   released, and notes what takeover needs to know.
//! * [`Sender`] owns output from the application's write to the peer's acknowledgement.
//! * [`Openings`] are connections in the making: their answers leave when the log holds them.
//! * [`Injector`] and [`SlowReaders`] keep the way in moving.
//! * [`rebuild`] and [`Tap`] continue connections on another host.
//!
//! In: log positions that the backup has acknowledged, descriptors, buffers. Out: packets. The gate fails
//! closed: when nobody renews the lease, nothing of any kind leaves.

mod arena;
mod buffer;
mod connections;
mod error;
mod facts;
pub mod fuzz;
mod kernel;
mod layout;
mod openings;
mod output;
#[cfg(test)]
mod program_tests;
pub mod rebuild;
mod receive;
pub mod segment;
mod sender;
mod tap;
mod touched;
mod tuple;

pub use arena::ArenaOutput;
pub use buffer::OutputBuffer;
pub use error::GateError;
pub use facts::{Handshake, Progress, Scale, distance, position_of};
pub use kernel::{Config, Counters, Entry, Gate, LeaseKeeper};
pub use openings::{Opening, Openings};
pub use output::{Action, End, OutputError, OutputState};
pub use receive::{Injector, SlowReaders, late_acknowledgement};
pub use sender::{Adopted, Outcome, Sender};
pub use tap::{HeldFrame, Tap};
pub use touched::Touched;
pub use tuple::Tuple;
