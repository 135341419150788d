//! Which batches may go out, by the age of their logs. Pure.
//!
//! Log times may be refused, dropped or unsearchable when they are old; the vendor's documents
//! contradict each other (some say seven days, some the logstore's TTL). So the first batch of an
//! age is a canary: nothing of that age follows before it was pulled back and found by search.

use crate::dify::conversion::LogTime;
use crate::ledger::intent::BatchRow;
use crate::record::timestamp::Timestamp;

/// The TTL that SLS takes for "for ever", in days.
const TTL_FOR_EVER: i64 = 3650;

/// However young the oldest log proved is, logs this much older may go too.
const REACH_S_MIN: i64 = 3600;

/// A canary proves an eighth more than its age. Limits of services are at round numbers of days,
/// far apart; without a step, rows in a random order would make a canary of every record.
const REACH_PART: i64 = 8;

/// From the first to the last log time of a batch, Unix seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogSpan {
    pub first_s: i64,
    pub last_s: i64,
}

impl LogSpan {
    /// Of the logs of these rows. `ingest_time`: their time, if the conversion says so.
    pub fn of(rows: &[BatchRow], log_time: LogTime, ingest_time: u32) -> Self {
        let ingest_s = i64::from(ingest_time);
        let times = rows.iter().map(|row| match log_time {
            LogTime::FinishedAt => row.finished_at.unix_s().unwrap_or(ingest_s),
            LogTime::Ingest => ingest_s,
        });
        let (first_s, last_s) = (times.clone().min(), times.max());
        Self { first_s: first_s.unwrap_or(ingest_s), last_s: last_s.unwrap_or(ingest_s) }
    }

    /// The first log time.
    pub fn first(&self) -> Timestamp {
        Timestamp::from_unix_s(self.first_s)
    }
}

/// What a batch may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Logs of its age are kept.
    Go,
    /// It goes first, alone of its age.
    Canary,
    /// A canary is out: wait what becomes of it.
    Wait,
}

/// Decides for a batch whose oldest log is of `oldest_s`. `proved_s`: the oldest log time proved,
/// `None` when there is none. All in Unix seconds.
pub fn decide(proved_s: Option<i64>, is_canary_out: bool, oldest_s: i64, now_s: i64) -> Decision {
    if proved_s.is_some_and(|proved_s| oldest_s >= reach(proved_s, now_s)) {
        return Decision::Go;
    }
    if is_canary_out { Decision::Wait } else { Decision::Canary }
}

/// The oldest log time that may go out without a canary.
fn reach(proved_s: i64, now_s: i64) -> i64 {
    let age_s = now_s.saturating_sub(proved_s).max(0);
    proved_s.saturating_sub((age_s / REACH_PART).max(REACH_S_MIN))
}

/// Logs older than that are not kept by a logstore with this TTL; `None`: it keeps all for ever.
pub fn kept_since(ttl_days: i64, now: Timestamp) -> Option<Timestamp> {
    (ttl_days < TTL_FOR_EVER).then(|| now.plus_s(-ttl_days.max(0) * 86_400))
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const DAY: i64 = 86_400;
    const NOW: i64 = 1_790_000_000;

    #[test]
    fn the_first_of_an_age_goes_alone_and_the_younger_follow() {
        let days_ago = |days: i64| NOW - days * DAY;
        for (proved, is_canary_out, oldest, decision) in [
            (None, false, NOW, Decision::Canary),
            (None, true, NOW, Decision::Wait),
            (Some(days_ago(80)), false, days_ago(80), Decision::Go),
            (Some(days_ago(80)), true, days_ago(1), Decision::Go),
            (Some(days_ago(80)), false, days_ago(90), Decision::Go),
            (Some(days_ago(80)), false, days_ago(90) - 1, Decision::Canary),
            (Some(days_ago(80)), true, days_ago(90) - 1, Decision::Wait),
            (Some(NOW), false, NOW - 3600, Decision::Go),
            (Some(NOW), false, NOW - 3601, Decision::Canary),
            // The clock went back.
            (Some(NOW + DAY), false, NOW + DAY - 3600, Decision::Go),
        ] {
            assert_eq!(
                decide(proved, is_canary_out, oldest, NOW),
                decision,
                "{proved:?} {is_canary_out} {oldest}"
            );
        }
    }

    /// How many canaries batches of these ages, in days, make one after the other.
    fn canaries(ages: impl Iterator<Item = i64>) -> usize {
        let mut proved = None;
        ages.filter(|age| {
            let oldest = NOW - age * DAY;
            let is_canary = decide(proved, false, oldest, NOW) == Decision::Canary;
            if is_canary {
                proved = Some(oldest);
            }
            is_canary
        })
        .count()
    }

    #[test]
    fn a_backfill_makes_few_canaries_whatever_its_order() {
        assert_eq!(canaries((0..1000).rev()), 1, "by time, the oldest first");
        // 7919 is a prime: every age once, well mixed.
        let mixed = canaries((0..1000).map(|nth| nth * 7919 % 1000));
        assert!(mixed < 12, "{mixed}");
        let descending = canaries(0..1000);
        assert!(descending < 60, "{descending}");
    }

    #[test]
    fn the_span_is_that_of_the_log_times() {
        let row = |finished_s: i64| BatchRow {
            id: Uuid::nil(),
            created_at: Timestamp::from_unix_s(0),
            finished_at: Timestamp::from_unix_us(finished_s * 1_000_000 + 999_999),
        };
        let rows = [row(20), row(10), row(15)];
        let span = LogSpan::of(&rows, LogTime::FinishedAt, 99);
        assert_eq!(span, LogSpan { first_s: 10, last_s: 20 });
        let span = LogSpan::of(&rows, LogTime::Ingest, 99);
        assert_eq!(span, LogSpan { first_s: 99, last_s: 99 });
    }

    #[test]
    fn a_ttl_of_3650_days_is_for_ever() {
        let now = Timestamp::from_unix_s(NOW);
        assert_eq!(kept_since(30, now), Some(Timestamp::from_unix_s(NOW - 30 * DAY)));
        assert!(kept_since(3649, now).is_some());
        assert_eq!(kept_since(3650, now), None);
    }
}
