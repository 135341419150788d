//! Rows that come back: which batches have purged rows, and their marks taken away.

use anyhow::Context as _;
use sqlx::Row as _;
use uuid::Uuid;

use crate::ledger::Ledger;
use crate::ledger::purge::{ProvedBatch, RowMarks};
use crate::pg::{self, Tx};
use crate::record::table::Table;
use crate::record::timestamp::Timestamp;

/// Which batches a restore looks at: those with purged rows, that match all that is said.
#[derive(Debug, Clone)]
pub struct RestoreWindow {
    pub table: Table,
    /// Batches with rows that finished at it or later (UTC).
    pub since: Option<Timestamp>,
    /// Batches with rows that finished before it (UTC).
    pub until: Option<Timestamp>,
    pub pass_id: Option<i64>,
}

impl Ledger {
    /// The next batches behind batch `after` with rows that were purged, at most `limit`.
    pub async fn batches_to_restore(
        &self,
        window: &RestoreWindow,
        after: Uuid,
        limit: u32,
    ) -> anyhow::Result<Vec<ProvedBatch>> {
        let mut tx = self.begin_relaxed().await?;
        let rows = pg::statement(
            "SELECT b.id FROM sls_backfill.batch b \
             JOIN sls_backfill.batch_rows r ON r.batch_id = b.id \
             WHERE b.table_name = $1 AND b.id > $2 AND r.purged IS NOT NULL \
             AND ($3::timestamp IS NULL OR b.finished_last >= $3) \
             AND ($4::timestamp IS NULL OR b.finished_first < $4) \
             AND ($5::int8 IS NULL OR b.pass_id = $5) ORDER BY b.id LIMIT $6",
        )
        .bind(window.table.name())
        .bind(after)
        .bind(window.since)
        .bind(window.until)
        .bind(window.pass_id)
        .bind(i64::from(limit))
        .fetch_all(&mut *tx)
        .await
        .with_context(|| format!("look for purged rows of {}", window.table))?;
        let ids = rows.iter().map(|row| row.try_get("id")).collect::<Result<_, _>>()?;
        drop(tx);
        self.batches_by_id(ids).await
    }

    /// Takes the marks of rows that are back away, where ledger and source are two databases.
    pub async fn restored(&self, batch: &ProvedBatch, places: &[usize]) -> anyhow::Result<()> {
        let mut tx = self.begin().await?;
        note_restored(&mut tx, batch, places).await?;
        tx.commit().await.context("note which rows are back")
    }
}

/// Takes the marks of the rows at `places`, which are back in Postgres, away; the batch is one to
/// be purged again.
pub async fn note_restored(
    tx: &mut Tx,
    batch: &ProvedBatch,
    places: &[usize],
) -> anyhow::Result<()> {
    let context = || format!("note which rows of batch {} are back", batch.id);
    let mut marks = locked_marks(tx, batch).await.with_context(context)?;
    for place in places {
        marks.purged.remove(*place);
    }
    pg::statement(
        "WITH marked AS (UPDATE sls_backfill.batch_rows SET purged = $2 WHERE batch_id = $1) \
         UPDATE sls_backfill.batch SET state = 'proved', purged_rows = $3 WHERE id = $1",
    )
    .bind(batch.id)
    .bind(marks.purged.to_bytes())
    .bind(i32::try_from(marks.purged.len())?)
    .execute(&mut **tx)
    .await
    .with_context(context)?;
    Ok(())
}

async fn locked_marks(tx: &mut Tx, batch: &ProvedBatch) -> anyhow::Result<RowMarks> {
    let row = pg::statement(
        "SELECT r.purged, r.gone, r.changed FROM sls_backfill.batch b \
         JOIN sls_backfill.batch_rows r ON r.batch_id = b.id WHERE b.id = $1 FOR UPDATE",
    )
    .bind(batch.id)
    .fetch_one(&mut **tx)
    .await?;
    RowMarks::of(&row, batch.row_ids.len())
}
