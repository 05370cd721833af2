//! Numbers, status, signals, gate, descriptors, clean-up. Needs root.

use std::fs;
use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use crate::bed::{shell, spec, unique};
use nix::fcntl::OFlag;
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, pipe2};
use shim::container::{Container, Ended, Error, Isolation, Prepared, Program};

fn prepare(isolation: Isolation, program: Program) -> Result<Prepared, Error> {
    Container::prepare(&spec(&unique("test"), isolation, None), program)
}

/// Runs a program to its end and gives what it printed.
fn run(isolation: Isolation, mut program: Program) -> (String, Ended) {
    let (output, input) = pipe2(OFlag::O_CLOEXEC).unwrap();
    program.descriptors.push((input, 1));
    let mut container = prepare(isolation, program).unwrap().start().unwrap();
    let mut text = String::new();
    fs::File::from(output).read_to_string(&mut text).unwrap();
    (text, container.wait().unwrap())
}

fn alive(pid: i32) -> bool {
    nix::sys::signal::kill(Pid::from_raw(pid), None).is_ok()
}

#[test]
fn the_program_ends_as_it_ends() {
    assert_eq!(run(Isolation::Full, shell("exit 7")).1, Ended::Exited(7));
    assert_eq!(
        run(Isolation::ButNetwork, shell("exit 0")).1,
        Ended::Exited(0)
    );
    let ended = run(Isolation::Full, shell("kill -TERM $$")).1;
    assert_eq!((ended, ended.code()), (Ended::Signaled(15), 143));
}

#[test]
fn numbers_names_and_session_are_its_own() {
    let script =
        "echo $$ $PPID; hostname; ls -d /proc/[0-9]* | head -n 2; cut -d' ' -f5,6 /proc/$$/stat";
    let (text, _) = run(Isolation::Full, shell(script));
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "2 1");
    assert!(lines[1].starts_with("test."), "{text}");
    assert_eq!(lines[2..], ["/proc/1", "/proc/2", "2 2"]);
    // A recording's numbers repeat.
    assert_eq!(
        run(
            Isolation::ButNetwork,
            shell("echo $$; sh -c 'echo $$; exit'")
        )
        .0,
        "2\n3\n"
    );
}

#[test]
fn addresses_repeat_only_where_asked() {
    let maps = |fixed| {
        let mut program = Program::new(vec!["cat".into(), "/proc/self/maps".into()]);
        program.fixed_addresses = fixed;
        run(Isolation::Full, program).0
    };
    assert_eq!(maps(true), maps(true));
    assert_ne!(maps(false), maps(false));
}

#[test]
fn descriptors_arrive_on_their_numbers_and_no_others() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"arena").unwrap();
    file.rewind().unwrap();
    let mut program = shell("cat /proc/self/fd/1022; exec ls /proc/self/fd");
    program
        .descriptors
        .push((OwnedFd::from(file), guest::abi::ARENA_FD));
    let (text, _) = run(Isolation::Full, program);
    // 3 is the directory that `ls` reads.
    assert_eq!(text, "arena0\n1\n1022\n2\n3\n");
}

#[test]
fn the_environment_is_the_one_given() {
    let mut program = Program::new(vec!["env".into()]);
    program.environment = Some(vec![("ONLY".into(), "this".into())]);
    assert_eq!(run(Isolation::Full, program).0, "ONLY=this\n");
}

#[test]
fn orphans_are_reaped() {
    // A number that still answers to signal 0 is a zombie nobody reaped.
    let script = "p=$(sh -c 'true & echo $!'); i=0
        while kill -0 $p 2>/dev/null; do i=$((i+1)); [ $i -lt 300000 ] || exit 1; done; exit 5";
    assert_eq!(run(Isolation::Full, shell(script)).1, Ended::Exited(5));
}

#[test]
fn signals_reach_the_program_directly_and_through_init() {
    let (output, input) = pipe2(OFlag::O_CLOEXEC).unwrap();
    let mut program = shell(
        "trap 'echo usr1' USR1; trap 'echo term; exit 3' TERM; echo ready
         while :; do sleep 1000 & wait; done",
    );
    program.descriptors.push((input, 1));
    let prepared = prepare(Isolation::Full, program).unwrap();
    let init = prepared.init_pid;
    let mut container = prepared.start().unwrap();
    let mut output = fs::File::from(output);
    let mut expect = |line: &[u8]| {
        let mut got = vec![0; line.len()];
        output.read_exact(&mut got).unwrap();
        assert_eq!(got, line);
    };
    expect(b"ready\n");
    container
        .signaller()
        .unwrap()
        .unwrap()
        .send(libc::SIGUSR1)
        .unwrap();
    expect(b"usr1\n");
    nix::sys::signal::kill(Pid::from_raw(init), nix::sys::signal::Signal::SIGTERM).unwrap();
    expect(b"term\n");
    assert_eq!(container.wait().unwrap(), Ended::Exited(3));
    // Whoever comes late does no harm.
    container
        .signaller()
        .unwrap()
        .unwrap()
        .send(libc::SIGUSR1)
        .unwrap();
}

#[test]
fn the_gate_holds_until_opened_and_lets_a_tracer_in() {
    let prepared = prepare(Isolation::Full, shell("exit 4")).unwrap();
    let program = Pid::from_raw(prepared.program_pid);
    let own = fs::read_link("/proc/self/exe").unwrap();
    assert_eq!(fs::read_link(format!("/proc/{program}/exe")).unwrap(), own);
    ptrace::seize(program, ptrace::Options::PTRACE_O_TRACEEXEC).unwrap();
    let mut container = prepared.open_gate().unwrap();
    let stop = waitpid(program, Some(WaitPidFlag::__WALL)).unwrap();
    let event = libc::PTRACE_EVENT_EXEC;
    assert_eq!(
        stop,
        WaitStatus::PtraceEvent(program, nix::sys::signal::Signal::SIGTRAP, event)
    );
    container.started().unwrap();
    assert_ne!(fs::read_link(format!("/proc/{program}/exe")).unwrap(), own);
    ptrace::detach(program, None).unwrap();
    assert_eq!(container.wait().unwrap(), Ended::Exited(4));
}

#[test]
fn dropping_ends_everything_even_while_it_is_traced() {
    let prepared = prepare(
        Isolation::Full,
        shell("sleep 1000 & sleep 1000 & sleep 1000"),
    )
    .unwrap();
    let (init, program) = (prepared.init_pid, prepared.program_pid);
    ptrace::seize(Pid::from_raw(program), ptrace::Options::empty()).unwrap();
    let container = prepared.start().unwrap();
    assert!(container.processes().unwrap().contains(&program));
    let group = fs::read_to_string(format!("/proc/{init}/cgroup")).unwrap();
    let group = group
        .lines()
        .find_map(|l| Some(l.split_once("/understudy/")?.1.to_owned()));
    let group = Path::new("/sys/fs/cgroup/unified/understudy").join(group.unwrap());
    drop(container);
    assert!(!alive(init) && !alive(program));
    assert!(!group.exists());
}

#[test]
fn what_is_traced_here_is_cleared() {
    let several = spec(&unique("traced"), Isolation::Full, None);
    let mut container = Container::stand_by(&several).unwrap();
    for _ in 0..2 {
        let main = container.spawn(Some(2), true, &[]).unwrap();
        ptrace::seize(Pid::from_raw(main.pid), ptrace::Options::empty()).unwrap();
        container.clear(None).unwrap();
        assert!(!alive(main.pid));
    }
    // A thread that is not its process's first: the process has ended, and its parent does not hear of it.
    let prepared = prepare(Isolation::Full, python(THREAD)).unwrap();
    let program = prepared.program_pid;
    let mut container = prepared.start().unwrap();
    let thread = second_thread(program);
    ptrace::seize(Pid::from_raw(thread), ptrace::Options::empty()).unwrap();
    container.signaller().unwrap().unwrap().send(9).unwrap();
    assert_eq!(container.wait().unwrap(), Ended::Signaled(9));
}

const THREAD: &str = "import threading; threading.Thread(target=threading.Event().wait).start()";

fn python(program: &str) -> Program {
    Program::new(["python3", "-c", program].map(Into::into).to_vec())
}

/// Waits until a process has another thread.
fn second_thread(process: i32) -> i32 {
    loop {
        let other = |_, thread| (thread != process).then_some(thread);
        if let Some(thread) = sys::threads::visit_threads(process, other) {
            return thread;
        }
        std::thread::yield_now();
    }
}

#[test]
fn an_unstarted_program_goes_with_its_container() {
    let prepared = prepare(Isolation::Full, shell("echo must not run >&2")).unwrap();
    let (init, program) = (prepared.init_pid, prepared.program_pid);
    drop(prepared);
    assert!(!alive(init) && !alive(program));
}

#[test]
fn killing_the_container_is_told_apart_from_the_programs_end() {
    let prepared = prepare(Isolation::Full, shell("sleep 1000")).unwrap();
    let mut container = prepared.start().unwrap();
    container.kill().unwrap();
    assert_eq!(container.wait().unwrap(), Ended::Lost);
    assert_eq!(container.wait().unwrap(), Ended::Lost);
}

#[test]
fn a_program_that_cannot_run_is_named() {
    let missing = prepare(
        Isolation::Full,
        Program::new(vec!["no-such-program".into()]),
    );
    assert!(matches!(missing, Err(Error::CommandNotFound(_))));
    let directory = tempfile::tempdir().unwrap();
    let garbage = directory.path().join("garbage");
    fs::write(&garbage, "\u{1}\u{2}").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&garbage, mode).unwrap();
    let program = Program::new(vec![garbage.clone().into()]);
    let error = prepare(Isolation::Full, program)
        .unwrap()
        .start()
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "cannot execute {}: Exec format error (os error 8)",
            garbage.display()
        )
    );
}

#[test]
fn a_standby_makes_processes_with_given_numbers() {
    let spec = spec(&unique("standby"), Isolation::Full, None);
    let mut container = Container::stand_by(&spec).unwrap();
    let (output, input) = pipe2(OFlag::O_CLOEXEC).unwrap();
    let main = container
        .spawn(Some(2), true, &[(input.as_fd(), 77)])
        .unwrap();
    drop(input);
    let status = fs::read_to_string(format!("/proc/{}/status", main.pid)).unwrap();
    let field = |name: &str| {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap();
        line.split_whitespace().last().unwrap().to_owned()
    };
    assert_eq!((field("NSpid:").as_str(), main.number), ("2", 2));
    assert_eq!(field("PPid:"), container.init_pid().to_string());
    let taken = container.spawn(Some(2), false, &[]).unwrap_err();
    assert!(taken.to_string().contains("File exists"), "{taken}");
    let other = container.spawn(Some(900), false, &[]).unwrap();
    assert_eq!(other.number, 900);
    container.set_last_number(40).unwrap();
    assert_eq!(container.spawn(None, false, &[]).unwrap().number, 41);
    // Only the main process ends the container, and all of it.
    container
        .signaller()
        .unwrap()
        .unwrap()
        .send(libc::SIGTERM)
        .unwrap();
    assert_eq!(container.wait().unwrap(), Ended::Signaled(15));
    assert!(!alive(other.pid));
    let mut rest = Vec::new();
    fs::File::from(output).read_to_end(&mut rest).unwrap();
}

#[test]
fn a_process_can_become_the_program_later() {
    let spec = spec(&unique("later"), Isolation::Full, None);
    let mut container = Container::stand_by(&spec).unwrap();
    let first = container.spawn(Some(2), false, &[]).unwrap();
    nix::sys::signal::kill(Pid::from_raw(first.pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    // Its end is nobody's, and its number is free again once init has seen it.
    let second = loop {
        match container.spawn(Some(2), false, &[]) {
            Ok(second) => break second,
            Err(error) => assert!(error.to_string().contains("File exists"), "{error}"),
        }
    };
    container.set_program(second).unwrap();
    let signaller = container.signaller().unwrap().unwrap();
    signaller.send(libc::SIGTERM).unwrap();
    assert_eq!(container.wait().unwrap(), Ended::Signaled(15));
}

#[test]
fn a_container_is_cleared_and_used_again() {
    let spec = spec(&unique("cleared"), Isolation::Full, None);
    let mut container = Container::stand_by(&spec).unwrap();
    let mut before = Vec::new();
    let spared = container.spawn(Some(901), false, &[]).unwrap();
    for _ in 0..3 {
        let main = container.spawn(Some(2), true, &[]).unwrap();
        let other = container.spawn(Some(900), false, &[]).unwrap();
        assert!(!before.iter().copied().any(alive));
        before = vec![main.pid, other.pid];
        container.clear(Some(901)).unwrap();
        assert!(alive(spared.pid));
    }
    container.clear(None).unwrap();
    assert!(!alive(spared.pid));
    assert!(container.signaller().unwrap().is_none());
    // Its program's end was none of the container's.
    drop(container.spawn(Some(2), true, &[]).unwrap());
    let signaller = container.signaller().unwrap().unwrap();
    signaller.send(libc::SIGTERM).unwrap();
    assert_eq!(container.wait().unwrap(), Ended::Signaled(15));
}

#[test]
fn many_come_and_go_and_leave_nothing() {
    let descriptors = || fs::read_dir("/proc/self/fd").unwrap().count();
    drop(run(Isolation::Full, shell("exit 0")));
    let threads: Vec<_> = (0..4)
        .map(|_| {
            std::thread::spawn(|| {
                for code in 0..10 {
                    let ended = run(Isolation::Full, shell(&format!("exit {code}"))).1;
                    assert_eq!(ended, Ended::Exited(code));
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    // Other tests of this file run at the same time and hold a few.
    assert!(descriptors() < 100, "{}", descriptors());
}
