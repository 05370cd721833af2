//! The container's link: a veth pair, `eth0` inside, the other end on the host's bridge.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use sys::namespaces::in_network;
use sys::netlink::{End, Netlink};
use sys::packet::PacketSocket;

use super::{Error, arp};

/// The name of the link inside.
const INSIDE: &str = "eth0";
/// Longest name of a link.
const NAME_MAX: usize = 15;

/// The link a container is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its address.
    pub address: Ipv4Addr,
    /// Bits of the network's part of it.
    pub prefix: u8,
    /// Where packets for other networks go; nowhere without.
    pub gateway: Option<Ipv4Addr>,
    /// The bridge, in the caller's network namespace.
    pub bridge: String,
}

impl Link {
    /// Checks that the bridge is there and up and that nobody on it answers for the address.
    ///
    /// For a primary before it starts; a backup's address is in use until it takes over.
    pub fn check(&self) -> Result<(), Error> {
        let mut netlink = open_netlink()?;
        let bridge = find_bridge(&mut netlink, &self.bridge)?;
        let taken = |holder| Error::AddressTaken {
            address: self.address,
            holder,
        };
        if netlink
            .addresses()?
            .iter()
            .any(|(_, address)| *address == self.address)
        {
            return Err(taken("this host".into()));
        }
        let own = bridge.mac.unwrap_or_default();
        let holder = PacketSocket::open(bridge.index, arp::ETHERTYPE)
            .and_then(|socket| arp::holder(&socket, own, self.address))
            .map_err(|source| Error::network(format!("probe on {:?}", self.bridge), source))?;
        holder.map_or(Ok(()), |mac| {
            Err(taken(format!("the host with {}", show(mac))))
        })
    }
}

/// Checks that a bridge is there and up.
pub fn check_bridge(name: &str) -> Result<(), Error> {
    find_bridge(&mut open_netlink()?, name).map(drop)
}

fn find_bridge(netlink: &mut Netlink, name: &str) -> Result<sys::netlink::Link, Error> {
    let missing = || Error::BridgeMissing(name.to_owned());
    if name.is_empty() || name.len() > NAME_MAX {
        return Err(missing());
    }
    let bridge = netlink.link(name)?.ok_or_else(missing)?;
    if bridge.kind != "bridge" {
        return Err(Error::NotABridge(name.to_owned()));
    }
    if !bridge.up {
        return Err(Error::BridgeDown(name.to_owned()));
    }
    Ok(bridge)
}

/// The hardware address that goes with an address: the same on primary and backup, so that a takeover
/// changes nothing for the neighbours. Locally administered.
#[must_use]
pub fn mac_of(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0x75, a, b, c, d]
}

/// The name of the host's end: `us-` and the container's name, shortened by a hash if too long.
fn host_name(container: &str) -> String {
    let plain = format!("us-{container}");
    if plain.len() <= NAME_MAX {
        return plain;
    }
    // FNV-1a, folded to the four digits there is room for.
    let hash = container.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    format!(
        "{}.{:04x}",
        plain.get(..10).unwrap_or("us-"),
        (hash >> 16) ^ (hash & 0xffff)
    )
}

fn show(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn open_netlink() -> Result<Netlink, Error> {
    Netlink::open().map_err(|source| Error::network("open a route socket", source))
}

/// Runs `work` in the network namespace behind `network`, keeping its typed error.
fn inside<T: Send>(
    network: BorrowedFd<'_>,
    work: impl FnOnce() -> Result<T, Error> + Send,
) -> Result<T, Error> {
    in_network(network, || Ok(work()))
        .map_err(|source| Error::network("enter the container's network", source))?
}

fn find(netlink: &mut Netlink, name: &str) -> Result<u32, Error> {
    let gone = || {
        Error::network(
            format!("find the link {name}"),
            io::ErrorKind::NotFound.into(),
        )
    };
    Ok(netlink.link(name)?.ok_or_else(gone)?.index)
}

/// Waits until frames pass. The kernel notices on a thread of its own that both ends are up, and drops without a word
/// what is sent before: what announces the address would be lost.
fn await_running(netlink: &mut Netlink, name: &str) -> Result<(), Error> {
    const LONGEST: Duration = Duration::from_secs(1);
    const AGAIN: Duration = Duration::from_micros(200);
    let deadline = Instant::now() + LONGEST;
    while !netlink.link(name)?.is_some_and(|link| link.running) {
        if Instant::now() > deadline {
            tracing::warn!(name, "the link does not come up");
            break;
        }
        thread::sleep(AGAIN);
    }
    Ok(())
}

/// Takes `lo` up inside.
pub(super) fn raise_loopback(network: BorrowedFd<'_>) -> Result<(), Error> {
    inside(network, || {
        let mut netlink = open_netlink()?;
        let loopback = find(&mut netlink, "lo")?;
        Ok(netlink.set_up(loopback, true)?)
    })
}

/// A link that exists. Dropping it deletes it.
#[derive(Debug)]
pub(super) struct Attached {
    /// Bound to the namespace of the bridge, whatever the thread that uses it.
    netlink: Netlink,
    host: u32,
    bridge: u32,
    address: Ipv4Addr,
    /// Bound to `eth0`; kept because opening and closing one is slow.
    announcer: PacketSocket,
}

impl Attached {
    /// Makes the pair, both ends up, on no bridge yet.
    pub(super) fn make(link: &Link, container: &str, network: OwnedFd) -> Result<Self, Error> {
        let mut netlink = open_netlink()?;
        let bridge = find_bridge(&mut netlink, &link.bridge)?.index;
        let name = host_name(container);
        let mac = mac_of(link.address);
        let host = End {
            name: &name,
            mac: outer_mac(),
            namespace: None,
        };
        let peer = End {
            name: INSIDE,
            mac,
            namespace: Some(network.as_fd()),
        };
        netlink.add_veth(host, peer).map_err(|error| {
            if error.is(libc::EEXIST) {
                Error::NameTaken {
                    name: container.into(),
                    link: name.clone(),
                }
            } else {
                error.into()
            }
        })?;
        let host = find(&mut netlink, &name)?;
        let configured = Self::configure(&mut netlink, host, &name, link, network.as_fd())
            .and_then(|announcer| await_running(&mut netlink, &name).map(|()| announcer));
        match configured {
            Ok(announcer) => Ok(Self {
                netlink,
                host,
                bridge,
                address: link.address,
                announcer,
            }),
            Err(error) => {
                // The first error is the one to tell.
                let _ = netlink.delete(host);
                Err(error)
            }
        }
    }

    fn configure(
        netlink: &mut Netlink,
        host: u32,
        name: &str,
        link: &Link,
        network: BorrowedFd<'_>,
    ) -> Result<PacketSocket, Error> {
        silence(name);
        netlink.set_up(host, true)?;
        inside(network, || {
            silence(INSIDE);
            let mut netlink = open_netlink()?;
            let index = find(&mut netlink, INSIDE)?;
            netlink.add_address(index, link.address, link.prefix)?;
            netlink.set_up(index, true)?;
            if let Some(gateway) = link.gateway {
                netlink.add_default_route(gateway)?;
            }
            // It only sends: ethertype 0 receives nothing.
            PacketSocket::open(index, 0)
                .map_err(|source| Error::network("open a packet socket on eth0", source))
        })
    }

    pub(super) fn host_index(&self) -> u32 {
        self.host
    }

    pub(super) fn attach(&mut self) -> Result<(), Error> {
        self.netlink.set_master(self.host, Some(self.bridge))?;
        self.announce()
    }

    pub(super) fn detach(&mut self) -> Result<(), Error> {
        Ok(self.netlink.set_master(self.host, None)?)
    }

    pub(super) fn announce(&self) -> Result<(), Error> {
        arp::announce(&self.announcer, mac_of(self.address), self.address)
            .map_err(|source| Error::network(format!("announce {}", self.address), source))
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // Gone already if the container's namespace went first.
        let _ = self.netlink.delete(self.host);
    }
}

/// The address of the end that is a port of the bridge. A bridge takes the lowest among its ports' for its own: it is
/// above nearly all others. Two hosts, a primary and its backup above all, must not come to the same one.
fn outer_mac() -> [u8; 6] {
    // Random digits: "9b71a56c-...".
    let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default();
    let digits = uuid.get(..8).unwrap_or_default();
    let [_, a, b, c] = u32::from_str_radix(digits, 16)
        .unwrap_or_else(|_| std::process::id())
        .to_be_bytes();
    [0xfe, 0xff, 0xff, a, b, c]
}

/// Keeps IPv6 off a link of the thread's network: its discovery traffic would be nobody's output.
fn silence(link: &str) {
    // A kernel without IPv6 has no such file, and no such traffic.
    let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{link}/disable_ipv6"), "1");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_differ() {
        assert_eq!(host_name("redis-server"), "us-redis-server");
        let (one, two) = (host_name("redis-server-1"), host_name("redis-server-2"));
        assert!(
            one.len() <= NAME_MAX && two.len() <= NAME_MAX,
            "{one} {two}"
        );
        assert_ne!(one, two);
    }

    #[test]
    fn the_hardware_address_is_local_and_single() {
        let mac = mac_of(Ipv4Addr::new(10, 77, 0, 10));
        assert_eq!(mac, [0x02, 0x75, 10, 77, 0, 10]);
        assert_eq!(mac[0] & 3, 2);
        assert_eq!(show(mac), "02:75:0a:4d:00:0a");
        let (one, two) = (outer_mac(), outer_mac());
        assert_ne!(one, two);
        assert!(one > [0xfe, 0xff, 0xfe, 0xff, 0xff, 0xff] && one[0] & 3 == 2);
    }
}
