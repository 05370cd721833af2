//! A test bed: a network namespace with a bridge, and another with a client on it.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use shim::container::{Isolation, Link, Program, Spec};
use sys::namespaces::in_network;
use sys::netlink::Netlink;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Runs a command that must succeed.
fn must(command: &str) {
    let words: Vec<&str> = command.split_whitespace().collect();
    let status = Command::new(words[0]).args(&words[1..]).status().unwrap();
    assert!(status.success(), "{command}: {status}");
}

/// A network namespace with a name; gone when dropped.
pub(crate) struct Namespace {
    pub(crate) name: String,
    fd: OwnedFd,
}

impl Namespace {
    fn new(kind: &str) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("us-{kind}-{}-{number}", std::process::id());
        must(&format!("ip netns add {name}"));
        let fd = std::fs::File::open(format!("/run/netns/{name}"))
            .unwrap()
            .into();
        Self { name, fd }
    }

    /// Runs `work` with this as the network.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        in_network(self.fd.as_fd(), || Ok(work())).unwrap()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["netns", "del", &self.name])
            .status();
    }
}

/// The bed. The bridge `br0` is in `host`; `client` has 10.9.0.1 on it.
pub(crate) struct Bed {
    pub(crate) host: Namespace,
    pub(crate) client: Namespace,
}

impl Bed {
    pub(crate) fn new() -> Self {
        let (host, client) = (Namespace::new("host"), Namespace::new("client"));
        let (h, c) = (&host.name, &client.name);
        must(&format!("ip -n {h} link add br0 type bridge"));
        must(&format!("ip -n {h} link set br0 up"));
        must(&format!(
            "ip -n {h} link add tap0 type veth peer name eth0 netns {c}"
        ));
        must(&format!("ip -n {h} link set tap0 master br0 up"));
        must(&format!("ip -n {c} addr add 10.9.0.1/24 dev eth0"));
        must(&format!("ip -n {c} link set eth0 up"));
        must(&format!("ip -n {c} link set lo up"));
        host.inside(|| {
            // Till then what goes to the client is dropped.
            let mut netlink = Netlink::open().unwrap();
            while !netlink.link("tap0").unwrap().unwrap().running {
                std::thread::yield_now();
            }
        });
        Self { host, client }
    }

    /// Whether a link of this name is on the host.
    pub(crate) fn has_link(&self, name: &str) -> bool {
        let shown = Command::new("ip")
            .args(["-n", &self.host.name, "link", "show", name])
            .output();
        shown.unwrap().status.success()
    }
}

pub(crate) const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 10);

pub(crate) fn link() -> Link {
    Link {
        address: ADDRESS,
        prefix: 24,
        gateway: None,
        bridge: "br0".into(),
    }
}

/// A name no other test uses.
pub(crate) fn unique(kind: &str) -> String {
    format!("{kind}.{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

pub(crate) fn spec(name: &str, isolation: Isolation, link: Option<Link>) -> Spec {
    Spec {
        mounts: Vec::new(),
        name: name.into(),
        isolation,
        link,
    }
}

pub(crate) fn shell(script: &str) -> Program {
    Program::new(["sh", "-c", script].map(Into::into).to_vec())
}
