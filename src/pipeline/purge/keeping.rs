//! Whether SLS will keep a log long enough for its row to be deleted. Pure.
//!
//! The vendor's documents contradict each other on what a logstore's TTL counts from: the time of
//! the log, or the time of its receipt. So both must be long enough.

use crate::record::timestamp::Timestamp;

/// The TTL that SLS takes for "for ever", in days.
const TTL_FOR_EVER: i64 = 3650;

const DAY_S: i64 = 86_400;

/// From when on a log must be, and must have been received, to be kept as long as is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keeping {
    /// `None`: the logstore keeps its logs for ever.
    since: Option<Timestamp>,
}

impl Keeping {
    /// A logstore that keeps logs for `ttl_days`, of which `keep_days` more are wanted.
    pub fn new(ttl_days: i64, keep_days: u32, now: Timestamp) -> Self {
        let spare_s = (ttl_days - i64::from(keep_days)) * DAY_S;
        Self { since: (ttl_days < TTL_FOR_EVER).then(|| now.plus_s(-spare_s)) }
    }

    /// The earliest log time and time of receipt that is kept long enough; `None`: any.
    pub fn since(&self) -> Option<Timestamp> {
        self.since
    }

    /// Whether a batch is kept: `log_first` is the earliest time of its logs, `received_first` a
    /// moment before which nothing of it was received.
    pub fn keeps(&self, log_first: Timestamp, received_first: Timestamp) -> bool {
        self.since.is_none_or(|since| log_first >= since && received_first >= since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_times_must_leave_the_days_that_are_asked_for() {
        let day = |days: i64| Timestamp::from_unix_s(days * DAY_S);
        let keeping = Keeping::new(365, 180, day(1000));
        assert_eq!(keeping.since(), Some(day(815)));
        assert!(keeping.keeps(day(815), day(815)));
        assert!(!keeping.keeps(day(814), day(1000)), "by the time of the log");
        assert!(!keeping.keeps(day(900), day(814)), "by the time of receipt");
        assert!(Keeping::new(3650, 180, day(1000)).keeps(day(0), day(0)), "for ever");
        let short = Keeping::new(30, 180, day(1000));
        assert!(!short.keeps(day(1000), day(1000)), "nothing is kept for 180 days");
    }
}
