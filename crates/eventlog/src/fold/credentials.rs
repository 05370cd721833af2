//! Credentials, limits, process groups, prctl options, and what wait tells.

use super::calls::Call;
use super::message::{int, word};
use super::{Credentials, Fold, FoldError, nr};

/// An argument that means "as it is".
const KEEP: u32 = u32::MAX;
/// Most supplementary groups: what fits the kept input.
const MAX_GROUPS: usize = 4096;
/// Most different prctl options that are remembered.
const MAX_OPTIONS: usize = 64;

impl Fold {
    pub(super) fn credential(&mut self, call: &Call<'_>) -> Result<(), FoldError> {
        let first = call.fd.cast_unsigned();
        let whole = matches!(call.nr, nr::SETUID | nr::SETGID | nr::SETSID);
        let args = if whole {
            [u64::from(first), 0, 0, 0, 0, 0]
        } else {
            call.args()?
        };
        let arg = |i: usize| args[i] as u32;
        let other = match call.nr {
            nr::SETPGID | nr::PRLIMIT64 if arg(0) != 0 => arg(0),
            _ => call.pid,
        };
        let Some(process) = self.processes.get_mut(&other) else {
            return Ok(());
        };
        let mine = &mut process.credentials;
        match call.nr {
            nr::SETUID if mine.privileged() => mine.users = [Some(first); 3],
            nr::SETUID => mine.users[1] = Some(first),
            nr::SETGID if mine.privileged() => mine.groups = [Some(first); 3],
            nr::SETGID => mine.groups[1] = Some(first),
            nr::SETREUID => set_pair(&mut mine.users, arg(0), arg(1)),
            nr::SETREGID => set_pair(&mut mine.groups, arg(0), arg(1)),
            nr::SETRESUID => set_all(&mut mine.users, [arg(0), arg(1), arg(2)]),
            nr::SETRESGID => set_all(&mut mine.groups, [arg(0), arg(1), arg(2)]),
            nr::SETGROUPS => {
                let list = call.input(1).unwrap_or_default();
                mine.supplementary = Some(
                    list.chunks_exact(4)
                        .take(MAX_GROUPS)
                        .map(|id| word(id, 0, 4) as u32)
                        .collect(),
                );
            }
            nr::CAPSET => mine.capabilities = call.input(1).map(<[u8]>::to_vec),
            nr::SETPGID => process.group = Some(if arg(1) == 0 { other } else { arg(1) }),
            nr::SETSID => (process.session, process.group) = (Some(call.pid), Some(call.pid)),
            nr::SETRLIMIT | nr::PRLIMIT64 => {
                let (resource, buffer) = if call.nr == nr::SETRLIMIT {
                    (arg(0), 1)
                } else {
                    (arg(1), 2)
                };
                if let Some(limit) = call
                    .input(buffer)
                    .filter(|limit| limit.len() == 16 && resource < 16)
                {
                    process
                        .limits
                        .insert(resource, (word(limit, 0, 8), word(limit, 8, 8)));
                }
            }
            nr::PRCTL => {
                let sets = [1, 4, 8, 24, 28, 29, 36, 38, 41, 57];
                if sets.contains(&arg(0)) && process.options.len() < MAX_OPTIONS {
                    process.options.insert(arg(0), args[1]);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// wait4 or waitid: a child that ended is gone now.
    pub(super) fn wait_result(&mut self, call: &Call<'_>) {
        let (child, killed, gone) = if call.nr == nr::WAIT4 {
            let status = word(call.filled(1), 0, 4);
            // Without a status buffer one cannot tell a stop from an end; a stop needs WUNTRACED.
            (
                call.result as u32,
                status & 0x7f != 0 && status & 0x7f != 0x7f,
                status & 0xff != 0x7f && status != 0xffff,
            )
        } else {
            // siginfo: signal, errno, code (CLD_EXITED 1, CLD_KILLED 2, CLD_DUMPED 3), then the process.
            let info = call.filled(2);
            let code = int(word(info, 8, 4));
            (
                word(info, 16, 4) as u32,
                matches!(code, 2 | 3),
                matches!(code, 1..=3),
            )
        };
        if child != 0 && gone {
            self.waited(child, killed);
        }
    }
}

impl Credentials {
    /// True if the effective user may set all three: root, or what the container started as.
    fn privileged(&self) -> bool {
        self.users[1].is_none_or(|user| user == 0)
    }
}

fn set_pair(ids: &mut [Option<u32>; 3], real: u32, effective: u32) {
    if real != KEEP {
        ids[0] = Some(real);
    }
    if effective != KEEP {
        ids[1] = Some(effective);
    }
    if real != KEEP || (effective != KEEP && ids[1] != ids[0]) {
        ids[2] = ids[1];
    }
}

fn set_all(ids: &mut [Option<u32>; 3], new: [u32; 3]) {
    for (id, new) in ids.iter_mut().zip(new) {
        if new != KEEP {
            *id = Some(new);
        }
    }
}
