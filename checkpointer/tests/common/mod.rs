//! What the tests share: targets, and their end.
#![allow(dead_code, reason = "each test uses its own part")]

use std::mem::offset_of;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use checkpointer::ImageStore;
use eventlog::image::Backing;
use guest::abi::ThreadBlock;

/// A directory of this test's own, gone at its end.
pub(crate) fn directory() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// Compiles the self-checking program.
pub(crate) fn compile(directory: &Path) -> PathBuf {
    compile_source("target", directory, &[])
}

/// Compiles one of the programs beside the tests, with constants that it needs.
pub(crate) fn compile_source(name: &str, directory: &Path, constants: &[(&str, usize)]) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/{name}.c"));
    let program = directory.join(name);
    let mut cc = Command::new("cc");
    cc.args(["-O2", "-mavx2", "-pthread", "-w", "-o"])
        .arg(&program)
        .arg(source);
    cc.args(
        constants
            .iter()
            .map(|(name, value)| format!("-D{name}={value}")),
    );
    assert!(cc.status().unwrap().success());
    program
}

/// A child that is killed and reaped in any case.
pub(crate) struct Target(pub(crate) Child);

impl Target {
    /// Starts the self-checking program; what it needs lies in `directory`.
    pub(crate) fn start(directory: &Path, board: &Path) -> Self {
        let mut command = Command::new(compile(directory));
        let target = Self(command.arg(board).stdin(Stdio::null()).spawn().unwrap());
        wait_until("the target starts", || {
            rounds(board).iter().all(|&rounds| rounds > 0)
        });
        target
    }

    pub(crate) fn pid(&self) -> i32 {
        self.0.id() as i32
    }

    /// Waits until every thread of the self-checking program has gone so many rounds beyond `last`.
    pub(crate) fn goes_on(&mut self, board: &Path, last: [u64; 4], by: u64) {
        wait_until("the target goes on", || {
            assert!(
                self.0.try_wait().unwrap().is_none(),
                "the target found a fault"
            );
            let now = rounds(board);
            now.iter().zip(last).all(|(now, last)| *now > last + by)
        });
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits for a condition by looking again and again.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(
            began.elapsed() < Duration::from_secs(20),
            "waited in vain: {what}"
        );
        // Not spinning: the test may be in real time, and must not keep the target from running.
        std::thread::sleep(Duration::from_micros(500));
    }
}

/// The counters that the self-checking program shows.
pub(crate) fn rounds(board: &Path) -> [u64; 4] {
    let bytes = std::fs::read(board).unwrap_or_default();
    let word = |index: usize| {
        bytes
            .get(index * 8..index * 8 + 8)
            .map_or(0, |word| u64::from_le_bytes(word.try_into().unwrap()))
    };
    std::array::from_fn(word)
}

/// Compares all that a store holds with the memory of a process that is stopped. Returns the number of
/// pages compared and the addresses that differ.
pub(crate) fn compare(pid: i32, store: &ImageStore) -> (u64, Vec<u64>) {
    let mem = sys::memory::Mem::open(pid).unwrap();
    let mut compared = 0;
    let mut wrong = Vec::new();
    for mapping in store.mappings() {
        // What a file holds is not the image's; what shared memory holds is kept at its writable mapping.
        let foreign =
            mapping.shared && (mapping.backing == Backing::File || mapping.protection & 2 == 0);
        if mapping.is_kernels() || foreign {
            continue;
        }
        let file =
            (mapping.backing == Backing::File).then(|| std::fs::read(&mapping.path).unwrap());
        for address in (mapping.start..mapping.end).step_by(4096) {
            let mut there = [0; 4096];
            if mem.read(address, &mut there).is_err() {
                continue;
            }
            compared += 1;
            let mut expected = [0; 4096];
            if let Some((_, page)) = store.pages(address, address + 4096).next() {
                expected.copy_from_slice(page);
            } else if let Some(file) = &file {
                let at = (address - mapping.start + mapping.offset) as usize;
                let rest = file.get(at..).unwrap_or_default();
                let len = rest.len().min(4096);
                expected[..len].copy_from_slice(&rest[..len]);
            }
            if expected != there {
                wrong.push(address);
            }
        }
    }
    (compared, wrong)
}

/// Sends a signal.
pub(crate) fn signal(pid: i32, signal: nix::sys::signal::Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
}

/// Makes a thread stop before it runs another instruction: the signal to the whole process would let its
/// threads run until one of them has taken it.
pub(crate) fn stop_thread(pid: i32, tid: i32) {
    sys::process::signal_thread(pid, tid, libc::SIGSTOP).unwrap();
}

/// Waits until every thread of a process stands still after SIGSTOP.
pub(crate) fn wait_stopped(pid: i32) {
    wait_until("the process stands still", || {
        std::fs::read_dir(format!("/proc/{pid}/task"))
            .unwrap()
            .all(|task| {
                let stat =
                    std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap_or_default();
                stat.rsplit_once(") ")
                    .is_some_and(|(_, rest)| rest.starts_with('T'))
            })
    });
}

/// Runs one of the tests below that are marked "inside", as the first process of a new PID namespace.
pub(crate) fn inside(test: &str, image: &Path, board: &Path) -> bool {
    let mut command = Command::new("unshare");
    command
        .args(["--pid", "--fork", "--mount-proc", "--kill-child"])
        .arg(std::env::current_exe().unwrap());
    command.args([
        "--exact",
        test,
        "--ignored",
        "--nocapture",
        "--test-threads=1",
    ]);
    command.env("TEST_IMAGE", image).env("TEST_BOARD", board);
    command.status().unwrap().success()
}

/// A path that the outer test gave.
pub(crate) fn path_of(variable: &str) -> PathBuf {
    PathBuf::from(std::env::var_os(variable).unwrap())
}

/// A restored process is our child; it is killed and reaped in any case.
pub(crate) struct Copy(pub(crate) i32);

impl Copy {
    /// Whether it has ended by itself.
    pub(crate) fn has_ended(&self) -> bool {
        use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
        let status = waitpid(
            nix::unistd::Pid::from_raw(self.0),
            Some(WaitPidFlag::WNOHANG),
        )
        .unwrap();
        if status != WaitStatus::StillAlive {
            eprintln!("the copy: {status:?}");
        }
        status != WaitStatus::StillAlive
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.0);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL);
        let _ = nix::sys::wait::waitpid(pid, None);
    }
}

/// Where the words of a thread block lie.
pub(crate) const OFFSETS: [(&str, usize); 5] = [
    ("THIS", offset_of!(ThreadBlock, this)),
    ("HOOK_SP", offset_of!(ThreadBlock, hook_sp)),
    ("HOOK_TOP", offset_of!(ThreadBlock, hook_top)),
    ("STOP", offset_of!(ThreadBlock, stop)),
    ("WHY", offset_of!(ThreadBlock, why)),
];

/// The guest as the stand-in's board describes it.
pub(crate) fn guest(path: &Path) -> checkpointer::Guest {
    let board = board(path);
    checkpointer::Guest {
        redo: board[6],
        blocking_done: board[9],
        waiting_done: 0,
    }
}

/// The words that the stand-in for the guest shows.
pub(crate) fn board(path: &Path) -> [u64; 10] {
    let bytes = std::fs::read(path).unwrap_or_default();
    std::array::from_fn(|index| {
        bytes
            .get(index * 8..index * 8 + 8)
            .map_or(0, |word| u64::from_le_bytes(word.try_into().unwrap()))
    })
}
