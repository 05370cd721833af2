//! Why the gate could not do what it was asked.

use std::io;

use crate::tuple::Tuple;

/// An error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// The kernel refused the program or its maps.
    #[error("the kernel does not load the gate's eBPF program: {0}")]
    Load(#[source] Box<aya::EbpfError>),
    /// The kernel refused one program.
    #[error("the kernel refuses the gate's eBPF program `{program}`: {source}")]
    Refused {
        /// The program.
        program: &'static str,
        /// What the kernel said.
        source: Box<aya::programs::ProgramError>,
    },
    /// The built-in object lacks something: it is not the object of this version.
    #[error("the built-in eBPF object has no usable `{part}`")]
    Object {
        /// The program or map.
        part: &'static str,
    },
    /// A map could not be mapped into memory.
    #[error("the eBPF map `{name}` cannot be mapped: {source}")]
    Map {
        /// The map.
        name: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A map could not be read or changed.
    #[error("the eBPF map `{name}` cannot be used: {source}")]
    MapAccess {
        /// The map.
        name: &'static str,
        /// What the kernel said.
        source: Box<aya::maps::MapError>,
    },
    /// The program could not be attached.
    #[error("the gate cannot be attached to interface `{interface}` ({step}): {source}")]
    Attach {
        /// The interface.
        interface: String,
        /// The step that failed.
        step: &'static str,
        /// What was said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No handshake between these ends passed the gate.
    #[error("the gate knows no connection from {tuple}")]
    Unknown {
        /// The ends asked for.
        tuple: Tuple,
    },
    /// All entries are in use.
    #[error("the gate holds its limit of {limit} connections")]
    Full {
        /// The limit.
        limit: u32,
    },
    /// A call on a socket failed.
    #[error("connection {tuple}: {step} failed: {source}")]
    Socket {
        /// Its ends.
        tuple: Tuple,
        /// The call.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A call that belongs to no connection failed.
    #[error("{step} failed: {source}")]
    System {
        /// The call.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}
