//! What follows for the book when an audit has read all of SLS and nothing more can arrive.

use std::collections::HashSet;

use anyhow::Context as _;
use futures::TryStreamExt as _;
use sqlx::Row as _;
use uuid::Uuid;

use crate::ledger::Ledger;
use crate::pg::{self, Tx};
use crate::record::table::Table;

/// Intents that the audit has not found.
const ABSENT: &str = "SELECT id FROM sls_backfill.batch b WHERE table_name = $1 \
    AND state = 'intent' AND NOT EXISTS (SELECT FROM sls_backfill.sighting s \
    WHERE s.batch_id = b.id AND s.audit = $2)";

/// Batches that were given up, and that it has found.
const GIVEN_UP: &str = "SELECT id FROM sls_backfill.batch b WHERE table_name = $1 \
    AND state IN ('split', 'abandoned') AND EXISTS (SELECT FROM sls_backfill.sighting s \
    WHERE s.batch_id = b.id AND s.audit = $2)";

/// Adopted batches whose rows others seemed to have, too, when their page was read.
const DOUBTFUL: &str = "SELECT id FROM sls_backfill.batch WHERE table_name = $1 \
    AND adopted_by = $2 AND doubled_rows > 0";

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
        for batch_id in ids(&mut tx, ABSENT, table, audit).await? {
            if shared_rows(&mut tx, batch_id).await? > 0 {
                give_up(&mut tx, batch_id)
                    .await
                    .with_context(|| format!("give up batch {batch_id}"))?;
            }
        }
        for batch_id in ids(&mut tx, GIVEN_UP, table, audit).await? {
            // If its rows were sent again in another batch, it stays given up, and unequal.
            if shared_rows(&mut tx, batch_id).await? == 0 {
                revive(&mut tx, batch_id, audit)
                    .await
                    .with_context(|| format!("take batch {batch_id} back"))?;
            }
        }
        find_again(&mut tx, table, audit).await.context("take lost batches back")?;
        for batch_id in ids(&mut tx, DOUBTFUL, table, audit).await? {
            let doubled = shared_rows(&mut tx, batch_id).await?;
            pg::statement("UPDATE sls_backfill.batch SET doubled_rows = $2 WHERE id = $1")
                .bind(batch_id)
                .bind(i32::try_from(doubled)?)
                .execute(&mut *tx)
                .await
                .with_context(|| format!("count the doubled rows of batch {batch_id}"))?;
        }
        tx.commit().await.context("draw the conclusions of the audit")
    }
}

async fn ids(
    tx: &mut Tx,
    sql: &'static str,
    table: Table,
    audit: i64,
) -> anyhow::Result<Vec<Uuid>> {
    let rows = pg::statement(sql)
        .bind(table.name())
        .bind(audit)
        .fetch_all(&mut **tx)
        .await
        .context("look for batches to conclude about")?;
    rows.iter().map(|row| Ok(row.try_get("id")?)).collect()
}

/// How many rows of a batch other live batches have, too.
async fn shared_rows(tx: &mut Tx, batch_id: Uuid) -> anyhow::Result<usize> {
    let context = || format!("look for the rows of batch {batch_id} in other batches");
    let own = pg::statement("SELECT row_ids FROM sls_backfill.batch_rows WHERE batch_id = $1")
        .bind(batch_id)
        .fetch_one(&mut **tx)
        .await
        .with_context(context)?;
    let own: &[u8] = own.try_get("row_ids")?;
    let own: HashSet<&[u8]> = own.chunks_exact(16).collect();
    let mut shared = HashSet::new();
    let mut others = pg::statement(
        "SELECT r.row_ids FROM sls_backfill.batch b JOIN sls_backfill.batch o \
         ON o.table_name = b.table_name AND o.id <> b.id AND o.created_span && b.created_span \
         AND o.id_span && b.id_span JOIN sls_backfill.batch_rows r ON r.batch_id = o.id WHERE b.id = $1 AND o.state NOT IN ('split', 'abandoned')",
    )
    .bind(batch_id)
    .fetch(&mut **tx);
    while let Some(other) = others.try_next().await.with_context(context)? {
        let ids: &[u8] = other.try_get("row_ids")?;
        shared.extend(ids.chunks_exact(16).filter_map(|id| own.get(id).copied()));
    }
    Ok(shared.len())
}

/// An intent that is not in SLS and never will be, of whose rows some came in another batch: each
/// row is looked at anew by the next run.
async fn give_up(tx: &mut Tx, batch_id: Uuid) -> anyhow::Result<()> {
    pg::statement(
        "INSERT INTO sls_backfill.hold (table_name, row_id, pass_id, reason, detail, created_at) \
         SELECT table_name, encode(substring(row_ids FROM n * 16 + 1 FOR 16), 'hex')::uuid, pass_id, \
         'live?', 'its batch is not in SLS, and another one has rows of it', lower(created_span) \
         FROM sls_backfill.batch JOIN sls_backfill.batch_rows ON batch_id = id, \
           generate_series(0, octet_length(row_ids) / 16 - 1) AS n \
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
    Ok(())
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

/// A batch that was given up is there after all: its rows are not to be sent again.
async fn revive(tx: &mut Tx, batch_id: Uuid, audit: i64) -> anyhow::Result<()> {
    let closed = pg::statement(
        "UPDATE sls_backfill.hold h SET state = 'stored', batch_id = b.id \
         FROM sls_backfill.batch b WHERE b.id = $1 AND h.table_name = b.table_name \
         AND h.state = 'open' AND h.row_id IN (SELECT encode(substring(row_ids \
           FROM n * 16 + 1 FOR 16), 'hex')::uuid FROM sls_backfill.batch_rows, \
           generate_series(0, octet_length(row_ids) / 16 - 1) AS n WHERE batch_id = $1)",
    )
    .bind(batch_id)
    .execute(&mut **tx)
    .await?;
    pg::statement(
        "UPDATE sls_backfill.batch b SET state = 'stored', stored_at = clock_timestamp(), \
         adopted_by = $2, generation = \
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
