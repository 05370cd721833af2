//! Hosts that can be lost: network namespaces joined by a bridge.
//!
//! Each host has one interface to the common bridge. A server host's interface is a port of a bridge of
//! its own, [`BRIDGE`], as on a real machine that gives containers addresses of its network; the client's
//! carries its address itself.

mod capture;
mod host;
mod ip;
mod loss;
mod processes;
mod wire;

use std::fs;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::{Context, Result, ensure};

pub use capture::Capture;
pub use host::{Host, Process, UPLINK};
pub use processes::below;
pub use wire::{Way, Wire};

/// The bridge inside every server host.
pub const BRIDGE: &str = "br0";
/// Length of the network's prefix.
pub const PREFIX: u8 = 24;
/// The first server host has been up for so many days longer than this machine, the second half as long, and so on.
const DAYS: u32 = 12;
/// Beds that this process has made.
static BEDS: AtomicU8 = AtomicU8::new(0);

/// Three hosts, the network between them, and everything that runs on them. Dropping it removes all.
#[derive(Debug)]
pub struct Bed {
    /// Begins the names of the namespaces; contains this process's number.
    name: String,
    /// The third byte of the addresses: beds are apart even in the host's own routing.
    subnet: u8,
    hosts: Vec<Host>,
}

impl Bed {
    /// Makes `primary`, `backup` and `client`, at .1, .2 and .3 of a network of their own.
    ///
    /// # Errors
    /// If this is not root, or a namespace, link or bridge cannot be made; nothing stays behind then.
    pub fn new() -> Result<Self> {
        Self::with_hosts(&["primary", "backup"])
    }

    /// Makes the server hosts named, at .1 and following, and `client` behind them.
    ///
    /// # Errors
    /// As for [`Bed::new`].
    pub fn with_hosts(servers: &[&str]) -> Result<Self> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "hosts are network namespaces: only root can make them"
        );
        sweep();
        let mut bed = Self::reserve()?;
        Host::new("switch", &bed.switch(), bed.address(0)).inside(|| {
            without_ipv6()?;
            without_bridge_filters()
        })?;
        ip::run(&format!(
            "-n {} link add switch type bridge stp_state 0",
            bed.switch()
        ))?;
        ip::run(&format!("-n {} link set switch up", bed.switch()))?;
        for (index, host) in servers.iter().chain(&["client"]).enumerate() {
            let last = u8::try_from(index + 1).context("too many hosts")?;
            bed.add(host, last, index < servers.len())?;
        }
        Ok(bed)
    }

    /// Takes a name that is free, by making the namespace of the common bridge.
    fn reserve() -> Result<Self> {
        let serial = BEDS.fetch_add(1, Ordering::Relaxed);
        let name = format!("us{}-{serial}", std::process::id());
        ip::run(&format!("netns add {name}-switch"))?;
        Ok(Self {
            name,
            subnet: serial,
            hosts: Vec::new(),
        })
    }

    fn switch(&self) -> String {
        format!("{}-switch", self.name)
    }

    fn add(&mut self, name: &str, last: u8, server: bool) -> Result<()> {
        let (switch, netns, address) = (
            self.switch(),
            format!("{}-{name}", self.name),
            self.address(last),
        );
        ip::run(&format!("netns add {netns}"))?;
        let mut host = Host::new(name, &netns, address);
        if server {
            // Clocks of hosts that were not started together do not agree.
            host = host.up_for(DAYS / u32::from(last));
        }
        let bare = host.inside(|| {
            without_ipv6()?;
            without_bridge_filters()?;
            many_ports()
        });
        self.hosts.push(host);
        bare?;
        ip::run(&format!("-n {netns} link set lo up"))?;
        ip::run(&format!(
            "-n {netns} link add {UPLINK} type veth peer name {name} netns {switch}"
        ))?;
        ip::run(&format!("-n {switch} link set {name} master switch up"))?;
        let mut holder = UPLINK;
        if server {
            holder = BRIDGE;
            ip::run(&format!(
                "-n {netns} link add {BRIDGE} type bridge stp_state 0"
            ))?;
            ip::run(&format!("-n {netns} link set {UPLINK} master {BRIDGE}"))?;
            ip::run(&format!("-n {netns} link set {BRIDGE} up"))?;
        }
        ip::run(&format!(
            "-n {netns} addr add {address}/{PREFIX} dev {holder}"
        ))?;
        ip::run(&format!("-n {netns} link set {UPLINK} up"))
    }

    /// An address of this bed's network.
    #[must_use]
    pub const fn address(&self, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 79, self.subnet, last)
    }

    /// Puts a relay between a host and the common bridge, which delays and loses frames as it is told. `seed` decides what
    /// is lost.
    ///
    /// # Errors
    /// If a link or a socket of it cannot be made.
    pub fn wire(&self, host: &Host, seed: u64) -> Result<Wire> {
        Wire::put(self, host, seed)
    }

    /// Watches what a host sends over its uplink.
    ///
    /// # Errors
    /// If tcpdump cannot be started, or refuses the filter.
    pub fn watch(&self, host: &Host, filter: &str) -> Result<Capture> {
        Capture::start(&self.switch(), host.name(), filter)
    }

    /// Ends everything on all hosts and removes them, for those who leave without dropping the bed.
    pub fn remove(&self) {
        for host in &self.hosts {
            host.kill_all();
            let _ = ip::run(&format!("netns del {}", host.netns()));
        }
        let _ = ip::run(&format!("netns del {}", self.switch()));
    }

    /// The host of this name.
    ///
    /// # Errors
    /// If there is none.
    pub fn host(&self, name: &str) -> Result<&Host> {
        let found = self.hosts.iter().find(|host| host.name() == name);
        found.with_context(|| format!("the test bed has no host {name}"))
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Switches IPv6 off in the namespace of this thread: nobody here speaks it, and its announcements would
/// count as frames of the host.
fn without_ipv6() -> Result<()> {
    for links in ["all", "default"] {
        let switch = format!("/proc/sys/net/ipv6/conf/{links}/disable_ipv6");
        // A kernel without IPv6 has no such file.
        if fs::exists(&switch)? {
            fs::write(&switch, "1").with_context(|| format!("{switch} could not be written"))?;
        }
    }
    Ok(())
}

/// A client that connects again and again for hours does not run out of ports: it has all of them, and those of
/// connections that it has closed come back after a second.
fn many_ports() -> Result<()> {
    for (name, value) in [("ip_local_port_range", "1024 65535"), ("tcp_tw_reuse", "1")] {
        let switch = format!("/proc/sys/net/ipv4/{name}");
        fs::write(&switch, value).with_context(|| format!("{switch} could not be written"))?;
    }
    Ok(())
}

/// Switches packet filters for bridges off in the namespace of this thread: hosts have them only where
/// something has loaded them, and then they cost as much as the rest of the way.
fn without_bridge_filters() -> Result<()> {
    for family in ["iptables", "ip6tables", "arptables"] {
        let switch = format!("/proc/sys/net/bridge/bridge-nf-call-{family}");
        if fs::exists(&switch)? {
            fs::write(&switch, "0").with_context(|| format!("{switch} could not be written"))?;
        }
    }
    Ok(())
}

/// Removes what beds left behind whose process was killed before it could.
fn sweep() {
    let Ok(entries) = fs::read_dir(ip::DIR) else {
        return;
    };
    for name in entries
        .flatten()
        .filter_map(|e| e.file_name().into_string().ok())
    {
        let owner = name
            .strip_prefix("us")
            .and_then(|rest| rest.split('-').next())
            .unwrap_or_default();
        if owner.parse::<u32>().is_ok() && !fs::exists(format!("/proc/{owner}")).unwrap_or(true) {
            Host::new("left behind", &name, Ipv4Addr::UNSPECIFIED).kill_all();
            let _ = ip::run(&format!("netns del {name}"));
        }
    }
}
