//! Verifies by counting: Postgres, ledger and SLS, day by day.
//!
//! ```text
//! ledger's days ─► Postgres's days ─► SLS's days ─► ledger's days again ─► a verdict a day
//! ```
//!
//! A run may be at work meanwhile. So the ledger is added up before and after, and a day whose
//! numbers have moved is not called different.

pub mod day;
pub mod sls_days;
pub mod source_days;
pub mod window;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::ledger::Ledger;
use crate::ledger::day_counts::LedgerDay;
use crate::pipeline::progress::Progress;
use crate::pipeline::shutdown::Shutdown;
use crate::pipeline::verify::counts::day::{DayCounts, DayVerdict, Side, SlsCounts, judge};
use crate::pipeline::verify::counts::sls_days::{DayOf, Question, SlsDays};
use crate::pipeline::verify::counts::source_days::SourceDays;
use crate::pipeline::verify::counts::window::{Window, plan};
use crate::record::day::{DAY_S, Day};
use crate::record::table::Table;
use crate::record::timestamp::Timestamp;
use crate::sls::client::Client;
use crate::source::Source;

/// SLS takes log times that are a little ahead.
const AHEAD_S: i64 = DAY_S;

/// Counts are taken so often at most while a run changes what is counted.
const TRIES_MAX: u32 = 3;

/// What is counted, and with what.
pub struct CountsParts {
    pub table: Table,
    pub source: Source,
    pub ledger: Ledger,
    pub client: Client,
    pub progress: Arc<Progress>,
    /// Days since when SLS finds logs; `None`: for ever, or not known.
    pub kept_since: Option<Timestamp>,
    /// Only days from this one on.
    pub since: Option<Day>,
    /// Only days before this one.
    pub until: Option<Day>,
}

/// A day with its numbers and what they say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CountedDay {
    /// `None`: rows without a finish time, which are in no log.
    pub day: Option<Day>,
    pub counts: DayCounts,
    pub verdict: DayVerdict,
}

/// What counting gave.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CountsReport {
    pub days: Vec<CountedDay>,
    /// Logs of ours in SLS whose day cannot be read.
    pub dayless_logs: u64,
    /// The days of logs are those of a field, so `__time__` was not checked.
    pub is_by_field: bool,
}

impl CountsReport {
    /// How many days are so.
    pub fn count(&self, side: Side) -> u64 {
        self.days.iter().filter(|day| day.verdict.worst() == side).count() as u64
    }
}

/// Counts one table; `None` when asked to stop.
pub async fn count(
    parts: &CountsParts,
    shutdown: &mut Shutdown,
) -> anyhow::Result<Option<CountsReport>> {
    let mut tries = 0;
    loop {
        let Some(report) = count_once(parts, shutdown).await? else { return Ok(None) };
        tries += 1;
        // What changed while it was counted is counted once more; so is what differs, for a row
        // that is updated while its table is read may be read twice, or not at all.
        let is_doubtful = report.days.iter().any(|day| {
            day.verdict.source != Side::Equal
                || day.verdict.sls == Side::NotKnown && day.counts.sls.is_some()
        });
        if !is_doubtful || tries == TRIES_MAX {
            return Ok(Some(report));
        }
    }
}

/// The days of which SLS's search finds what the ledger says, every row once: what a purge goes by.
/// `None` when asked to stop.
pub async fn equal_days(
    parts: &CountsParts,
    shutdown: &mut Shutdown,
) -> anyhow::Result<Option<BTreeSet<Day>>> {
    let CountsParts { table, ledger, .. } = parts;
    let before = ledger.days(*table).await?;
    let Some((day_of, in_sls)) = count_logs(parts, &before, shutdown).await? else {
        return Ok(None);
    };
    let after = ledger.days(*table).await?;
    // A day that nobody can tell about is not equal.
    let Some(unknown) = in_sls.unknown_days(day_of) else { return Ok(Some(BTreeSet::new())) };
    let is_equal = |(day, of_day): (&Option<Day>, &LedgerDay)| {
        let day = day.filter(|day| after.get(&Some(*day)) == Some(of_day))?;
        let sls = in_sls.days.get(&day).copied().unwrap_or_default();
        let (ledger, open) = (of_day.stored, of_day.open);
        let counts = DayCounts { ledger, open, sls: Some(sls), ..DayCounts::default() };
        let is_equal = judge(&counts, true, false).sls == Side::Equal && !unknown.contains(&day);
        is_equal.then_some(day)
    };
    Ok(Some(before.iter().filter_map(is_equal).collect()))
}

async fn count_once(
    parts: &CountsParts,
    shutdown: &mut Shutdown,
) -> anyhow::Result<Option<CountsReport>> {
    let CountsParts { table, source, ledger, progress, .. } = parts;
    let before = ledger.days(*table).await?;
    let unsettled = ledger.unsettled_state(*table).await?;
    let Some(in_source) = source_days::count(source, ledger, *table, progress, shutdown).await?
    else {
        return Ok(None);
    };
    let Some((day_of, in_sls)) = count_logs(parts, &before, shutdown).await? else {
        return Ok(None);
    };
    let are_holds_moved = ledger.unsettled_state(*table).await? != unsettled;
    let after = ledger.days(*table).await?;
    let in_sls = &in_sls;
    let counted = Counted { before, after, in_source, are_holds_moved, in_sls, day_of };
    let days = compare(parts, &counted);
    Ok(Some(CountsReport {
        days,
        dayless_logs: in_sls.dayless,
        is_by_field: day_of == DayOf::FinishedAt,
    }))
}

/// Counts the logs of the days that the ledger tells of; `None` when asked to stop.
async fn count_logs(
    parts: &CountsParts,
    days: &BTreeMap<Option<Day>, LedgerDay>,
    shutdown: &mut Shutdown,
) -> anyhow::Result<Option<(DayOf, SlsDays)>> {
    let CountsParts { table, ledger, client, progress, .. } = parts;
    let times = ledger.log_times(*table).await?;
    let day_of = if times.ingest.is_some() { DayOf::FinishedAt } else { DayOf::LogTime };
    let question = Question { client, logstore: table.logstore(), day_of, progress };
    let windows = windows(parts, days, times.ingest);
    let in_sls = sls_days::count(&question, windows, shutdown).await?;
    Ok(in_sls.map(|in_sls| (day_of, in_sls)))
}

/// The log times to look at: those of the days in question, or all of them.
fn windows(
    parts: &CountsParts,
    ledger: &BTreeMap<Option<Day>, LedgerDay>,
    ingest: Option<(i64, i64)>,
) -> Vec<Window> {
    let mut rows: BTreeMap<Day, u64> = ledger
        .iter()
        .filter_map(|(day, counts)| day.map(|day| (day, counts.stored + counts.open)))
        .collect();
    if let Some((first, last)) = ingest {
        for at in [first, last] {
            rows.entry(Day::of_unix_s(at)).or_default();
        }
    }
    let end = parts.client.now() + AHEAD_S;
    let last = rows.keys().next_back().map_or(end, |day| day.next().unix_s().max(end));
    // Logs that bear the time of sending may be of any day.
    let (since, until) = match ingest {
        Some(_) => (None, None),
        None => (parts.since, parts.until),
    };
    let from = since.map_or(0, Day::unix_s).max(0);
    plan(&rows, from, until.map_or(last, Day::unix_s).min(last))
}

/// Everything that was counted.
struct Counted<'a> {
    before: BTreeMap<Option<Day>, LedgerDay>,
    after: BTreeMap<Option<Day>, LedgerDay>,
    in_source: SourceDays,
    /// Rows were held, or taken, between the look whether they are known and the count of holds.
    are_holds_moved: bool,
    in_sls: &'a SlsDays,
    day_of: DayOf,
}

fn compare(parts: &CountsParts, counted: &Counted<'_>) -> Vec<CountedDay> {
    let Counted { before, after, in_source, are_holds_moved, in_sls, day_of } = counted;
    let unknown = in_sls.unknown_days(*day_of);
    let mut days: Vec<Option<Day>> = before.keys().chain(after.keys()).copied().collect();
    days.extend(in_source.days.keys().copied());
    days.extend(in_sls.days.keys().map(|day| Some(*day)));
    days.sort_unstable();
    days.dedup();
    let is_wanted = |day: &Option<Day>| match day {
        Some(day) => {
            parts.since.is_none_or(|since| *day >= since)
                && parts.until.is_none_or(|until| *day < until)
        }
        None => parts.since.is_none() && parts.until.is_none(),
    };
    days.retain(is_wanted);
    let counted_day = |day: Option<Day>| {
        let (first, second) = (
            before.get(&day).copied().unwrap_or_default(),
            after.get(&day).copied().unwrap_or_default(),
        );
        let source = in_source.days.get(&day).copied().unwrap_or_default();
        let is_known = match (day, &unknown) {
            (Some(day), Some(unknown)) => !unknown.contains(&day),
            (Some(_), None) => false,
            // Logs without a day are counted apart.
            (None, _) => true,
        };
        let found = day.and_then(|day| in_sls.days.get(&day).copied()).unwrap_or_default();
        let counts = DayCounts {
            ledger: second.stored,
            open: second.open,
            lost: second.lost,
            held: second.held + source.held,
            postgres: source.rows,
            purged: source.purged,
            uncovered: source.uncovered,
            sls: is_known.then_some(found),
        };
        let has_other_logs = found != SlsCounts::default();
        let is_kept = match (day, parts.kept_since.and_then(Timestamp::unix_s)) {
            (Some(day), Some(since)) => day.unix_s() >= since,
            _ => true,
        };
        let is_empty = counts == DayCounts { sls: counts.sls, ..DayCounts::default() };
        let is_moved = first != second || *are_holds_moved && source.uncovered + source.held > 0;
        let verdict = judge(&counts, is_kept, is_moved);
        (!is_empty || has_other_logs).then_some(CountedDay { day, counts, verdict })
    };
    days.into_iter().filter_map(counted_day).collect()
}
