//! Counts what SLS finds, day by day, in windows small enough for a complete answer.
//!
//! An incomplete answer is asked for again; then its window is halved, down to a minute. What is
//! still incomplete is not known, and taints the days that it touches.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Context as _;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;

use crate::pipeline::progress::Progress;
use crate::pipeline::retry::with_retries;
use crate::pipeline::shutdown::Shutdown;
use crate::pipeline::verify::counts::day::SlsCounts;
use crate::pipeline::verify::counts::window::{Window, days, halves};
use crate::record::day::Day;
use crate::sls::client::Client;
use crate::sls::sql::is_too_much;
use crate::sls::tags::LOG_SOURCE;

/// Queries in flight; a project has 15 for all its users.
const QUERIES_MAX: usize = 4;

/// An incomplete answer is asked for again so often before its window is halved. SLS's documents
/// recommend repeating; each costs the same.
const TRIES_MAX: u32 = 3;

/// After so many incomplete answers in a row SLS cannot answer now, however small the window.
const INCOMPLETE_MAX: u32 = 32;

/// No answer of ours has so many rows; SLS gives at most 1,000,000.
const ROWS_MAX: usize = 100_000;

/// By which time logs belong to a day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DayOf {
    /// The log's own time, `__time__`: it is when its row finished.
    LogTime,
    /// The field `finished_at`: the log's own time is when it was sent.
    FinishedAt,
}

/// What SLS finds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SlsDays {
    pub days: BTreeMap<Day, SlsCounts>,
    /// Logs of ours whose day cannot be read.
    pub dayless: u64,
    /// Windows that stayed incomplete.
    pub unknown: Vec<Window>,
}

impl SlsDays {
    /// The days that nobody knows all of. With days by field, any window may hold logs of any day.
    pub fn unknown_days(&self, day_of: DayOf) -> Option<BTreeSet<Day>> {
        match day_of {
            DayOf::FinishedAt if !self.unknown.is_empty() => None,
            _ => Some(self.unknown.iter().flat_map(|window| days(*window)).collect()),
        }
    }
}

/// What a query counts.
pub struct Question<'a> {
    pub client: &'a Client,
    pub logstore: &'a str,
    pub day_of: DayOf,
    pub progress: &'a Progress,
}

enum Answer {
    Counted(SlsDays),
    Incomplete,
}

/// Counts in all of these windows, which are disjoint; `None` when asked to stop.
pub async fn count(
    question: &Question<'_>,
    windows: Vec<Window>,
    shutdown: &mut Shutdown,
) -> anyhow::Result<Option<SlsDays>> {
    let mut waiting = windows;
    waiting.reverse();
    let (mut asked, mut all) = (FuturesUnordered::new(), SlsDays::default());
    let mut incomplete_in_a_row = 0;
    loop {
        if incomplete_in_a_row >= INCOMPLETE_MAX {
            all.unknown.append(&mut waiting);
        }
        while asked.len() < QUERIES_MAX
            && let Some(window) = waiting.pop()
        {
            asked.push(ask(question, window));
        }
        let Some(answered) = shutdown.or(asked.next()).await else { return Ok(None) };
        let Some(answered) = answered else { return Ok(Some(all)) };
        match answered? {
            (_, Answer::Counted(found)) => {
                incomplete_in_a_row = 0;
                for (day, counts) in found.days {
                    question.progress.seen.fetch_add(counts.logs, Ordering::Relaxed);
                    all.days.entry(day).or_default().add(&counts);
                }
                all.dayless += found.dayless;
            }
            (window, Answer::Incomplete) => {
                incomplete_in_a_row += 1;
                match halves(window) {
                    Some(halves) => waiting.extend(halves.into_iter().rev()),
                    None => all.unknown.push(window),
                }
            }
        }
    }
}

/// One window, asked for until the answer is complete or has been incomplete too often.
async fn ask(question: &Question<'_>, window: Window) -> anyhow::Result<(Window, Answer)> {
    let Question { client, logstore, day_of, progress } = question;
    let day = match day_of {
        // Days of UTC, whatever time zone SLS takes for granted.
        DayOf::LogTime => "__time__ - __time__ % 86400",
        DayOf::FinishedAt => "substr(finished_at, 1, 10)",
    };
    let query = format!(
        "* | SELECT {day} AS day, CASE WHEN __source__ = '{LOG_SOURCE}' THEN 1 ELSE 0 END AS own, \
         count(*) AS logs, count(DISTINCT id) AS ids FROM log GROUP BY 1, 2 LIMIT {ROWS_MAX}"
    );
    for attempt in 1..=TRIES_MAX {
        let answer = with_retries(|| client.sql(logstore, window.from, window.to, &query)).await;
        let answer = match answer {
            Err(failure) if is_too_much(&failure) => break,
            answer => answer.with_context(|| format!("count the logs of {logstore} by SQL"))?,
        };
        if answer.is_complete && answer.rows.len() < ROWS_MAX {
            let found = add_up(&answer.rows, *day_of)
                .with_context(|| format!("read a count of {logstore}"))?;
            return Ok((window, Answer::Counted(found)));
        }
        if attempt < TRIES_MAX {
            let _shown = progress.wait("SLS's answer is incomplete");
            tokio::time::sleep(Duration::from_millis(200) * attempt).await;
        }
    }
    Ok((window, Answer::Incomplete))
}

fn add_up(rows: &[BTreeMap<String, String>], day_of: DayOf) -> anyhow::Result<SlsDays> {
    let mut all = SlsDays::default();
    for row in rows {
        let text = |name: &str| row.get(name).with_context(|| format!("no column {name}"));
        let number = |name: &str| -> anyhow::Result<u64> { Ok(text(name)?.parse()?) };
        let day = match day_of {
            DayOf::LogTime => Some(Day::of_unix_s(text("day")?.parse()?)),
            DayOf::FinishedAt => Day::parse(text("day")?),
        };
        let is_own = number("own")? == 1;
        let (logs, ids) = (number("logs")?, number("ids")?);
        let Some(day) = day else {
            all.dayless += if is_own { logs } else { 0 };
            continue;
        };
        all.days.entry(day).or_default().add(&match is_own {
            true => SlsCounts { logs, ids, ..SlsCounts::default() },
            false => SlsCounts { other_logs: logs, other_ids: ids, ..SlsCounts::default() },
        });
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(day: &str, own: &str, logs: &str, ids: &str) -> BTreeMap<String, String> {
        let pairs = [("day", day), ("own", own), ("logs", logs), ("ids", ids)];
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
    }

    #[test]
    fn own_logs_and_those_of_others_are_counted_apart() {
        let day = Day::parse("2025-01-31").unwrap();
        let begin = day.unix_s().to_string();
        let rows = [row(&begin, "1", "5", "4"), row(&begin, "0", "7", "7")];
        let all = add_up(&rows, DayOf::LogTime).unwrap();
        let counts = SlsCounts { logs: 5, ids: 4, other_logs: 7, other_ids: 7 };
        assert_eq!(all.days, BTreeMap::from([(day, counts)]));
        let rows = [row("2025-01-31", "1", "5", "4"), row("null", "1", "2", "2")];
        let all = add_up(&rows, DayOf::FinishedAt).unwrap();
        assert_eq!((all.days[&day].ids, all.dayless), (4, 2));
        assert!(add_up(&[row("", "1", "", "")], DayOf::FinishedAt).is_err());
    }

    #[test]
    fn a_window_that_is_not_known_taints_its_days() {
        let day = Day::parse("2025-01-31").unwrap();
        let window = Window { from: day.unix_s(), to: day.unix_s() + 60 };
        let all = SlsDays { unknown: vec![window], ..SlsDays::default() };
        assert_eq!(all.unknown_days(DayOf::LogTime), Some(BTreeSet::from([day])));
        assert_eq!(all.unknown_days(DayOf::FinishedAt), None, "it may hold logs of any day");
        assert_eq!(SlsDays::default().unknown_days(DayOf::FinishedAt), Some(BTreeSet::new()));
    }
}
