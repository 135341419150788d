//! Batches after their intent: which rows they hold, what became of them; and the lanes.

use std::collections::{BTreeMap, HashSet};

use anyhow::Context as _;
use futures::TryStreamExt as _;
use sqlx::Row as _;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::ledger::Ledger;
use crate::ledger::intent::id_number;
use crate::ledger::process::Process;
use crate::pg;
use crate::record::digest::Digest;
use crate::record::table::Table;
use crate::record::timestamp::Timestamp;

/// So many batches that overlap a page as a whole are read; with more, each row is looked up by
/// itself, which costs more but reads only batches that can hold it.
const OVERLAPS_MAX: i64 = 64;

/// A random hash key with numbers from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lane {
    pub id: i64,
    pub hash_key: String,
    /// The last number given to a batch.
    pub last_number: u64,
}

/// A batch that may or may not be in SLS, with all that is needed to find or repeat it.
#[derive(Debug, Clone)]
pub struct OpenBatch {
    pub id: Uuid,
    pub pass_id: i64,
    pub table: Table,
    pub row_ids: Vec<Uuid>,
    pub digest: Digest,
    /// The conversion's JSON.
    pub conversion: serde_json::Value,
    pub hash_key: String,
    pub number: u64,
    /// Unix seconds, SLS's clock.
    pub signed_at: i64,
    pub attempts: u32,
    /// Shard → a cursor that no log of this batch can precede.
    pub cursors: BTreeMap<u32, String>,
    pub ingest_time: u32,
}

impl Ledger {
    /// Makes a lane for one worker of `process`.
    pub async fn open_lane(
        &self,
        process: &Process,
        logstore: &str,
        hash_key: &str,
    ) -> anyhow::Result<Lane> {
        let mut tx = self.begin().await?;
        let row = pg::statement(
            "INSERT INTO sls_backfill.lane (process_id, logstore, hash_key) VALUES ($1, $2, $3) \
             RETURNING id",
        )
        .bind(process.id)
        .bind(logstore)
        .bind(hash_key)
        .fetch_one(&mut *tx)
        .await
        .context("open a lane")?;
        tx.commit().await.context("open a lane")?;
        Ok(Lane { id: row.try_get("id")?, hash_key: hash_key.to_owned(), last_number: 0 })
    }

    /// Which of these rows are held.
    pub async fn held(&self, table: Table, ids: Vec<Uuid>) -> anyhow::Result<HashSet<Uuid>> {
        let mut tx = self.begin_relaxed().await?;
        let rows = pg::statement(
            "SELECT row_id FROM sls_backfill.hold WHERE table_name = $1 AND row_id = ANY($2) \
             AND state = 'open'",
        )
        .bind(table.name())
        .bind(ids)
        .fetch_all(&mut *tx)
        .await
        .context("look for held rows")?;
        rows.iter().map(|row| Ok(row.try_get("row_id")?)).collect()
    }

    /// Which of these rows are in a live batch. Each row with its `created_at`.
    pub async fn batched(
        &self,
        table: Table,
        rows: &[(Uuid, Timestamp)],
    ) -> anyhow::Result<HashSet<Uuid>> {
        let mut known = HashSet::new();
        if rows.is_empty() {
            return Ok(known);
        }
        let mut tx = self.begin_relaxed().await?;
        let wanted: HashSet<Uuid> = rows.iter().map(|(id, _)| *id).collect();
        let numbers: Vec<i64> = rows.iter().map(|(id, _)| id_number(*id)).collect();
        let times: Vec<Timestamp> = rows.iter().map(|(_, at)| *at).collect();
        let overlaps = pg::statement(
            "SELECT row_ids FROM sls_backfill.batch WHERE table_name = $1 \
             AND state NOT IN ('split', 'abandoned') \
             AND created_span && tsrange($2, $3, '[]') AND id_span && int8range($4, $5, '[]') \
             LIMIT $6",
        )
        .bind(table.name())
        .bind(times.iter().min().copied())
        .bind(times.iter().max().copied())
        .bind(numbers.iter().min().copied())
        .bind(numbers.iter().max().copied())
        .bind(OVERLAPS_MAX + 1)
        .fetch_all(&mut *tx)
        .await
        .context("look for batches of these rows")?;
        if i64::try_from(overlaps.len())? <= OVERLAPS_MAX {
            for row in &overlaps {
                add_known(row, &wanted, &mut known)?;
            }
            return Ok(known);
        }
        let mut batches = pg::statement(
            "SELECT row_ids FROM sls_backfill.batch WHERE id IN (SELECT b.id \
             FROM unnest($2::timestamp[], $3::int8[]) AS h(at, number) \
             JOIN sls_backfill.batch b ON b.created_span @> h.at AND b.id_span @> h.number \
             WHERE b.table_name = $1 AND b.state NOT IN ('split', 'abandoned'))",
        )
        .bind(table.name())
        .bind(times)
        .bind(numbers)
        .fetch(&mut *tx);
        while let Some(row) = batches.try_next().await.context("look for batches of these rows")? {
            add_known(&row, &wanted, &mut known)?;
        }
        Ok(known)
    }

    /// A batch is in SLS: it said so, or its logs were seen there.
    pub async fn stored(&self, batch_id: Uuid, request_id: Option<&str>) -> anyhow::Result<()> {
        // If a crash of Postgres loses this, the batch is settled like an unknown attempt.
        let mut tx = self.begin_relaxed().await?;
        pg::statement(
            "UPDATE sls_backfill.batch SET state = 'stored', request_id = $2, \
             stored_at = clock_timestamp() WHERE id = $1 AND state = 'intent'",
        )
        .bind(batch_id)
        .bind(request_id)
        .execute(&mut *tx)
        .await
        .with_context(|| format!("acknowledge batch {batch_id}"))?;
        tx.commit().await.with_context(|| format!("acknowledge batch {batch_id}"))
    }

    /// A batch is about to be signed anew; the date is on disk before it is on the wire. Gives
    /// `false` when the batch is known to be stored, so that nothing need be sent.
    pub async fn signed_anew(&self, batch_id: Uuid, signed_at: i64) -> anyhow::Result<bool> {
        let mut tx = self.begin().await?;
        let renewed = pg::statement(
            "UPDATE sls_backfill.batch SET signed_at = to_timestamp($2), attempts = attempts + 1 \
             WHERE id = $1 AND state = 'intent'",
        )
        .bind(batch_id)
        .bind(signed_at as f64)
        .execute(&mut *tx)
        .await
        .with_context(|| format!("renew the signature of batch {batch_id}"))?;
        tx.commit().await.with_context(|| format!("renew the signature of batch {batch_id}"))?;
        Ok(renewed.rows_affected() == 1)
    }

    /// Intents of processes that have ended: what became of them is unknown.
    pub async fn orphaned_intents(&self) -> anyhow::Result<Vec<OpenBatch>> {
        let mut tx = self.begin().await?;
        let rows = pg::statement(
            "SELECT b.id, b.pass_id, b.table_name, b.row_ids, b.digest, b.cursors, b.number, \
             b.ingest_time, b.attempts, extract(epoch FROM b.signed_at)::int8 AS signed_at, \
             c.body, l.hash_key FROM sls_backfill.batch b \
             JOIN sls_backfill.conversion c ON c.id = b.conversion_id \
             JOIN sls_backfill.lane l ON l.id = b.lane_id \
             JOIN sls_backfill.process p ON p.id = l.process_id \
             WHERE b.state = 'intent' AND p.ended_at IS NOT NULL ORDER BY b.id",
        )
        .fetch_all(&mut *tx)
        .await
        .context("look for intents of processes that have ended")?;
        rows.iter().map(open_batch).collect()
    }

    /// How many batches of the table may or may not be in SLS.
    pub async fn intents(&self, table: Table) -> anyhow::Result<u64> {
        let mut tx = self.begin().await?;
        let row = pg::statement(
            "SELECT count(*) AS intents FROM sls_backfill.batch \
             WHERE table_name = $1 AND state = 'intent'",
        )
        .bind(table.name())
        .fetch_one(&mut *tx)
        .await
        .context("count open intents")?;
        Ok(u64::try_from(row.try_get::<i64, _>("intents")?)?)
    }
}

fn add_known(row: &PgRow, wanted: &HashSet<Uuid>, known: &mut HashSet<Uuid>) -> anyhow::Result<()> {
    known.extend(ids(row.try_get("row_ids")?).filter(|id| wanted.contains(id)));
    Ok(())
}

fn ids(row_ids: &[u8]) -> impl Iterator<Item = Uuid> {
    row_ids
        .chunks_exact(16)
        .map(|id| Uuid::from_bytes(id.try_into().expect("a chunk has 16 bytes")))
}

fn open_batch(row: &PgRow) -> anyhow::Result<OpenBatch> {
    let digest: &[u8] = row.try_get("digest")?;
    let table: &str = row.try_get("table_name")?;
    Ok(OpenBatch {
        id: row.try_get("id")?,
        pass_id: row.try_get("pass_id")?,
        table: Table::from_name(table).context("the ledger names an unknown table")?,
        row_ids: ids(row.try_get("row_ids")?).collect(),
        digest: Digest::from_bytes(digest.try_into().context("a digest has 32 bytes")?),
        conversion: row.try_get("body")?,
        hash_key: row.try_get("hash_key")?,
        number: u64::try_from(row.try_get::<i64, _>("number")?)?,
        signed_at: row.try_get("signed_at")?,
        attempts: u32::try_from(row.try_get::<i32, _>("attempts")?)?,
        cursors: serde_json::from_value(row.try_get("cursors")?)?,
        ingest_time: u32::try_from(row.try_get::<i64, _>("ingest_time")?)?,
    })
}
