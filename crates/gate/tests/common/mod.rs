//! A test bed of network namespaces: a bridge, a client, and two hosts' ends of a container's veth.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, BorrowedFd};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use sys::packet::PacketSocket;

pub mod buffer;
pub mod clients;
pub mod primary;

pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 66, 0, 1);
pub const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 66, 0, 10);
pub const SERVICE_MAC: [u8; 6] = [2, 0x66, 0, 0, 0, 2];
pub const MASK: [u8; 6] = [2, 0x66, 0xff, 0, 0, 2];
pub const PORT: u16 = 7000;
const ALL: u16 = 3;

static BEDS: AtomicU32 = AtomicU32::new(0);

/// Runs `ip` and fails the test if it fails.
pub fn ip(args: &str) {
    let out = Command::new("ip")
        .args(args.split_whitespace())
        .output()
        .expect("ip runs");
    assert!(
        out.status.success(),
        "ip {args}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
}

/// Namespaces `<name>br` (the hosts' bridge), `c` (client), `p` (primary's container), `x` (standby's).
/// In `br`: `vc`, `vp`, `vx`, their other ends are called `eth0`.
pub struct Bed {
    name: String,
    files: [(char, File); 4],
}

impl Bed {
    pub fn new() -> Self {
        let name = format!(
            "gate{}x{}",
            std::process::id(),
            BEDS.fetch_add(1, Ordering::Relaxed)
        );
        for n in ['b', 'c', 'p', 'x'] {
            ip(&format!("netns add {name}{n}"));
            ip(&format!("-n {name}{n} link set lo up"));
        }
        ip(&format!(
            "-n {name}b link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0"
        ));
        ip(&format!("-n {name}b link set br0 up"));
        for (n, mac, address) in [('c', 1, CLIENT), ('p', 2, SERVICE), ('x', 2, SERVICE)] {
            ip(&format!(
                "-n {name}{n} link add eth0 address 02:66:00:00:00:0{mac} type veth peer name v{n} netns {name}b"
            ));
            ip(&format!("-n {name}b link set v{n} master br0 up"));
            ip(&format!("-n {name}{n} addr add {address}/24 dev eth0"));
            ip(&format!("-n {name}{n} link set eth0 up"));
        }
        let open = |n| {
            (
                n,
                File::open(format!("/run/netns/{name}{n}")).expect("the namespace was made"),
            )
        };
        let files = ['b', 'c', 'p', 'x'].map(open);
        let bed = Self { name, files };
        bed.link("vx", false);
        bed
    }

    /// The namespace called `n`.
    pub fn fd(&self, n: char) -> BorrowedFd<'_> {
        self.files
            .iter()
            .find(|(m, _)| *m == n)
            .expect("one of the four")
            .1
            .as_fd()
    }

    pub fn path(&self, n: char) -> String {
        format!("/run/netns/{}{n}", self.name)
    }

    /// Runs `work` on a thread inside namespace `n`.
    pub fn inside<T: Send>(&self, n: char, work: impl FnOnce() -> T + Send) -> T {
        sys::namespaces::in_network(self.fd(n), || Ok(work()))
            .expect("the namespace can be entered")
    }

    /// Sets a port of the bridge up or down.
    pub fn link(&self, port: &str, up: bool) {
        ip(&format!(
            "-n {}b link set {port} {}",
            self.name,
            if up { "up" } else { "down" }
        ));
    }

    /// Makes the bridge forget what it learnt at a port.
    pub fn forget(&self, port: &str) {
        self.link(port, false);
        self.link(port, true);
    }

    /// Everything that passes the client's bridge port from now on.
    pub fn capture(&self) -> Capture {
        self.inside('b', || Capture {
            socket: PacketSocket::open(index("vc"), ALL).expect("packet socket"),
            buffer: vec![0; 1 << 17],
        })
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        for (n, _) in &self.files {
            let _ = Command::new("ip")
                .args(["netns", "del", &format!("{}{n}", self.name)])
                .output();
        }
    }
}

/// The number of an interface of the calling thread's namespace.
pub fn index(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).expect("the interface exists")
}

pub struct Capture {
    socket: PacketSocket,
    buffer: Vec<u8>,
}

impl Capture {
    /// The next frame that does not come from the client, if one comes within `wait`.
    pub fn next_of_service(&mut self, wait: Duration) -> Option<Vec<u8>> {
        let deadline = Instant::now() + wait;
        loop {
            let n = self
                .socket
                .receive(&mut self.buffer, deadline)
                .expect("capture")?;
            let frame = &self.buffer[..n];
            if frame[6..12] == SERVICE_MAC || frame[6..12] == MASK {
                return Some(frame.to_vec());
            }
        }
    }

    /// Throws away what was captured so far.
    pub fn clear(&mut self) {
        let past = Instant::now();
        while self
            .socket
            .receive(&mut self.buffer, past)
            .expect("capture")
            .is_some()
        {}
    }
}

pub fn ethertype(frame: &[u8]) -> u16 {
    u16::from_be_bytes([frame[12], frame[13]])
}

pub fn service() -> SocketAddrV4 {
    SocketAddrV4::new(SERVICE, PORT)
}

/// Waits for a condition, or fails with what was waited for.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::yield_now();
    }
}
