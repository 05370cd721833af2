//! The backup: keeps log and checkpoint of each protected container, notices when its primary falls
//! silent, and decides who may speak.
//!
//! In: the primary's connections ([`stream`]). Out: acknowledgements and leases, which open the primary's
//! gate; [`Event`]s, on which a takeover acts through [`Guard::take_over`].
//!
//! * [`detector`] and [`arbiter`]: pure state machines; who is suspected, who may speak.
//! * [`store`]: the log since the committed checkpoint, and that checkpoint, as opaque bytes.
//! * [`guard`]: one container, joining the above under locks.
//! * [`server`]: listens, and serves each connection on a thread of its own.
//! * [`generation`]: what went live is remembered across a restart.
//! * [`takeover`]: from a suspicion to a running container.
//! * [`evidence`]: what is left of one that failed.
#![forbid(unsafe_code)]

pub mod arbiter;
pub mod detector;
pub mod evidence;
pub mod fuzz;
pub mod generation;
pub mod guard;
pub mod mirror;
mod serve;
pub mod server;
pub mod store;
pub mod takeover;

pub use guard::{Attempt, Back, Event, Guard};
pub use server::{Options, Server};
