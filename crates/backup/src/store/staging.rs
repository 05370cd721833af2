//! A checkpoint on its way: parts in, a whole and checked one out. A pure state machine.

use std::collections::HashSet;

use eventlog::change::Change;
use stream::checkpoint::{Begin, Finish};

use super::StoreError;

/// Takes one checkpoint after another; whatever goes wrong with one drops that one alone.
#[derive(Debug)]
pub struct Staging {
    max: u64,
    last: u64,
    building: Option<Building>,
}

#[derive(Debug)]
struct Building {
    begin: Begin,
    image: Vec<u8>,
    crc: u32,
    files: Vec<Change>,
    files_len: u64,
}

/// A checkpoint that came whole and undamaged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Whole {
    /// What it said of itself.
    pub begin: Begin,
    /// Its image.
    pub image: Vec<u8>,
    /// What happened to mirrored files between the checkpoint before and this one.
    pub files: Vec<Change>,
}

impl Staging {
    /// Takes images of up to `max` bytes.
    #[must_use]
    pub fn new(max: u64) -> Self {
        Self {
            max,
            last: 0,
            building: None,
        }
    }

    /// A checkpoint begins; one that was under way is dropped.
    ///
    /// # Errors
    /// [`StoreError::Number`], [`StoreError::ImageTooLong`] or [`StoreError::Cut`].
    pub fn begin(&mut self, begin: Begin) -> Result<(), StoreError> {
        self.building = None;
        let id = begin.id;
        if id <= self.last {
            return Err(StoreError::Number {
                id,
                last: self.last,
            });
        }
        self.last = id;
        if begin.image_len > self.max {
            return Err(StoreError::ImageTooLong {
                len: begin.image_len,
                max: self.max,
            });
        }
        let mut seen = HashSet::with_capacity(begin.cut.streams.len());
        for (stream, _) in &begin.cut.streams {
            if *stream >= begin.cut.next_stream || !seen.insert(*stream) {
                return Err(StoreError::Cut {
                    id,
                    stream: *stream,
                });
            }
        }
        self.building = Some(Building {
            begin,
            image: Vec::new(),
            crc: 0,
            files: Vec::new(),
            files_len: 0,
        });
        Ok(())
    }

    /// What happened to mirrored files before its cut, `len` bytes of it.
    ///
    /// # Errors
    /// [`StoreError::NotBegun`], or [`StoreError::ImageTooLong`] if it is more than an image may have; the checkpoint is
    /// dropped.
    pub fn files(&mut self, changes: Vec<Change>, len: usize) -> Result<(), StoreError> {
        let mut building = self.building.take().ok_or(StoreError::NotBegun)?;
        building.files_len += len as u64;
        if building.files_len > self.max {
            return Err(StoreError::ImageTooLong {
                len: building.files_len,
                max: self.max,
            });
        }
        building.files.extend(changes);
        self.building = Some(building);
        Ok(())
    }

    /// Bytes of the image. Memory follows what came, not what was announced.
    ///
    /// # Errors
    /// [`StoreError::NotBegun`], [`StoreError::Chunk`], or [`StoreError::ImageTooLong`] beyond the announced
    /// length; the checkpoint is dropped.
    pub fn chunk(&mut self, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let mut building = self.building.take().ok_or(StoreError::NotBegun)?;
        let expected = building.image.len() as u64;
        if offset != expected {
            return Err(StoreError::Chunk {
                found: offset,
                expected,
            });
        }
        let len = expected + bytes.len() as u64;
        if len > building.begin.image_len {
            return Err(StoreError::ImageTooLong {
                len,
                max: building.begin.image_len,
            });
        }
        building.crc = crc32c::crc32c_append(building.crc, bytes);
        building.image.extend_from_slice(bytes);
        self.building = Some(building);
        Ok(())
    }

    /// The end: the checkpoint, if it is whole and undamaged.
    ///
    /// # Errors
    /// [`StoreError::NotBegun`], [`StoreError::Number`], [`StoreError::Short`] or [`StoreError::Checksum`].
    pub fn finish(&mut self, finish: &Finish) -> Result<Whole, StoreError> {
        let Building {
            begin,
            image,
            crc,
            files,
            ..
        } = self.building.take().ok_or(StoreError::NotBegun)?;
        let id = begin.id;
        if finish.id != id {
            return Err(StoreError::Number {
                id: finish.id,
                last: id,
            });
        }
        if image.len() as u64 != begin.image_len {
            return Err(StoreError::Short {
                id,
                found: image.len() as u64,
                expected: begin.image_len,
            });
        }
        if crc != finish.crc {
            return Err(StoreError::Checksum {
                id,
                found: finish.crc,
                computed: crc,
            });
        }
        Ok(Whole {
            begin,
            image,
            files,
        })
    }

    /// Drops the checkpoint that is under way.
    pub fn abandon(&mut self) {
        self.building = None;
    }

    /// The checkpoint that is under way.
    #[must_use]
    pub fn under_way(&self) -> Option<&Begin> {
        self.building.as_ref().map(|b| &b.begin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use stream::checkpoint::Cut;

    fn begin(id: u64, image_len: u64) -> Begin {
        Begin {
            id,
            base: None,
            cut: Cut {
                streams: vec![(1, 5)],
                next_stream: 2,
            },
            image_len,
        }
    }

    #[test]
    fn whole_or_not_at_all() {
        let crc = crc32c::crc32c(b"hello world");
        let mut s = Staging::new(100);
        s.begin(begin(1, 11)).unwrap();
        s.chunk(0, b"hello ").unwrap();
        s.chunk(6, b"world").unwrap();
        assert_eq!(
            s.finish(&Finish { id: 1, crc }).unwrap().image,
            b"hello world"
        );
        assert!(matches!(
            s.finish(&Finish { id: 1, crc }),
            Err(StoreError::NotBegun)
        ));

        s.begin(begin(2, 11)).unwrap();
        s.chunk(0, b"hello ").unwrap();
        assert!(matches!(
            s.finish(&Finish { id: 2, crc }),
            Err(StoreError::Short {
                found: 6,
                expected: 11,
                ..
            })
        ));
        s.begin(begin(3, 11)).unwrap();
        s.chunk(0, b"hello_world").unwrap();
        assert!(matches!(
            s.finish(&Finish { id: 3, crc }),
            Err(StoreError::Checksum { .. })
        ));
        s.begin(begin(4, 11)).unwrap();
        assert!(matches!(
            s.chunk(1, b"x"),
            Err(StoreError::Chunk {
                found: 1,
                expected: 0
            })
        ));
        assert!(matches!(s.chunk(0, b"x"), Err(StoreError::NotBegun)));
        s.begin(begin(5, 2)).unwrap();
        assert!(matches!(
            s.chunk(0, b"xyz"),
            Err(StoreError::ImageTooLong { len: 3, max: 2 })
        ));
    }

    #[test]
    fn a_beginning_is_checked() {
        let mut s = Staging::new(100);
        assert!(matches!(
            s.begin(begin(1, 101)),
            Err(StoreError::ImageTooLong { .. })
        ));
        assert!(matches!(
            s.begin(begin(1, 1)),
            Err(StoreError::Number { id: 1, last: 1 })
        ));
        for streams in [vec![(2, 0)], vec![(1, 0), (1, 0)]] {
            let b = Begin {
                cut: Cut {
                    streams,
                    next_stream: 2,
                },
                ..begin(s.last + 1, 1)
            };
            assert!(matches!(s.begin(b), Err(StoreError::Cut { .. })));
        }
    }

    proptest! {
        /// Any parts in any order: an image comes out only if it is what was announced.
        #[test]
        fn any_parts_are_answered(parts in proptest::collection::vec(
            (0u8..3, 0u64..6, 0u64..20, proptest::collection::vec(any::<u8>(), 0..20)), 0..40)) {
            let mut s = Staging::new(15);
            for (kind, id, n, bytes) in parts {
                match kind {
                    0 => { let _ = s.begin(begin(id, n)); }
                    1 => { let _ = s.chunk(n, &bytes); }
                    _ => {
                        let crc = s.building.as_ref().map_or(0, |b| b.crc);
                        if let Ok(w) = s.finish(&Finish { id, crc }) {
                            prop_assert_eq!(w.image.len() as u64, w.begin.image_len);
                            prop_assert_eq!(crc32c::crc32c(&w.image), crc);
                        }
                    }
                }
                if let Some(b) = &s.building {
                    prop_assert!(b.image.len() <= 15);
                }
            }
        }
    }
}
