//! The programs of the suite.

use std::process::Command;

/// A program: one file.
pub(crate) struct Program {
    /// The file in `programs`.
    pub(crate) file: &'static str,
}

const fn program(file: &'static str) -> Program {
    Program { file }
}

pub(crate) const PROGRAMS: &[Program] = &[
    program("c11.c"),
    program("clocks.c"),
    program("conditions.c"),
    program("events.c"),
    program("files.c"),
    program("meetings.c"),
    program("memory_named.c"),
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
