//! What follows for the book when an audit has read all of SLS and nothing more can arrive.

use anyhow::Context as _;
use sqlx::Row as _;
use uuid::Uuid;

use crate::ledger::Ledger;
use crate::ledger::live_rows::{live_rows, release_rows, take_rows};
use crate::pg::{self, Tx};
use crate::record::hold::{HoldReason, LookAgain};
use crate::record::table::Table;

/// Batches that were given up, and that the audit has found.
const GIVEN_UP: &str = "SELECT id FROM sls_backfill.batch b WHERE table_name = $1 \
    AND state IN ('split', 'abandoned') AND EXISTS (SELECT FROM sls_backfill.sighting s \
    WHERE s.batch_id = b.id AND s.audit = $2)";

/// Adopted batches whose rows others had already when their page was read.
const DOUBTFUL: &str = "SELECT b.id FROM sls_backfill.batch b WHERE b.table_name = $1 \
    AND b.adopted_by = $2 AND b.doubled_rows > 0";

impl Ledger {
    /// Draws the conclusions, for `table`, from all that audit number `audit` has read; `now_s` is
    /// SLS's clock. Doing it again changes nothing.
    pub async fn conclude_audit(&self, audit: i64, table: Table, now_s: i64) -> anyhow::Result<()> {
        self.conclude_about_open(audit, table).await?;
        self.lose_unseen(audit, table, now_s).await?;
        self.forget_nameless(audit, table).await
    }

    /// What was seen under the name of a batch that the ledger lacks, and that the audit has not
    /// adopted, is nothing of ours, or is gone.
    async fn forget_nameless(&self, audit: i64, table: Table) -> anyhow::Result<()> {
        let mut tx = self.begin().await?;
        pg::statement(
            "DELETE FROM sls_backfill.sighting s WHERE s.logstore = $1 AND s.audit <> $2 \
             AND NOT EXISTS (SELECT FROM sls_backfill.batch b WHERE b.id = s.batch_id)",
        )
        .bind(table.logstore())
        .bind(audit)
        .execute(&mut *tx)
        .await
        .context("forget what was seen of no batch")?;
        tx.commit().await.context("forget what was seen of no batch")
    }

    /// Intents, batches that were given up, and doubtful ones.
    async fn conclude_about_open(&self, audit: i64, table: Table) -> anyhow::Result<()> {
        let mut tx = self.begin().await?;
        // First: whatever shares rows with an intent that never arrived shares them with nothing.
        let detail = "its batch is not in SLS, and another one has rows of it";
        for batch_id in ids(&mut tx, &absent(table), table, audit).await? {
            give_up(&mut tx, table, batch_id, HoldReason::LiveUnclear, detail).await?;
        }
        for batch_id in ids(&mut tx, DOUBTFUL, table, audit).await? {
            take_rows(&mut tx, table, batch_id).await?;
        }
        for batch_id in ids(&mut tx, GIVEN_UP, table, audit).await? {
            revive_if_alone(&mut tx, table, batch_id, Some(audit)).await?;
        }
        find_again(&mut tx, table, audit).await.context("take lost batches back")?;
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

/// A batch that is not in SLS and never will be: each of its rows is held, since the batch was
/// intended, and looked at anew by whichever run cuts the holds next.
pub(in crate::ledger) async fn give_up(
    tx: &mut Tx,
    table: Table,
    batch_id: Uuid,
    reason: HoldReason,
    detail: &str,
) -> anyhow::Result<()> {
    let context = || format!("give up batch {batch_id}");
    pg::statement(
        "INSERT INTO sls_backfill.hold (table_name, row_id, pass_id, reason, detail, created_at, \
           look_again, last_held_at) \
         SELECT table_name, row_id, pass_id, $2, $3, created_first, $4, intended_at \
         FROM sls_backfill.batch JOIN sls_backfill.batch_rows ON batch_id = id, \
           sls_backfill.ids(row_ids) \
         WHERE id = $1 ON CONFLICT (table_name, row_id) DO UPDATE SET reason = excluded.reason, \
         detail = excluded.detail, state = 'open', batch_id = NULL, \
         look_again = excluded.look_again, last_held_at = excluded.last_held_at",
    )
    .bind(batch_id)
    .bind(reason.name())
    .bind(detail)
    .bind(LookAgain::EveryRun.name())
    .execute(&mut **tx)
    .await
    .with_context(context)?;
    pg::statement("UPDATE sls_backfill.batch SET state = 'abandoned', owner = NULL WHERE id = $1")
        .bind(batch_id)
        .execute(&mut **tx)
        .await
        .with_context(context)?;
    release_rows(tx, table, batch_id).await
}

/// A lost batch is there after all, or a part of it. Nobody has sent its rows again.
async fn find_again(tx: &mut Tx, table: Table, audit: i64) -> anyhow::Result<()> {
    pg::statement(
        "UPDATE sls_backfill.batch b SET state = 'stored', generation = \
           (SELECT max(g.number) FROM sls_backfill.generation g WHERE g.logstore = b.logstore) \
         WHERE table_name = $1 AND state = 'lost' AND EXISTS \
           (SELECT FROM sls_backfill.sighting s WHERE s.batch_id = b.id AND s.audit = $2)",
    )
    .bind(table.name())
    .bind(audit)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// A batch that was given up is there after all: its rows are not to be sent again. If one of them was
/// sent again in another batch, it stays given up, and unequal; gives whether it lives again.
pub(in crate::ledger) async fn revive_if_alone(
    tx: &mut Tx,
    table: Table,
    batch_id: Uuid,
    audit: Option<i64>,
) -> anyhow::Result<bool> {
    let context = || format!("take batch {batch_id} back");
    // First: whoever takes one of its rows just now is waited for, and whoever comes later is refused.
    take_rows(tx, table, batch_id).await?;
    if shares_rows(tx, table, batch_id).await? {
        release_rows(tx, table, batch_id).await?;
        pg::statement("UPDATE sls_backfill.batch SET doubled_rows = 0 WHERE id = $1")
            .bind(batch_id)
            .execute(&mut **tx)
            .await
            .with_context(context)?;
        return Ok(false);
    }
    revive(tx, batch_id, audit).await.with_context(context)?;
    Ok(true)
}

async fn revive(tx: &mut Tx, batch_id: Uuid, audit: Option<i64>) -> anyhow::Result<()> {
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
        "UPDATE sls_backfill.batch b SET state = 'stored', stored_at = clock_timestamp(), \
         adopted_by = coalesce($2, adopted_by), generation = \
           (SELECT max(g.number) FROM sls_backfill.generation g WHERE g.logstore = b.logstore), \
         adopted_rows = adopted_rows + rows - $3 WHERE id = $1",
    )
    .bind(batch_id)
    .bind(audit)
    .bind(i32::try_from(closed.rows_affected())?)
    .execute(&mut **tx)
    .await?;
    Ok(())
}
