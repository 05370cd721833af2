//! Which open file description is behind each connection.
//!
//! A connection is known by the process and the number that it came with. That process may have passed it on by
//! fork and closed it, and a number may mean another connection by now: what counts is between whom it is.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::Ordering::{Acquire, Release};

use eventlog::fold::{Description, DescriptionId, Ends, Fold};
use guest::abi::{Conn, conn, ends_between};
use sys::arena::Arena;

use super::connections::entries;

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
    let Ends { peer, port } = description.ends()?;
    Some(ends_between(peer, port))
}
