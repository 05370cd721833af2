//! What is stored under each key, so that every byte of every reply is known.

use std::io::Write;

use crate::rng::Rng;

/// Bytes of a value of the slow readers.
pub(crate) const BIG_LEN: usize = 1 << 20;
/// Keys of the slow readers' values begin here, above all others.
pub(crate) const BIG_KEYS: u64 = 1 << 40;
/// Shortest value: key and version must fit.
pub(crate) const MIN_LEN: usize = 48;

/// The data set that all connections of a run share.
#[derive(Clone, Debug)]
pub(crate) struct DataSet {
    /// Decides every byte.
    pub(crate) seed: u64,
    /// Begins every key, so that runs against one server do not meet.
    pub(crate) prefix: String,
    /// Bytes of each value.
    pub(crate) value_len: usize,
    /// How many keys there are.
    pub(crate) keys: u64,
    /// How many connections write; key k belongs to connection k mod this.
    pub(crate) writers: u64,
    /// True if every key was written once before the run.
    pub(crate) filled: bool,
}

impl DataSet {
    /// Name of a key.
    pub(crate) fn key(&self, key: u64) -> String {
        format!("{}k:{key}", self.prefix)
    }

    /// Name of a connection's counter.
    pub(crate) fn counter(&self, connection: u64) -> String {
        format!("{}n:{connection}", self.prefix)
    }

    /// Name of one of a connection's lists.
    pub(crate) fn list(&self, connection: u64, serial: u64) -> String {
        format!("{}l:{connection}:{serial}", self.prefix)
    }

    /// Puts a version of a key's value into `out`: `key:version:` and bytes of any value behind it.
    pub(crate) fn value(&self, key: u64, version: u32, out: &mut Vec<u8>) {
        let len = if key >= BIG_KEYS {
            BIG_LEN
        } else {
            self.value_len
        };
        out.clear();
        // Writing to a vector cannot fail.
        let _ = write!(out, "{key}:{version}:");
        let mut rng = Rng::new(self.seed ^ key, u64::from(version));
        while out.len() < len {
            out.extend_from_slice(&rng.word().to_le_bytes());
        }
        out.truncate(len);
    }

    /// The version that `value` is of, if it is a value of `key`, and whole.
    pub(crate) fn version_of(&self, key: u64, value: &[u8], scratch: &mut Vec<u8>) -> Option<u32> {
        let mut parts = value.splitn(3, |&b| b == b':');
        let named: u64 = std::str::from_utf8(parts.next()?).ok()?.parse().ok()?;
        let version: u32 = std::str::from_utf8(parts.next()?).ok()?.parse().ok()?;
        self.value(key, version, scratch);
        (named == key && scratch.as_slice() == value).then_some(version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_known_by_its_bytes_and_one_flipped_bit_is_seen() {
        let set = DataSet {
            seed: 7,
            prefix: "x:".to_owned(),
            value_len: 64,
            keys: 9,
            writers: 3,
            filled: false,
        };
        let (mut value, mut scratch) = (Vec::new(), Vec::new());
        set.value(5, 3, &mut value);
        assert_eq!(value.len(), 64);
        assert_eq!(set.version_of(5, &value, &mut scratch), Some(3));
        assert_eq!(set.version_of(6, &value, &mut scratch), None);
        for at in 0..value.len() {
            let mut flipped = value.clone();
            flipped[at] ^= 1;
            assert_ne!(
                set.version_of(5, &flipped, &mut scratch),
                Some(3),
                "byte {at}"
            );
        }
        set.value(BIG_KEYS, 1, &mut value);
        assert_eq!(value.len(), BIG_LEN);
    }
}
