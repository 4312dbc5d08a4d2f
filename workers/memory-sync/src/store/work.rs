//! How much a batch may read and compute.
//!
//! What a round of a sync compares is bounded by keys and bytes when it is read (`cells.rs`). Syncs that depend on each other have rounds
//! after each other, and a tick has several of them: this bounds all rounds of a batch, or of a tick, together. The tables of texts can
//! be large although the keys are small: `key_cells` of the rules bounds those of a key, and this those of all keys.

use super::cells;

/// How many cells the tables of a batch have in all, shared by its syncs. One key of each is planned in any
/// case.
const CELLS: usize = 32_000_000;
/// How many bytes the rounds of a batch of requests read in all, and those of a tick: some seconds of work. One key of each round is
/// read in any case.
const BYTES: usize = 4 * cells::BYTES;
const BYTES_OF_TICK: usize = 2 * cells::BYTES;
/// How many keys the rounds of a tick compare in all. Each may be a dispute, which is an event, and a tick may cause 10,000 events. A
/// batch of requests that would cause more is split.
const KEYS_OF_TICK: usize = 4_000;

/// What is left to read and to compute in a batch or a tick.
#[derive(Debug)]
pub(crate) struct Work {
    cells: usize,
    share: usize,
    bytes: usize,
    keys: usize,
}

/// What a round may read of one sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Portion {
    pub(crate) keys: i32,
    pub(crate) bytes: i64,
}

impl Work {
    pub(crate) fn of_batch() -> Self {
        Self { cells: CELLS, share: CELLS, bytes: BYTES, keys: usize::MAX }
    }

    pub(crate) fn of_tick() -> Self {
        Self { bytes: BYTES_OF_TICK, keys: KEYS_OF_TICK, ..Self::of_batch() }
    }

    /// Gives each of so many syncs the same share of what is left: nobody's texts keep another one's from being merged.
    pub(crate) fn divide(&mut self, syncs: usize) {
        self.share = self.cells / syncs.max(1);
    }

    /// How many cells one sync may fill.
    pub(crate) fn share(&self) -> usize {
        self.share
    }

    /// Takes off what a sync has filled.
    pub(crate) fn take(&mut self, cells: usize) {
        self.cells = self.cells.saturating_sub(cells);
    }

    /// What a round may read of each of so many syncs that are read together: one key in any case.
    pub(crate) fn portion(&self, syncs: usize) -> Portion {
        let syncs = syncs.max(1);
        let keys = i32::try_from(self.keys / syncs).unwrap_or(i32::MAX).clamp(1, cells::KEYS);
        let bytes = i64::try_from(self.bytes.min(cells::BYTES) / syncs).unwrap_or(i64::MAX).max(1);
        Portion { keys, bytes }
    }

    /// Takes off what a round of a sync has read.
    pub(crate) fn take_read(&mut self, keys: usize, bytes: usize) {
        self.keys = self.keys.saturating_sub(keys);
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    /// Whether nothing of what a batch may read has been read yet.
    pub(crate) fn is_whole(&self) -> bool {
        self.bytes == BYTES
    }

    /// Whether nothing is left to read. What syncs have left then is for the next tick or batch.
    pub(crate) fn is_used_up(&self) -> bool {
        self.keys == 0 || self.bytes == 0
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

    #[test]
    fn the_rounds_of_a_tick_share_what_it_may_read() {
        let mut work = Work::of_tick();
        let bytes = i64::try_from(cells::BYTES).unwrap_or(i64::MAX);
        assert_eq!(work.portion(1), Portion { keys: cells::KEYS, bytes });
        assert_eq!(work.portion(64), Portion { keys: 62, bytes: bytes / 64 });
        work.take_read(KEYS_OF_TICK - 100, BYTES_OF_TICK - 8_000);
        assert!(!work.is_used_up());
        assert_eq!(work.portion(4), Portion { keys: 25, bytes: 2_000 });
        work.take_read(200, 0);
        assert!(work.is_used_up());
        assert_eq!(work.portion(4), Portion { keys: 1, bytes: 2_000 }, "one key in any case");
        work.take_read(0, 9_000);
        assert_eq!(work.portion(4), Portion { keys: 1, bytes: 1 });
    }

    #[test]
    fn a_request_carries_as_many_keys_as_a_round_has_however_many_are_in_its_batch() {
        let mut work = Work::of_batch();
        work.take_read(64_000, 0);
        assert_eq!(work.portion(64).keys, cells::KEYS);
        assert!(!work.is_used_up());
        work.take_read(0, BYTES);
        assert!(work.is_used_up());
    }
}
