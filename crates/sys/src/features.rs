//! Probes of the kernel features that protection needs: each really uses its feature, in a child or on
//! a thread of its own where that leaves traces, and undoes it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::sched::{CloneFlags, unshare};

use crate::cgroup::{Cgroup, Hierarchy};
use crate::namespaces::{
    fixed_addresses, fork_numbered, fork_pid_one, on_helper_thread, pidfd_open,
};
use crate::netlink::{End, Netlink};

/// One feature.
#[derive(Clone, Copy, Debug)]
pub struct Feature {
    /// A short name, as users see it.
    pub name: &'static str,
    /// What it does and what it needs where it is missing: the end of a sentence that names it.
    pub purpose: &'static str,
    probe: fn() -> io::Result<()>,
}

impl Feature {
    /// Uses the feature; the error is the kernel's answer where it cannot be used.
    pub fn probe(&self) -> io::Result<()> {
        (self.probe)()
    }
}

/// Every feature, in the order in which a missing one explains the next.
pub const FEATURES: [Feature; 18] = [
    Feature {
        name: "root",
        purpose: "allows namespaces, eBPF and TCP_REPAIR: run as root",
        probe: root,
    },
    Feature {
        name: "fsgsbase",
        purpose: "lets the guest keep its thread block in gs: needs a CPU and kernel with FSGSBASE",
        probe: fsgsbase,
    },
    Feature {
        name: "syscall-user-dispatch",
        purpose: "catches a system call the first time its site runs: needs Linux 5.11 or later",
        probe: syscall_user_dispatch,
    },
    Feature {
        name: "memfd",
        purpose: "holds the rings that the container and the shim share: needs CONFIG_MEMFD_CREATE",
        probe: memfd,
    },
    Feature {
        name: "pidfd-getfd",
        purpose: "gives the shim its own duplicate of each connection: needs Linux 5.6 or later",
        probe: pidfd_getfd,
    },
    Feature {
        name: "ptrace-seize",
        purpose: "injects the guest and stops threads for a checkpoint: needs ptrace to be allowed",
        probe: ptrace_seize,
    },
    Feature {
        name: "fixed-addresses",
        purpose: "keeps addresses the same in replay: needs personality() to be allowed",
        probe: fixed_addresses_in_a_child,
    },
    Feature {
        name: "userfaultfd-wp-async",
        purpose: "tracks written pages without stopping the writer: needs Linux 6.7 or later",
        probe: userfaultfd_wp_async,
    },
    Feature {
        name: "pagemap-scan",
        purpose: "lists the pages written since the last checkpoint: needs Linux 6.7 or later",
        probe: pagemap_scan,
    },
    Feature {
        name: "namespaces",
        purpose: "gives the container its own network, mounts, IPC and names: needs CONFIG_NAMESPACES",
        probe: namespaces,
    },
    Feature {
        name: "time-namespace",
        purpose: "lets a container's clocks go on on another host: needs CONFIG_TIME_NS",
        probe: time_namespace,
    },
    Feature {
        name: "thread-numbers",
        purpose: "finds a container's threads by their numbers in it: needs Linux 6.11 or later",
        probe: crate::threads::probe,
    },
    Feature {
        name: "clone3-set-tid",
        purpose: "gives restored processes their old numbers: needs CONFIG_CHECKPOINT_RESTORE",
        probe: clone3_set_tid,
    },
    Feature {
        name: "cgroup",
        purpose: "kills and counts the container's processes: mount cgroup2 on /sys/fs/cgroup",
        probe: cgroup,
    },
    Feature {
        name: "veth-bridge",
        purpose: "links the container to the bridge: needs CONFIG_VETH and CONFIG_BRIDGE",
        probe: veth_bridge,
    },
    Feature {
        name: "tcp-repair",
        purpose: "rebuilds connections after a takeover: needs CONFIG_CHECKPOINT_RESTORE",
        probe: tcp_repair,
    },
    Feature {
        name: "clsact",
        purpose: "hooks the output gate in: needs CONFIG_NET_CLS_ACT and CONFIG_NET_SCH_INGRESS",
        probe: clsact,
    },
    Feature {
        name: "bpf-classifier",
        purpose: "is the output gate itself: needs CONFIG_BPF_SYSCALL and CONFIG_NET_CLS_BPF",
        probe: bpf_classifier,
    },
];

/// The kernel's answer to a raw call that gives a negative number on failure.
fn answer(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Takes over a descriptor that the kernel has just returned.
fn owned(fd: libc::c_long) -> OwnedFd {
    // SAFETY: only called with fresh descriptors that nobody else owns.
    unsafe { OwnedFd::from_raw_fd(fd as RawFd) }
}

/// Runs a probe in a child that is thrown away; it exits with the errno.
fn in_child(probe: fn() -> io::Result<()>) -> io::Result<()> {
    let child = fork_pid_one(move || errno_of(probe()))?;
    wait(child.pid)
}

fn errno_of(outcome: io::Result<()>) -> i32 {
    outcome.map_or_else(|error| error.raw_os_error().unwrap_or(libc::EIO), |()| 0)
}

fn wait(pid: i32) -> io::Result<()> {
    use nix::sys::wait::{WaitStatus, waitpid};
    match waitpid(nix::unistd::Pid::from_raw(pid), None)? {
        WaitStatus::Exited(_, 0) => Ok(()),
        WaitStatus::Exited(_, errno) => Err(io::Error::from_raw_os_error(errno)),
        other => Err(io::Error::other(format!("the probe ended with {other:?}"))),
    }
}

fn root() -> io::Result<()> {
    if nix::unistd::geteuid().is_root() {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::EPERM))
    }
}

fn fsgsbase() -> io::Result<()> {
    /// `HWCAP2_FSGSBASE` of asm/hwcap2.h.
    const FSGSBASE: libc::c_ulong = 1 << 1;
    // SAFETY: reads the auxiliary vector.
    let bits = unsafe { libc::getauxval(libc::AT_HWCAP2) };
    if bits & FSGSBASE != 0 {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::ENOSYS))
    }
}

fn syscall_user_dispatch() -> io::Result<()> {
    in_child(|| {
        const SET: libc::c_int = 59;
        // Selector 0 lets every call through, so the child goes on as before.
        static SELECTOR: u8 = 0;
        // SAFETY: the selector is a static that lives as long as the process.
        let on = unsafe { libc::prctl(SET, 1_u64, 0_u64, 0_u64, &raw const SELECTOR) };
        answer(on.into()).map(drop)
    })
}

fn memfd() -> io::Result<()> {
    // SAFETY: the name is a terminated string.
    let fd = unsafe { libc::memfd_create(c"probe".as_ptr(), libc::MFD_CLOEXEC) };
    drop(owned(answer(fd.into())?));
    Ok(())
}

fn pidfd_getfd() -> io::Result<()> {
    let own = pidfd_open(std::process::id() as i32)?;
    let number = own.as_raw_fd();
    // SAFETY: three integers.
    let copy = unsafe { libc::syscall(libc::SYS_pidfd_getfd, number, number, 0) };
    drop(owned(answer(copy)?));
    Ok(())
}

fn ptrace_seize() -> io::Result<()> {
    let target = fork_pid_one(|| crate::namespaces::pause_for_ever())?;
    // SAFETY: SEIZE reads and writes no memory of ours.
    let seized = unsafe { libc::ptrace(libc::PTRACE_SEIZE, target.pid, 0_u64, 0_u64) };
    let outcome = answer(seized).map(drop);
    crate::namespaces::pidfd_signal(target.pidfd.as_fd(), libc::SIGKILL)?;
    nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(target.pid), None)?;
    outcome
}

fn fixed_addresses_in_a_child() -> io::Result<()> {
    in_child(fixed_addresses)
}

fn userfaultfd_wp_async() -> io::Result<()> {
    /// `UFFD_USER_MODE_ONLY`.
    const USER_MODE_ONLY: libc::c_int = 1;
    /// `_IOWR(0xAA, 0x3F, struct uffdio_api)`.
    const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
    /// PAGEFAULT_FLAG_WP, WP_HUGETLBFS_SHMEM, WP_UNPOPULATED, WP_ASYNC.
    const FEATURES: u64 = 1 | 1 << 12 | 1 << 13 | 1 << 15;
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | USER_MODE_ONLY;
    // SAFETY: one integer.
    let fd = owned(answer(unsafe {
        libc::syscall(libc::SYS_userfaultfd, flags)
    })?);
    let mut api: [u64; 3] = [0xaa, FEATURES, 0];
    // SAFETY: `api` has the layout and size of `struct uffdio_api`.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), UFFDIO_API, api.as_mut_ptr()) };
    answer(result.into()).map(drop)
}

fn pagemap_scan() -> io::Result<()> {
    /// `_IOWR('f', 16, struct pm_scan_arg)`; the argument is twelve 64-bit words.
    const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;
    const PAGE_IS_PRESENT: u64 = 1 << 3;
    let pagemap = std::fs::File::open("/proc/self/pagemap")?;
    let mut region = [0_u64; 3];
    let page = (&raw const region as u64) & !0xfff;
    let mut argument: [u64; 12] = [0; 12];
    argument[0] = 96;
    argument[2] = page;
    argument[3] = page + 4096;
    argument[5] = region.as_mut_ptr() as u64;
    argument[6] = 1;
    argument[9] = PAGE_IS_PRESENT;
    argument[11] = PAGE_IS_PRESENT;
    // SAFETY: the argument has the kernel's layout and names one region that can be written.
    let found = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, argument.as_mut_ptr()) };
    match answer(found.into())? {
        1 => Ok(()),
        _ => Err(io::Error::other("a page of our own stack was not found")),
    }
}

fn namespaces() -> io::Result<()> {
    in_child(|| {
        unshare(
            CloneFlags::CLONE_NEWNET
                | CloneFlags::CLONE_NEWNS
                | CloneFlags::CLONE_NEWIPC
                | CloneFlags::CLONE_NEWUTS,
        )?;
        Ok(())
    })
}

fn time_namespace() -> io::Result<()> {
    in_child(|| crate::clocks::advance(crate::clocks::Offsets::default()))
}

fn clone3_set_tid() -> io::Result<()> {
    in_child(|| {
        let inner = fork_numbered(Some(300), || errno_of(Ok(())))?;
        wait(inner.pid)
    })
}

fn cgroup() -> io::Result<()> {
    let hierarchy = Hierarchy::find().map_err(io::Error::other)?;
    Cgroup::create(&hierarchy, "doctor")
        .map(drop)
        .map_err(io::Error::other)
}

/// Runs a probe with a route socket in a network namespace that vanishes with its thread.
fn in_fresh_network(probe: fn(&mut Netlink) -> io::Result<()>) -> io::Result<()> {
    on_helper_thread(move || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        probe(&mut Netlink::open()?)
    })
}

fn veth_bridge() -> io::Result<()> {
    in_fresh_network(|netlink| {
        netlink.add_bridge("br0").map_err(|error| error.source)?;
        let host = End {
            name: "v0",
            mac: [0xfe, 0, 0, 0, 0, 1],
            namespace: None,
        };
        let peer = End {
            name: "v1",
            mac: [2, 0, 0, 0, 0, 1],
            namespace: None,
        };
        netlink.add_veth(host, peer).map_err(|error| error.source)
    })
}

fn tcp_repair() -> io::Result<()> {
    // SAFETY: three integers.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    let fd = owned(answer(fd.into())?);
    let on: libc::c_int = 1;
    // SAFETY: `on` has the length that is given.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_REPAIR,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as u32,
        )
    };
    answer(result.into()).map(drop)
}

fn clsact() -> io::Result<()> {
    in_fresh_network(|netlink| {
        let lo = netlink.link("lo").map_err(|error| error.source)?;
        let lo = lo.ok_or(io::ErrorKind::NotFound)?;
        netlink.add_clsact(lo.index).map_err(|error| error.source)
    })
}

fn bpf_classifier() -> io::Result<()> {
    const BPF_PROG_LOAD: libc::c_int = 5;
    const BPF_PROG_TYPE_SCHED_CLS: u64 = 3;
    // r0 = 0; exit
    let program: [u64; 2] = [0xb7, 0x95];
    // The start of `union bpf_attr` for loading: type and count, instructions, licence, the rest zero.
    let mut attributes = [0_u64; 9];
    attributes[0] = BPF_PROG_TYPE_SCHED_CLS | (program.len() as u64) << 32;
    attributes[1] = program.as_ptr() as u64;
    attributes[2] = c"GPL".as_ptr() as u64;
    // SAFETY: the attributes have the kernel's layout; program and licence outlive the call.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_LOAD,
            attributes.as_mut_ptr(),
            size_of_val(&attributes),
        )
    };
    drop(owned(answer(fd)?));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_probe_agrees_with_a_kernel_that_has_it_all() {
        // The kernels this project is developed and tested on have every feature.
        for feature in FEATURES {
            feature
                .probe()
                .unwrap_or_else(|error| panic!("{}: {error}", feature.name));
        }
    }

    #[test]
    fn a_probe_without_privilege_says_missing() {
        let refused = in_child(|| {
            nix::unistd::setuid(nix::unistd::Uid::from_raw(65534))?;
            match (root(), namespaces(), tcp_repair(), clone3_set_tid()) {
                (Err(_), Err(_), Err(_), Err(_)) => Ok(()),
                _ => Err(io::Error::from_raw_os_error(libc::EINVAL)),
            }
        });
        refused.unwrap();
    }
}
