//! Recordings that are damaged, or not for this build.

use std::fs;
use std::path::Path;

use crate::ground::Ground;

/// Offset of the version in a frame's header, and the header's length (docs/FORMATS.md).
const VERSION_AT: usize = 4;
const HEADER_LEN: usize = 40;

#[test]
fn damage_anywhere_is_found() {
    let ground = Ground::new();
    let log = record(&ground);
    let file = log.join("log");
    let whole = fs::read(&file).unwrap();
    let line = format!("replay {}", log.display());
    let spread = (0..20).map(|n| n * whole.len() / 20);
    let cuts: Vec<usize> = spread.chain([1, HEADER_LEN, whole.len() - 1]).collect();
    for cut in cuts {
        fs::write(&file, &whole[..cut]).unwrap();
        ground.fails(&line, &[&file.display().to_string()]);
    }
    let spread = (0..20).map(|n| n * whole.len() / 20 + 3);
    for at in (0..HEADER_LEN).chain(spread).chain([whole.len() - 1]) {
        let mut flipped = whole.clone();
        flipped[at] ^= 1 << (at % 8);
        fs::write(&file, flipped).unwrap();
        ground.fails(&line, &[&file.display().to_string()]);
    }
    fs::write(&file, [&whole[..], b"more"].concat()).unwrap();
    ground.fails(&line, &[&file.display().to_string()]);
    fs::write(&file, whole).unwrap();
    let mended = ground.ended(&mut ground.understudy("primary", &line));
    assert!(
        mended.status.success() && mended.stdout == b"done\n",
        "{mended:?}"
    );
}

#[test]
fn another_version_is_named() {
    let ground = Ground::new();
    let log = record(&ground);
    let file = log.join("log");
    let mut bytes = fs::read(&file).unwrap();
    bytes[VERSION_AT] += 1;
    fs::write(&file, bytes).unwrap();
    let line = format!("replay {}", log.display());
    ground.fails(
        &line,
        &["format version 2", "reads version 1", "same build"],
    );
    fs::remove_file(&file).unwrap();
    ground.fails(&line, &[&file.display().to_string(), "No such file"]);
}

/// A short recording.
fn record(ground: &Ground) -> Box<Path> {
    let log = ground.path("log");
    let line = format!("record --out {} -- sh -c", log.display());
    let mut command = ground.understudy("primary", &line);
    let recorded = ground.ended(command.arg("read word </proc/version; echo done"));
    assert!(recorded.status.success(), "{}", recorded.stderr);
    log.into()
}
