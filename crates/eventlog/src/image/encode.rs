//! Values to bytes.

use super::{
    Backing, Dead, HEADER_CRC_AT, HEADER_LEN, Image, Kin, LENGTH_AT, MAGIC, Mapping, NamedMemory,
    Process, SECTION_LEN, SECTIONS_AT, Thread, VERSION, layout, section,
};

/// The bytes of an image.
#[must_use]
pub fn encode(image: &Image<'_>) -> Vec<u8> {
    let pages: usize = image.pieces.iter().map(|piece| piece.len()).sum();
    let mut out =
        Vec::with_capacity(pages + image.runs.len() * 16 + image.threads.len() * 4096 + (64 << 10));
    out.extend_from_slice(&MAGIC.to_le_bytes());
    out.extend_from_slice(&u32::from(VERSION).to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&image.sequence.to_le_bytes());
    out.extend_from_slice(&image.base.to_le_bytes());
    out.extend_from_slice(&[0; 16]);
    let mut sections = 0u32;
    let mut add = |out: &mut Vec<u8>, kind: u32, fill: &dyn Fn(&mut Vec<u8>)| {
        sections += 1;
        add_section(out, kind, fill);
    };
    add(&mut out, section::PROCESS, &|out| {
        process(out, &image.process)
    });
    add(&mut out, section::THREADS, &|out| {
        image.threads.iter().for_each(|one| thread(out, one))
    });
    if let Some(mappings) = &image.mappings {
        add(&mut out, section::MAPPINGS, &|out| {
            mappings.iter().for_each(|one| mapping(out, one))
        });
    }
    if !image.dropped.is_empty() {
        add(&mut out, section::DROPPED, &|out| {
            image
                .dropped
                .iter()
                .for_each(|span| words(out, &[span.start, span.end]));
        });
    }
    if !image.runs.is_empty() {
        add(&mut out, section::PAGES, &|out| {
            words(out, &[image.runs.len() as u64]);
            image
                .runs
                .iter()
                .for_each(|run| words(out, &[run.start, run.pages]));
            image
                .pieces
                .iter()
                .for_each(|piece| out.extend_from_slice(piece));
        });
    }
    if !image.vdso.is_empty() {
        add(&mut out, section::VDSO, &|out| {
            out.extend_from_slice(&image.vdso)
        });
    }
    if !image.dead.is_empty() {
        add(&mut out, section::DEAD, &|out| {
            image.dead.iter().for_each(|one| dead(out, one))
        });
    }
    if !image.names.is_empty() {
        add(&mut out, section::NAMES, &|out| {
            image.names.iter().for_each(|one| name(out, one))
        });
    }
    for (kind, bytes) in &image.opaque {
        add(&mut out, *kind, &|out| out.extend_from_slice(bytes));
    }
    let length = out.len() as u64;
    out[SECTIONS_AT..SECTIONS_AT + 4].copy_from_slice(&sections.to_le_bytes());
    out[LENGTH_AT..LENGTH_AT + 8].copy_from_slice(&length.to_le_bytes());
    let crc = crc32c::crc32c(&out[..HEADER_CRC_AT]);
    out[HEADER_CRC_AT..HEADER_LEN].copy_from_slice(&crc.to_le_bytes());
    out
}

fn add_section(out: &mut Vec<u8>, kind: u32, fill: &dyn Fn(&mut Vec<u8>)) {
    let at = out.len();
    out.extend_from_slice(&kind.to_le_bytes());
    out.extend_from_slice(&[0; 12]);
    fill(out);
    let len = (out.len() - at - SECTION_LEN) as u64;
    out[at + 8..at + SECTION_LEN].copy_from_slice(&len.to_le_bytes());
    let crc = section_crc(kind, len, &out[at + SECTION_LEN..]);
    out[at + 4..at + 8].copy_from_slice(&crc.to_le_bytes());
    pad(out);
}

/// Checksum of a section: its kind, its length, its payload.
pub(super) fn section_crc(kind: u32, len: u64, payload: &[u8]) -> u32 {
    let crc = crc32c::crc32c_append(crc32c::crc32c(&kind.to_le_bytes()), &len.to_le_bytes());
    crc32c::crc32c_append(crc, payload)
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(8), 0);
}

fn words(out: &mut Vec<u8>, words: &[u64]) {
    words
        .iter()
        .for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
}

fn halves(out: &mut Vec<u8>, halves: &[u32]) {
    halves
        .iter()
        .for_each(|half| out.extend_from_slice(&half.to_le_bytes()));
}

fn process(out: &mut Vec<u8>, process: &Process) {
    let at = out.len();
    halves(out, &[process.pid, process.umask]);
    kin(out, &process.kin);
    words(out, &process.layout);
    process.actions.iter().for_each(|action| words(out, action));
    let lengths = [
        process.auxv.len(),
        process.exe.len(),
        process.cwd.len(),
        process.pending.len(),
    ];
    halves(out, &lengths.map(|length| length as u32));
    debug_assert_eq!(out.len() - at, layout::process::LEN);
    for bytes in [
        &process.auxv[..],
        process.exe.as_bytes(),
        process.cwd.as_bytes(),
    ] {
        out.extend_from_slice(bytes);
        pad(out);
    }
    process
        .pending
        .iter()
        .for_each(|info| out.extend_from_slice(info));
}

fn kin(out: &mut Vec<u8>, kin: &Kin) {
    halves(out, &[kin.parent, kin.group, kin.session, 0]);
    words(out, &[kin.birth]);
}

fn dead(out: &mut Vec<u8>, dead: &Dead) {
    halves(out, &[dead.pid, dead.status]);
    kin(out, &dead.kin);
}

fn name(out: &mut Vec<u8>, named: &NamedMemory) {
    let at = out.len();
    let contents = named.contents.len() as u64;
    words(out, &[named.device, named.inode, named.len, contents]);
    let name = named.name.len() as u32;
    halves(out, &[named.mode, named.owner, named.group, name]);
    debug_assert_eq!(out.len() - at, layout::name::LEN);
    for bytes in [named.name.as_bytes(), &named.contents] {
        out.extend_from_slice(bytes);
        pad(out);
    }
}

fn thread(out: &mut Vec<u8>, thread: &Thread) {
    let at = out.len();
    let counts = [thread.xstate.len() as u32, thread.pending.len() as u32];
    halves(
        out,
        &[
            thread.tid,
            counts[0],
            counts[1],
            thread.rseq_len,
            thread.rseq_signature,
            0,
        ],
    );
    words(out, &thread.registers);
    words(
        out,
        &[
            thread.sigmask,
            thread.robust[0],
            thread.robust[1],
            thread.rseq,
        ],
    );
    words(out, &thread.dispatch);
    words(out, &thread.altstack);
    words(out, &[thread.clear_tid]);
    out.extend_from_slice(&thread.name);
    debug_assert_eq!(out.len() - at, layout::thread::LEN);
    out.extend_from_slice(&thread.xstate);
    pad(out);
    thread
        .pending
        .iter()
        .for_each(|info| out.extend_from_slice(info));
}

fn mapping(out: &mut Vec<u8>, mapping: &Mapping) {
    let at = out.len();
    words(
        out,
        &[
            mapping.start,
            mapping.end,
            mapping.offset,
            mapping.device,
            mapping.inode,
        ],
    );
    let backing = match mapping.backing {
        Backing::Anonymous => 0,
        Backing::File => 1,
        Backing::SharedMemory => 2,
    };
    let shared = if mapping.shared {
        layout::mapping::SHARED
    } else {
        0
    };
    halves(
        out,
        &[
            mapping.protection & 7 | shared | backing << 4,
            mapping.flags,
            mapping.path.len() as u32,
            0,
        ],
    );
    debug_assert_eq!(out.len() - at, layout::mapping::LEN);
    out.extend_from_slice(mapping.path.as_bytes());
    pad(out);
}
