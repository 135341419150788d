//! The simulator's clock, which can be set apart from this machine's.
//!
//! What is compared with dates (signatures, receive times, log times) follows the clock; what only
//! waits (delays, quotas) follows the machine's steady time, so that moving the clock moves none
//! of it.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// When a request is processed, on both clocks.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// Unix time in ms on the simulator's clock.
    pub unix_ms: i64,
    /// The machine's steady time.
    pub steady: Instant,
}

impl Moment {
    /// Now, on a clock that is `clock_offset_s` ahead of this machine's.
    pub fn now(clock_offset_s: i64) -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let unix_ms = i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX);
        let unix_ms = unix_ms.saturating_add(clock_offset_s.saturating_mul(1000));
        Self { unix_ms, steady: Instant::now() }
    }

    /// Unix time in whole seconds.
    pub fn unix_s(self) -> i64 {
        self.unix_ms.div_euclid(1000)
    }

    /// Now, as if it were `unix_s`, for tests.
    #[cfg(test)]
    pub fn at(unix_s: i64) -> Self {
        Self { unix_ms: unix_s * 1000, steady: Instant::now() }
    }
}
