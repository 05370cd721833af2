//! What a replay of a damaged log must end with.

use understudy_tests::Ended;

use crate::recording::{Recording, Streams};

/// What a replay made of the damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It stopped, and named this stream and this position.
    Detected(u32, u64),
    /// It printed what was recorded.
    Same,
}

/// Replays damaged streams. Nothing but what was recorded may be printed, and what is not the whole of it ends in one
/// sentence that names a stream of the log and the position of a record in it.
pub(crate) fn replayed(recording: &Recording, damaged: &Streams, damage: &str) -> Verdict {
    damaged.write(&recording.log());
    let ended = recording.replay();
    let (printed, whole) = (&ended.stdout, &recording.stdout);
    assert!(
        whole.starts_with(printed),
        "{damage}: replay printed something else: {}\n{}",
        String::from_utf8_lossy(printed),
        ended.stderr
    );
    if ended.status.success() {
        assert!(
            printed == whole,
            "{damage}: replay succeeded, and printed {} of {} bytes",
            printed.len(),
            whole.len()
        );
        return Verdict::Same;
    }
    let (stream, position) = place_named(&ended, damaged, damage);
    Verdict::Detected(stream, position)
}

/// As [`replayed`], for what replay must not go along with: the stream and the position that it named.
pub(crate) fn refused(recording: &Recording, damaged: &Streams, damage: &str) -> (u32, u64) {
    match replayed(recording, damaged, damage) {
        Verdict::Detected(stream, position) => (stream, position),
        Verdict::Same => panic!("{damage}: replay did not notice"),
    }
}

fn place_named(ended: &Ended, damaged: &Streams, damage: &str) -> (u32, u64) {
    let said = ended.stderr.trim_end();
    assert_eq!(ended.status.code(), Some(1), "{damage}: {ended:?}");
    assert!(
        said.starts_with("understudy: ") && said.lines().count() == 1,
        "{damage}: {said}"
    );
    let (Some(stream), Some(position)) = (number(said, "stream "), number(said, "position "))
    else {
        panic!("{damage}: no stream or no position in: {said}");
    };
    let stream = u32::try_from(stream).unwrap();
    let boundaries = damaged.boundaries(stream);
    assert!(
        boundaries.contains(&position),
        "{damage}: no record begins or ends at position {position} of stream {stream}: {said}"
    );
    (stream, position)
}

/// The number behind a word.
pub(crate) fn number(said: &str, word: &str) -> Option<u64> {
    let (_, rest) = said.split_once(word)?;
    let end = rest
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(rest.len());
    rest[..end].parse().ok()
}
