//! Exact copies of directories of a container: begun by a walk, kept by changes.
//!
//! * In, on the primary: a directory that does not change for now. [`walk`] says which changes make a copy of it.
//! * In, on the backup host: changes, from that walk and from then on as the container makes them. They come over the
//!   network, from a host whose container may be hostile.
//! * Out: [`Tree`] applies them to the copies. Nothing outside of these is read, written, made or removed, wherever the
//!   symbolic links in them lead: each path is resolved here, as it would be in the container, and opened without links.
#![forbid(unsafe_code)]

mod beneath;
mod error;
mod place;
mod remove;
mod tree;
mod walk;

pub use error::{MirrorError, WalkError};
pub use tree::Tree;
pub use walk::{Copied, walk};
