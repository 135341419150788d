//! What a purge would delete, by day, from the ledger alone.

use std::collections::BTreeMap;

use anyhow::Context as _;
use serde::Serialize;
use sqlx::Row as _;
use sqlx::postgres::PgRow;

use crate::ledger::Ledger;
use crate::ledger::generation::current_sql;
use crate::ledger::purge::PurgeWindow;
use crate::pg;
use crate::record::timestamp::Timestamp;

/// The rows of one UTC day of `finished_at`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct DayPlan {
    /// Rows whose logs were all seen in SLS, and are kept long enough.
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
    /// Rows of batches that were purged before.
    pub purged: u64,
    /// Rows that are held, and stay.
    pub held: u64,
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
        // What went into a logstore that is gone is not proved any more.
        let batches = pg::made_statement(&format!(
            "SELECT d.day::text AS day, \
             coalesce(sum(d.rows) FILTER (WHERE fit), 0)::int8 AS proved, \
             coalesce(sum(raw_bytes * d.rows / greatest(batch_rows, 1)) FILTER (WHERE fit), 0)::int8 \
               AS proved_bytes, \
             count(*) FILTER (WHERE fit) AS proved_batches, \
             coalesce(sum(d.rows) FILTER (WHERE NOT proved AND NOT purged), 0)::int8 AS not_proved, \
             coalesce(sum(d.rows) FILTER (WHERE proved AND NOT kept), 0)::int8 AS not_kept, \
             coalesce(sum(d.rows) FILTER (WHERE proved AND kept AND NOT known), 0)::int8 AS unknown, \
             coalesce(sum(d.rows) FILTER (WHERE purged), 0)::int8 AS purged \
             FROM (SELECT r.finished_days, r.day_rows, b.raw_bytes, b.rows AS batch_rows, \
                 p.proved, b.state = 'purged' AS purged, \
                 $4::timestamp IS NULL OR (b.finished_first >= $4 \
                   AND (b.intended_at AT TIME ZONE 'UTC') >= $4) AS kept, \
                 b.conversion_id IS NOT NULL AS known, \
                 p.proved AND b.conversion_id IS NOT NULL \
                   AND ($4::timestamp IS NULL OR (b.finished_first >= $4 \
                     AND (b.intended_at AT TIME ZONE 'UTC') >= $4)) AS fit \
               FROM sls_backfill.batch b JOIN sls_backfill.batch_rows r ON r.batch_id = b.id \
               CROSS JOIN LATERAL (SELECT b.state IN ('proved', 'purging') \
                 AND b.generation = {} AS proved) p \
               WHERE b.table_name = $1 AND b.state NOT IN ('split', 'abandoned') \
               AND b.finished_first < $2 AND ($3::timestamp IS NULL OR b.finished_last >= $3)) AS b \
             CROSS JOIN LATERAL unnest(b.finished_days, b.day_rows) AS d(day, rows) \
             WHERE d.day <= $2::date AND ($3::timestamp IS NULL OR d.day >= $3::date) \
             GROUP BY d.day",
            current_sql("b.logstore")
        ))
        .bind(window.table.name())
        .bind(window.until)
        .bind(window.since)
        .bind(kept_since)
        .fetch_all(&mut *tx)
        .await
        .with_context(context)?;
        let mut days = BTreeMap::new();
        for row in &batches {
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
            days.insert(row.try_get("day")?, day);
        }
        let holds = pg::statement(
            "SELECT finished_at::date::text AS day, count(*) AS held FROM sls_backfill.hold \
             WHERE table_name = $1 AND state = 'open' AND finished_at < $2 \
             AND finished_at > '-infinity' AND ($3::timestamp IS NULL OR finished_at >= $3) \
             GROUP BY 1",
        )
        .bind(window.table.name())
        .bind(window.until)
        .bind(window.since)
        .fetch_all(&mut *tx)
        .await
        .with_context(context)?;
        for row in &holds {
            let day: &mut DayPlan = days.entry(row.try_get("day")?).or_default();
            day.held = number(row, "held")?;
        }
        Ok(days)
    }
}

fn number(row: &PgRow, name: &str) -> anyhow::Result<u64> {
    Ok(u64::try_from(row.try_get::<i64, _>(name)?)?)
}
