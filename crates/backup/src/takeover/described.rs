//! Which open file description is behind each connection.
//!
//! A connection is known by the process and the number that it came with. That process may have passed it on by
//! fork and closed it, and a number may mean another connection by now: what counts is between whom it is.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::Ordering::{Acquire, Release};

use eventlog::fold::{Description, DescriptionId, Fold, Kind, State};
use guest::abi::{Conn, conn, ends};
use sys::arena::Arena;

use super::connections::entries;
use super::objects::{Name, name};

/// The description behind each open connection, by its entry in the arena.
pub(super) type Ids = BTreeMap<usize, DescriptionId>;

/// Finds them. Connections that nobody holds any more are closed: a process that was killed has not said so.
pub(super) fn all(fold: &Fold, arena: &Arena) -> Ids {
    let descriptions = fold.descriptions().iter();
    let held = descriptions.filter(|(_, description)| description.references > 0);
    let known = held.filter_map(|(id, description)| Some((between(description)?, *id)));
    let known: HashMap<u64, DescriptionId> = known.collect();
    let mut ids = Ids::new();
    for index in entries(arena) {
        let c = arena.conn(index);
        if c.state.load(Acquire) != conn::OPEN {
            continue;
        }
        let found = match c.ends.load(Acquire) {
            // Over IPv6 there is nothing to compare.
            0 => number(fold, c),
            ends => known.get(&ends).copied().or_else(|| {
                // One whose ends are not known may be it, another connection is not.
                number(fold, c).filter(|id| fold.descriptions().get(id).and_then(between).is_none())
            }),
        };
        match found {
            Some(id) => drop(ids.insert(index, id)),
            None => {
                tracing::debug!(
                    index,
                    ends = c.ends.load(Acquire),
                    "nobody holds a connection any more"
                );
                c.state.store(conn::CLOSED, Release);
            }
        }
    }
    ids
}

/// What has the process and the number that it came with.
fn number(fold: &Fold, c: &Conn) -> Option<DescriptionId> {
    let (pid, fd) = (c.pid.load(Acquire), c.fd.load(Acquire).cast_signed());
    Some(fold.table(pid)?.entries.get(&fd)?.description)
}

/// Between whom a connection over IPv4 is, as the arena has it.
fn between(description: &Description) -> Option<u64> {
    let Kind::Socket(socket) = &description.kind else {
        return None;
    };
    let (ip, port) = v4(&socket.peer)?;
    let own = match (v4(&socket.local), socket.state) {
        (Some((_, own)), _) => own,
        (None, State::Accepted { port, .. }) => port,
        _ => return None,
    };
    Some(ends(ip, port.to_be_bytes(), own.to_be_bytes()))
}

/// Address and port, also of an IPv4 address in IPv6's clothes.
fn v4(address: &[u8]) -> Option<([u8; 4], u16)> {
    match name(address)? {
        Name::V4(ip, port) => Some((ip.octets(), port)),
        Name::V6(ip, port) => Some((ip.to_ipv4_mapped()?.octets(), port)),
        Name::Path(_) => None,
    }
}
