//! Which pages of an image store changed.

/// Fewer changes than this are kept, however few pages the store holds.
const FEW: usize = 4096;

/// Pages that came, changed or went between two looks at a store
/// ([`ImageStore::take_changes`](crate::ImageStore::take_changes)).
#[derive(Debug, Default)]
pub struct Changes {
    /// The image that they follow; 0 stands for nothing, from which all differs.
    base: u64,
    pages: Vec<u64>,
}

impl Changes {
    /// None yet since the image with this number.
    pub(crate) fn since(base: u64) -> Self {
        let pages = Vec::new();
        Self { base, pages }
    }

    /// The addresses of pages that differ, in any order and perhaps more than once, for whoever holds the
    /// image with this number; `None` when everything may.
    pub(crate) fn pages_since(self, sequence: u64) -> Option<Vec<u64>> {
        (self.base != 0 && self.base == sequence).then_some(self.pages)
    }

    pub(crate) fn note(&mut self, address: u64) {
        if self.base != 0 {
            self.pages.push(address);
        }
    }

    /// Forgets them where they are many for a store of so many pages: nobody takes them, it seems.
    pub(crate) fn bound(&mut self, held: usize) {
        if self.pages.len() > 2 * held.max(FEW) {
            *self = Self::default();
        }
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.pages.len()
    }
}
