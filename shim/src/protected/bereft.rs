//! Connections whose last holder was killed: no process says that it closes them, and their clients would wait for
//! ever.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Release};

use eventlog::fold::{Ends, Fold, FoldError, Merge};
use eventlog::handover::ConnectionCut;
use guest::abi::{conn, ends_between};
use sys::arena::Arena;

/// Ends processes of the fold that are not among `living`; the connections that were theirs alone. Over IPv6 their ends
/// are not known.
///
/// # Errors
/// [`FoldError`] from what had waited for it.
pub(super) fn end_others(merge: &mut Merge, living: &[u32]) -> Result<BTreeSet<u64>, FoldError> {
    let killed = killed(merge.fold(), living);
    if killed.is_empty() {
        return Ok(BTreeSet::new());
    }
    let fold = merge.fold();
    let tables = killed.iter().filter_map(|pid| fold.table(*pid));
    let entries = tables.flat_map(|table| table.entries.values());
    let theirs = entries.filter_map(|entry| fold.descriptions().get(&entry.description)?.ends());
    let mut theirs: BTreeSet<Ends> = theirs.collect();
    merge.only(living)?;
    for description in merge.fold().descriptions().values() {
        if description.references > 0
            && let Some(ends) = description.ends()
        {
            theirs.remove(&ends);
        }
    }
    let theirs = theirs.into_iter();
    Ok(theirs.map(|of| ends_between(of.peer, of.port)).collect())
}

fn killed(fold: &Fold, living: &[u32]) -> Vec<u32> {
    let all = fold.processes().iter();
    let killed = all.filter(|(pid, p)| p.ended.is_none() && !living.contains(pid));
    killed.map(|(pid, _)| *pid).collect()
}

/// Closes connections with these ends that were open at the cut, as their holders would have.
pub(super) fn close(arena: &Arena, bereft: &BTreeSet<u64>, at_cut: &[ConnectionCut]) {
    let open = at_cut.iter().filter(|cut| cut.state == conn::OPEN);
    for cut in open.filter(|cut| bereft.contains(&cut.ends)) {
        let index = cut.index as usize;
        let c = arena.conn(index);
        if c.generation.load(Acquire) != cut.generation || c.state.load(Acquire) != conn::OPEN {
            continue;
        }
        c.refs.store(0, Release);
        c.shut.store(1, Release);
        c.state.store(conn::CLOSED, Release);
        arena.control().touched[index / 64].fetch_or(1 << (index % 64), AcqRel);
        arena.ask_for_look();
    }
}
