//! Bytes to values. The bytes may be anything: every number is checked before it is used, and nothing is
//! allocated beyond what the bytes themselves could fill.

use std::borrow::Cow;

use super::encode::section_crc;
use super::{
    BASE_AT, Backing, Dead, HEADER_CRC_AT, HEADER_LEN, Image, ImageError, Kin, LENGTH_AT, MAGIC,
    MAX_PATH, MAX_PROCESSES, MAX_SECTIONS, MAX_UNMAPPED, MAX_XSTATE, Mapping, NamedMemory, PAGE,
    Process, Run, SECTION_LEN, SECTIONS_AT, SEQUENCE_AT, Span, Thread, VERSION, VERSION_AT, layout,
    section,
};

type Result<T> = std::result::Result<T, ImageError>;

/// The images that `bytes` hold one after another, not decoded.
///
/// # Errors
/// When their lengths do not add up, or they are too many.
pub fn split(bytes: &[u8]) -> Result<Vec<&[u8]>> {
    let mut rest = Rest(bytes);
    let mut all = Vec::new();
    while !rest.0.is_empty() {
        let head = Rest(rest.0).take(HEADER_LEN)?;
        let length = word(head, LENGTH_AT);
        if length < HEADER_LEN as u64 {
            return Err(ImageError::Bound {
                what: "the length",
                value: length,
            });
        }
        all.push(rest.take_long(length)?);
        bound(
            "the number of processes",
            all.len() as u64,
            MAX_PROCESSES as u64,
        )?;
    }
    Ok(all)
}

/// The image in `bytes`, which hold nothing else. Pages are borrowed, not copied.
///
/// # Errors
/// When the bytes are not exactly one whole, undamaged image of this version.
pub fn decode(bytes: &[u8]) -> Result<Image<'_>> {
    let mut rest = Rest(bytes);
    let header = rest.take(HEADER_LEN)?;
    let magic = word(header, 0);
    if magic != MAGIC {
        return Err(ImageError::Magic(magic));
    }
    let version = u16::from_le_bytes([header[VERSION_AT], header[VERSION_AT + 1]]);
    if version != VERSION {
        return Err(ImageError::Version(version));
    }
    verify(
        0,
        half(header, HEADER_CRC_AT),
        crc32c::crc32c(&header[..HEADER_CRC_AT]),
    )?;
    let length = word(header, LENGTH_AT);
    if length != bytes.len() as u64 {
        return Err(ImageError::Truncated {
            wanted: length,
            left: bytes.len() as u64,
        });
    }
    let count = half(header, SECTIONS_AT);
    bound(
        "the number of sections",
        u64::from(count),
        u64::from(MAX_SECTIONS),
    )?;
    let mut image = Image {
        sequence: word(header, SEQUENCE_AT),
        base: word(header, BASE_AT),
        ..Image::default()
    };
    let mut seen = Vec::new();
    for _ in 0..count {
        let head = rest.take(SECTION_LEN)?;
        let (kind, crc, len) = (half(head, 0), half(head, 4), word(head, 8));
        let payload = rest.take_long(len)?;
        verify(kind, crc, section_crc(kind, len, payload))?;
        rest.skip_padding(payload.len())?;
        if seen.contains(&kind) {
            return Err(ImageError::Section(kind));
        }
        seen.push(kind);
        read_section(&mut image, kind, payload)?;
    }
    if !rest.0.is_empty() {
        return Err(ImageError::Bound {
            what: "the length behind the last section",
            value: rest.0.len() as u64,
        });
    }
    let always = [section::PROCESS, section::THREADS];
    let full = if image.base == 0 {
        &[section::MAPPINGS][..]
    } else {
        &[]
    };
    match always.iter().chain(full).find(|kind| !seen.contains(kind)) {
        Some(kind) => Err(ImageError::Section(*kind)),
        None => Ok(image),
    }
}

fn read_section<'a>(image: &mut Image<'a>, kind: u32, payload: &'a [u8]) -> Result<()> {
    match kind {
        section::PROCESS => image.process = process(payload)?,
        section::THREADS => image.threads = all(payload, thread)?,
        section::MAPPINGS => image.mappings = Some(mappings(payload)?),
        section::DROPPED => image.dropped = all(payload, span)?,
        section::PAGES => {
            let (runs, bytes) = pages(payload)?;
            image.runs = runs;
            image.pieces = vec![Cow::Borrowed(bytes)];
        }
        section::DEAD => image.dead = all(payload, dead)?,
        section::NAMES => image.names = names(payload)?,
        section::VDSO => image.vdso = Cow::Borrowed(payload),
        section::OPAQUE.. => image.opaque.push((kind, Cow::Borrowed(payload))),
        _ => return Err(ImageError::Section(kind)),
    }
    Ok(())
}

fn verify(section: u32, stored: u32, computed: u32) -> Result<()> {
    if stored == computed {
        Ok(())
    } else {
        Err(ImageError::Checksum {
            section,
            stored,
            computed,
        })
    }
}

fn bound(what: &'static str, value: u64, limit: u64) -> Result<()> {
    if value <= limit {
        Ok(())
    } else {
        Err(ImageError::Bound { what, value })
    }
}

/// Bytes not read yet.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let Some((taken, rest)) = self.0.split_at_checked(len) else {
            return Err(ImageError::Truncated {
                wanted: len as u64,
                left: self.0.len() as u64,
            });
        };
        self.0 = rest;
        Ok(taken)
    }

    fn take_long(&mut self, len: u64) -> Result<&'a [u8]> {
        let truncated = ImageError::Truncated {
            wanted: len,
            left: self.0.len() as u64,
        };
        self.take(usize::try_from(len).map_err(|_| truncated)?)
    }

    /// Takes the bytes and the zeroes behind them.
    fn take_padded(&mut self, len: usize) -> Result<&'a [u8]> {
        let taken = self.take(len)?;
        self.skip_padding(len)?;
        Ok(taken)
    }

    fn skip_padding(&mut self, len: usize) -> Result<()> {
        let padding = self.take(len.next_multiple_of(8) - len)?;
        let value = padding.iter().copied().fold(0, |all, byte| all | byte);
        bound("the padding", u64::from(value), 0)
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

fn half(bytes: &[u8], at: usize) -> u32 {
    let mut half = [0; 4];
    half.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(half)
}

fn words<const N: usize>(bytes: &[u8], at: usize) -> [u64; N] {
    std::array::from_fn(|index| word(bytes, at + index * 8))
}

/// Items one after another up to the end.
fn all<'a, T>(payload: &'a [u8], one: impl Fn(&mut Rest<'a>) -> Result<T>) -> Result<Vec<T>> {
    let mut rest = Rest(payload);
    let mut items = Vec::new();
    while !rest.0.is_empty() {
        items.push(one(&mut rest)?);
    }
    Ok(items)
}

fn pending(rest: &mut Rest<'_>, count: u32) -> Result<Vec<[u8; 128]>> {
    let bytes = rest.take_long(u64::from(count) * 128)?;
    Ok(bytes.as_chunks().0.to_vec())
}

fn text(bytes: &[u8]) -> Result<String> {
    bound("the length of a path", bytes.len() as u64, MAX_PATH as u64)?;
    String::from_utf8(bytes.to_vec()).map_err(|_| ImageError::Text)
}

fn process(payload: &[u8]) -> Result<Process> {
    use layout::process as at;
    let mut rest = Rest(payload);
    let fixed = rest.take(at::LEN)?;
    let auxv = rest
        .take_padded(half(fixed, at::AUXV_LEN) as usize)?
        .to_vec();
    let exe = text(rest.take_padded(half(fixed, at::EXE_LEN) as usize)?)?;
    let cwd = text(rest.take_padded(half(fixed, at::CWD_LEN) as usize)?)?;
    let pending = pending(&mut rest, half(fixed, at::PENDING))?;
    let actions = std::array::from_fn(|signal| words(fixed, at::ACTIONS + signal * 32));
    let layout = words(fixed, at::LAYOUT_AT);
    Ok(Process {
        pid: half(fixed, at::PID),
        kin: kin(&fixed[at::KIN..]),
        umask: half(fixed, at::UMASK),
        layout,
        actions,
        auxv,
        exe,
        cwd,
        pending,
    })
}

fn kin(bytes: &[u8]) -> Kin {
    use layout::kin as at;
    Kin {
        parent: half(bytes, at::PARENT),
        group: half(bytes, at::GROUP),
        session: half(bytes, at::SESSION),
        birth: word(bytes, at::BIRTH),
    }
}

fn dead(rest: &mut Rest<'_>) -> Result<Dead> {
    use layout::dead as at;
    let fixed = rest.take(at::LEN)?;
    Ok(Dead {
        pid: half(fixed, at::PID),
        status: half(fixed, at::STATUS),
        kin: kin(&fixed[at::KIN..]),
    })
}

fn names(payload: &[u8]) -> Result<Vec<NamedMemory>> {
    let names = all(payload, name)?;
    let contents: usize = names.iter().map(|named| named.contents.len()).sum();
    bound(
        "the length of memory that nobody maps",
        contents as u64,
        MAX_UNMAPPED as u64,
    )?;
    Ok(names)
}

fn name(rest: &mut Rest<'_>) -> Result<NamedMemory> {
    use layout::name as at;
    let fixed = rest.take(at::LEN)?;
    let name = text(rest.take_padded(half(fixed, at::NAME_LEN) as usize)?)?;
    // It is a name in a directory, and no way out of it.
    if matches!(name.as_str(), "" | "." | "..") || name.contains(['/', '\0']) {
        return Err(ImageError::Name(name));
    }
    let (len, contents) = (word(fixed, at::LENGTH), word(fixed, at::CONTENTS_LEN));
    bound("the length of named memory", contents, len)?;
    let contents = rest.take_long(contents)?.to_vec();
    rest.skip_padding(contents.len())?;
    Ok(NamedMemory {
        name,
        device: word(fixed, at::DEVICE),
        inode: word(fixed, at::INODE),
        mode: half(fixed, at::MODE),
        owner: half(fixed, at::OWNER),
        group: half(fixed, at::GROUP),
        len,
        contents,
    })
}

fn thread(rest: &mut Rest<'_>) -> Result<Thread> {
    use layout::thread as at;
    let fixed = rest.take(at::LEN)?;
    let xstate_len = half(fixed, at::XSTATE_LEN);
    bound(
        "the length of an extended state",
        u64::from(xstate_len),
        MAX_XSTATE as u64,
    )?;
    let xstate = rest.take_padded(xstate_len as usize)?.to_vec();
    let pending = pending(rest, half(fixed, at::PENDING))?;
    let mut name = [0; 16];
    name.copy_from_slice(&fixed[at::NAME..at::NAME + 16]);
    Ok(Thread {
        tid: half(fixed, at::TID),
        registers: words(fixed, at::REGS),
        sigmask: word(fixed, at::SIGMASK),
        robust: words(fixed, at::ROBUST),
        rseq: word(fixed, at::RSEQ),
        rseq_len: half(fixed, at::RSEQ_LEN),
        rseq_signature: half(fixed, at::RSEQ_SIGNATURE),
        dispatch: words(fixed, at::DISPATCH),
        altstack: words(fixed, at::ALTSTACK),
        clear_tid: word(fixed, at::CLEAR_TID),
        name,
        xstate,
        pending,
    })
}

fn span(rest: &mut Rest<'_>) -> Result<Span> {
    let [start, end] = words(rest.take(16)?, 0);
    if start % PAGE != 0 || end % PAGE != 0 || end <= start {
        return Err(ImageError::Order(start));
    }
    Ok(Span { start, end })
}

fn mapping(rest: &mut Rest<'_>) -> Result<Mapping> {
    use layout::mapping as at;
    let fixed = rest.take(at::LEN)?;
    let bits = half(fixed, at::BITS);
    let backing = match bits >> 4 {
        0 => Backing::Anonymous,
        1 => Backing::File,
        2 => Backing::SharedMemory,
        other => {
            return Err(ImageError::Bound {
                what: "the backing of a mapping",
                value: u64::from(other),
            });
        }
    };
    Ok(Mapping {
        start: word(fixed, at::START),
        end: word(fixed, at::END),
        protection: bits & 7,
        shared: bits & at::SHARED != 0,
        backing,
        flags: half(fixed, at::FLAGS),
        offset: word(fixed, at::OFFSET),
        device: word(fixed, at::DEVICE),
        inode: word(fixed, at::INODE),
        path: text(rest.take_padded(half(fixed, at::PATH_LEN) as usize)?)?,
    })
}

fn mappings(payload: &[u8]) -> Result<Vec<Mapping>> {
    let mappings = all(payload, mapping)?;
    let mut end = 0;
    for mapping in &mappings {
        if mapping.start < end
            || mapping.end <= mapping.start
            || (mapping.start | mapping.end) % PAGE != 0
        {
            return Err(ImageError::Order(mapping.start));
        }
        end = mapping.end;
    }
    Ok(mappings)
}

fn pages(payload: &[u8]) -> Result<(Vec<Run>, &[u8])> {
    let mut rest = Rest(payload);
    let count = word(rest.take(8)?, 0);
    let table = rest.take_long(count.checked_mul(16).ok_or(ImageError::Bound {
        what: "the number of runs",
        value: count,
    })?)?;
    let mut end = 0;
    let mut total = 0u64;
    let mut runs = Vec::with_capacity(table.len() / 16);
    for entry in table.chunks_exact(16) {
        let [start, pages] = words(entry, 0);
        let behind = pages
            .checked_mul(PAGE)
            .and_then(|len| start.checked_add(len));
        match behind {
            Some(behind) if start >= end && start % PAGE == 0 && pages > 0 => end = behind,
            _ => return Err(ImageError::Order(start)),
        }
        total = total.saturating_add(pages * PAGE);
        runs.push(Run { start, pages });
    }
    if total != rest.0.len() as u64 {
        return Err(ImageError::Truncated {
            wanted: total,
            left: rest.0.len() as u64,
        });
    }
    Ok((runs, rest.0))
}
