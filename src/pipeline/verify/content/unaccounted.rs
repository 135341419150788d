//! Looks through Postgres for rows that must be known, and that no batch and no hold names.

use std::collections::HashSet;
use std::sync::atomic::Ordering;

use uuid::Uuid;

use crate::ledger::Ledger;
use crate::ledger::finding::Finding;
use crate::ledger::verification::{BatchScope, Verification};
use crate::pipeline::progress::Progress;
use crate::pipeline::shutdown::Shutdown;
use crate::pipeline::verify::counts::source_days::{PAGE_ROWS, must_be_known_before};
use crate::record::day::Day;
use crate::record::table::Table;
use crate::record::timestamp::Timestamp;
use crate::source::Source;
use crate::source::count_days::RowTimes;

/// Rows that must be in a batch or held, and are not.
pub const UNACCOUNTED: &str = "unaccounted";

/// Where to look.
pub struct AccountParts<'a> {
    pub source: &'a Source,
    pub ledger: &'a Ledger,
    pub verification: &'a Verification,
    pub progress: &'a Progress,
}

/// Looks through the whole table; gives how many rows must be known, `None` when asked to stop.
pub async fn look_through(
    parts: &AccountParts<'_>,
    shutdown: &Shutdown,
) -> anyhow::Result<Option<u64>> {
    let AccountParts { source, ledger, verification, progress } = parts;
    let table = verification.table;
    ledger.renew_findings(verification, &[UNACCOUNTED], &[]).await?;
    let known_before = must_be_known_before(ledger, table).await?;
    if known_before == Timestamp::NEG_INFINITY {
        return Ok(Some(0));
    }
    let (mut rows_looked_at, mut slices) = (0, source.slices(table).await?);
    while let Some(slice) = slices.next().await? {
        if shutdown.is_asked() {
            return Ok(None);
        }
        let mut rows = source.rows_of(table, slice, None).await?;
        progress.seen.fetch_add(rows.len() as u64, Ordering::Relaxed);
        rows.retain(|row| {
            row.created_at < known_before && is_in(&verification.scope, row.finished_on)
        });
        rows_looked_at += rows.len() as u64;
        for page in rows.chunks(PAGE_ROWS) {
            let unknown = unknown(source, ledger, table, page).await?;
            if !unknown.is_empty() {
                ledger.found_out(verification, &[finding(unknown)]).await?;
            }
        }
    }
    Ok(Some(rows_looked_at))
}

/// Those of these rows that the ledger does not know, and that are still there.
async fn unknown(
    source: &Source,
    ledger: &Ledger,
    table: Table,
    page: &[RowTimes],
) -> anyhow::Result<Vec<Uuid>> {
    let mut unknown: Vec<_> = page.iter().map(|row| row.id).collect();
    let known = ledger.known(table, &unknown, true).await?;
    unknown.retain(|id| !known.contains(id));
    if unknown.is_empty() {
        return Ok(unknown);
    }
    let there = source.rows_by_id(table, &unknown).await?;
    Ok(there.iter().map(|row| row.id).collect())
}

/// Looks again at rows that were not accounted for; gives those that still are not.
pub async fn look_again(
    source: &Source,
    ledger: &Ledger,
    table: Table,
    ids: &[Uuid],
) -> anyhow::Result<Vec<RowTimes>> {
    let mut left = Vec::new();
    for page in ids.chunks(PAGE_ROWS) {
        let there = source.rows_by_id(table, page).await?;
        let unknown: HashSet<_> =
            unknown(source, ledger, table, &there).await?.into_iter().collect();
        left.extend(there.into_iter().filter(|row| unknown.contains(&row.id)));
    }
    Ok(left)
}

/// A finding about these rows.
pub fn finding(row_ids: Vec<Uuid>) -> Finding {
    let (kind, rows) = (UNACCOUNTED.to_owned(), row_ids.len() as u64);
    Finding { kind, rows, row_ids, ..Finding::default() }
}

fn is_in(scope: &BatchScope, finished_on: Option<Day>) -> bool {
    let Some(day) = finished_on else { return scope.since.is_none() && scope.until.is_none() };
    let day = day.unix_s();
    let at = |time: Timestamp| time.unix_s().unwrap_or(0);
    scope.since.is_none_or(|since| day >= at(since))
        && scope.until.is_none_or(|until| day < at(until))
}
