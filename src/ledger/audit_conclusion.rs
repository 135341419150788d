//! What follows for the book when an audit has read all of SLS and nothing more can arrive.

use anyhow::Context as _;
use sqlx::Row as _;
use uuid::Uuid;

use crate::ledger::Ledger;
use crate::ledger::live_rows::{live_rows, release_rows, take_rows};
use crate::pg::{self, Tx};
use crate::record::table::Table;

/// Batches that were given up, and that the audit has found.
const GIVEN_UP: &str = "SELECT id FROM sls_backfill.batch b WHERE table_name = $1 \
    AND state IN ('split', 'abandoned') AND EXISTS (SELECT FROM sls_backfill.sighting s \
    WHERE s.batch_id = b.id AND s.audit = $2)";

/// Adopted batches whose rows others had already when their page was read.
const DOUBTFUL: &str = "SELECT b.id FROM sls_backfill.batch b WHERE b.table_name = $1 \
    AND b.adopted_by = $2 AND b.doubled_rows > 0";

impl Ledger {
    /// Draws the conclusions, for `table`, from all that audit number `audit` has read. Doing it
    /// again changes nothing.
    pub async fn conclude_audit(&self, audit: i64, table: Table) -> anyhow::Result<()> {
        let mut tx = self.begin().await?;
        // First: whatever shares rows with an intent that never arrived shares them with nothing.
        for batch_id in ids(&mut tx, &absent(table), table, audit).await? {
            give_up(&mut tx, table, batch_id)
                .await
                .with_context(|| format!("give up batch {batch_id}"))?;
        }
        for batch_id in ids(&mut tx, DOUBTFUL, table, audit).await? {
            take_rows(&mut tx, table, batch_id).await?;
        }
        for batch_id in ids(&mut tx, GIVEN_UP, table, audit).await? {
            // If a row of it was sent again in another batch, it stays given up, and unequal.
            if !shares_rows(&mut tx, table, batch_id).await? {
                revive(&mut tx, table, batch_id, audit)
                    .await
                    .with_context(|| format!("take batch {batch_id} back"))?;
            }
        }
        tx.commit().await.context("draw the conclusions of the audit")
    }
}

/// Intents that the audit has not found, and that hold rows of which it has found others.
fn absent(table: Table) -> String {
    format!(
        "SELECT DISTINCT b.id FROM ({DOUBTFUL}) d \
         JOIN sls_backfill.batch_rows r ON r.batch_id = d.id, sls_backfill.ids(r.row_ids) i \
         JOIN {} l ON l.row_id = i.row_id JOIN sls_backfill.batch b ON b.id = l.batch_id \
         WHERE b.state = 'intent' AND NOT EXISTS (SELECT FROM sls_backfill.sighting s \
           WHERE s.batch_id = b.id AND s.audit = $2)",
        live_rows(table)
    )
}

async fn ids(tx: &mut Tx, sql: &str, table: Table, audit: i64) -> anyhow::Result<Vec<Uuid>> {
    let rows = pg::made_statement(sql)
        .bind(table.name())
        .bind(audit)
        .fetch_all(&mut **tx)
        .await
        .context("look for batches to conclude about")?;
    rows.iter().map(|row| Ok(row.try_get("id")?)).collect()
}

/// Whether another live batch has a row of this one.
async fn shares_rows(tx: &mut Tx, table: Table, batch_id: Uuid) -> anyhow::Result<bool> {
    let row = pg::made_statement(&format!(
        "SELECT EXISTS (SELECT FROM sls_backfill.batch_rows r, sls_backfill.ids(r.row_ids) i \
         JOIN {} l ON l.row_id = i.row_id AND l.batch_id <> $1 WHERE r.batch_id = $1) AS shares",
        live_rows(table)
    ))
    .bind(batch_id)
    .fetch_one(&mut **tx)
    .await
    .with_context(|| format!("look for the rows of batch {batch_id} in other batches"))?;
    Ok(row.try_get("shares")?)
}

/// An intent that is not in SLS and never will be, of whose rows some came in another batch: each
/// row is looked at anew by the next run.
async fn give_up(tx: &mut Tx, table: Table, batch_id: Uuid) -> anyhow::Result<()> {
    pg::statement(
        "INSERT INTO sls_backfill.hold (table_name, row_id, pass_id, reason, detail, created_at) \
         SELECT table_name, row_id, pass_id, \
         'live?', 'its batch is not in SLS, and another one has rows of it', created_first \
         FROM sls_backfill.batch JOIN sls_backfill.batch_rows ON batch_id = id, \
           sls_backfill.ids(row_ids) \
         WHERE id = $1 ON CONFLICT (table_name, row_id) DO UPDATE SET reason = excluded.reason, \
         detail = excluded.detail, state = 'open', batch_id = NULL, look_again = 'every run'",
    )
    .bind(batch_id)
    .execute(&mut **tx)
    .await?;
    pg::statement("UPDATE sls_backfill.batch SET state = 'abandoned', owner = NULL WHERE id = $1")
        .bind(batch_id)
        .execute(&mut **tx)
        .await?;
    release_rows(tx, table, batch_id).await
}

/// A batch that was given up is there after all: its rows are not to be sent again.
async fn revive(tx: &mut Tx, table: Table, batch_id: Uuid, audit: i64) -> anyhow::Result<()> {
    let closed = pg::statement(
        "UPDATE sls_backfill.hold h SET state = 'stored', batch_id = b.id \
         FROM sls_backfill.batch b WHERE b.id = $1 AND h.table_name = b.table_name \
         AND h.state = 'open' AND h.row_id IN (SELECT i.row_id FROM sls_backfill.batch_rows r, \
           sls_backfill.ids(r.row_ids) i WHERE r.batch_id = $1)",
    )
    .bind(batch_id)
    .execute(&mut **tx)
    .await?;
    pg::statement(
        "UPDATE sls_backfill.batch SET state = 'stored', stored_at = clock_timestamp(), \
         adopted_by = $2, adopted_rows = rows - $3 WHERE id = $1",
    )
    .bind(batch_id)
    .bind(audit)
    .bind(i32::try_from(closed.rows_affected())?)
    .execute(&mut **tx)
    .await?;
    take_rows(tx, table, batch_id).await
}
