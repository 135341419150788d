//! A Postgres `timestamp` without a detour through a calendar: `infinity` is a value, not a panic.

use serde::{Deserialize, Serialize};

/// A time in UTC, as Dify writes it. Inside it is Postgres's own number, microseconds since
/// 2000-01-01, so that every value comes back; its extremes are `-infinity` and `infinity`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(i64);

/// From 1970-01-01 to 2000-01-01, where Postgres counts from.
const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;

impl Timestamp {
    pub const NEG_INFINITY: Self = Self(i64::MIN);
    pub const INFINITY: Self = Self(i64::MAX);

    /// From microseconds since 1970.
    pub fn from_unix_us(unix_us: i64) -> Self {
        Self(unix_us.saturating_sub(POSTGRES_EPOCH_US))
    }

    /// From seconds since 1970; beyond what fits it is an infinity.
    pub fn from_unix_s(unix_s: i64) -> Self {
        Self::from_unix_us(unix_s.saturating_mul(1_000_000))
    }

    /// From a time without a zone, as Python's `isoformat()` prints it; `None` if it is none.
    pub fn from_isoformat(text: &str) -> Option<Self> {
        let time: jiff::civil::DateTime = text.parse().ok()?;
        let zoned = time.to_zoned(jiff::tz::TimeZone::UTC).ok()?;
        Some(Self::from_unix_us(zoned.timestamp().as_microsecond()))
    }

    /// From Postgres's binary format.
    pub fn from_postgres(us: i64) -> Self {
        Self(us)
    }

    /// To Postgres's binary format.
    pub fn to_postgres(self) -> i64 {
        self.0
    }

    /// Microseconds since 1970; `None` for an infinity, and for what does not fit (after the year
    /// 294246).
    pub fn unix_us(self) -> Option<i64> {
        let finite = self != Self::NEG_INFINITY && self != Self::INFINITY;
        self.0.checked_add(POSTGRES_EPOCH_US).filter(|_| finite)
    }

    /// Seconds since 1970, rounded down; `None` where [`Self::unix_us`] is.
    pub fn unix_s(self) -> Option<i64> {
        self.unix_us().map(|us| us.div_euclid(1_000_000))
    }

    /// The day (UTC), as days since 2000-01-01; `None` for an infinity.
    pub fn day(self) -> Option<i32> {
        let is_finite = self != Self::NEG_INFINITY && self != Self::INFINITY;
        // The last microsecond that fits is of day 106,751,991.
        is_finite.then(|| self.0.div_euclid(86_400_000_000) as i32)
    }

    /// This time moved by `seconds`; an infinity stays where it is.
    pub fn plus_s(self, seconds: i64) -> Self {
        match self {
            Self::NEG_INFINITY | Self::INFINITY => self,
            Self(us) => Self(us.saturating_add(seconds.saturating_mul(1_000_000))),
        }
    }
}

/// As a person reads it: `2026-11-22T03:04:05.123456Z`.
impl std::fmt::Display for Timestamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.unix_us().map(jiff::Timestamp::from_microsecond) {
            Some(Ok(time)) => write!(f, "{time}"),
            _ if *self == Self::INFINITY => f.write_str("infinity"),
            _ if *self == Self::NEG_INFINITY => f.write_str("-infinity"),
            _ => write!(f, "{} µs since 2000", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_python_prints_is_read() {
        let time = |text| Timestamp::from_isoformat(text).map(|time| time.to_string());
        assert_eq!(time("2024-05-06T07:08:09").as_deref(), Some("2024-05-06T07:08:09Z"));
        assert_eq!(time("2024-05-06T07:08:10.250000").as_deref(), Some("2024-05-06T07:08:10.25Z"));
        assert_eq!(time(""), None);
    }

    #[test]
    fn postgres_values_come_back() {
        for us in
            [i64::MIN, -211_813_488_000_000_000, -1, 0, 1, 9_223_371_331_199_999_999, i64::MAX]
        {
            assert_eq!(Timestamp::from_postgres(us).to_postgres(), us, "{us}");
        }
        assert_eq!(Timestamp::from_postgres(0).to_string(), "2000-01-01T00:00:00Z");
        assert_eq!(Timestamp::from_unix_us(7).unix_us(), Some(7));
        assert_eq!(Timestamp::from_postgres(9_223_371_331_199_999_999).unix_us(), None);
        assert_eq!(Timestamp::from_unix_us(-1).unix_s(), Some(-1));
        assert_eq!(Timestamp::INFINITY.plus_s(-1), Timestamp::INFINITY);
        assert_eq!(Timestamp::INFINITY.to_string(), "infinity");
    }
}
