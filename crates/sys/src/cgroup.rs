//! A control group for the processes of one container: kill them all, list them, count their CPU time.
//!
//! Version 2 is preferred wherever it is mounted (it needs no controller for any of this); where only
//! version 1 exists, one of its hierarchies that can do without configuration is used, and killing is
//! a loop.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// The directory that holds the groups of all containers, below the mount point.
const PARENT: &str = "understudy";
/// Version 1 hierarchies that suit, best first. A new group in any of them needs no settings.
const V1: [&str; 5] = ["cpuacct", "pids", "freezer", "memory", "devices"];

/// Why a group cannot be had or used.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// Nothing mounted.
    #[error("no usable cgroup hierarchy is mounted: mount cgroup2 on /sys/fs/cgroup")]
    NotMounted,
    /// The kernel refused.
    #[error("cannot {action} control group {path}: {source}", path = path.display())]
    Refused {
        /// What was tried.
        action: &'static str,
        /// The group.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Which kind of hierarchy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// The single hierarchy, `cgroup2`.
    V2,
    /// One controller's hierarchy.
    V1,
}

/// A group's parent may be taken away so many times while the group is made.
const ATTEMPTS: u32 = 100;

/// A mounted hierarchy.
#[derive(Clone, Debug)]
pub struct Hierarchy {
    /// Its kind.
    pub version: Version,
    /// Where it is mounted.
    pub mount: PathBuf,
    /// A mount of our own that is in nobody's tree; `mount` leads through it.
    detached: Option<Arc<OwnedFd>>,
}

impl Hierarchy {
    /// The best one that this process can see. Where none is in its tree (`ip netns exec` covers
    /// `/sys` with a fresh one), version 2 by a mount of our own.
    pub fn find() -> Result<Self, CgroupError> {
        let mounts = fs::read("/proc/self/mounts").map_err(|source| CgroupError::Refused {
            action: "find the mount of",
            path: "/proc/self/mounts".into(),
            source,
        })?;
        Self::choose(&mounts)
            .or_else(|| Self::detached().ok())
            .ok_or(CgroupError::NotMounted)
    }

    /// Mounts version 2 without a place in the tree.
    fn detached() -> io::Result<Self> {
        const FSCONFIG_CMD_CREATE: libc::c_uint = 6;
        let fresh = |result: libc::c_long| match result {
            -1 => Err(io::Error::last_os_error()),
            // SAFETY: the kernel has just returned this descriptor, and nobody else owns it.
            fd => Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) }),
        };
        let name = c"cgroup2".as_ptr();
        // SAFETY: the name is a terminated string.
        let context = fresh(unsafe { libc::syscall(libc::SYS_fsopen, name, 1) })?;
        let (none, fd) = (std::ptr::null::<u8>(), context.as_raw_fd());
        // SAFETY: this command takes neither key nor value.
        let made =
            unsafe { libc::syscall(libc::SYS_fsconfig, fd, FSCONFIG_CMD_CREATE, none, none, 0) };
        if made < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: integers only; 1 closes the descriptor on execve.
        let mount = fresh(unsafe { libc::syscall(libc::SYS_fsmount, fd, 1, 0) })?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd()));
        Ok(Self {
            version: Version::V2,
            mount: path,
            detached: Some(Arc::new(mount)),
        })
    }

    /// The best one of a list in the format of `/proc/self/mounts`.
    #[must_use]
    pub fn choose(mounts: &[u8]) -> Option<Self> {
        let lines = mounts.split(|byte| *byte == b'\n').filter_map(|line| {
            let mut fields = line.split(|byte| *byte == b' ').skip(1);
            Some((fields.next()?, fields.next()?, fields.next()?))
        });
        let rank = |(_, kind, options): &(&[u8], &[u8], &[u8])| match *kind {
            b"cgroup2" => Some(0),
            b"cgroup" => V1
                .iter()
                .position(|name| options.split(|b| *b == b',').any(|o| o == name.as_bytes()))
                .map(|place| place + 1),
            _ => None,
        };
        let (place, best) = lines.filter_map(|line| Some((rank(&line)?, line))).min()?;
        let version = if place == 0 { Version::V2 } else { Version::V1 };
        Some(Self {
            version,
            mount: unescape(best.0),
            detached: None,
        })
    }
}

/// Undoes the octal escapes of a mount table (`\040` for a space).
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let octal = (*first == b'\\').then(|| after.get(..3)).flatten();
        let code = octal.and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// One container's group. Killed and removed when dropped.
#[derive(Debug)]
pub struct Cgroup {
    version: Version,
    path: PathBuf,
    /// Keeps a mount of our own alive, which `path` leads through.
    _mount: Option<Arc<OwnedFd>>,
}

impl Cgroup {
    /// Makes the group of `name` (a file name that holds this process's number and no slash), and
    /// removes groups that a killed process of ours left behind.
    pub fn create(hierarchy: &Hierarchy, name: &str) -> Result<Self, CgroupError> {
        let parent = hierarchy.mount.join(PARENT);
        let path = parent.join(format!("{name}-{}", std::process::id()));
        let refused = |source| CgroupError::Refused {
            action: "make",
            path: path.clone(),
            source,
        };
        // The last container to end takes the parent away, just before we use it or while we make it: each failure is
        // another's success.
        for attempt in 1.. {
            let made = fs::create_dir_all(&parent).and_then(|()| {
                sweep(&parent);
                fs::create_dir(&path)
            });
            match made {
                Ok(()) => break,
                Err(error) if attempt >= ATTEMPTS || !is_passing(&error) => {
                    return Err(refused(error));
                }
                Err(_) => {}
            }
        }
        Ok(Self {
            version: hierarchy.version,
            path,
            _mount: hierarchy.detached.clone(),
        })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Moves a process with all its threads in; what it forks from now on is in, too.
    pub fn add(&self, pid: i32) -> Result<(), CgroupError> {
        let procs = self.path.join("cgroup.procs");
        fs::OpenOptions::new()
            .write(true)
            .open(procs)
            .and_then(|mut file| file.write_all(pid.to_string().as_bytes()))
            .map_err(|source| self.refused("put a process into", source))
    }

    /// The processes in it.
    pub fn processes(&self) -> Result<Vec<i32>, CgroupError> {
        self.numbers("cgroup.procs")
    }

    /// CPU time that its processes have used, gone ones included. On version 1 without the hierarchy
    /// that counts it: that of the living ones, to the tick.
    pub fn cpu_time(&self) -> Result<Duration, CgroupError> {
        let used = match self.version {
            Version::V2 => self.read("cpu.stat")?.lines().find_map(|line| {
                Some(Duration::from_micros(
                    line.strip_prefix("usage_usec ")?.parse().ok()?,
                ))
            }),
            Version::V1 => match self.read("cpuacct.usage") {
                Ok(text) => text.trim().parse().ok().map(Duration::from_nanos),
                Err(_) => Some(self.processes()?.into_iter().filter_map(cpu_of).sum()),
            },
        };
        used.ok_or_else(|| self.refused("read the CPU time of", io::ErrorKind::InvalidData.into()))
    }

    /// Sends SIGKILL to every process in it, those forked meanwhile included.
    pub fn kill(&self) -> Result<(), CgroupError> {
        let file = self.path.join("cgroup.kill");
        if self.version == Version::V2 && fs::write(&file, "1").is_ok() {
            return Ok(());
        }
        // A killed process cannot fork, so each round finds only what the last one missed.
        let mut hit = Vec::new();
        loop {
            let fresh: Vec<i32> = self
                .processes()?
                .into_iter()
                .filter(|pid| !hit.contains(pid))
                .collect();
            if fresh.is_empty() {
                return Ok(());
            }
            for pid in &fresh {
                // It may be gone already, which is what is wanted.
                let _ = nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(*pid),
                    nix::sys::signal::Signal::SIGKILL,
                );
            }
            hit.extend(fresh);
        }
    }

    fn numbers(&self, file: &str) -> Result<Vec<i32>, CgroupError> {
        Ok(self
            .read(file)?
            .lines()
            .filter_map(|line| line.parse().ok())
            .collect())
    }

    fn read(&self, file: &str) -> Result<String, CgroupError> {
        fs::read_to_string(self.path.join(file)).map_err(|source| self.refused("read", source))
    }

    fn refused(&self, action: &'static str, source: io::Error) -> CgroupError {
        CgroupError::Refused {
            action,
            path: self.path.clone(),
            source,
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // The container waits for its processes first; what is still here entered it otherwise, and
        // the kernel takes a moment to count a killed process out.
        let mut removed = fs::remove_dir(&self.path).is_ok();
        if !removed && self.kill().is_ok() {
            for _ in 0..200 {
                removed = fs::remove_dir(&self.path).is_ok();
                if removed {
                    break;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        if let Some(parent) = self.path.parent().filter(|_| removed) {
            // Refused while another container has its group there.
            let _ = fs::remove_dir(parent);
        }
    }
}

/// Whether a directory could not be made because another was made or removed at the same moment.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::AlreadyExists
    )
}

/// CPU time of one process, from its stat file; its name may hold anything, so count from the last `)`.
fn cpu_of(pid: i32) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let ticks: u64 = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    let hertz = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok()??;
    Some(Duration::from_nanos(
        ticks * 1_000_000_000 / u64::try_from(hertz).ok()?,
    ))
}

/// Removes groups whose maker is gone. Those with processes in them cannot be removed and stay.
fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let maker = name
            .to_str()
            .and_then(|name| name.rsplit_once('-'))
            .map(|(_, pid)| pid);
        if maker.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    const MIXED: &[u8] = b"tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
        cgroup /sys/fs/cgroup/pids cgroup rw,relatime,pids 0 0\n\
        cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\n\
        cgroup2 /odd\\040place cgroup2 rw 0 0\n";

    #[test]
    fn version_two_is_preferred_and_escapes_are_undone() {
        let found = Hierarchy::choose(MIXED).unwrap();
        assert_eq!(
            (found.version, found.mount),
            (Version::V2, "/odd place".into())
        );
    }

    #[test]
    fn version_one_falls_back_to_the_best_controller() {
        let old = &MIXED[..MIXED.len() - b"cgroup2 /odd\\040place cgroup2 rw 0 0\n".len()];
        let found = Hierarchy::choose(old).unwrap();
        assert_eq!(found.mount, Path::new("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(found.version, Version::V1);
        assert!(Hierarchy::choose(b"tmpfs / tmpfs rw 0 0\nnonsense\n").is_none());
    }

    fn exercise(hierarchy: &Hierarchy) {
        let kind = (hierarchy.version, hierarchy.detached.is_some());
        let group = Cgroup::create(hierarchy, &format!("unit-{kind:?}")).unwrap();
        let stdin = std::process::Stdio::piped();
        let mut child = Command::new("sh")
            .args(["-c", "read x"])
            .stdin(stdin)
            .spawn()
            .unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        group.add(pid).unwrap();
        assert_eq!(group.processes().unwrap(), [pid]);
        group.cpu_time().unwrap();
        group.kill().unwrap();
        let status = child.wait().unwrap();
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&status),
            Some(9)
        );
        let path = group.path().to_owned();
        drop(group);
        assert!(!path.exists());
    }

    #[test]
    fn the_last_takes_the_parent_away_while_another_begins() {
        let hierarchy = Hierarchy::find().unwrap();
        std::thread::scope(|scope| {
            for name in ["one", "another", "third"] {
                let again =
                    || (0..1000).for_each(|_| drop(Cgroup::create(&hierarchy, name).unwrap()));
                scope.spawn(again);
            }
        });
    }

    #[test]
    fn a_real_group_kills_and_vanishes() {
        exercise(&Hierarchy::find().unwrap());
    }

    #[test]
    fn a_detached_mount_does_as_well() {
        exercise(&Hierarchy::detached().unwrap());
    }

    #[test]
    fn a_real_version_one_group_works_where_there_is_one() {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let old: String = mounts
            .lines()
            .filter(|l| !l.contains("cgroup2"))
            .map(|l| format!("{l}\n"))
            .collect();
        // A machine with version 2 alone has nothing to test here.
        if let Some(hierarchy) = Hierarchy::choose(old.as_bytes()) {
            exercise(&hierarchy);
        }
    }
}
