//! Every host-side unsafe: the kernel's interfaces, wrapped so that the other rooms need none.

pub mod arena;
pub mod bpf;
pub mod cgroup;
pub mod clocks;
pub mod counting;
pub mod cycles;
pub mod descriptors;
pub mod features;
pub mod follow;
pub mod inject;
pub mod memory;
pub mod namespaces;
pub mod netlink;
pub mod packet;
pub mod pagemap;
pub mod proc_maps;
pub mod process;
pub mod ptrace;
pub mod remote;
pub mod tcp;
pub mod threads;
pub mod uffd;
