//! The container's init, PID 1 inside: a copy of the caller that keeps nothing of it but its
//! instructions.
//!
//! It reaps orphans, passes signals on to the program, forks what the handle asks for, and reports how
//! the program ended. It ends when the program does, when the handle is dropped or when the caller's
//! process dies, and with it every process inside: the kernel sees to that. The caller is watched
//! through a pidfd and not by a parent-death signal, which would strike when the thread that made the
//! container ends.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, close, pipe2, setsid};
use sys::clocks;
use sys::descriptors::{self, Placement};
use sys::namespaces::{Child, default_signals, fixed_addresses, fork_numbered, pause_for_ever};

use super::command::Image;
use super::error::Step;
use super::protocol::{self, Reply, Request};
use super::{Ended, Isolation};

/// How often it is looked whether processes have ended.
const ENDING: Duration = Duration::from_micros(200);

/// The program that init is to fork on [`Request::Start`].
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) image: Image,
    pub(super) descriptors: Vec<(OwnedFd, RawFd)>,
    /// One byte opens it.
    pub(super) gate: OwnedFd,
    /// Takes the errno of a failed execve.
    pub(super) exec: OwnedFd,
    pub(super) fixed_addresses: bool,
}

/// All that init knows.
#[derive(Debug)]
pub(super) struct Setup {
    pub(super) name: String,
    pub(super) isolation: Isolation,
    /// Directories that the container has in places of others: where they lie, and where it has them.
    pub(super) mounts: Vec<(PathBuf, PathBuf)>,
    pub(super) control: OwnedFd,
    pub(super) status: OwnedFd,
    /// Stands for the process that made the container.
    pub(super) caller: OwnedFd,
    pub(super) plan: Option<Plan>,
}

/// A step that failed.
type Failure = (Step, Errno);

fn at<E: Into<io::Error>>(step: Step) -> impl FnOnce(E) -> Failure {
    move |error| {
        (
            step,
            Errno::from_raw(error.into().raw_os_error().unwrap_or(libc::EIO)),
        )
    }
}

/// The whole life of init; gives its exit code.
pub(super) fn life(mut setup: Setup) -> i32 {
    let signals = match prepare(&setup) {
        Ok(signals) => signals,
        Err((step, errno)) => {
            answer(
                &setup,
                Reply::Failed {
                    step,
                    errno: errno as i32,
                },
                None,
            );
            return 1;
        }
    };
    answer(&setup, Reply::Done { number: 1 }, None);
    serve(&mut setup, &signals)
}

fn answer(setup: &Setup, reply: Reply, pidfd: Option<&OwnedFd>) {
    let passed: Vec<RawFd> = pidfd.iter().map(|fd| fd.as_raw_fd()).collect();
    // A handle that is gone shows as the end of the control socket in `serve`.
    let _ = descriptors::send(setup.control.as_fd(), &reply.encode(), &passed);
}

fn prepare(setup: &Setup) -> Result<SignalFd, Failure> {
    // Standard descriptors stay for the program to inherit; without a program they are not needed.
    let stay = |fd: RawFd| Placement {
        from: fd,
        to: fd,
        inherit: false,
    };
    let mut map: Vec<Placement> = [&setup.control, &setup.status, &setup.caller]
        .map(|fd| stay(fd.as_raw_fd()))
        .to_vec();
    if let Some(plan) = &setup.plan {
        map.extend([&plan.gate, &plan.exec].map(|fd| stay(fd.as_raw_fd())));
        map.extend(plan.descriptors.iter().map(|(fd, _)| stay(fd.as_raw_fd())));
        map.extend((0..3).filter(|fd| open(*fd)).map(stay));
    }
    descriptors::place(&map).map_err(at(Step::Descriptors))?;
    setsid().map_err(at(Step::Session))?;
    isolate(setup)?;
    let all = SigSet::all();
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&all), None).map_err(at(Step::Signals))?;
    SignalFd::with_flags(&all, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(at(Step::Signals))
}

/// Whether a standard descriptor is open; asked before anything else is placed there.
fn open(fd: RawFd) -> bool {
    std::fs::symlink_metadata(format!("/proc/self/fd/{fd}")).is_ok()
}

fn isolate(setup: &Setup) -> Result<(), Failure> {
    let mut flags = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
    if setup.isolation == Isolation::Full {
        flags |= CloneFlags::CLONE_NEWNET;
    }
    unshare(flags).map_err(at(Step::Namespaces))?;
    mounts().map_err(at(Step::Mounts))?;
    for (here, inside) in &setup.mounts {
        bind(here, inside).map_err(at(Step::Mounts))?;
    }
    nix::unistd::sethostname(&setup.name).map_err(at(Step::HostName))
}

fn mounts() -> nix::Result<()> {
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let bare = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(
        Some("proc"),
        "/proc",
        Some("proc"),
        bare | MsFlags::MS_NOEXEC,
        none,
    )?;
    match mount(
        Some("shm"),
        "/dev/shm",
        Some("tmpfs"),
        bare,
        Some("mode=1777"),
    ) {
        // A root directory without it has no shared memory to keep apart.
        Err(Errno::ENOENT) => Ok(()),
        other => other,
    }
}

/// Puts a directory in the place of another, which is made if there is none.
fn bind(here: &Path, inside: &Path) -> io::Result<()> {
    std::fs::create_dir_all(inside)?;
    let none: Option<&str> = None;
    Ok(mount(Some(here), inside, none, MsFlags::MS_BIND, none)?)
}

/// Serves signals and requests until there is a reason to end.
fn serve(setup: &mut Setup, signals: &SignalFd) -> i32 {
    let mut main = None;
    loop {
        let (signalled, asked, orphaned) = {
            let mut wanted = [signals.as_fd(), setup.control.as_fd(), setup.caller.as_fd()]
                .map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            match poll(&mut wanted, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return 1,
            }
            let ready = wanted.map(|one| one.any().unwrap_or(false));
            (ready[0], ready[1], ready[2])
        };
        if orphaned {
            return 1;
        }
        if signalled && let Some(ended) = take_signals(signals, main) {
            // The handle may be gone; then nobody asks.
            let _ = nix::unistd::write(&setup.status, &protocol::encode_end(ended));
            return ended.code();
        }
        if asked && !take_request(setup, &mut main) {
            return 0;
        }
    }
}

/// Reaps what has ended and passes other signals on; gives the program's end.
fn take_signals(signals: &SignalFd, main: Option<i32>) -> Option<Ended> {
    while let Ok(Some(info)) = signals.read_signal() {
        let signal = info.ssi_signo as i32;
        if signal != libc::SIGCHLD
            && let Some(program) = main
            && let Ok(signal) = Signal::try_from(signal)
        {
            // It may have ended just now, which the next SIGCHLD tells.
            let _ = kill(Pid::from_raw(program), signal);
        }
    }
    loop {
        let flags = WaitPidFlag::WNOHANG | WaitPidFlag::__WALL;
        let (pid, ended) = match waitpid(Pid::from_raw(-1), Some(flags)) {
            Ok(WaitStatus::Exited(pid, code)) => (pid, Ended::Exited(code)),
            Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, Ended::Signaled(signal as i32)),
            Err(Errno::EINTR) => continue,
            Ok(WaitStatus::StillAlive) | Err(_) => return None,
            Ok(_) => continue,
        };
        if main == Some(pid.as_raw()) {
            return Some(ended);
        }
    }
}

/// Does what the handle asks; false when the handle is gone.
fn take_request(setup: &mut Setup, main: &mut Option<i32>) -> bool {
    let mut bytes = [0; protocol::MAX];
    let (length, passed) = match descriptors::receive(setup.control.as_fd(), &mut bytes) {
        Ok((0, _)) | Err(_) => return false,
        Ok(message) => message,
    };
    let outcome = match Request::decode(&bytes[..length]) {
        Some(Request::Start) => start(setup, main),
        Some(Request::Spawn {
            number,
            main: leads,
            targets,
        }) => {
            let child = spawn(number, leads, &passed, &targets);
            if let (Ok(child), true) = (&child, leads) {
                *main = Some(child.pid);
            }
            child.map(Some)
        }
        Some(Request::Main(number)) => {
            *main = Some(number);
            Ok(None)
        }
        Some(Request::Clear(but)) => {
            *main = None;
            clear(but).map(|()| None)
        }
        Some(Request::LastNumber(last)) => {
            std::fs::write("/proc/sys/kernel/ns_last_pid", last.to_string())
                .map(|()| None)
                .map_err(at(Step::LastNumber))
        }
        Some(Request::Clocks(by)) => clocks::advance(by).map(|()| None).map_err(at(Step::Clocks)),
        None => Err((Step::Request, Errno::EBADMSG)),
    };
    match outcome {
        Ok(child) => {
            let number = child.as_ref().map_or(0, |child| child.pid);
            answer(
                setup,
                Reply::Done { number },
                child.as_ref().map(|child| &child.pidfd),
            );
        }
        Err((step, errno)) => answer(
            setup,
            Reply::Failed {
                step,
                errno: errno as i32,
            },
            None,
        ),
    }
    true
}

fn start(setup: &mut Setup, main: &mut Option<i32>) -> Result<Option<Child>, Failure> {
    let plan = setup.plan.take().ok_or((Step::Request, Errno::EALREADY))?;
    let child = fork_numbered(None, || program(&plan)).map_err(at(Step::Fork))?;
    *main = Some(child.pid);
    // A pipe that the program writes to must see its end when the program closes it.
    drop(plan);
    release_standard();
    Ok(Some(child))
}

/// Lets go of the caller's standard descriptors.
fn release_standard() {
    if let Ok(null) = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
    {
        let _ = nix::unistd::dup2_stdin(&null);
        let _ = nix::unistd::dup2_stdout(&null);
        let _ = nix::unistd::dup2_stderr(&null);
    }
}

/// The program's process, up to its execve; gives the exit code if that fails.
fn program(plan: &Plan) -> i32 {
    let targets: Vec<RawFd> = plan.descriptors.iter().map(|(_, target)| *target).collect();
    let mut map: Vec<Placement> = plan
        .descriptors
        .iter()
        .map(|(fd, to)| Placement {
            from: fd.as_raw_fd(),
            to: *to,
            inherit: true,
        })
        .collect();
    let standard = (0..3).filter(|fd| !targets.contains(fd) && open(*fd));
    map.extend(standard.map(|fd| Placement {
        from: fd,
        to: fd,
        inherit: true,
    }));
    // Init's own descriptors keep their numbers: the values in `plan` go on naming the right things.
    let own = [&plan.gate, &plan.exec].map(|fd| fd.as_raw_fd());
    let free: Vec<RawFd> = (3..).filter(|fd| !targets.contains(fd)).take(2).collect();
    for (from, to) in own.into_iter().zip(&free) {
        map.push(Placement {
            from,
            to: *to,
            inherit: false,
        });
    }
    let ready = descriptors::place(&map).is_ok() && setsid().is_ok();
    if !ready || (plan.fixed_addresses && fixed_addresses().is_err()) {
        return 126;
    }
    default_signals();
    let (gate, exec) = (free[0], free[1]);
    if !descriptors::read_byte(gate) {
        return 126;
    }
    let image = &plan.image;
    let errno = match nix::unistd::execve(&image.file, &image.arguments, &image.environment) {
        Err(errno) => errno as i32,
        Ok(never) => match never {},
    };
    descriptors::write_all(exec, &errno.to_ne_bytes());
    if errno == libc::ENOENT { 127 } else { 126 }
}

/// Ends every process inside but one, and waits until their numbers are free.
fn clear(but: i32) -> Result<(), Failure> {
    loop {
        // One that forks at this moment does not escape: its child is there the next time.
        let others = others(but).map_err(at(Step::Clear))?;
        if others.is_empty() {
            return Ok(());
        }
        for number in others {
            match kill(number, Signal::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => return Err((Step::Clear, errno)),
            }
        }
        // What they leave behind becomes a child of init.
        let any = WaitPidFlag::__WALL | WaitPidFlag::WNOHANG;
        while !matches!(
            waitpid(Pid::from_raw(-1), Some(any)),
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD)
        ) {}
        std::thread::sleep(ENDING);
    }
}

/// The numbers of all processes inside but init and one, those among them that have ended and that nobody has waited
/// for.
fn others(but: i32) -> nix::Result<Vec<Pid>> {
    let failed = |error: io::Error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
    // The host's would name others.
    if std::fs::read_link("/proc/self").map_err(failed)? != Path::new("1") {
        return Err(Errno::ENOENT);
    }
    let entries = std::fs::read_dir("/proc").map_err(failed)?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let numbers = names.filter_map(|name| name.parse().ok());
    let others = numbers.filter(|number| *number != 1 && *number != but);
    Ok(others.map(Pid::from_raw).collect())
}

/// An empty process that waits to be filled.
fn spawn(
    number: Option<i32>,
    leads: bool,
    passed: &[OwnedFd],
    targets: &[RawFd],
) -> Result<Child, Failure> {
    if passed.len() != targets.len() {
        return Err((Step::Request, Errno::EBADMSG));
    }
    let mut map: Vec<Placement> = passed
        .iter()
        .zip(targets)
        .map(|(fd, to)| Placement {
            from: fd.as_raw_fd(),
            to: *to,
            inherit: true,
        })
        .collect();
    let (told, tell) = pipe2(OFlag::O_CLOEXEC).map_err(at(Step::Fork))?;
    let ready = (0..).find(|fd| !targets.contains(fd)).unwrap_or(0);
    map.push(Placement {
        from: tell.as_raw_fd(),
        to: ready,
        inherit: false,
    });
    let child = fork_numbered(number, move || {
        // Only the program leads a session of its own; see `program`.
        if descriptors::place(&map).is_err() || (leads && setsid().is_err()) {
            return 126;
        }
        default_signals();
        descriptors::write_all(ready, b"x");
        let _ = close(ready);
        pause_for_ever()
    })
    .map_err(at(Step::Fork))?;
    drop(tell);
    // Whoever asked fills the child at once: it must hold its descriptors by then.
    if descriptors::read_byte(told.as_raw_fd()) {
        Ok(child)
    } else {
        Err((Step::Descriptors, Errno::EIO))
    }
}
