//! The mirrored directories of a container: whole, as they are at a checkpoint's cut, then what its calls change.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Instant;

use eventlog::change::Change;
use eventlog::fold::Merge;
use mirror::{WalkError, walk};
use stream::StreamError;
use stream::checkpoint::{Batch, CheckpointSender};

use crate::Error;

/// What the backup has to know of the container's files.
#[derive(Debug)]
pub(super) struct Files {
    directories: Vec<Vec<u8>>,
    /// What happened since the last committed checkpoint, or behind the whole copy.
    changes: Vec<Change>,
    copy: Copy,
}

/// How the backup comes by a whole copy.
#[derive(Debug)]
enum Copy {
    /// It has one.
    There,
    /// It needs one, of the next cut.
    Due,
    /// That of this cut is sent, or why not.
    Sent(Result<(), Error>),
}

impl Files {
    /// Of these directories: absolute paths without links.
    pub(super) fn new(directories: Vec<Vec<u8>>) -> Self {
        Self {
            directories,
            changes: Vec::new(),
            copy: Copy::Due,
        }
    }

    /// Tells the fold of a container that is about to start what it has to know and to note.
    pub(super) fn begin(&self, merge: &mut Merge) {
        // Where they cannot be read, paths that begin in the working directory lie in no mirrored one.
        let directory = std::env::current_dir().unwrap_or_default();
        let umask = sys::process::umask().unwrap_or(0o022);
        merge.start_in(directory.as_os_str().as_bytes(), umask);
        merge.note_changes_below(&self.directories);
    }

    /// The backup needs a whole copy.
    pub(super) fn make_whole(&mut self) {
        self.copy = Copy::Due;
        self.changes.clear();
    }

    /// Sends a whole copy if one is due; every process of the container stands still.
    pub(super) fn copy_at_cut(&mut self, to: &mut CheckpointSender) {
        if matches!(self.copy, Copy::There) || self.directories.is_empty() {
            return;
        }
        self.copy = Copy::Sent(self.copy_all(to));
    }

    fn copy_all(&self, to: &mut CheckpointSender) -> Result<(), Error> {
        let began = Instant::now();
        let mut batch = Batch::default();
        for directory in &self.directories {
            let here = Path::new(OsStr::from_bytes(directory));
            let copied = walk(here, directory, |change| batch.add(change, to));
            let copied = copied.map_err(|error| match error {
                WalkError::Told(error) => Error::Stream(error),
                error @ WalkError::Read { .. } => Error::Files(error.to_string()),
            })?;
            tracing::info!(?here, ?copied, took = ?began.elapsed(), "files copied");
        }
        Ok(batch.flush(to)?)
    }

    /// The pause is over: why a copy that was due is not made.
    pub(super) fn copied(&mut self) -> Result<(), Error> {
        let Copy::Sent(result) = &mut self.copy else {
            return Ok(());
        };
        let result = std::mem::replace(result, Ok(()));
        if result.is_err() {
            self.copy = Copy::Due;
        }
        result
    }

    /// What happened up to the cut. A copy that was made at it has that.
    pub(super) fn changed(&mut self, changes: Vec<Change>) {
        if matches!(self.copy, Copy::There) {
            self.changes.extend(changes);
        }
    }

    /// Sends what happened since the last committed checkpoint, with the one that is under way.
    pub(super) fn send(&self, to: &mut CheckpointSender) -> Result<(), StreamError> {
        let mut batch = Batch::default();
        for change in &self.changes {
            batch.add(change.clone(), to)?;
        }
        batch.flush(to)
    }

    /// The checkpoint that was sent is committed.
    pub(super) fn committed(&mut self) {
        self.changes.clear();
        if matches!(self.copy, Copy::Sent(_)) {
            self.copy = Copy::There;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change() -> Change {
        let path = b"/srv/data".to_vec();
        Change::Emptied { path }
    }

    fn files(copy: Copy) -> Files {
        let mut files = Files::new(vec![b"/srv/data".to_vec()]);
        files.copy = copy;
        files
    }

    #[test]
    fn a_copy_has_what_happened_before_it_and_changes_follow() {
        let mut files = files(Copy::Sent(Ok(())));
        files.copied().unwrap();
        files.changed(vec![change()]);
        assert!(files.changes.is_empty());
        files.committed();
        files.changed(vec![change()]);
        // Of a checkpoint that was not committed, they are sent with the next one.
        files.changed(vec![change()]);
        assert_eq!(files.changes.len(), 2);
        files.committed();
        assert!(files.changes.is_empty() && matches!(files.copy, Copy::There));
    }

    #[test]
    fn a_copy_that_failed_or_is_of_no_use_is_made_again() {
        let mut files = files(Copy::Sent(Err(Error::Files("gone".into()))));
        assert!(matches!(files.copied(), Err(Error::Files(_))));
        assert!(matches!(files.copy, Copy::Due));
        files.committed();
        files.changed(vec![change()]);
        assert!(matches!(files.copy, Copy::Due) && files.changes.is_empty());
        files.copy = Copy::There;
        files.changed(vec![change()]);
        files.make_whole();
        assert!(matches!(files.copy, Copy::Due) && files.changes.is_empty());
    }
}
