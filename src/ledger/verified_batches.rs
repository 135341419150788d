//! Batches as a verification needs them: to be judged by what SLS holds, or compared with Postgres.

use anyhow::Context as _;
use sqlx::Row as _;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::ledger::Ledger;
use crate::ledger::batch_rows::ids;
use crate::ledger::day_counts::has_bit;
use crate::ledger::generation::current_sql;
use crate::ledger::sighting::sum_of;
use crate::ledger::verification::Verification;
use crate::pg;
use crate::record::digest::Sum;

/// What the ledger says of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It is in SLS.
    Stored,
    /// It may be in SLS, or come.
    Open,
    /// Nothing of it is in SLS: it was split or abandoned, its rows went elsewhere.
    GivenUp,
    /// It was in SLS and is not any more; its rows were not sent again.
    Lost,
    /// It was in a logstore that is gone, and its TTL was over by then.
    Earlier,
}

/// A batch to be judged.
#[derive(Debug, Clone)]
pub struct BatchToJudge {
    pub id: Uuid,
    /// First half of its tag.
    pub ledger_id: Uuid,
    pub standing: Standing,
    /// Whether that was so when the verification began.
    pub is_noted: bool,
    /// What SLS should hold of it.
    pub wanted: Sum,
    /// Whether the ledger knows its digest: without it nothing proves the batch.
    pub has_digest: bool,
    /// Unix seconds, SLS's clock; `None`: not known.
    pub signed_at: Option<i64>,
    /// When it was known to be stored; Unix seconds.
    pub received_by: i64,
    pub attempts: i32,
}

/// A batch whose rows are to be compared with Postgres.
#[derive(Debug, Clone)]
pub struct BatchToCompare {
    pub id: Uuid,
    pub ledger_id: Uuid,
    pub row_ids: Vec<Uuid>,
    /// Those of its rows that are known to have left Postgres.
    pub left: Vec<Uuid>,
    pub wanted: Sum,
    pub raw_bytes: u64,
    /// `None`: not known by which conversion it was made.
    pub conversion: Option<(i64, serde_json::Value)>,
    /// Unix seconds.
    pub ingest_time: u32,
}

/// The batches of a verification's scope, `b`; its parameters are $1 to $6.
const IN_SCOPE: &str = "b.table_name = $1 AND b.id > $2 \
    AND ($3::timestamp IS NULL OR b.finished_last >= $3) \
    AND ($4::timestamp IS NULL OR b.finished_first < $4) \
    AND ($5::float8 IS NULL OR NOT EXISTS (SELECT FROM sls_backfill.proof p \
      WHERE p.batch_id = b.id AND p.generation = (SELECT max(g.number) \
        FROM sls_backfill.generation g WHERE g.logstore = b.logstore) \
      AND p.proved_at <= to_timestamp($6::float8 / 1000000) \
      AND p.proved_at > to_timestamp($6::float8 / 1000000) - make_interval(secs => $5)))";

/// Columns of [`BatchToJudge`].
const TO_JUDGE: &str = "SELECT b.id, b.ledger_id, b.state, b.rows::int8 AS rows, \
    coalesce(b.digest, decode(repeat('00', 32), 'hex')) AS digest, \
    b.digest IS NOT NULL AS has_digest, 1 AS groups, b.attempts, \
    extract(epoch FROM b.signed_at)::int8 AS signed_at, \
    extract(epoch FROM coalesce(b.stored_at, b.intended_at))::int8 AS received_by, \
    b.stored_at <= to_timestamp($6::float8 / 1000000) AS is_noted, \
    b.generation < (SELECT max(g.number) FROM sls_backfill.generation g \
      WHERE g.logstore = b.logstore) AS is_earlier FROM sls_backfill.batch b";

/// Columns of [`BatchToCompare`].
const TO_COMPARE: &str = "SELECT b.id, b.ledger_id, b.rows::int8 AS rows, \
    coalesce(b.digest, decode(repeat('00', 32), 'hex')) AS digest, 1 AS groups, b.raw_bytes, \
    b.conversion_id, c.body, b.ingest_time, r.row_ids, r.purged, r.gone \
    FROM sls_backfill.batch b JOIN sls_backfill.batch_rows r ON r.batch_id = b.id \
    LEFT JOIN sls_backfill.conversion c ON c.id = b.conversion_id";

impl Ledger {
    /// About how many rows the batches of the scope have, and when the first of them was intended
    /// (Unix seconds); `None`: there is no batch, or one whose time of sending is not known.
    pub async fn scope_size(
        &self,
        verification: &Verification,
    ) -> anyhow::Result<(u64, Option<i64>)> {
        let mut tx = self.begin_count().await?;
        let sql = format!(
            "SELECT coalesce(sum(b.rows), 0)::int8 AS rows, \
             bool_or(b.adopted_by IS NOT NULL) AS adopted, \
             extract(epoch FROM min(b.intended_at))::int8 AS first \
             FROM sls_backfill.batch b WHERE {IN_SCOPE}"
        );
        let row = bind_scope(&sql, verification, Uuid::nil())
            .fetch_one(&mut *tx)
            .await
            .context("look how much there is to verify")?;
        let first: Option<i64> = row.try_get("first")?;
        let is_adopted = row.try_get::<Option<bool>, _>("adopted")?.unwrap_or(false);
        let rows = u64::try_from(row.try_get::<i64, _>("rows")?)?;
        Ok((rows, first.filter(|_| !is_adopted)))
    }

    /// The next batches of the scope behind `after`, at most `limit`, in the order of ids.
    pub async fn batches_to_judge(
        &self,
        verification: &Verification,
        after: Uuid,
        limit: u32,
    ) -> anyhow::Result<Vec<BatchToJudge>> {
        let sql = format!("{TO_JUDGE} WHERE {IN_SCOPE} ORDER BY b.id LIMIT {limit}");
        let mut tx = self.begin_relaxed().await?;
        let rows = bind_scope(&sql, verification, after)
            .fetch_all(&mut *tx)
            .await
            .context("list batches to judge")?;
        rows.iter().map(|row| self.batch_to_judge(row)).collect()
    }

    /// The next batches of the scope behind `after` whose rows should still be in Postgres, at most
    /// `limit`, in the order of ids.
    pub async fn batches_to_compare(
        &self,
        verification: &Verification,
        after: Uuid,
        limit: u32,
    ) -> anyhow::Result<Vec<BatchToCompare>> {
        let sql = format!(
            "{TO_COMPARE} WHERE {IN_SCOPE} \
             AND b.state NOT IN ('split', 'abandoned', 'purging', 'purged') \
             ORDER BY b.id LIMIT {limit}"
        );
        let mut tx = self.begin_relaxed().await?;
        let rows = bind_scope(&sql, verification, after)
            .fetch_all(&mut *tx)
            .await
            .context("list batches to compare")?;
        rows.iter().map(|row| self.batch_to_compare(row)).collect()
    }

    /// Some batches of the scope behind `after` that are in SLS, chosen by `seed`, about `share`
    /// hundredths of a percent of all; at most `limit`, in the order of ids.
    pub async fn sampled_batches(
        &self,
        verification: &Verification,
        (share, seed): (u32, i64),
        after: Uuid,
        limit: u32,
    ) -> anyhow::Result<Vec<BatchToCompare>> {
        let sql = format!(
            "{TO_COMPARE} WHERE {IN_SCOPE} AND b.state IN ('stored', 'proved') \
             AND (hashtextextended(b.id::text, $7) & 9223372036854775807) % 10000 < $8 \
             ORDER BY b.id LIMIT {limit}"
        );
        let mut tx = self.begin_relaxed().await?;
        let rows = bind_scope(&sql, verification, after)
            .bind(seed)
            .bind(i64::from(share))
            .fetch_all(&mut *tx)
            .await
            .context("choose batches")?;
        rows.iter().map(|row| self.batch_to_compare(row)).collect()
    }

    /// Where a batch can be looked for in its logstore as it is now: shard, a cursor in front of it,
    /// and one behind it where that is known. From its proof; else from what the tail reader saw;
    /// else from its intent.
    pub async fn places(
        &self,
        batch_id: Uuid,
    ) -> anyhow::Result<Vec<(u32, String, Option<String>)>> {
        let mut tx = self.begin_relaxed().await?;
        let rows = pg::made_statement(&format!(
            "WITH b AS (SELECT id, logstore, cursors, generation, {} AS now_ \
               FROM sls_backfill.batch WHERE id = $1) \
             SELECT p.shard, p.first_cursor AS cursor, p.end_cursor, 1 AS nth \
             FROM sls_backfill.proof p JOIN b ON p.batch_id = b.id AND p.generation = b.now_ \
             UNION ALL SELECT s.shard, s.first_cursor, NULL, 2 FROM sls_backfill.sighting s \
             JOIN b ON s.batch_id = b.id AND s.logstore = b.logstore AND s.generation = b.now_ \
             UNION ALL SELECT c.key::int4, c.value, NULL, 3 FROM b, \
             jsonb_each_text(b.cursors) c WHERE b.generation = b.now_ ORDER BY nth, shard",
            current_sql("batch.logstore")
        ))
        .bind(batch_id)
        .fetch_all(&mut *tx)
        .await
        .with_context(|| format!("look up where batch {batch_id} lies"))?;
        let best: Option<i32> = rows.first().map(|row| row.try_get("nth")).transpose()?;
        let mut places = Vec::new();
        for row in &rows {
            if Some(row.try_get("nth")?) == best {
                let shard = u32::try_from(row.try_get::<i32, _>("shard")?)?;
                places.push((shard, row.try_get("cursor")?, row.try_get("end_cursor")?));
            }
        }
        Ok(places)
    }

    /// One batch, whatever its state.
    pub async fn batch_to_compare_of(
        &self,
        batch_id: Uuid,
    ) -> anyhow::Result<Option<BatchToCompare>> {
        let mut tx = self.begin_relaxed().await?;
        let row = pg::made_statement(&format!("{TO_COMPARE} WHERE b.id = $1"))
            .bind(batch_id)
            .fetch_optional(&mut *tx)
            .await
            .with_context(|| format!("look up batch {batch_id}"))?;
        row.map(|row| self.batch_to_compare(&row)).transpose()
    }

    fn batch_to_judge(&self, row: &PgRow) -> anyhow::Result<BatchToJudge> {
        let ledger_id: Option<Uuid> = row.try_get("ledger_id")?;
        Ok(BatchToJudge {
            id: row.try_get("id")?,
            ledger_id: ledger_id.unwrap_or(self.id),
            standing: match row.try_get::<&str, _>("state")? {
                "intent" => Standing::Open,
                "split" | "abandoned" => Standing::GivenUp,
                "lost" => Standing::Lost,
                _ if row.try_get("is_earlier")? => Standing::Earlier,
                _ => Standing::Stored,
            },
            is_noted: row.try_get::<Option<bool>, _>("is_noted")?.unwrap_or(false),
            wanted: sum_of(row)?,
            has_digest: row.try_get("has_digest")?,
            signed_at: row.try_get("signed_at")?,
            received_by: row.try_get("received_by")?,
            attempts: row.try_get("attempts")?,
        })
    }

    fn batch_to_compare(&self, row: &PgRow) -> anyhow::Result<BatchToCompare> {
        let ledger_id: Option<Uuid> = row.try_get("ledger_id")?;
        let bits = |name: &str| -> anyhow::Result<Vec<u8>> {
            Ok(row.try_get::<Option<Vec<u8>>, _>(name)?.unwrap_or_default())
        };
        let (purged, gone) = (bits("purged")?, bits("gone")?);
        let row_ids: Vec<Uuid> = ids(row.try_get("row_ids")?).collect();
        let has_left = |nth: usize| has_bit(&purged, nth) || has_bit(&gone, nth);
        let left = row_ids.iter().enumerate().filter(|(nth, _)| has_left(*nth)).map(|(_, id)| *id);
        let conversion_id: Option<i64> = row.try_get("conversion_id")?;
        Ok(BatchToCompare {
            id: row.try_get("id")?,
            ledger_id: ledger_id.unwrap_or(self.id),
            left: left.collect(),
            row_ids,
            wanted: sum_of(row)?,
            raw_bytes: u64::try_from(row.try_get::<i64, _>("raw_bytes")?)?,
            conversion: conversion_id.zip(row.try_get("body")?),
            ingest_time: u32::try_from(row.try_get::<i64, _>("ingest_time")?)?,
        })
    }
}

fn bind_scope(
    sql: &str,
    verification: &Verification,
    after: Uuid,
) -> sqlx::query::Query<'static, sqlx::Postgres, sqlx::postgres::PgArguments> {
    let scope = &verification.scope;
    pg::made_statement(sql)
        .bind(verification.table.name())
        .bind(after)
        .bind(scope.since)
        .bind(scope.until)
        .bind(scope.unproved_s.map(|s| s as f64))
        .bind(verification.noted_at_us as f64)
}
