//! A day in UTC, the unit in which the three sides are counted.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::record::timestamp::Timestamp;

/// A day (UTC), as Postgres numbers them: days since 2000-01-01.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Day(i32);

/// From 1970-01-01 to 2000-01-01, where Postgres counts from.
const POSTGRES_EPOCH_DAYS: i64 = 10_957;

/// Seconds of a day: UTC as SLS and Postgres know it has no leap seconds.
pub const DAY_S: i64 = 86_400;

impl Day {
    /// From days since 2000-01-01.
    pub fn from_postgres(days: i32) -> Self {
        Self(days)
    }

    /// To days since 2000-01-01.
    pub fn to_postgres(self) -> i32 {
        self.0
    }

    /// The day of a moment in Unix seconds.
    pub fn of_unix_s(unix_s: i64) -> Self {
        let days = unix_s.div_euclid(DAY_S) - POSTGRES_EPOCH_DAYS;
        Self(i32::try_from(days).unwrap_or(if days < 0 { i32::MIN } else { i32::MAX }))
    }

    /// The day of a time; `None` for an infinity.
    pub fn of(time: Timestamp) -> Option<Self> {
        time.unix_s().map(Self::of_unix_s)
    }

    /// Its first second, Unix.
    pub fn unix_s(self) -> i64 {
        (i64::from(self.0) + POSTGRES_EPOCH_DAYS) * DAY_S
    }

    /// The day after it.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// From `2025-01-31`.
    pub fn parse(text: &str) -> Option<Self> {
        let date: jiff::civil::Date = text.parse().ok()?;
        let zoned = date.to_zoned(jiff::tz::TimeZone::UTC).ok()?;
        Some(Self::of_unix_s(zoned.timestamp().as_second()))
    }
}

/// `2025-01-31`.
impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match jiff::Timestamp::from_second(self.unix_s()) {
            Ok(time) => {
                let date = time.to_zoned(jiff::tz::TimeZone::UTC).date();
                f.pad(&date.to_string())
            }
            Err(_) => f.pad(&format!("day {}", self.0)),
        }
    }
}

impl From<Day> for String {
    fn from(day: Day) -> Self {
        day.to_string()
    }
}

impl TryFrom<String> for Day {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text).ok_or_else(|| format!("{text} is no day"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_those_of_postgres_and_of_people() {
        let day = Day::parse("2000-01-02").unwrap();
        assert_eq!((day.to_postgres(), day.to_string()), (1, "2000-01-02".to_owned()));
        assert_eq!(Day::of_unix_s(day.unix_s() + DAY_S - 1), day);
        assert_eq!(Day::of_unix_s(day.unix_s() - 1).to_string(), "2000-01-01");
        assert_eq!(Day::of_unix_s(-1).to_string(), "1969-12-31");
        assert_eq!(Day::of(Timestamp::from_unix_us(-1)), Some(Day::of_unix_s(-1)));
        assert_eq!(Day::of(Timestamp::INFINITY), None);
        assert_eq!(day.next(), Day::from_postgres(2));
        assert_eq!(Day::parse("yesterday"), None);
        let json = serde_json::to_string(&day).unwrap();
        assert_eq!(json, "\"2000-01-02\"");
        assert_eq!(serde_json::from_str::<Day>(&json).unwrap(), day);
    }
}
