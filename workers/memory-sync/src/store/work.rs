//! How much a batch may compute.
//!
//! What a sync compares is bounded by keys and bytes when it is read (`cells.rs`). The tables of texts are what can be large although
//! the keys are small: `key_cells` of the rules bounds those of a key, and this those of all keys of a batch, or of a tick.

/// How many cells the tables of a batch have in all, shared by its syncs. One key of each is planned in any
/// case.
const CELLS: usize = 32_000_000;

/// What is left to compute in a batch or a tick.
#[derive(Debug)]
pub(crate) struct Work {
    left: usize,
    share: usize,
}

impl Work {
    pub(crate) fn of_batch() -> Self {
        Self { left: CELLS, share: CELLS }
    }

    /// Gives each of so many syncs the same share of what is left: nobody's texts keep another one's from being merged.
    pub(crate) fn divide(&mut self, syncs: usize) {
        self.share = self.left / syncs.max(1);
    }

    /// How many cells one sync may fill.
    pub(crate) fn share(&self) -> usize {
        self.share
    }

    /// Takes off what a sync has filled.
    pub(crate) fn take(&mut self, cells: usize) {
        self.left = self.left.saturating_sub(cells);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sync_has_the_same_share_of_what_is_left() {
        let mut work = Work::of_batch();
        work.divide(64);
        assert_eq!(work.share(), CELLS / 64);
        work.take(CELLS / 2);
        work.divide(2);
        assert_eq!(work.share(), CELLS / 4);
        work.take(CELLS);
        work.divide(0);
        assert_eq!(work.share(), 0);
    }
}
