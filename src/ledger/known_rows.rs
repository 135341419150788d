//! Which rows the ledger knows: those in a live batch, and those held.

use std::collections::HashSet;

use anyhow::Context as _;
use futures::TryStreamExt as _;
use sqlx::Row as _;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::ledger::Ledger;
use crate::ledger::batch_rows::{id_number, ids};
use crate::pg::{self, Tx};
use crate::record::table::Table;
use crate::record::timestamp::Timestamp;

/// So many batches that overlap a page as a whole are read; with more, each row is looked up by
/// itself, which costs more but reads only batches that can hold it.
const OVERLAPS_MAX: i64 = 64;

impl Ledger {
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
            "SELECT r.row_ids AS ids FROM sls_backfill.batch b \
             JOIN sls_backfill.batch_rows r ON r.batch_id = b.id WHERE table_name = $1 \
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
        "SELECT row_ids AS ids FROM sls_backfill.batch_rows WHERE batch_id IN (SELECT b.id \
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
