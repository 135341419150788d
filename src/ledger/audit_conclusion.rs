//! What follows for the book when an audit has read all of SLS and nothing more can arrive.

use std::collections::HashSet;

use anyhow::Context as _;
use futures::TryStreamExt as _;
use sqlx::Row as _;
use uuid::Uuid;

use crate::ledger::Ledger;
use crate::pg::{self, Tx};
use crate::record::hold::{HoldReason, LookAgain};
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
    /// Draws the conclusions, for `table`, from all that audit number `audit` has read. Doing it
    /// again changes nothing.
    pub async fn conclude_audit(&self, audit: i64, table: Table) -> anyhow::Result<()> {
        let mut tx = self.begin().await?;
        // First: whatever shares rows with an intent that never arrived shares them with nothing.
        for batch_id in ids(&mut tx, ABSENT, table, audit).await? {
            if shared_rows(&mut tx, batch_id).await? > 0 {
                let detail = "its batch is not in SLS, and another one has rows of it";
                give_up(&mut tx, batch_id, HoldReason::LiveUnclear, detail).await?;
            }
        }
        for batch_id in ids(&mut tx, GIVEN_UP, table, audit).await? {
            revive_if_alone(&mut tx, batch_id, Some(audit)).await?;
        }
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

/// A batch that is not in SLS and never will be: each of its rows is held, since the batch was
/// intended, and looked at anew by whichever run cuts the holds next.
pub(in crate::ledger) async fn give_up(
    tx: &mut Tx,
    batch_id: Uuid,
    reason: HoldReason,
    detail: &str,
) -> anyhow::Result<()> {
    let context = || format!("give up batch {batch_id}");
    pg::statement(
        "INSERT INTO sls_backfill.hold (table_name, row_id, pass_id, reason, detail, created_at, \
           look_again, last_held_at) \
         SELECT table_name, encode(substring(row_ids FROM n * 16 + 1 FOR 16), 'hex')::uuid, pass_id, \
         $2, $3, lower(created_span), $4, intended_at \
         FROM sls_backfill.batch JOIN sls_backfill.batch_rows ON batch_id = id, \
           generate_series(0, octet_length(row_ids) / 16 - 1) AS n \
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
    Ok(())
}

/// A batch that was given up is there after all: its rows are not to be sent again. If they were
/// sent again in another batch, it stays given up, and unequal; gives whether it lives again.
pub(in crate::ledger) async fn revive_if_alone(
    tx: &mut Tx,
    batch_id: Uuid,
    audit: Option<i64>,
) -> anyhow::Result<bool> {
    let context = || format!("take batch {batch_id} back");
    // Who tries a hold again closes it with the batch that takes the row: either this waits for that
    // and then finds the batch, or that finds the hold closed.
    pg::statement(
        "SELECT FROM sls_backfill.hold h JOIN sls_backfill.batch b ON b.table_name = h.table_name \
         WHERE b.id = $1 AND h.row_id IN (SELECT encode(substring(row_ids \
           FROM n * 16 + 1 FOR 16), 'hex')::uuid FROM sls_backfill.batch_rows, \
           generate_series(0, octet_length(row_ids) / 16 - 1) AS n WHERE batch_id = $1) \
         ORDER BY h.row_id FOR UPDATE OF h",
    )
    .bind(batch_id)
    .execute(&mut **tx)
    .await
    .with_context(context)?;
    if shared_rows(tx, batch_id).await? > 0 {
        return Ok(false);
    }
    revive(tx, batch_id, audit).await.with_context(context)?;
    Ok(true)
}

async fn revive(tx: &mut Tx, batch_id: Uuid, audit: Option<i64>) -> anyhow::Result<()> {
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
        "UPDATE sls_backfill.batch SET state = 'stored', stored_at = clock_timestamp(), \
         adopted_by = coalesce($2, adopted_by), adopted_rows = rows - $3 WHERE id = $1",
    )
    .bind(batch_id)
    .bind(audit)
    .bind(i32::try_from(closed.rows_affected())?)
    .execute(&mut **tx)
    .await?;
    Ok(())
}
