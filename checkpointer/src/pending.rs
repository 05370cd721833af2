//! Signals that wait for a thread.

use libc::pid_t;
use sys::ptrace::{self, SigInfo, TraceError};

/// Those that an image has to keep: all but the guest's own timer's, which stays behind. Whoever restores the thread
/// could not make calls in it while a SIGTRAP is pending.
pub(crate) fn of_thread(tid: pid_t) -> Result<Vec<SigInfo>, TraceError> {
    let mut all = ptrace::pending(tid, false)?;
    all.retain(|info| !is_guests(info));
    Ok(all)
}

fn is_guests(info: &SigInfo) -> bool {
    const SI_TIMER: i32 = -2;
    let number =
        |at: usize| i32::from_ne_bytes([info[at], info[at + 1], info[at + 2], info[at + 3]]);
    (number(0), number(8)) == (libc::SIGTRAP, SI_TIMER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_guests_timer_stays_behind() {
        let signal = |number: i32, code: i32| {
            let mut info = [0; 128];
            info[..4].copy_from_slice(&number.to_ne_bytes());
            info[8..12].copy_from_slice(&code.to_ne_bytes());
            info
        };
        assert!(is_guests(&signal(libc::SIGTRAP, -2)));
        assert!(!is_guests(&signal(libc::SIGTRAP, 0)), "from kill(2)");
        assert!(!is_guests(&signal(libc::SIGALRM, -2)));
    }
}
