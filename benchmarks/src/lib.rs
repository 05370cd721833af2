//! What measures and torments Understudy: hosts to lose, clients that notice everything, and a simulated world.
//!
//! In: a server's address, or commands to run on hosts that are network namespaces. Out: what clients saw,
//! as numbers: lost, repeated and wrong answers, broken connections, the gap around a fault, latencies.

pub mod bed;
pub mod exchange;
pub mod fault;
pub mod linear;
pub mod load;
pub mod processor;
pub mod race;
pub mod rng;
pub mod servers;
pub mod service;
pub mod sim;
pub mod steady;
