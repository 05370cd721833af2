//! The committed image: opaque here, so what it means to apply a change is behind a trait.

use stream::checkpoint::Begin;

/// What committed checkpoints are applied to.
pub trait Image: Send + 'static {
    /// Applies a checkpoint: a full one replaces what is there, another changes the one it names, which is
    /// the committed one. All or nothing.
    ///
    /// # Errors
    /// One sentence; the image is then as it was.
    fn apply(&mut self, begin: &Begin, image: Vec<u8>) -> Result<(), String>;
}

/// Images as they came: a full one and the changes since.
#[derive(Debug)]
pub struct Chain {
    links: Vec<(u64, Vec<u8>)>,
    max: u64,
}

impl Chain {
    /// An empty chain that holds up to `max` bytes.
    #[must_use]
    pub fn new(max: u64) -> Self {
        Self {
            links: Vec::new(),
            max,
        }
    }

    /// The full image and its changes, in order, each with the number of its checkpoint.
    #[must_use]
    pub fn links(&self) -> &[(u64, Vec<u8>)] {
        &self.links
    }

    /// Bytes held.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.links.iter().map(|(_, b)| b.len() as u64).sum()
    }
}

impl Image for Chain {
    fn apply(&mut self, begin: &Begin, image: Vec<u8>) -> Result<(), String> {
        let before = if begin.base.is_some() {
            self.bytes()
        } else {
            0
        };
        let len = before + image.len() as u64;
        if len > self.max {
            return Err(format!(
                "{len} bytes of images, more than the {} that this backup keeps",
                self.max
            ));
        }
        if begin.base.is_none() {
            self.links.clear();
        }
        self.links.push((begin.id, image));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stream::checkpoint::Cut;

    #[test]
    fn a_full_image_starts_anew_and_the_bound_holds() {
        let mut c = Chain::new(10);
        let begin = |id, base| Begin {
            id,
            base,
            cut: Cut::default(),
            image_len: 4,
        };
        c.apply(&begin(1, None), vec![1; 4]).unwrap();
        c.apply(&begin(2, Some(1)), vec![2; 4]).unwrap();
        assert!(c.apply(&begin(3, Some(2)), vec![3; 4]).is_err());
        assert_eq!(c.bytes(), 8);
        c.apply(&begin(4, None), vec![4; 9]).unwrap();
        assert_eq!(c.links(), [(4, vec![4; 9])]);
    }
}
