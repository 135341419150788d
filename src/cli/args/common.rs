//! Flags that several commands share, and how their values are read.

use anyhow::Context as _;
use clap::{Args, Command};

use crate::pipeline::recover::rules::Timings;
use crate::record::table::Table;
use crate::record::timestamp::Timestamp;

const DAY_S: i64 = 86_400;

/// The heading in `--help` above what all commands have.
pub const OUTPUT: &str = "Settings and output";

#[derive(Args)]
#[command(next_help_heading = "Ledger")]
pub struct LedgerArgs {
    /// Keep the ledger in this database instead of the source's, as a source that is a replica
    /// needs [default: SLS_BACKFILL_LEDGER_URL, which hides its password from `ps`]
    #[arg(long, value_name = "URL")]
    pub ledger_url: Option<String>,
    /// Allow a ledger on a server with fsync = off: if it crashes, it may forget what was sent
    #[arg(long, hide = true)]
    pub allow_fsync_off: bool,
}

/// What is assumed of SLS's times; only tests against a local SLS may assume less.
#[derive(Args)]
pub struct TimingsArgs {
    /// A request is refused when its signature is older (seconds)
    #[arg(long, hide = true, default_value_t = Timings::SLS.signature_life_s,
          value_parser = clap::value_parser!(i64).range(1..))]
    signature_life_s: i64,
    /// A request that came in time is stored at most so much later (seconds)
    #[arg(long, hide = true, default_value_t = Timings::SLS.late_s,
          value_parser = clap::value_parser!(i64).range(0..))]
    late_s: i64,
    /// What is stored can be pulled at most so much later (seconds)
    #[arg(long, hide = true, default_value_t = Timings::SLS.visible_s,
          value_parser = clap::value_parser!(i64).range(0..))]
    visible_s: i64,
}

impl TimingsArgs {
    /// The flags as they would be typed.
    pub fn as_typed(&self) -> [String; 3] {
        [
            format!("--signature-life-s={}", self.signature_life_s),
            format!("--late-s={}", self.late_s),
            format!("--visible-s={}", self.visible_s),
        ]
    }

    /// Refuses shorter times than SLS's own for an SLS that is not on this machine.
    pub fn timings(&self, is_loopback: bool) -> anyhow::Result<Timings> {
        let Self { signature_life_s, late_s, visible_s } = *self;
        let asked = Timings { signature_life_s, late_s, visible_s };
        let Timings { signature_life_s, late_s, visible_s } = Timings::SLS;
        anyhow::ensure!(
            is_loopback
                || (asked.signature_life_s >= signature_life_s
                    && asked.late_s >= late_s
                    && asked.visible_s >= visible_s),
            "--signature-life-s, --late-s and --visible-s below {signature_life_s}, {late_s} and \
             {visible_s} could double rows: they are for a local SLS only"
        );
        Ok(asked)
    }
}

/// Tables in the order in which they are moved, each once.
pub fn tables(wanted: &[Table]) -> Vec<Table> {
    Table::ALL.into_iter().filter(|table| wanted.contains(table)).collect()
}

pub fn parse_table(name: &str) -> anyhow::Result<Table> {
    Table::from_name(name)
        .with_context(|| "it is workflow_runs or workflow_node_executions".to_owned())
}

/// `2025-01-31`, `2025-01-31T12:00:00` (UTC), or with an offset, as RFC 3339 writes it.
pub fn parse_time(text: &str) -> anyhow::Result<Timestamp> {
    if let Ok(time) = text.parse::<jiff::Timestamp>() {
        return Ok(Timestamp::from_unix_us(time.as_microsecond()));
    }
    let time: jiff::civil::DateTime =
        text.parse().ok().context("it is a time such as 2025-01-31 or 2025-01-31T12:00:00Z")?;
    let zoned = time.to_zoned(jiff::tz::TimeZone::UTC).context("it is out of range")?;
    Ok(Timestamp::from_unix_us(zoned.timestamp().as_microsecond()))
}

/// `90s`, `30m`, `12h` or `30d`, in seconds.
pub fn parse_duration(text: &str) -> anyhow::Result<i64> {
    seconds(text, "smhd").context("it is a time such as 12h or 30d")
}

/// `30d` or `12h`, in seconds, up to a century. No minutes: who types `6m` means months.
pub fn parse_age(text: &str) -> anyhow::Result<i64> {
    let age = seconds(text, "hd").context("it is a number of days or hours such as 30d or 12h")?;
    anyhow::ensure!(age <= 36_500 * DAY_S, "it is more than a century");
    Ok(age)
}

/// A whole number with one of these units behind it.
fn seconds(text: &str, units: &str) -> Option<i64> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let unit = units.contains(unit).then_some(match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => DAY_S,
    })?;
    Some(i64::from(number.parse::<u32>().ok()?) * unit)
}

/// The flags of `command`, as if these had been typed: another command calls it.
pub fn typed<T: Args>(command: &'static str, flags: Vec<String>) -> anyhow::Result<T> {
    let context = || format!("call {command}");
    let words = std::iter::once(command.to_owned()).chain(flags);
    let matches =
        T::augment_args(Command::new(command)).try_get_matches_from(words).with_context(context)?;
    T::from_arg_matches(&matches).with_context(context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_typed_with_a_unit() {
        for (text, seconds) in [("90s", 90), ("30m", 1800), ("12h", 43_200), ("30d", 2_592_000)] {
            assert_eq!(parse_duration(text).unwrap(), seconds, "{text}");
        }
        for text in ["", "d", "5", "5w", "-1d", "1.5d", "5é", "30 d"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn ages_are_days_or_hours() {
        assert_eq!(parse_age("30d").unwrap(), 30 * DAY_S);
        assert_eq!(parse_age("0h").unwrap(), 0);
        for text in ["", "30", "d", "-1d", "1.5d", "30 d", "6m", "90s", "9999999d"] {
            assert!(parse_age(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times_are_utc() {
        for text in [
            "2025-01-31",
            "2025-01-31T00:00:00",
            "2025-01-31T00:00:00Z",
            "2025-01-31T08:00:00+08:00",
        ] {
            let time = parse_time(text).unwrap();
            assert_eq!(time.to_string(), "2025-01-31T00:00:00Z", "{text}");
        }
        assert!(parse_time("yesterday").is_err());
    }
}
