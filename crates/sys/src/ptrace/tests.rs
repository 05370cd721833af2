//! Each request against a process of our own.

use super::*;

fn sleeper() -> pid_t {
    let pid = fork_seized(Options::EXITKILL | Options::SYSGOOD, || {
        loop {
            nix::unistd::pause();
        }
    })
    .unwrap();
    interrupt(pid).unwrap();
    assert_eq!(wait(pid).unwrap(), Stop::Interrupt);
    pid
}

fn end(pid: pid_t) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL).unwrap();
    while !matches!(wait(pid).unwrap(), Stop::Killed(libc::SIGKILL)) {}
}

#[test]
fn state_is_read_and_set_as_one() {
    let pid = sleeper();
    let before = regs(pid).unwrap();
    let mut changed = before;
    changed.r15 = 0x5eed;
    set_regs(pid, &changed).unwrap();
    assert_eq!(regs(pid).unwrap().r15, 0x5eed);
    let mut state = Vec::new();
    xstate(pid, &mut state).unwrap();
    assert!(state.len() >= 576);
    set_xstate(pid, &state).unwrap();
    set_sigmask(pid, 1 << 9).unwrap();
    assert_eq!(sigmask(pid).unwrap(), 1 << 9);
    assert_ne!(rseq(pid).unwrap().address, 0);
    assert_eq!(sud(pid).unwrap(), SudConfig::default());
    let on = SudConfig {
        mode: 1,
        selector: 0,
        offset: 0x1000,
        len: 0x1000,
    };
    set_sud(pid, &on).unwrap();
    assert_eq!(sud(pid).unwrap(), on);
    set_sud(pid, &SudConfig::default()).unwrap();
    end(pid);
}

#[test]
fn pending_signals_are_listed() {
    let pid = sleeper();
    set_sigmask(pid, 1 << (libc::SIGUSR1 - 1)).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGUSR1).unwrap();
    let shared = pending(pid, true).unwrap();
    assert_eq!(shared.len(), 1);
    assert_eq!(
        i32::from_ne_bytes(shared[0][..4].try_into().unwrap()),
        libc::SIGUSR1
    );
    assert!(pending(pid, false).unwrap().is_empty());
    end(pid);
}

#[test]
fn a_child_runs_only_when_traced_and_its_end_is_seen() {
    let pid = fork_seized(Options::NONE, || 7).unwrap();
    assert_eq!(wait(pid).unwrap(), Stop::Exited(7));
    assert!(wait(pid).unwrap_err().is_gone());
}

#[inline(never)]
extern "C" fn passed_often(times: u64) -> u64 {
    std::hint::black_box(times).wrapping_add(1)
}

#[test]
fn a_breakpoint_stops_one_thread_each_time() {
    let pid = fork_seized(Options::EXITKILL, || {
        let mut times = 0;
        loop {
            times = passed_often(times);
        }
    })
    .unwrap();
    interrupt(pid).unwrap();
    assert_eq!(wait(pid).unwrap(), Stop::Interrupt);
    let address = passed_often as *const () as u64;
    break_at(pid, address).unwrap();
    let mut seen = Vec::new();
    for _ in 0..3 {
        cont(pid, 0).unwrap();
        assert_eq!(wait(pid).unwrap(), Stop::Signal(libc::SIGTRAP));
        let now = regs(pid).unwrap();
        assert_eq!(now.rip, address);
        seen.push(now.rdi);
    }
    assert!(seen.windows(2).all(|two| two[1] == two[0] + 1), "{seen:?}");
    clear_break(pid).unwrap();
    cont(pid, 0).unwrap();
    interrupt(pid).unwrap();
    assert_eq!(wait(pid).unwrap(), Stop::Interrupt);
    end(pid);
}
