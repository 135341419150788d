//! How many rows one deleting transaction takes: as many as go in about a second. Pure.

use std::time::Duration;

/// The first transaction is small: nobody knows the server yet.
const ROWS_FIRST: usize = 256;
const ROWS_MIN: usize = 1;
/// No batch has more.
const ROWS_MAX: usize = 4096;

/// Locks should not be held for longer.
const AIM: Duration = Duration::from_secs(1);

/// Adapts to how long transactions take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkSize(usize);

impl Default for ChunkSize {
    fn default() -> Self {
        Self(ROWS_FIRST)
    }
}

impl ChunkSize {
    /// How many rows the next transaction takes at most.
    pub fn rows(self) -> usize {
        self.0
    }

    /// A transaction of `rows` rows took so long.
    pub fn took(&mut self, rows: usize, time: Duration) {
        if rows == 0 {
            return;
        }
        let fit = rows as f64 * AIM.as_secs_f64() / time.as_secs_f64().max(0.001);
        // At most twice as many: the next rows may be larger.
        let most = self.0 * 2;
        self.0 = (fit as usize).clamp(ROWS_MIN, ROWS_MAX).min(most.max(ROWS_MIN));
    }

    /// Postgres cancelled one: its statement or its wait for a lock took too long.
    pub fn timed_out(&mut self) {
        self.0 = (self.0 / 2).max(ROWS_MIN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_towards_a_second_and_halves_on_a_time_out() {
        let mut size = ChunkSize::default();
        assert_eq!(size.rows(), 256);
        size.took(256, Duration::from_millis(10));
        assert_eq!(size.rows(), 512, "never more than twice as many");
        size.took(512, Duration::from_secs(4));
        assert_eq!(size.rows(), 128);
        size.timed_out();
        assert_eq!(size.rows(), 64);
        for _ in 0..10 {
            size.timed_out();
        }
        assert_eq!(size.rows(), 1, "a row at a time is the least");
        for _ in 0..20 {
            size.took(size.rows(), Duration::ZERO);
        }
        assert_eq!(size.rows(), 4096);
    }
}
