//! Batches in the book: which rows they hold; and the lanes they are sent on.

use std::collections::HashSet;

use anyhow::Context as _;
use futures::TryStreamExt as _;
use sqlx::Row as _;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::ledger::intent::id_number;
use crate::ledger::process::Process;
use crate::ledger::{Ledger, Tx};
use crate::pg;
use crate::record::table::Table;
use crate::record::timestamp::Timestamp;

/// So many batches that overlap a page as a whole are read; with more, each row is looked up by
/// itself, which costs more but reads only batches that can hold it.
const OVERLAPS_MAX: i64 = 64;

/// SLS remembers the last numbers of 10,000 keys a shard (facts of LoongCollector's exactly-once
/// writes); old ones must not be pushed out while their batches are open.
pub const KEYS_PER_HOUR_MAX: i64 = 256;

/// A random hash key with numbers from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lane {
    pub id: i64,
    pub hash_key: String,
    /// The last number given to a batch.
    pub last_number: u64,
}

impl Ledger {
    /// Makes a lane for one worker of `process`. Gives `None` when 256 new keys
    /// were made for the logstore in the last hour.
    pub async fn open_lane(
        &self,
        process: &Process,
        logstore: &str,
        hash_key: &str,
    ) -> anyhow::Result<Option<Lane>> {
        let mut tx = self.begin().await?;
        let row = pg::statement(
            "INSERT INTO sls_backfill.lane (process_id, logstore, hash_key) SELECT $1, $2, $3 \
             WHERE (SELECT count(*) FROM sls_backfill.lane WHERE logstore = $2 \
               AND opened_at > now() - interval '1 hour') < $4 RETURNING id",
        )
        .bind(process.id)
        .bind(logstore)
        .bind(hash_key)
        .bind(KEYS_PER_HOUR_MAX)
        .fetch_optional(&mut *tx)
        .await
        .context("open a lane")?;
        tx.commit().await.context("open a lane")?;
        let Some(row) = row else { return Ok(None) };
        Ok(Some(Lane { id: row.try_get("id")?, hash_key: hash_key.to_owned(), last_number: 0 }))
    }

    /// Which of these rows are held, unless `know_held` is false, or in a live batch: in one
    /// snapshot, for a row may be passed from the one to the other. Each row with its `created_at`.
    pub async fn known(
        &self,
        table: Table,
        rows: &[(Uuid, Timestamp)],
        know_held: bool,
    ) -> anyhow::Result<HashSet<Uuid>> {
        let mut known = HashSet::new();
        if rows.is_empty() {
            return Ok(known);
        }
        let mut tx = self.begin_snapshot().await?;
        let wanted: HashSet<Uuid> = rows.iter().map(|(id, _)| *id).collect();
        let numbers = rows.iter().map(|(id, _)| id_number(*id));
        let times = rows.iter().map(|(_, at)| *at);
        let overlaps = pg::statement(
            "SELECT row_ids AS ids FROM sls_backfill.batch WHERE table_name = $1 \
             AND state NOT IN ('split', 'abandoned') \
             AND created_span && tsrange($2, $3, '[]') AND id_span && int8range($4, $5, '[]') \
             LIMIT $6",
        )
        .bind(table.name())
        .bind(times.clone().min())
        .bind(times.max())
        .bind(numbers.clone().min())
        .bind(numbers.max())
        .bind(OVERLAPS_MAX + 1)
        .fetch_all(&mut *tx)
        .await
        .context("look for batches of these rows")?;
        overlaps.iter().try_for_each(|row| add_known(row, &wanted, &mut known))?;
        if i64::try_from(overlaps.len())? > OVERLAPS_MAX {
            add_batched(&mut tx, table, rows, &wanted, &mut known).await?;
        }
        if know_held {
            add_held(&mut tx, table, rows, &wanted, &mut known).await?;
        }
        Ok(known)
    }

    /// How many batches of the table may or may not be in SLS, but for those that another process
    /// whose lease runs is about to send.
    pub async fn intents(&self, process: &Process, table: Table) -> anyhow::Result<u64> {
        let mut tx = self.begin().await?;
        let row = pg::statement(
            "SELECT count(*) AS intents FROM sls_backfill.batch \
             WHERE table_name = $1 AND state = 'intent' AND NOT EXISTS \
               (SELECT FROM sls_backfill.process p WHERE p.id = owner AND p.id <> $2 \
                AND p.ended_at IS NULL AND p.lease_until >= clock_timestamp())",
        )
        .bind(table.name())
        .bind(process.id)
        .fetch_one(&mut *tx)
        .await
        .context("count open intents")?;
        Ok(u64::try_from(row.try_get::<i64, _>("intents")?)?)
    }
}

/// Looks up each row by itself in the live batches.
async fn add_batched(
    tx: &mut Tx,
    table: Table,
    rows: &[(Uuid, Timestamp)],
    wanted: &HashSet<Uuid>,
    known: &mut HashSet<Uuid>,
) -> anyhow::Result<()> {
    let mut batches = pg::statement(
        "SELECT row_ids AS ids FROM sls_backfill.batch WHERE id IN (SELECT b.id \
         FROM unnest($2::timestamp[], $3::int8[]) AS h(at, number) \
         JOIN sls_backfill.batch b ON b.created_span @> h.at AND b.id_span @> h.number \
         WHERE b.table_name = $1 AND b.state NOT IN ('split', 'abandoned'))",
    )
    .bind(table.name())
    .bind(rows.iter().map(|(_, at)| *at).collect::<Vec<_>>())
    .bind(rows.iter().map(|(id, _)| id_number(*id)).collect::<Vec<_>>())
    .fetch(&mut **tx);
    while let Some(row) = batches.try_next().await.context("look for batches of these rows")? {
        add_known(&row, wanted, known)?;
    }
    Ok(())
}

/// Looks up each row by itself in the open holds.
async fn add_held(
    tx: &mut Tx,
    table: Table,
    rows: &[(Uuid, Timestamp)],
    wanted: &HashSet<Uuid>,
    known: &mut HashSet<Uuid>,
) -> anyhow::Result<()> {
    // A plain array would be looked at id by id when the statement is planned, and where nothing
    // is known of the table yet, the plan would be to read all holds.
    let held = pg::statement(
        "SELECT uuid_send(row_id) AS ids FROM sls_backfill.hold WHERE table_name = $1 \
         AND row_id = ANY(ARRAY(SELECT unnest($2::uuid[]))) AND state = 'open'",
    )
    .bind(table.name())
    .bind(rows.iter().map(|(id, _)| *id).collect::<Vec<_>>())
    .fetch_all(&mut **tx)
    .await
    .context("look for held rows")?;
    held.iter().try_for_each(|row| add_known(row, wanted, known))
}

fn add_known(row: &PgRow, wanted: &HashSet<Uuid>, known: &mut HashSet<Uuid>) -> anyhow::Result<()> {
    known.extend(ids(row.try_get("ids")?).filter(|id| wanted.contains(id)));
    Ok(())
}

/// The ids that a batch's `row_ids` hold.
pub(in crate::ledger) fn ids(row_ids: &[u8]) -> impl Iterator<Item = Uuid> {
    row_ids
        .chunks_exact(16)
        .map(|id| Uuid::from_bytes(id.try_into().expect("a chunk has 16 bytes")))
}
