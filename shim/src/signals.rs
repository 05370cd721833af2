//! Signals to the shim that are meant for the program.

use std::os::fd::{AsFd, BorrowedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::container::{Container, Ended, Error};

/// What is passed on. The others stop or end the shim itself, and with it the container.
const PASSED: [Signal; 7] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGTERM,
    Signal::SIGWINCH,
];

/// The signals of this process, taken out of their usual course.
#[derive(Debug)]
pub struct Signals(SignalFd);

impl Signals {
    /// Blocks them in the calling thread and all it starts from now on. Call it before any other
    /// thread is there, or that thread gets the signals in the usual way.
    pub fn block() -> Result<Self, Error> {
        let set: SigSet = PASSED.into_iter().collect();
        let refused = |source: nix::errno::Errno| Error::Init {
            action: "take signals for",
            source: source.into(),
        };
        set.thread_block().map_err(refused)?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        SignalFd::with_flags(&set, flags).map(Self).map_err(refused)
    }

    /// The next one that has arrived.
    pub fn take(&self) -> Option<i32> {
        let info = self.0.read_signal().ok()??;
        i32::try_from(info.ssi_signo).ok()
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits for the program's end and passes signals on meanwhile.
pub fn wait_passing(container: &mut Container, signals: &Signals) -> Result<Ended, Error> {
    let program = container.signaller()?;
    loop {
        let (signalled, ended) = {
            let mut wanted = [signals.as_fd(), container.end_descriptor()]
                .map(|fd| PollFd::new(fd, PollFlags::POLLIN));
            match poll(&mut wanted, PollTimeout::NONE) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(source) => {
                    return Err(Error::Init {
                        action: "wait for",
                        source: source.into(),
                    });
                }
            }
            let ready = wanted.map(|one| one.any().unwrap_or(false));
            (ready[0], ready[1])
        };
        while let Some(signal) = signalled.then(|| signals.take()).flatten() {
            if let Some(program) = &program {
                program.send(signal)?;
            }
        }
        if ended {
            return container.wait();
        }
    }
}
