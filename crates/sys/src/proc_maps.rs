//! The memory map of a process, from `/proc/PID/maps` and `/proc/PID/smaps`.
//!
//! [`MapsFile`] reads `maps` again and again through one open file: it is meant for the pause. `smaps`
//! takes milliseconds and is for the time outside it.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::sync::Arc;

use libc::pid_t;

use crate::memory::Range;

/// A line that is not what the kernel writes.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("line {line:?} of a memory map cannot be understood")]
pub struct MapsError {
    /// The line.
    pub line: String,
}

/// One mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Its addresses.
    pub range: Range,
    /// May be read.
    pub read: bool,
    /// May be written.
    pub write: bool,
    /// May be executed.
    pub execute: bool,
    /// Writes are seen by others who map the same.
    pub shared: bool,
    /// Offset in the file, in bytes.
    pub offset: u64,
    /// Device of the file, major and minor.
    pub device: (u32, u32),
    /// Inode of the file, 0 without one.
    pub inode: u64,
    /// The file's path or the kernel's name in brackets; empty for anonymous memory.
    pub path: String,
}

impl Mapping {
    /// `PROT_*` bits.
    #[must_use]
    pub fn protection(&self) -> u32 {
        u32::from(self.read) | u32::from(self.write) << 1 | u32::from(self.execute) << 2
    }

    /// Whether the kernel provides it: vDSO, its data, vsyscall.
    #[must_use]
    pub fn is_kernels(&self) -> bool {
        self.path.starts_with("[v")
    }
}

/// Flags of a mapping, from the `VmFlags` line of `smaps`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VmFlags(pub u32);

impl VmFlags {
    /// Grows downwards.
    pub const GROWSDOWN: u32 = 1;
    /// No swap space is reserved.
    pub const NORESERVE: u32 = 1 << 1;
    /// Huge pages advised.
    pub const HUGE: u32 = 1 << 2;
    /// Huge pages advised against.
    pub const NOHUGE: u32 = 1 << 3;
    /// Not inherited by a fork child.
    pub const DONTFORK: u32 = 1 << 4;
    /// Left out of core dumps.
    pub const DONTDUMP: u32 = 1 << 5;
    /// Zeroed in a fork child.
    pub const WIPEONFORK: u32 = 1 << 6;
    /// Locked in memory.
    pub const LOCKED: u32 = 1 << 7;
    const NAMES: [&'static str; 8] = ["gd", "nr", "hg", "nh", "dc", "dd", "wf", "lo"];

    /// Whether all bits of `flags` are set.
    #[must_use]
    pub const fn has(self, flags: u32) -> bool {
        self.0 & flags == flags
    }
}

/// `/proc/PID/maps`, kept open.
#[derive(Debug)]
pub struct MapsFile {
    file: File,
    text: Vec<u8>,
    before: Vec<u8>,
    mappings: Arc<[Mapping]>,
}

impl MapsFile {
    /// Opens it.
    ///
    /// # Errors
    /// When the process is gone or may not be traced.
    pub fn open(pid: pid_t) -> io::Result<Self> {
        let file = File::open(format!("/proc/{pid}/maps"))?;
        let [text, before] = [(); 2].map(|()| Vec::with_capacity(1 << 18));
        Ok(Self {
            file,
            text,
            before,
            mappings: Arc::new([]),
        })
    }

    /// The mappings as they are now, by address. Parsed only when they changed.
    ///
    /// # Errors
    /// When the file cannot be read or parsed.
    pub fn read(&mut self) -> io::Result<Arc<[Mapping]>> {
        std::mem::swap(&mut self.text, &mut self.before);
        self.text.clear();
        self.file.rewind()?;
        let mut chunk = [0; 16 << 10];
        loop {
            match self.file.read(&mut chunk)? {
                0 => break,
                got => self.text.extend_from_slice(&chunk[..got]),
            }
        }
        if self.text != self.before {
            self.mappings = parse(&String::from_utf8_lossy(&self.text))
                .map_err(io::Error::other)?
                .into();
        }
        Ok(Arc::clone(&self.mappings))
    }
}

/// Parses the text of a `maps` file.
///
/// # Errors
/// On the first line that is not a mapping.
pub fn parse(text: &str) -> Result<Vec<Mapping>, MapsError> {
    text.lines()
        .map(|line| {
            mapping(line).ok_or_else(|| MapsError {
                line: line.to_owned(),
            })
        })
        .collect()
}

fn mapping(line: &str) -> Option<Mapping> {
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    let range = Range {
        start: hex(start)?,
        end: hex(end)?,
    };
    let &[r, w, x, p] = fields.next()?.as_bytes() else {
        return None;
    };
    let offset = hex(fields.next()?)?;
    let (major, minor) = fields.next()?.split_once(':')?;
    let device = (
        u32::from_str_radix(major, 16).ok()?,
        u32::from_str_radix(minor, 16).ok()?,
    );
    let inode = fields.next()?.parse().ok()?;
    let path = unescape(fields.next().unwrap_or_default().trim_start_matches(' '));
    let (read, write, execute, shared) = (r == b'r', w == b'w', x == b'x', p == b's');
    Some(Mapping {
        range,
        read,
        write,
        execute,
        shared,
        offset,
        device,
        inode,
        path,
    })
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

/// The kernel writes a newline in a path as `\012`.
fn unescape(path: &str) -> String {
    if path.contains('\\') {
        path.replace("\\012", "\n")
    } else {
        path.to_owned()
    }
}

/// Mappings with their flags, from `smaps`. Takes milliseconds.
///
/// # Errors
/// When the file cannot be read or parsed.
pub fn read_flags(pid: pid_t) -> io::Result<Vec<(Range, VmFlags)>> {
    parse_flags(&String::from_utf8_lossy(&std::fs::read(format!(
        "/proc/{pid}/smaps"
    ))?))
    .map_err(io::Error::other)
}

/// Parses the text of an `smaps` file.
///
/// # Errors
/// When flags come before any mapping.
pub fn parse_flags(text: &str) -> Result<Vec<(Range, VmFlags)>, MapsError> {
    let mut all: Vec<(Range, VmFlags)> = Vec::new();
    for line in text.lines() {
        if let Some(names) = line.strip_prefix("VmFlags:") {
            let bits = VmFlags::NAMES.iter().enumerate();
            let set = |name: &str| names.split(' ').any(|word| word == name);
            let flags = bits
                .filter(|(_, name)| set(name))
                .fold(0, |flags, (bit, _)| flags | 1 << bit);
            all.last_mut()
                .ok_or_else(|| MapsError {
                    line: line.to_owned(),
                })?
                .1 = VmFlags(flags);
        } else if let Some(mapping) = mapping(line) {
            all.push((mapping.range, VmFlags::default()));
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_every_kind_are_understood() {
        let text = "7f0000001000-7f0000003000 r-xp 00001000 fe:02 1234                       /lib/x y.so\n\
                    7f0000003000-7f0000004000 rw-s 00000000 00:01 77                         /dev/zero (deleted)\n\
                    7f0000004000-7f0000005000 ---p 00000000 00:00 0 \n\
                    ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\n";
        let maps = parse(text).unwrap();
        assert_eq!(maps[0].path, "/lib/x y.so");
        assert_eq!(
            (maps[0].offset, maps[0].device, maps[0].protection()),
            (0x1000, (0xfe, 2), 5)
        );
        assert!(maps[1].shared && maps[1].inode == 77);
        assert_eq!((maps[2].protection(), maps[2].path.as_str()), (0, ""));
        assert!(maps[3].is_kernels());
        assert_eq!(parse("nonsense").unwrap_err().line, "nonsense");
    }

    #[test]
    fn flags_belong_to_the_mapping_above_them() {
        let text =
            "1000-2000 rw-p 00000000 00:00 0 [stack]\nRss: 4 kB\nVmFlags: rd wr mr mw me gd ac \n";
        let flags = parse_flags(text).unwrap();
        assert_eq!(
            flags,
            [(
                Range {
                    start: 0x1000,
                    end: 0x2000
                },
                VmFlags(VmFlags::GROWSDOWN)
            )]
        );
    }

    #[test]
    fn our_own_map_is_read_twice_through_one_file() {
        let mut file = MapsFile::open(std::process::id() as pid_t).unwrap();
        assert!(
            file.read()
                .unwrap()
                .iter()
                .any(|mapping| mapping.path == "[stack]")
        );
        assert!(file.read().unwrap().iter().any(Mapping::is_kernels));
    }
}
