//! Whether what clients saw of keys that they share can be explained by one order of their commands.
//!
//! In: for each key, what each client asked for, when it asked, what it was answered, and when (a history). Out: whether
//! there is an order of all commands in which each answer is what a single copy of the key would have said, and in which no
//! command comes behind another that began after its answer (linearizability: Herlihy and Wing, 1990). A command without an
//! answer may have been carried out at any time, or not at all.
//!
//! Keys are judged one by one, which is enough (locality: same paper, theorem 1).

mod clients;
mod history;
mod object;
mod order;

pub use clients::{Clients, Finding};
pub use history::{History, Operation};
pub use object::{Answer, Call, Kind};
pub use order::{Unexplained, explain};
