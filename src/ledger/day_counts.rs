//! What the ledger says of each day: rows in batches, by the day on which they finished, and rows
//! held.

use std::collections::BTreeMap;

use anyhow::Context as _;
use sqlx::Row as _;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::ledger::Ledger;
use crate::ledger::batch_rows::ids;
use crate::ledger::generation::current_sql;
use crate::pg::{self, Tx};
use crate::record::day::Day;
use crate::record::hold::HoldReason;
use crate::record::table::Table;

/// What the ledger says of a day. `None` as a day: no finish time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LedgerDay {
    /// Rows of batches that are in SLS.
    pub stored: u64,
    /// Rows of batches that may or may not be.
    pub open: u64,
    /// Rows of batches that certainly are not any more.
    pub lost: u64,
    /// Rows held whose finish time does not change any more.
    pub held: u64,
}

/// A batch of which a purge has deleted rows, or found them gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PurgedBatch {
    pub days: BTreeMap<Day, u64>,
    /// Its rows that a purge has left in Postgres.
    pub left: Vec<Uuid>,
}

/// By which log times the batches of a table can be found in SLS; Unix seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogTimes {
    /// First and last time of sending, of batches whose logs bear it.
    pub ingest: Option<(i64, i64)>,
}

impl Ledger {
    /// The days of `table`, in one snapshot.
    pub async fn days(&self, table: Table) -> anyhow::Result<BTreeMap<Option<Day>, LedgerDay>> {
        let context = || format!("add up the days of {table}");
        let mut tx = self.begin_count().await?;
        let mut days = batched_days(&mut tx, table).await.with_context(context)?;
        let held = pg::statement(
            "SELECT CASE WHEN isfinite(finished_at) \
               THEN (finished_at::date - DATE '2000-01-01')::int4 END AS day, count(*) AS rows \
             FROM sls_backfill.hold WHERE table_name = $1 AND state = 'open' \
             AND finished_at IS NOT NULL AND reason <> $2 GROUP BY 1",
        )
        .bind(table.name())
        .bind(HoldReason::Running.name())
        .fetch_all(&mut *tx)
        .await
        .with_context(context)?;
        for row in &held {
            days.entry(day(row)?).or_default().held += count(row, "rows")?;
        }
        Ok(days)
    }

    /// How many rows of `table` are held and may have finished since, and when one was last held:
    /// what `days` leaves out has not changed while this is the same.
    pub async fn unsettled_state(&self, table: Table) -> anyhow::Result<(i64, i64)> {
        let mut tx = self.begin_count().await?;
        let row = pg::statement(
            "SELECT count(*) AS rows, \
             coalesce((extract(epoch FROM max(last_held_at)) * 1000000)::int8, 0) AS last \
             FROM sls_backfill.hold WHERE table_name = $1 AND state = 'open' \
             AND (finished_at IS NULL OR reason = $2)",
        )
        .bind(table.name())
        .bind(HoldReason::Running.name())
        .fetch_one(&mut *tx)
        .await
        .with_context(|| format!("count the held rows of {table}"))?;
        Ok((row.try_get("rows")?, row.try_get("last")?))
    }

    /// The next rows of `table` behind `after` that are held and may have finished since, at most
    /// `limit`, in the order of ids.
    pub async fn unsettled_holds(
        &self,
        table: Table,
        after: Uuid,
        limit: u32,
    ) -> anyhow::Result<Vec<Uuid>> {
        let mut tx = self.begin_relaxed().await?;
        let rows = pg::statement(
            "SELECT row_id FROM sls_backfill.hold WHERE table_name = $1 AND row_id > $2 \
             AND state = 'open' AND (finished_at IS NULL OR reason = $3) \
             ORDER BY row_id LIMIT $4",
        )
        .bind(table.name())
        .bind(after)
        .bind(HoldReason::Running.name())
        .bind(i64::from(limit))
        .fetch_all(&mut *tx)
        .await
        .with_context(|| format!("list the held rows of {table}"))?;
        rows.iter().map(|row| Ok(row.try_get("row_id")?)).collect()
    }

    /// The next batches of `table` behind `after` of which rows have left Postgres by our doing or
    /// with our knowledge, at most `limit`, in the order of ids.
    pub async fn purged_batches(
        &self,
        table: Table,
        after: Uuid,
        limit: u32,
    ) -> anyhow::Result<Vec<(Uuid, PurgedBatch)>> {
        let mut tx = self.begin_relaxed().await?;
        let rows = pg::statement(
            "SELECT b.id, r.row_ids, r.purged, r.gone, r.day_rows, \
             ARRAY(SELECT (d - DATE '2000-01-01')::int4 FROM unnest(r.finished_days) d) AS days \
             FROM sls_backfill.batch b JOIN sls_backfill.batch_rows r ON r.batch_id = b.id \
             WHERE b.table_name = $1 AND b.id > $2 AND b.state NOT IN ('split', 'abandoned') \
             AND (r.purged IS NOT NULL OR r.gone IS NOT NULL) ORDER BY b.id LIMIT $3",
        )
        .bind(table.name())
        .bind(after)
        .bind(i64::from(limit))
        .fetch_all(&mut *tx)
        .await
        .with_context(|| format!("look for purged rows of {table}"))?;
        rows.iter().map(|row| Ok((row.try_get("id")?, purged_batch(row)?))).collect()
    }

    /// By which log times the live batches of `table` are to be looked for.
    pub async fn log_times(&self, table: Table) -> anyhow::Result<LogTimes> {
        let mut tx = self.begin_relaxed().await?;
        let row = pg::statement(
            "SELECT min(b.ingest_time) AS first, max(b.ingest_time) AS last \
             FROM sls_backfill.batch b JOIN sls_backfill.conversion c ON c.id = b.conversion_id \
             WHERE b.table_name = $1 AND b.state NOT IN ('split', 'abandoned') \
             AND c.body ->> 'log_time' = 'ingest'",
        )
        .bind(table.name())
        .fetch_one(&mut *tx)
        .await
        .with_context(|| format!("look up the log times of {table}"))?;
        let first: Option<i64> = row.try_get("first")?;
        let last: Option<i64> = row.try_get("last")?;
        Ok(LogTimes { ingest: first.zip(last) })
    }
}

async fn batched_days(
    tx: &mut Tx,
    table: Table,
) -> anyhow::Result<BTreeMap<Option<Day>, LedgerDay>> {
    // What went into a logstore that is gone is lost, whether or not its TTL was over by then.
    let rows = pg::made_statement(&format!(
        "SELECT (d.day - DATE '2000-01-01')::int4 AS day, \
         coalesce(sum(d.rows) FILTER (WHERE NOT open AND NOT lost), 0)::int8 AS stored, \
         coalesce(sum(d.rows) FILTER (WHERE open), 0)::int8 AS open, \
         coalesce(sum(d.rows) FILTER (WHERE lost), 0)::int8 AS lost \
         FROM (SELECT id, state = 'intent' AS open, state = 'lost' OR (state <> 'intent' \
             AND generation < {}) AS lost FROM sls_backfill.batch b \
           WHERE table_name = $1 AND state NOT IN ('split', 'abandoned')) b \
         JOIN sls_backfill.batch_rows r ON r.batch_id = b.id \
         CROSS JOIN LATERAL unnest(r.finished_days, r.day_rows) AS d(day, rows) GROUP BY 1",
        current_sql("b.logstore")
    ))
    .bind(table.name())
    .fetch_all(&mut **tx)
    .await?;
    rows.iter()
        .map(|row| {
            let counts = LedgerDay {
                stored: count(row, "stored")?,
                open: count(row, "open")?,
                lost: count(row, "lost")?,
                held: 0,
            };
            Ok((day(row)?, counts))
        })
        .collect()
}

fn purged_batch(row: &PgRow) -> anyhow::Result<PurgedBatch> {
    let days: Vec<i32> = row.try_get("days")?;
    let day_rows: Vec<i32> = row.try_get("day_rows")?;
    let bits = |name: &str| -> anyhow::Result<Vec<u8>> {
        Ok(row.try_get::<Option<Vec<u8>>, _>(name)?.unwrap_or_default())
    };
    let (purged, gone) = (bits("purged")?, bits("gone")?);
    let left = ids(row.try_get("row_ids")?)
        .enumerate()
        .filter(|(nth, _)| !has_bit(&purged, *nth) && !has_bit(&gone, *nth));
    Ok(PurgedBatch {
        left: left.map(|(_, id)| id).collect(),
        days: days
            .into_iter()
            .zip(day_rows)
            .map(|(day, rows)| Ok((Day::from_postgres(day), u64::try_from(rows)?)))
            .collect::<anyhow::Result<_>>()?,
    })
}

/// Whether bit `nth` is set; the highest bit of a byte comes first.
pub(in crate::ledger) fn has_bit(bits: &[u8], nth: usize) -> bool {
    bits.get(nth / 8).is_some_and(|byte| byte & (0x80 >> (nth % 8)) != 0)
}

fn day(row: &PgRow) -> anyhow::Result<Option<Day>> {
    Ok(row.try_get::<Option<i32>, _>("day")?.map(Day::from_postgres))
}

fn count(row: &PgRow, name: &str) -> anyhow::Result<u64> {
    Ok(u64::try_from(row.try_get::<i64, _>(name)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_those_of_the_ledger() {
        let bits = [0x80, 0x41, 0];
        let set: Vec<_> = (0..40).filter(|nth| has_bit(&bits, *nth)).collect();
        assert_eq!(set, [0, 9, 15]);
    }
}
