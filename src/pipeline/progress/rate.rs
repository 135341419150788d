//! How fast it goes now: rates over the last while, not since the start. Pure: takes its `now`.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Rates are those of that long.
const WINDOW: Duration = Duration::from_secs(30);

/// Measures rows and bytes from what was done so far.
#[derive(Debug)]
pub struct Meter {
    /// When, rows, bytes; the first is a window old, or the start.
    samples: VecDeque<(Instant, u64, u64)>,
}

/// A speed.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Rate {
    pub rows_per_s: f64,
    pub bytes_per_s: f64,
}

impl Meter {
    /// Starts at zero.
    pub fn new(now: Instant) -> Self {
        Self { samples: VecDeque::from([(now, 0, 0)]) }
    }

    /// Notes what was done until `now`; gives the rate of the last while.
    pub fn note(&mut self, now: Instant, rows: u64, bytes: u64) -> Rate {
        self.samples.push_back((now, rows, bytes));
        while self.samples.get(1).is_some_and(|(at, ..)| now.duration_since(*at) >= WINDOW) {
            self.samples.pop_front();
        }
        let (since, rows_then, bytes_then) = self.samples[0];
        let seconds = now.duration_since(since).as_secs_f64();
        if seconds == 0.0 {
            return Rate::default();
        }
        Rate {
            rows_per_s: rows.saturating_sub(rows_then) as f64 / seconds,
            bytes_per_s: bytes.saturating_sub(bytes_then) as f64 / seconds,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_the_last_while() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let rate = |rows_per_s, bytes_per_s| Rate { rows_per_s, bytes_per_s };
        let mut meter = Meter::new(start);
        assert_eq!(meter.note(start, 0, 0), rate(0.0, 0.0));
        assert_eq!(meter.note(at(10), 100, 1000), rate(10.0, 100.0));
        assert_eq!(meter.note(at(30), 900, 3000), rate(30.0, 100.0));
        assert_eq!(meter.note(at(40), 1300, 3000), rate(40.0, 2000.0 / 30.0));
        assert_eq!(meter.note(at(100), 1300, 3000), rate(0.0, 0.0));
    }
}
