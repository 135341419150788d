//! Timestamps as Presto shows them: `2024-05-06 07:08:09.123`, or with a time zone behind.
//!
//! SQLite has no such type, so between two functions a timestamp is its text. One without a zone is
//! in the time zone of the session, one with a zone in its own; both name a moment, to the
//! millisecond.

use jiff::civil::{Date, DateTime, Time};
use jiff::fmt::strtime;
use jiff::tz::{Offset, TimeZone};
use jiff::{RoundMode, Timestamp, TimestampRound, ToSpan as _, Unit, Zoned};

/// A moment and how it is shown.
#[derive(Debug, Clone, PartialEq)]
pub struct SqlTime {
    time: Zoned,
    /// The name of its own zone; `None`: the session's.
    zone: Option<String>,
}

impl SqlTime {
    /// From seconds since 1970, what `__time__` is.
    ///
    /// Fails if the year is not one that can be written in four digits.
    pub fn from_unix(seconds: f64, session: &TimeZone) -> Result<Self, String> {
        let milliseconds = (seconds * 1000.0).round();
        let time = Timestamp::from_millisecond(milliseconds as i64);
        let time = time.map_err(|_| format!("Invalid Unix time: {seconds}"))?;
        Ok(Self { time: time.to_zoned(session.clone()), zone: None })
    }

    /// The same moment in the zone of that name, such as `Asia/Shanghai` or `+08:00`.
    pub fn at_zone(&self, name: &str) -> Result<Self, String> {
        Ok(Self { time: self.time.with_time_zone(zone(name)?), zone: Some(name.to_owned()) })
    }

    /// Reads a date, or a timestamp with or without a zone.
    pub fn parse(text: &str, session: &TimeZone) -> Result<Self, String> {
        let invalid = || format!("Value cannot be cast to timestamp: {text}");
        let text = text.trim();
        let (date, rest) = text.split_once(' ').unwrap_or((text, "00:00:00"));
        let (clock, name) = rest.split_once(' ').map_or((rest, None), |(a, b)| (a, Some(b)));
        let date: Date = date.parse().map_err(|_| invalid())?;
        let clock: Time = clock.parse().map_err(|_| invalid())?;
        Self::local(date.to_datetime(clock), name, session)
    }

    /// Reads an ISO 8601 time; without an offset it is in the session's zone.
    pub fn parse_iso8601(text: &str, session: &TimeZone) -> Result<Self, String> {
        let invalid = || format!("Invalid format: \"{text}\"");
        if let Ok(time) = text.parse::<Timestamp>() {
            let offset = Offset::UTC;
            let zoned = if text.ends_with(['Z', 'z']) {
                return Self::rounded(time).map(|time| Self {
                    time: time.to_zoned(TimeZone::fixed(offset)),
                    zone: Some("UTC".to_owned()),
                });
            } else {
                // Behind the time there is ±hh:mm.
                text.get(text.len().saturating_sub(6)..).ok_or_else(invalid)?
            };
            let time = Self::rounded(time)?.to_zoned(zone(zoned)?);
            return Ok(Self { time, zone: Some(zoned.to_owned()) });
        }
        let time: DateTime = text.parse().map_err(|_| invalid())?;
        let name = session.iana_name().unwrap_or("UTC");
        Self::local(time, Some(name), session)
    }

    fn local(time: DateTime, name: Option<&str>, session: &TimeZone) -> Result<Self, String> {
        let zone = name.map_or_else(|| Ok(session.clone()), zone)?;
        let time = time.to_zoned(zone.clone()).map_err(|error| error.to_string())?;
        let time = Self::rounded(time.timestamp())?.to_zoned(zone);
        Ok(Self { time, zone: name.map(str::to_owned) })
    }

    /// Presto's timestamps have milliseconds; what is finer is cut off.
    fn rounded(time: Timestamp) -> Result<Timestamp, String> {
        let to_ms = TimestampRound::new().smallest(Unit::Millisecond).mode(RoundMode::Floor);
        time.round(to_ms).map_err(|error| error.to_string())
    }

    /// Seconds since 1970, with the milliseconds.
    pub fn to_unix(&self) -> f64 {
        self.time.timestamp().as_millisecond() as f64 / 1000.0
    }

    pub fn date(&self) -> String {
        self.time.date().to_string()
    }

    /// The begin of the `unit` it is in.
    pub fn truncated(&self, unit: &str) -> Result<Self, String> {
        let time = self.time.datetime();
        let date = time.date();
        let midnight = |date: Date| date.to_datetime(Time::midnight());
        let first = |month: i8| -> Date { jiff::civil::date(date.year(), month, 1) };
        let hour = |minute: i8, second: i8| date.at(time.hour(), minute, second, 0);
        let begin = match unit.to_ascii_lowercase().as_str() {
            "millisecond" => time,
            "second" => hour(time.minute(), time.second()),
            "minute" => hour(time.minute(), 0),
            "hour" => hour(0, 0),
            "day" => midnight(date),
            "week" => {
                let days = date.weekday().to_monday_zero_offset();
                midnight(date.saturating_sub(i64::from(days).days()))
            }
            "month" => midnight(first(date.month())),
            "quarter" => midnight(first((date.month() - 1) / 3 * 3 + 1)),
            "year" => midnight(first(1)),
            _ => return Err(format!("'{unit}' is not a valid Timestamp field")),
        };
        let time = begin.to_zoned(self.time.time_zone().clone());
        Ok(Self { time: time.map_err(|error| error.to_string())?, zone: self.zone.clone() })
    }

    /// Formats it as MySQL's `date_format` does.
    pub fn format(&self, format: &str) -> Result<String, String> {
        let mut pattern = String::new();
        let mut chars = format.chars();
        while let Some(char) = chars.next() {
            if char != '%' {
                pattern.push(char);
                continue;
            }
            pattern += match chars.next() {
                Some('a') => "%a",
                Some('b') => "%b",
                Some('c') => "%-m",
                Some('d') => "%d",
                Some('e') => "%-d",
                Some('f') => "%6f",
                Some('H') => "%H",
                Some('h' | 'I') => "%I",
                Some('i') => "%M",
                Some('j') => "%j",
                Some('k') => "%-H",
                Some('l') => "%-I",
                Some('M') => "%B",
                Some('m') => "%m",
                Some('p') => "%p",
                Some('r') => "%I:%M:%S %p",
                Some('S' | 's') => "%S",
                Some('T') => "%H:%M:%S",
                Some('v') => "%V",
                Some('W') => "%A",
                Some('w') => "%w",
                Some('Y') => "%Y",
                Some('y') => "%y",
                Some('%') => "%%",
                other => {
                    let name = other.map(String::from).unwrap_or_default();
                    return Err(format!("%{name} not supported in date format string"));
                }
            };
        }
        strtime::format(&pattern, &self.time).map_err(|error| error.to_string())
    }
}

impl std::fmt::Display for SqlTime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let time = &self.time;
        write!(
            f,
            "{} {:02}:{:02}:{:02}.{:03}",
            time.date(),
            time.hour(),
            time.minute(),
            time.second(),
            time.millisecond()
        )?;
        match &self.zone {
            Some(zone) => write!(f, " {zone}"),
            None => Ok(()),
        }
    }
}

/// The time zone of that name: of the tz database, or an offset like `+08:00`.
pub fn zone(name: &str) -> Result<TimeZone, String> {
    let unknown = || format!("'{name}' is not a valid time zone");
    if let Some(sign) = name.strip_prefix('+').map(|_| 1).or(name.strip_prefix('-').map(|_| -1)) {
        let (hours, minutes) = name[1..].split_once(':').ok_or_else(unknown)?;
        let (hours, minutes): (i32, i32) =
            hours.parse().ok().zip(minutes.parse().ok()).ok_or_else(unknown)?;
        if !(0..=14).contains(&hours) || !(0..60).contains(&minutes) {
            return Err(unknown());
        }
        let offset = Offset::from_seconds(sign * (hours * 3600 + minutes * 60));
        return offset.map(TimeZone::fixed).map_err(|_| unknown());
    }
    TimeZone::get(name).map_err(|_| unknown())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn iso(text: &str) -> SqlTime {
        SqlTime::parse_iso8601(text, &TimeZone::UTC).unwrap()
    }

    #[test]
    fn timestamps_look_like_prestos() {
        let shanghai = zone("Asia/Shanghai").unwrap();
        // The documentation's own pair (aliyun, date and time functions): it is in Shanghai.
        let time = SqlTime::from_unix(1_592_374_067.0, &shanghai).unwrap();
        assert_eq!(time.to_string(), "2020-06-17 14:07:47.000");
        assert_eq!(time.at_zone("UTC").unwrap().to_string(), "2020-06-17 06:07:47.000 UTC");
        assert_eq!(SqlTime::parse(&time.to_string(), &shanghai), Ok(time));
        for (text, shown) in [
            ("2024-05-06T07:08:09.123999", "2024-05-06 07:08:09.123 UTC"),
            ("2024-05-06T07:08:09Z", "2024-05-06 07:08:09.000 UTC"),
            ("2024-05-06T07:08:09+08:00", "2024-05-06 07:08:09.000 +08:00"),
            ("2024-05-06", "2024-05-06 00:00:00.000 UTC"),
        ] {
            assert_eq!(iso(text).to_string(), shown);
            assert_eq!(SqlTime::parse(shown, &shanghai).unwrap().to_unix(), iso(text).to_unix());
        }
        assert_eq!(iso("2024-05-06T07:08:09+08:00").to_unix(), 1_714_950_489.0);
        assert_eq!(iso("1970-01-01T00:00:00.25").to_unix(), 0.25);
    }

    #[test]
    fn what_is_no_time_is_an_error() {
        for text in ["", "null", "2024-13-01", "7"] {
            assert_eq!(
                SqlTime::parse_iso8601(text, &TimeZone::UTC),
                Err(format!("Invalid format: \"{text}\""))
            );
            assert!(SqlTime::parse(text, &TimeZone::UTC).is_err(), "{text}");
        }
        for name in ["", "Nowhere/None", "+8", "+15:00", "+08:99"] {
            assert!(zone(name).is_err(), "{name}");
        }
    }

    #[test]
    fn times_are_cut_to_units() {
        let time = SqlTime::parse("2021-08-12 03:04:05.678", &TimeZone::UTC).unwrap();
        for (unit, wanted) in [
            ("second", "2021-08-12 03:04:05.000"),
            ("minute", "2021-08-12 03:04:00.000"),
            ("HOUR", "2021-08-12 03:00:00.000"),
            ("day", "2021-08-12 00:00:00.000"),
            ("week", "2021-08-09 00:00:00.000"),
            ("month", "2021-08-01 00:00:00.000"),
            ("quarter", "2021-07-01 00:00:00.000"),
            ("year", "2021-01-01 00:00:00.000"),
        ] {
            assert_eq!(time.truncated(unit).unwrap().to_string(), wanted);
        }
        assert!(time.truncated("eon").is_err());
    }

    #[test]
    fn formats_are_those_of_mysql() {
        let time = SqlTime::parse("2024-05-06 17:08:09.123", &TimeZone::UTC).unwrap();
        for (format, wanted) in [
            ("%Y-%m-%d %H:%i:%S", "2024-05-06 17:08:09"),
            ("%c/%e/%y %h:%i %p %k %l", "5/6/24 05:08 PM 17 5"),
            ("%W %a %M %b %j %T %r %%", "Monday Mon May May 127 17:08:09 05:08:09 PM %"),
            ("%f %w %v", "123000 1 19"),
        ] {
            assert_eq!(time.format(format).unwrap(), wanted);
        }
        assert!(time.format("%Q").is_err() && time.format("%").is_err());
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,40}", name in ".{0,10}") {
            let _ = SqlTime::parse_iso8601(&text, &TimeZone::UTC);
            let _ = SqlTime::parse(&text, &TimeZone::UTC);
            let _ = zone(&name);
            let _ = iso("2024-05-06").format(&text);
        }

        #[test]
        fn a_moment_survives_its_text(ms in -2_000_000_000_000i64..4_000_000_000_000) {
            let time = SqlTime::from_unix(ms as f64 / 1000.0, &TimeZone::UTC).unwrap();
            prop_assert_eq!(time.to_unix(), ms as f64 / 1000.0);
            prop_assert_eq!(SqlTime::parse(&time.to_string(), &TimeZone::UTC), Ok(time));
        }
    }
}
