//! Users, groups and capabilities of the process: it was restored, and replayed, with ours.

use eventlog::fold::{Credentials, Fold, Pid};
use nix::libc;

use super::error::Result;
use super::session::{Call, Session};

/// `_LINUX_CAPABILITY_VERSION_3`.
const VERSION: u32 = 0x2008_0522;

/// Gives up what the program had given up. The last thing done inside the process.
pub(super) fn apply(session: &mut Session, fold: &Fold, pid: Pid) -> Result<()> {
    let Some(process) = fold.processes().get(&pid) else {
        return Ok(());
    };
    let calls = calls(&process.credentials);
    if calls.is_empty() {
        return Ok(());
    }
    session.in_every_thread("restoring credentials", &calls)
}

fn calls(c: &Credentials) -> Vec<Call> {
    let mut calls = Vec::new();
    let mut add = |nr, args, data| calls.push(Call { nr, args, data });
    if c.capabilities.is_some() {
        // Until they are set below, a change of user must not take them.
        let args = [libc::PR_SET_KEEPCAPS as u64, 1, 0, 0, 0, 0];
        add(libc::SYS_prctl, args, Vec::new());
    }
    if let Some(groups) = &c.supplementary {
        let bytes = groups.iter().flat_map(|g| g.to_ne_bytes()).collect();
        let args = [groups.len() as u64, 0, 0, 0, 0, 0];
        add(libc::SYS_setgroups, args, vec![(1, bytes)]);
    }
    let changes = [
        (c.groups, libc::SYS_setresgid),
        (c.users, libc::SYS_setresuid),
    ];
    for (ids, nr) in changes {
        if ids.iter().any(Option::is_some) {
            // Minus one leaves a number as it is.
            let [real, effective, saved] = ids.map(|id| u64::from(id.unwrap_or(u32::MAX)));
            add(nr, [real, effective, saved, 0, 0, 0], Vec::new());
        }
    }
    if let Some(sets) = &c.capabilities {
        let header = [VERSION.to_ne_bytes(), [0; 4]].concat();
        add(
            libc::SYS_capset,
            [0; 6],
            vec![(0, header), (1, sets.clone())],
        );
    }
    calls
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_go_before_users_and_what_was_not_changed_stays() {
        assert!(calls(&Credentials::default()).is_empty());
        let dropped = Credentials {
            users: [Some(33); 3],
            groups: [None, Some(33), None],
            supplementary: Some(vec![33, 7]),
            capabilities: None,
        };
        let all = calls(&dropped);
        let numbers: Vec<i64> = all.iter().map(|call| call.nr).collect();
        let expected = [
            libc::SYS_setgroups,
            libc::SYS_setresgid,
            libc::SYS_setresuid,
        ];
        assert_eq!(numbers, expected);
        assert_eq!(all[0].data, [(1, vec![33, 0, 0, 0, 7, 0, 0, 0])]);
        assert_eq!(all[1].args[..3], [0xffff_ffff, 33, 0xffff_ffff]);
    }
}
