//! What a purge would delete, by day, from the ledger alone.

use std::collections::BTreeMap;

use anyhow::Context as _;
use serde::Serialize;
use sqlx::Row as _;
use sqlx::postgres::PgRow;

use crate::ledger::Ledger;
use crate::ledger::purge::{PurgeWindow, is_proved_sql};
use crate::pg::{self, Tx};
use crate::record::table::Table;
use crate::record::timestamp::Timestamp;

/// How many rows of day `d` of batch `b` are not decided yet: a batch tells of each row whether it
/// has left, not of which day it was, so the days of one that is purged in part have equal shares.
const LEFT_OF_DAY: &str = "(d.rows::numeric * (b.rows - coalesce(b.purged_rows, 0) \
    - coalesce(b.purged_gone, 0) - coalesce(b.purged_changed, 0)) / greatest(b.rows, 1))";

/// Whether batch `b` is kept long enough; `$4`: logs since when are.
const IS_KEPT: &str = "($4::timestamp IS NULL OR (b.finished_first >= $4 \
    AND (b.intended_at AT TIME ZONE 'UTC') >= $4))";

/// A purge's speed is that of its latest batches, and at least of so many; no purge waits for longer
/// between two of its batches.
const MEASURED_BATCHES_MAX: i64 = 1000;
const MEASURED_BATCHES_MIN: i64 = 5;
const GAP_S_MAX: f64 = 60.0;

/// The rows of one UTC day of `finished_at`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct DayPlan {
    /// Rows that have not been purged yet, whose logs were all seen in SLS and are kept long enough.
    pub proved: u64,
    /// Bytes of these before compression.
    pub proved_bytes: u64,
    /// Batches with such rows.
    pub proved_batches: u64,
    /// Rows in SLS, or on their way, that were not seen there yet.
    pub not_proved: u64,
    /// Rows that SLS does not keep long enough.
    pub not_kept: u64,
    /// Rows of batches of which nobody knows how their logs were made.
    pub unknown_conversion: u64,
    /// Rows that were purged before, or looked at and found gone or changed.
    pub purged: u64,
    /// Rows that are held, and stay.
    pub held: u64,
}

/// Rows whose logs were made by the same conversion.
#[derive(Debug, Clone, PartialEq)]
pub struct ConvertedRows {
    /// Its JSON.
    pub conversion: serde_json::Value,
    pub rows: u64,
    pub batches: u64,
}

impl Ledger {
    /// What a purge of `window` would delete, by day (`2025-01-31`); days that the
    /// window cuts count as a whole. `kept_since`: earlier logs are
    /// not kept long enough; `None`: all are.
    pub async fn purge_plan(
        &self,
        window: &PurgeWindow,
        kept_since: Option<Timestamp>,
    ) -> anyhow::Result<BTreeMap<String, DayPlan>> {
        let context = || format!("add up what may be purged of {}", window.table);
        let mut tx = self.begin_relaxed().await?;
        let mut days = days_of_batches(&mut tx, window, kept_since).await.with_context(context)?;
        for (day, held) in held_by_day(&mut tx, window).await.with_context(context)? {
            days.entry(day).or_default().held = held;
        }
        Ok(days)
    }

    /// How the logs of the proved and kept rows of `window` were made.
    pub async fn purge_conversions(
        &self,
        window: &PurgeWindow,
        kept_since: Option<Timestamp>,
    ) -> anyhow::Result<Vec<ConvertedRows>> {
        let context = || format!("look up the conversions of {}", window.table);
        let mut tx = self.begin_relaxed().await?;
        let rows = pg::made_statement(&format!(
            "SELECT c.body, round(sum({LEFT_OF_DAY}))::int8 AS rows, \
             count(DISTINCT b.id) AS batches FROM sls_backfill.batch b \
             JOIN sls_backfill.batch_rows r ON r.batch_id = b.id \
             JOIN sls_backfill.conversion c ON c.id = b.conversion_id \
             CROSS JOIN LATERAL unnest(r.finished_days, r.day_rows) AS d(day, rows) \
             WHERE b.table_name = $1 AND {} AND b.revises IS NULL \
             AND b.finished_first < $2 AND ($3::timestamp IS NULL OR b.finished_last >= $3) \
             AND d.day <= $2::date AND ($3::timestamp IS NULL OR d.day >= $3::date) \
             AND {IS_KEPT} GROUP BY c.id ORDER BY c.id",
            is_proved_sql()
        ))
        .bind(window.table.name())
        .bind(window.until)
        .bind(window.since)
        .bind(kept_since)
        .fetch_all(&mut *tx)
        .await
        .with_context(context)?;
        rows.iter()
            .map(|row| {
                let (rows, batches) = (number(row, "rows")?, number(row, "batches")?);
                Ok(ConvertedRows { conversion: row.try_get("body")?, rows, batches })
            })
            .collect()
    }

    /// How many rows a second the latest purges of a table have deleted, proofs included; `None`:
    /// too few to tell. Between two batches that are further apart, nobody was at work.
    pub async fn purge_rows_per_s(&self, table: Table) -> anyhow::Result<Option<u64>> {
        let mut tx = self.begin_relaxed().await?;
        let row = pg::statement(
            "SELECT sum(rows) / nullif(sum(gap_s), 0) AS rows_per_s FROM \
             (SELECT purged_rows::float8 AS rows, extract(epoch FROM purged_at - \
               lag(purged_at) OVER (ORDER BY purged_at))::float8 AS gap_s FROM \
               (SELECT purged_at, purged_rows FROM sls_backfill.batch WHERE table_name = $1 \
                AND purged_at IS NOT NULL AND purged_rows > 0 \
                ORDER BY purged_at DESC LIMIT $2) AS latest) AS gaps \
             WHERE gap_s < $3 HAVING count(*) >= $4",
        )
        .bind(table.name())
        .bind(MEASURED_BATCHES_MAX)
        .bind(GAP_S_MAX)
        .bind(MEASURED_BATCHES_MIN)
        .fetch_optional(&mut *tx)
        .await
        .with_context(|| format!("look up how fast {table} was purged"))?;
        let rate: Option<f64> = row.map(|row| row.try_get("rows_per_s")).transpose()?.flatten();
        Ok(rate.map(|rate| (rate as u64).max(1)))
    }
}

/// What the batches of `window` say of its days.
async fn days_of_batches(
    tx: &mut Tx,
    window: &PurgeWindow,
    kept_since: Option<Timestamp>,
) -> anyhow::Result<BTreeMap<String, DayPlan>> {
    // What went into a logstore that is gone is not proved any more.
    let rows = pg::made_statement(&format!(
        "SELECT day::text AS day, \
         coalesce(round(sum(rows_left) FILTER (WHERE fit)), 0)::int8 AS proved, \
         coalesce(round(sum(bytes_left) FILTER (WHERE fit)), 0)::int8 AS proved_bytes, \
         count(*) FILTER (WHERE fit) AS proved_batches, \
         coalesce(sum(rows) FILTER (WHERE NOT proved AND NOT purged), 0)::int8 AS not_proved, \
         coalesce(round(sum(rows_left) FILTER (WHERE proved AND NOT kept)), 0)::int8 AS not_kept, \
         coalesce(round(sum(rows_left) FILTER (WHERE proved AND kept AND NOT known)), 0)::int8 \
           AS unknown, \
         (coalesce(sum(rows) FILTER (WHERE purged), 0) \
          + coalesce(round(sum(rows - rows_left) FILTER (WHERE proved)), 0))::int8 AS purged \
         FROM (SELECT d.day, d.rows, {LEFT_OF_DAY} AS rows_left, \
             {LEFT_OF_DAY} * b.raw_bytes / greatest(b.rows, 1) AS bytes_left, \
             p.proved, k.kept, b.conversion_id IS NOT NULL AS known, b.state = 'purged' AS purged, \
             p.proved AND k.kept AND b.conversion_id IS NOT NULL AS fit \
           FROM sls_backfill.batch b JOIN sls_backfill.batch_rows r ON r.batch_id = b.id \
           CROSS JOIN LATERAL unnest(r.finished_days, r.day_rows) AS d(day, rows) \
           CROSS JOIN LATERAL (SELECT {} AS proved) p \
           CROSS JOIN LATERAL (SELECT {IS_KEPT} AS kept) k \
           WHERE b.table_name = $1 AND b.state NOT IN ('split', 'abandoned') \
           AND b.revises IS NULL \
           AND b.finished_first < $2 AND ($3::timestamp IS NULL OR b.finished_last >= $3)) AS days \
         WHERE day <= $2::date AND ($3::timestamp IS NULL OR day >= $3::date) GROUP BY day",
        is_proved_sql()
    ))
    .bind(window.table.name())
    .bind(window.until)
    .bind(window.since)
    .bind(kept_since)
    .fetch_all(&mut **tx)
    .await?;
    let of_day = |row: &PgRow| {
        let day = DayPlan {
            proved: number(row, "proved")?,
            proved_bytes: number(row, "proved_bytes")?,
            proved_batches: number(row, "proved_batches")?,
            not_proved: number(row, "not_proved")?,
            not_kept: number(row, "not_kept")?,
            unknown_conversion: number(row, "unknown")?,
            purged: number(row, "purged")?,
            held: 0,
        };
        Ok((row.try_get("day")?, day))
    };
    rows.iter().map(of_day).collect()
}

/// How many rows of each day are held.
async fn held_by_day(tx: &mut Tx, window: &PurgeWindow) -> anyhow::Result<Vec<(String, u64)>> {
    let rows = pg::statement(
        "SELECT finished_at::date::text AS day, count(*) AS held FROM sls_backfill.hold \
         WHERE table_name = $1 AND state = 'open' AND finished_at < $2 \
         AND finished_at > '-infinity' AND ($3::timestamp IS NULL OR finished_at >= $3) \
         GROUP BY 1",
    )
    .bind(window.table.name())
    .bind(window.until)
    .bind(window.since)
    .fetch_all(&mut **tx)
    .await?;
    rows.iter().map(|row| Ok((row.try_get("day")?, number(row, "held")?))).collect()
}

fn number(row: &PgRow, name: &str) -> anyhow::Result<u64> {
    Ok(u64::try_from(row.try_get::<i64, _>(name)?)?)
}
