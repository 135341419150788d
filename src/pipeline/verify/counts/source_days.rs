//! Counts Postgres's rows by day, and of the rows that no finished pass covers those that the
//! ledger knows all the same.
//!
//! Rows that were created long enough before the end of what finished passes cover must be in a
//! batch or held; they are only counted. All others are asked for by id.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use uuid::Uuid;

use crate::ledger::Ledger;
use crate::ledger::pass::LOOK_BACK_S;
use crate::pipeline::progress::Progress;
use crate::pipeline::shutdown::Shutdown;
use crate::record::day::Day;
use crate::record::table::Table;
use crate::record::timestamp::Timestamp;
use crate::source::Source;
use crate::source::count_days::RowTimes;

/// Rows that are looked up by one statement.
pub const PAGE_ROWS: usize = 4096;

/// What Postgres has of a day, and what follows from it for the ledger.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SourceDay {
    pub rows: u64,
    /// Of these, rows that neither the ledger knows nor a finished pass covers.
    pub uncovered: u64,
    /// Of these, held rows that had not finished when they were held.
    pub held: u64,
    /// Rows that have left Postgres with our knowledge.
    pub purged: u64,
}

/// Postgres's rows by day; `None`: without a finish time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SourceDays {
    pub days: BTreeMap<Option<Day>, SourceDay>,
}

impl SourceDays {
    fn of(&mut self, day: Option<Day>) -> &mut SourceDay {
        self.days.entry(day).or_default()
    }
}

/// Up to where (`created_at`) every row must be known: the next pass looks at what is later.
pub async fn must_be_known_before(ledger: &Ledger, table: Table) -> anyhow::Result<Timestamp> {
    let covered = ledger.covered_until(table).await?;
    Ok(covered.map_or(Timestamp::NEG_INFINITY, |until| until.plus_s(-LOOK_BACK_S)))
}

/// Counts; `None` when asked to stop.
pub async fn count(
    source: &Source,
    ledger: &Ledger,
    table: Table,
    progress: &Progress,
    shutdown: &mut Shutdown,
) -> anyhow::Result<Option<SourceDays>> {
    let mut all = SourceDays::default();
    let covered = must_be_known_before(ledger, table).await?;
    let mut slices = source.slices(table).await?;
    while let Some(slice) = slices.next().await? {
        if shutdown.is_asked() {
            return Ok(None);
        }
        for (day, rows) in source.count_days(table, slice, covered).await? {
            all.of(day).rows += rows;
            progress.seen.fetch_add(rows, Ordering::Relaxed);
        }
        let uncovered = source.rows_of(table, slice, Some(covered)).await?;
        progress.seen.fetch_add(uncovered.len() as u64, Ordering::Relaxed);
        for page in uncovered.chunks(PAGE_ROWS) {
            add_uncovered(&mut all, ledger, table, page).await?;
        }
    }
    add_held(&mut all, source, ledger, table).await?;
    add_purged(&mut all, source, ledger, table).await?;
    Ok(Some(all))
}

async fn add_uncovered(
    all: &mut SourceDays,
    ledger: &Ledger,
    table: Table,
    page: &[RowTimes],
) -> anyhow::Result<()> {
    let ids: Vec<_> = page.iter().map(|row| row.id).collect();
    let known = ledger.known(table, &ids, true).await?;
    for row in page {
        let day = all.of(row.finished_on);
        day.rows += 1;
        day.uncovered += u64::from(!known.contains(&row.id));
    }
    Ok(())
}

/// A row that was held before it finished counts for the day on which it has finished since; one
/// that is gone counts nowhere.
async fn add_held(
    all: &mut SourceDays,
    source: &Source,
    ledger: &Ledger,
    table: Table,
) -> anyhow::Result<()> {
    let mut after = Uuid::nil();
    loop {
        let held = ledger.unsettled_holds(table, after, u32::try_from(PAGE_ROWS)?).await?;
        let Some(last) = held.last() else { return Ok(()) };
        after = *last;
        for row in source.rows_by_id(table, &held).await? {
            all.of(row.finished_on).held += 1;
        }
    }
}

/// Rows that have left Postgres with our knowledge.
async fn add_purged(
    all: &mut SourceDays,
    source: &Source,
    ledger: &Ledger,
    table: Table,
) -> anyhow::Result<()> {
    for (day, rows) in purged_days(source, ledger, table).await? {
        all.of(Some(day)).purged += rows;
    }
    Ok(())
}

/// How many rows have left Postgres with our knowledge, by the day on which they finished. What has
/// left of a batch is what it had less what is left; its days tell of all of it.
pub async fn purged_days(
    source: &Source,
    ledger: &Ledger,
    table: Table,
) -> anyhow::Result<BTreeMap<Day, u64>> {
    let (mut days, mut after) = (BTreeMap::new(), Uuid::nil());
    loop {
        let purged = ledger.purged_batches(table, after, 256).await?;
        let Some((last, _)) = purged.last() else { return Ok(days) };
        after = *last;
        for (_, mut batch) in purged {
            for page in batch.left.chunks(PAGE_ROWS) {
                for row in source.rows_by_id(table, page).await? {
                    if let Some(rows) = row.finished_on.and_then(|day| batch.days.get_mut(&day)) {
                        *rows = rows.saturating_sub(1);
                    }
                }
            }
            for (day, rows) in batch.days {
                *days.entry(day).or_default() += rows;
            }
        }
    }
}
