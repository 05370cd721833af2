//! Timers and signal actions.

use super::calls::Call;
use super::message::word;
use super::{Action, Armed, Description, Fold, FoldError, Kind, Pid, PosixTimer, StreamId, nr};

/// Most POSIX timers of a process.
const MAX_TIMERS: usize = 1 << 12;
/// SIGALRM, SIGVTALRM, SIGPROF: the signals of the three interval timers.
const INTERVAL_SIGNALS: [u64; 3] = [14, 26, 27];
const SIGCHLD: u64 = 17;
/// CLD_EXITED, CLD_KILLED and CLD_DUMPED: a child has ended.
const ENDED: std::ops::RangeInclusive<u32> = 1..=3;
/// Where the sender of a signal lies, or the number of the timer that sent it.
pub(super) struct InfoLayout {
    sender: usize,
    timer: usize,
}
/// In a siginfo.
pub(super) const SIGINFO: InfoLayout = InfoLayout {
    sender: 16,
    timer: 16,
};
/// In what a signalfd gives, and how much that is.
pub(super) const SIGNALFD: InfoLayout = InfoLayout {
    sender: 12,
    timer: 24,
};
pub(super) const SIGNALFD_LEN: usize = 128;
/// SI_KERNEL.
const SI_KERNEL: u32 = 0x80;
/// SI_TIMER.
const SI_TIMER: u32 = (-2i32).cast_unsigned();

impl Fold {
    pub(super) fn timer(&mut self, call: &Call<'_>) -> Result<(), FoldError> {
        if call.nr == nr::ALARM {
            let seconds = u64::from(call.fd.cast_unsigned()).to_le_bytes();
            let setting = [&[0; 16][..], &seconds, &[0; 8]].concat();
            self.set_interval_timer(call, 0, setting);
            return Ok(());
        }
        if call.nr == nr::TIMER_DELETE {
            if let Some(process) = self.processes.get_mut(&call.pid) {
                process.posix_timers.remove(&call.fd.cast_unsigned());
            }
            return Ok(());
        }
        let args = call.args()?;
        match call.nr {
            nr::SETITIMER => self.set_interval_timer(
                call,
                args[0] as u32,
                call.input(1).unwrap_or_default().to_vec(),
            ),
            nr::TIMERFD_SETTIME => {
                let armed = self.armed(args[1] as u32, call.input(2).unwrap_or_default().to_vec());
                if let Some(Description {
                    kind: Kind::Timer { armed: old, .. },
                    ..
                }) = self.description_mut(call)
                {
                    *old = armed;
                }
            }
            nr::TIMER_CREATE => {
                let event = call.input(1).unwrap_or_default().to_vec();
                let timer = PosixTimer {
                    clock: args[0] as u32,
                    event,
                    armed: None,
                };
                let Some(process) = self.processes.get_mut(&call.pid) else {
                    return Ok(());
                };
                process
                    .posix_timers
                    .insert(word(call.filled(2), 0, 4) as u32, timer);
                if process.posix_timers.len() > MAX_TIMERS {
                    return Err(FoldError::TooMany {
                        what: "timers of a process",
                        most: MAX_TIMERS as u64,
                    });
                }
            }
            _ => {
                let armed = self.armed(args[1] as u32, call.input(2).unwrap_or_default().to_vec());
                let process = self.processes.get_mut(&call.pid);
                if let Some(timer) =
                    process.and_then(|process| process.posix_timers.get_mut(&(args[0] as u32)))
                {
                    timer.armed = armed;
                }
            }
        }
        Ok(())
    }

    fn set_interval_timer(&mut self, call: &Call<'_>, which: u32, setting: Vec<u8>) {
        let armed = self.armed(0, setting);
        let Some(process) = self.processes.get_mut(&call.pid) else {
            return;
        };
        match armed {
            Some(armed) => process.interval_timers.insert(which, armed),
            None => process.interval_timers.remove(&which),
        };
    }

    /// A setting whose value is not zero.
    fn armed(&self, flags: u32, setting: Vec<u8>) -> Option<Armed> {
        let value = setting.get(16..).unwrap_or_default();
        value.iter().any(|byte| *byte != 0).then_some(Armed {
            flags,
            setting,
            at: self.now,
            seen: None,
        })
    }

    /// A signal was delivered to a thread.
    pub(super) fn signal(&mut self, id: StreamId, info: &[u8]) {
        if let Some(stream) = self.streams.get(&id) {
            self.told(stream.pid, info, &SIGINFO);
        }
    }

    /// A process got a signal: perhaps one that tells of a child's end, or that a timer has expired, which arms its
    /// interval, or ends it.
    pub(super) fn told(&mut self, pid: Pid, info: &[u8], layout: &InfoLayout) {
        let (signal, code) = (word(info, 0, 4), word(info, 8, 4) as u32);
        if signal == SIGCHLD && ENDED.contains(&code) {
            let child = word(info, layout.sender, 4) as u32;
            if let Some(child) = self.processes.get_mut(&child) {
                child.told = true;
            }
        }
        let now = self.now;
        let Some(process) = self.processes.get_mut(&pid) else {
            return;
        };
        let expire = |armed: &mut Armed| {
            armed.seen = Some(now);
            armed.is_periodic()
        };
        if code == SI_TIMER {
            let number = word(info, layout.timer, 4) as u32;
            if let Some(timer) = process.posix_timers.get_mut(&number) {
                timer.armed.take_if(|armed| !expire(armed));
            }
        } else if code == SI_KERNEL
            && let Some(which) = INTERVAL_SIGNALS.iter().position(|s| *s == signal)
        {
            let stays = |timer: &u32, armed: &mut Armed| *timer as usize != which || expire(armed);
            process.interval_timers.retain(stays);
        }
    }

    /// rt_sigaction.
    pub(super) fn action(&mut self, call: &Call<'_>) -> Result<(), FoldError> {
        let signal = call.args()?[0] as u32;
        let Some(new) = call.input(1).filter(|action| action.len() == 32) else {
            return Ok(());
        };
        let field = |i: usize| word(new, 8 * i, 8);
        let action = Action {
            handler: field(0),
            flags: field(1),
            restorer: field(2),
            mask: field(3),
        };
        let Some(process) = self.processes.get_mut(&call.pid) else {
            return Ok(());
        };
        if action.handler == 0 || signal > 64 {
            process.actions.remove(&signal);
        } else {
            process.actions.insert(signal, action);
        }
        Ok(())
    }
}
