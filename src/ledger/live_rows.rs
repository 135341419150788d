//! Which live batch has a row: one entry a row, so that Postgres itself keeps a row from being in
//! two live batches, whoever reads it, when, and whatever has become of its `created_at` since.
//!
//! Entries come with a batch, in the same statement, and go with it when it is split or abandoned.
//! Only an audit finds a row twice: then the entry names the batch that had it first, and the other
//! one counts it in `doubled_rows`.

use anyhow::Context as _;
use sqlx::Row as _;
use uuid::Uuid;

use crate::ledger::Ledger;
use crate::pg::{self, Tx};
use crate::record::table::Table;

/// A row is in another live batch than the book of live rows says, or in two.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct StrayRow {
    pub row_id: Uuid,
    /// A live batch that has it; `None`: no live batch has it, so it would never be sent.
    pub batch_id: Option<Uuid>,
    /// The batch that its entry names; `None`: it has no entry, so it would be sent again.
    pub entry: Option<Uuid>,
}

/// Rows that were looked up as new are in another batch by now.
#[derive(Debug, thiserror::Error)]
#[error("rows of range {range_id} were taken by another batch; they are looked up again")]
pub struct RowsTaken {
    pub range_id: i64,
}

/// The entries of a table's rows, by its name in the ledger.
pub(in crate::ledger) fn live_rows(table: Table) -> String {
    format!("sls_backfill.live_{table}")
}

/// Whether an error says that a row is in a live batch already.
pub(in crate::ledger) fn is_taken(error: &sqlx::Error, table: Table) -> bool {
    let constraint = error.as_database_error().and_then(|error| error.constraint());
    constraint.is_some_and(|name| name == format!("live_{table}_pkey"))
}

/// Takes the entries of a batch's rows that no other live batch has; notes in the batch how many
/// others there are.
pub(in crate::ledger) async fn take_rows(
    tx: &mut Tx,
    table: Table,
    batch_id: Uuid,
) -> anyhow::Result<()> {
    let live = live_rows(table);
    // In order: whoever takes the same rows waits for us, and we do not wait for them.
    pg::made_statement(&format!(
        "INSERT INTO {live} (row_id, batch_id) SELECT i.row_id, r.batch_id \
         FROM sls_backfill.batch_rows r, sls_backfill.ids(r.row_ids) i WHERE r.batch_id = $1 \
         ORDER BY i.row_id ON CONFLICT (row_id) DO NOTHING"
    ))
    .bind(batch_id)
    .execute(&mut **tx)
    .await
    .with_context(|| format!("take the rows of batch {batch_id}"))?;
    pg::made_statement(&format!(
        "UPDATE sls_backfill.batch SET doubled_rows = (SELECT count(*) \
         FROM sls_backfill.batch_rows r, sls_backfill.ids(r.row_ids) i WHERE r.batch_id = $1 \
         AND NOT EXISTS (SELECT FROM {live} l WHERE l.row_id = i.row_id AND l.batch_id = $1)) \
         WHERE id = $1"
    ))
    .bind(batch_id)
    .execute(&mut **tx)
    .await
    .with_context(|| format!("count the doubled rows of batch {batch_id}"))?;
    Ok(())
}

/// Gives the entries of a batch's rows back: from now on they may be sent in another.
pub(in crate::ledger) async fn release_rows(
    tx: &mut Tx,
    table: Table,
    batch_id: Uuid,
) -> anyhow::Result<()> {
    pg::made_statement(&format!(
        "DELETE FROM {} l USING sls_backfill.batch_rows r, sls_backfill.ids(r.row_ids) i \
         WHERE r.batch_id = $1 AND l.row_id = i.row_id AND l.batch_id = r.batch_id",
        live_rows(table)
    ))
    .bind(batch_id)
    .execute(&mut **tx)
    .await
    .with_context(|| format!("give the rows of batch {batch_id} back"))?;
    Ok(())
}

impl Ledger {
    /// Rows of `table` whose entry is not the one of their live batch, at most `limit`; none in a
    /// sound ledger without doubles. Counts first, half a second for ten million rows, and reads row
    /// by row only if that differs.
    pub async fn stray_rows(&self, table: Table, limit: u32) -> anyhow::Result<Vec<StrayRow>> {
        let context = || format!("look for rows of {table} in two batches");
        let live = live_rows(table);
        let mut tx = self.begin_count().await?;
        let counted = pg::made_statement(&format!(
            "SELECT (SELECT coalesce(sum(octet_length(r.row_ids) / 16), 0)::int8 \
               FROM sls_backfill.batch b JOIN sls_backfill.batch_rows r ON r.batch_id = b.id \
               WHERE b.table_name = $1 AND b.state NOT IN ('split', 'abandoned')) AS rows, \
             (SELECT count(*) FROM {live}) AS entries"
        ))
        .bind(table.name())
        .fetch_one(&mut *tx)
        .await
        .with_context(context)?;
        if counted.try_get::<i64, _>("rows")? == counted.try_get::<i64, _>("entries")? {
            return Ok(Vec::new());
        }
        let rows = pg::made_statement(&format!(
            "SELECT i.row_id, b.id AS batch_id, l.batch_id AS entry \
             FROM sls_backfill.batch b JOIN sls_backfill.batch_rows r ON r.batch_id = b.id, \
             sls_backfill.ids(r.row_ids) i LEFT JOIN {live} l ON l.row_id = i.row_id \
             WHERE b.table_name = $1 AND b.state NOT IN ('split', 'abandoned') \
             AND l.batch_id IS DISTINCT FROM b.id \
             UNION ALL SELECT l.row_id, NULL, l.batch_id FROM {live} l WHERE NOT EXISTS (SELECT \
               FROM sls_backfill.batch b WHERE b.id = l.batch_id \
               AND b.state NOT IN ('split', 'abandoned')) LIMIT $2"
        ))
        .bind(table.name())
        .bind(i64::from(limit))
        .fetch_all(&mut *tx)
        .await
        .with_context(context)?;
        rows.iter()
            .map(|row| {
                Ok(StrayRow {
                    row_id: row.try_get("row_id")?,
                    batch_id: row.try_get("batch_id")?,
                    entry: row.try_get("entry")?,
                })
            })
            .collect()
    }
}
