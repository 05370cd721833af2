//! The programs of the suite.

use std::process::Command;

/// A program: one file.
pub(crate) struct Program {
    /// The file in `programs`.
    pub(crate) file: &'static str,
    /// Whether it is taken through a loss while it is at work.
    pub(crate) at_work: bool,
}

const fn program(file: &'static str) -> Program {
    let at_work = true;
    Program { file, at_work }
}

/// One that is lost only while it stands: at work it does not come through every loss.
const fn standing(file: &'static str) -> Program {
    let at_work = false;
    Program { file, at_work }
}

pub(crate) const PROGRAMS: &[Program] = &[
    program("c11.c"),
    program("clocks.c"),
    program("conditions.c"),
    program("events.c"),
    // What it wrote behind the end of the log is on the disk, and written again.
    standing("files.c"),
    program("meetings.c"),
    program("mutexes.c"),
    program("mutexes_robust.c"),
    program("pipes.c"),
    program("rwlocks.c"),
    program("semaphores.c"),
    program("signals_children.c"),
    program("signals_groups.c"),
    program("signals_interrupt.c"),
    program("signals_sent.c"),
    program("signals_spun_for.c"),
    program("signals_stacks.c"),
    program("signals_timers.c"),
    program("signals_waited.c"),
    program("sleeps.c"),
    program("sockets_unix.c"),
    program("standard.cpp"),
    program("streams.c"),
    program("threads_ends.c"),
];

impl Program {
    /// The file's name without its ending.
    pub(crate) fn name(&self) -> &'static str {
        self.file.split('.').next().unwrap_or_default()
    }

    /// What compiles it.
    pub(crate) fn compiler(&self) -> Command {
        let compiler = if self.file.ends_with(".cpp") {
            "c++"
        } else {
            "cc"
        };
        let mut command = Command::new(compiler);
        command.args(["-O1", "-Wall", "-Wextra", "-pthread"]);
        command
    }
}
