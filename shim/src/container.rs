//! The container: namespaces and a control group of its own around one program, and its network link.
//!
//! ```text
//! the caller ── forks ──> init, PID 1 inside: reaps, forwards signals, ends with the caller
//!                           └── forks ──> the program, PID 2: waits at the gate, then execve
//! ```
//!
//! Three uses. A protected or plain run: [`Container::prepare`] with [`Isolation::Full`] and a
//! [`Link`]; the program waits at its gate, so that a recorder can attach before it runs its first
//! instruction. An offline recording: the same with [`Isolation::ButNetwork`]. A backup's standby:
//! [`Container::stand_by`] makes everything in advance, link included but not attached;
//! [`Container::spawn`] then makes empty processes with given numbers for a restore to fill, and
//! [`Container::attach`] puts the container on the bridge.
//!
//! All of it goes when the [`Container`] is dropped or its process dies: the processes with init, the
//! link with its namespace, the control group by [`sys::cgroup`].

pub(crate) mod arp;
mod command;
mod error;
mod init;
mod link;
mod parts;
pub(crate) mod protocol;
mod teardown;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::unistd::pipe2;
use sys::cgroup::{Cgroup, Hierarchy};
use sys::clocks::Offsets;
use sys::descriptors;
use sys::namespaces::{Child, fork_pid_one, pidfd_number, pidfd_open};

pub use error::{Error, Step};
pub use link::{Link, check_bridge, mac_of};
pub use parts::{Empty, Ended, Isolation, Program, Signaller, Spec};
use protocol::{Reply, Request};

/// A container whose program waits at its gate.
#[derive(Debug)]
pub struct Prepared {
    /// Init, in the caller's numbering.
    pub init_pid: i32,
    /// The program, in the caller's numbering. It sits in a blocking `read` in a copy of the caller's
    /// image; attach to it now to catch its execve.
    pub program_pid: i32,
    container: Container,
    gate: OwnedFd,
}

impl Prepared {
    /// Lets the program go on to its execve, without waiting for it. See [`Container::started`].
    pub fn open_gate(self) -> Result<Container, Error> {
        nix::unistd::write(&self.gate, &[1]).map_err(|source| Error::Init {
            action: "open the gate of",
            source: source.into(),
        })?;
        Ok(self.container)
    }

    /// Lets the program go and waits for its execve. Not for a caller that traces it with a stop at
    /// execve: that one opens the gate and handles the stop.
    pub fn start(self) -> Result<Container, Error> {
        let mut container = self.open_gate()?;
        container.started()?;
        Ok(container)
    }

    /// The container, for its group, link and namespaces.
    #[must_use]
    pub fn container(&self) -> &Container {
        &self.container
    }

    /// Puts the link of a container that was prepared apart on its bridge.
    pub fn attach(&mut self) -> Result<(), Error> {
        self.container.attach()
    }
}

/// A container. Dropping it kills everything inside and waits until all of it is gone.
#[derive(Debug)]
pub struct Container {
    init: Child,
    control: OwnedFd,
    status: OwnedFd,
    /// Tells of a failed execve; closed by a successful one.
    exec: Option<OwnedFd>,
    program: Option<Child>,
    path: std::path::PathBuf,
    ended: Option<Ended>,
    reaped: bool,
    // Dropped after the processes are gone, in this order.
    link: Option<link::Attached>,
    cgroup: Cgroup,
}

impl Container {
    /// Makes a container whose program waits at its gate.
    ///
    /// May be called from any thread. Early in the life of the process is best: init is a copy of it.
    pub fn prepare(spec: &Spec, program: Program) -> Result<Prepared, Error> {
        Self::prepare_linked(spec, program, true)
    }

    /// As [`Self::prepare`], with the link on no bridge until [`Container::attach`]: for a caller that puts
    /// a gate on it first.
    pub fn prepare_apart(spec: &Spec, program: Program) -> Result<Prepared, Error> {
        Self::prepare_linked(spec, program, false)
    }

    fn prepare_linked(spec: &Spec, program: Program, live: bool) -> Result<Prepared, Error> {
        let image = command::Image::resolve(&program)?;
        let path = image.path.clone();
        let pipes = || pipe2(OFlag::O_CLOEXEC).map_err(Error::descriptor);
        let (gate_out, gate) = pipes()?;
        let (exec, exec_in) = pipes()?;
        let plan = init::Plan {
            image,
            descriptors: program.descriptors,
            gate: gate_out,
            exec: exec_in,
            fixed_addresses: program.fixed_addresses,
        };
        let mut container = Self::create(spec, Some(plan))?;
        container.exec = Some(exec);
        container.path = path;
        container.connect(spec, live)?;
        let (_, pidfd) = container.ask(&Request::Start, &[])?;
        let program_pid = visible(&pidfd)?;
        container.program = Some(Child {
            pid: program_pid,
            pidfd,
        });
        Ok(Prepared {
            init_pid: container.init.pid,
            program_pid,
            container,
            gate,
        })
    }

    /// Makes a container without a program, its link not attached: a backup's, before a takeover.
    pub fn stand_by(spec: &Spec) -> Result<Self, Error> {
        let mut container = Self::create(spec, None)?;
        container.connect(spec, false)?;
        Ok(container)
    }

    fn create(spec: &Spec, plan: Option<init::Plan>) -> Result<Self, Error> {
        let cgroup = Cgroup::create(&Hierarchy::find()?, &spec.name)?;
        let kind = SockType::SeqPacket;
        let (control, inner) = socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC)
            .map_err(Error::descriptor)?;
        let (status, status_in) = pipe2(OFlag::O_CLOEXEC).map_err(Error::descriptor)?;
        let own = i32::try_from(std::process::id()).unwrap_or(i32::MAX);
        let caller = pidfd_open(own).map_err(|source| Error::Init {
            action: "name the caller to",
            source,
        })?;
        let setup = init::Setup {
            name: spec.name.clone(),
            isolation: spec.isolation,
            mounts: spec.mounts.clone(),
            control: inner,
            status: status_in,
            caller,
            plan,
        };
        let init = fork_pid_one(move || init::life(setup)).map_err(|source| Error::Init {
            action: "fork",
            source,
        })?;
        let container = Self {
            init,
            control,
            status,
            exec: None,
            program: None,
            path: std::path::PathBuf::new(),
            ended: None,
            reaped: false,
            link: None,
            cgroup,
        };
        // Before init forks anything: it waits for a request first.
        container.cgroup.add(container.init.pid)?;
        container.receive().map(|_| container)
    }

    fn connect(&mut self, spec: &Spec, live: bool) -> Result<(), Error> {
        if spec.isolation != Isolation::Full {
            return Ok(());
        }
        let network = self.namespace("net")?;
        link::raise_loopback(network.as_fd())?;
        if let Some(link) = &spec.link {
            let mut attached = link::Attached::make(link, &spec.name, network)?;
            if live {
                attached.attach()?;
            }
            self.link = Some(attached);
        }
        Ok(())
    }

    /// Sends a request to init and gives its answer.
    fn ask(&self, request: &Request, passed: &[RawFd]) -> Result<(i32, OwnedFd), Error> {
        let (number, pidfd) = self.tell(request, passed)?;
        pidfd.map(|pidfd| (number, pidfd)).ok_or(Error::InitGone)
    }

    fn tell(&self, request: &Request, passed: &[RawFd]) -> Result<(i32, Option<OwnedFd>), Error> {
        self.instruct(request, passed)?;
        self.receive()
    }

    fn instruct(&self, request: &Request, passed: &[RawFd]) -> Result<(), Error> {
        descriptors::send(self.control.as_fd(), &request.encode(), passed).map_err(|source| {
            Error::Init {
                action: "instruct",
                source,
            }
        })
    }

    fn receive(&self) -> Result<(i32, Option<OwnedFd>), Error> {
        let mut bytes = [0; protocol::MAX];
        let (length, mut passed) =
            descriptors::receive(self.control.as_fd(), &mut bytes).map_err(|source| {
                Error::Init {
                    action: "hear from",
                    source,
                }
            })?;
        match Reply::decode(&bytes[..length]).ok_or(Error::InitGone)? {
            Reply::Done { number } => Ok((number, passed.pop())),
            Reply::Failed { step, errno } => Err(Error::Inside {
                step,
                source: std::io::Error::from_raw_os_error(errno),
            }),
        }
    }

    /// Makes an empty process inside, a child of init with number `number` there (any number
    /// without), holding exactly `passed` (at most [`descriptors::MAX_PASSED`]) under the given
    /// numbers. With `main` it is the container's program from now on: [`Container::wait`] waits for
    /// it, and signals go to it.
    ///
    /// It sleeps in `pause()` in a small copy of the caller as it was when the container was made,
    /// with all signals at their defaults: attach, and fill it.
    pub fn spawn(
        &mut self,
        number: Option<i32>,
        main: bool,
        passed: &[(BorrowedFd<'_>, RawFd)],
    ) -> Result<Empty, Error> {
        let targets = passed.iter().map(|(_, target)| *target).collect();
        let sources: Vec<RawFd> = passed.iter().map(|(fd, _)| fd.as_raw_fd()).collect();
        let (number, pidfd) = self.ask(
            &Request::Spawn {
                number,
                main,
                targets,
            },
            &sources,
        )?;
        let pid = visible(&pidfd)?;
        if main {
            let copy = pidfd.try_clone().map_err(Error::descriptor)?;
            self.program = Some(Child { pid, pidfd: copy });
        }
        Ok(Empty { pid, number, pidfd })
    }

    /// Makes a process that [`Self::spawn`] made the container's program, as `main` does. The caller must
    /// trace it: init may have forgotten another that has ended.
    pub fn set_program(&mut self, process: Empty) -> Result<(), Error> {
        self.tell(&Request::Main(process.number), &[])?;
        self.program = Some(Child {
            pid: process.pid,
            pidfd: process.pidfd,
        });
        Ok(())
    }

    /// Ends every process inside but init and the one with the number `but` there, and waits until their numbers are
    /// free. Threads of theirs that the calling thread traces are reaped here.
    pub fn clear(&mut self, but: Option<i32>) -> Result<(), Error> {
        self.instruct(&Request::Clear(but.unwrap_or(0)), &[])?;
        if !self.await_init(self.control.as_fd(), 0, teardown::CLEARING) {
            return Err(Error::NotCleared);
        }
        self.receive()?;
        self.program = None;
        Ok(())
    }

    /// Makes `last` the number that was given to a process inside last: the next gets the one after.
    pub fn set_last_number(&self, last: i32) -> Result<(), Error> {
        self.tell(&Request::LastNumber(last), &[]).map(drop)
    }

    /// Lets the clocks of init, and of all that it makes from now on, be so far ahead of what they are now; others inside
    /// join init's time namespace for that (`setns` with `CLONE_NEWTIME` and a pidfd of number 1).
    pub fn advance_clocks(&self, by: Offsets) -> Result<(), Error> {
        self.tell(&Request::Clocks(by), &[]).map(drop)
    }

    /// After the gate was opened: waits until the program's execve has happened or failed.
    pub fn started(&mut self) -> Result<(), Error> {
        let Some(exec) = self.exec.take() else {
            return Ok(());
        };
        let mut errno = [0; 4];
        match nix::unistd::read(&exec, &mut errno) {
            Ok(4) => Err(Error::Exec {
                path: self.path.clone(),
                source: std::io::Error::from_raw_os_error(i32::from_ne_bytes(errno)),
            }),
            Ok(_) => Ok(()),
            Err(source) => Err(Error::descriptor(source)),
        }
    }

    /// Waits for the program's end, and then for init's, which takes every other process along.
    ///
    /// Where the calling thread traces what has ended, this takes note of it a little later.
    pub fn wait(&mut self) -> Result<Ended, Error> {
        if let Some(ended) = self.ended {
            return Ok(ended);
        }
        while !self.await_init(self.status.as_fd(), teardown::GRACE, u32::MAX) {}
        let mut report = [0; 8];
        let length = loop {
            match nix::unistd::read(&self.status, &mut report) {
                Err(nix::errno::Errno::EINTR) => {}
                other => break other.map_err(Error::descriptor)?,
            }
        };
        let ended = protocol::decode_end(&report[..length]);
        self.ended = Some(ended);
        self.reap(teardown::GRACE);
        Ok(ended)
    }

    /// Readable (or at its end) once [`Container::wait`] will not block for long.
    #[must_use]
    pub fn end_descriptor(&self) -> BorrowedFd<'_> {
        self.status.as_fd()
    }

    /// A handle for sending signals to the program; `None` before it exists.
    pub fn signaller(&self) -> Result<Option<Signaller>, Error> {
        let copy = self
            .program
            .as_ref()
            .map(|program| program.pidfd.try_clone())
            .transpose();
        Ok(copy.map_err(Error::descriptor)?.map(Signaller))
    }

    /// Kills every process inside at once; [`Container::wait`] then gives [`Ended::Lost`] unless the
    /// program had ended before.
    pub fn kill(&self) -> Result<(), Error> {
        Ok(self.cgroup.kill()?)
    }

    /// Init, in the caller's numbering.
    #[must_use]
    pub fn init_pid(&self) -> i32 {
        self.init.pid
    }

    /// The descriptor that stands for init; good for `setns` into all of the container's namespaces,
    /// as [`sys::namespaces::run_inside`] does.
    #[must_use]
    pub fn init_pidfd(&self) -> BorrowedFd<'_> {
        self.init.pidfd.as_fd()
    }

    /// The program, in the caller's numbering.
    #[must_use]
    pub fn program_pid(&self) -> Option<i32> {
        self.program.as_ref().map(|program| program.pid)
    }

    /// One of its namespaces: `net`, `pid`, `mnt`, `ipc` or `uts`.
    pub fn namespace(&self, kind: &str) -> Result<OwnedFd, Error> {
        let path = format!("/proc/{}/ns/{kind}", self.init.pid);
        std::fs::File::open(path)
            .map(OwnedFd::from)
            .map_err(|source| Error::Init {
                action: "open a namespace of",
                source,
            })
    }

    /// The number of the host's end of its link, where the output gate attaches.
    #[must_use]
    pub fn host_link(&self) -> Option<u32> {
        self.link.as_ref().map(link::Attached::host_index)
    }

    /// Puts the link on its bridge and announces the address there. Does nothing without a link.
    pub fn attach(&mut self) -> Result<(), Error> {
        self.link.as_mut().map_or(Ok(()), link::Attached::attach)
    }

    /// Takes the link off its bridge: nothing leaves or enters any more.
    pub fn detach(&mut self) -> Result<(), Error> {
        self.link.as_mut().map_or(Ok(()), link::Attached::detach)
    }

    /// Tells the neighbours once more where the address is.
    pub fn announce(&self) -> Result<(), Error> {
        self.link.as_ref().map_or(Ok(()), link::Attached::announce)
    }

    /// Its processes, in the caller's numbering, init included.
    pub fn processes(&self) -> Result<Vec<i32>, Error> {
        Ok(self.cgroup.processes()?)
    }

    /// CPU time that it has used.
    pub fn cpu_time(&self) -> Result<Duration, Error> {
        Ok(self.cgroup.cpu_time()?)
    }
}

/// The caller's number of a process that init has just made.
fn visible(pidfd: &OwnedFd) -> Result<i32, Error> {
    pidfd_number(pidfd.as_fd())
        .map_err(|source| Error::Init {
            action: "find a process of",
            source,
        })?
        .ok_or(Error::InitGone)
}
