//! Batches that were in SLS and are not there any more: how an audit finds them out, and the
//! explicit word that lets their rows be sent again.

use anyhow::Context as _;
use sqlx::Row as _;
use uuid::Uuid;

use crate::ledger::Ledger;
use crate::ledger::batch_rows::ids;
use crate::ledger::generation::TTL_DAYS_FOR_EVER;
use crate::ledger::live_rows::release_rows;
use crate::ledger::process::Process;
use crate::ledger::sighting::disprove;
use crate::pg::{self, Tx};
use crate::record::hold::HoldReason;
use crate::record::table::Table;

/// So many batches are judged in one transaction.
const BATCHES_AT_ONCE: i64 = 5000;

/// Whether the TTL does not tell why batch `b`, of generation `g`, is not there: `$3` is now (Unix
/// s), `$4` the TTL that means for ever. When SLS received a batch is known to some minutes, and
/// when it deletes logs to some hours, so within the last day of the TTL both may be.
const NOT_BY_TTL: &str = "coalesce(g.ttl_days >= $4 \
    OR least(b.stored_at, b.signed_at) + make_interval(days => g.ttl_days - 1) \
       > to_timestamp($3), true)";

/// What was made of lost batches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reheld {
    pub batches: u64,
    /// Their rows, which are held now.
    pub rows: u64,
}

impl Ledger {
    /// Judges the batches of `table` that SLS was known to hold by what audit number `audit` has
    /// found: of what it has not found nothing counts any more. What the TTL explains stays as it
    /// is. Doing it again changes nothing. `now_s`: SLS's clock.
    pub(in crate::ledger) async fn lose_unseen(
        &self,
        audit: i64,
        table: Table,
        now_s: i64,
    ) -> anyhow::Result<()> {
        let mut after = Uuid::nil();
        loop {
            let context = || format!("look which batches of {table} are lost");
            let mut tx = self.begin().await?;
            let ids: Vec<Uuid> = pg::statement(
                "SELECT id FROM sls_backfill.batch WHERE table_name = $1 AND id > $2 \
                 AND state IN ('stored', 'proved', 'purged') ORDER BY id LIMIT $3",
            )
            .bind(table.name())
            .bind(after)
            .bind(BATCHES_AT_ONCE)
            .fetch_all(&mut *tx)
            .await
            .with_context(context)?
            .iter()
            .map(|row| row.try_get("id"))
            .collect::<Result<_, _>>()?;
            let Some(last) = ids.last() else { return Ok(()) };
            after = *last;
            forget_unseen(&mut tx, audit, &ids, now_s).await.with_context(context)?;
            pg::made_statement(&format!(
                "UPDATE sls_backfill.batch b SET state = 'lost', proved_at = NULL \
                 FROM sls_backfill.generation g WHERE b.id = ANY($1) \
                 AND g.logstore = b.logstore AND g.number = b.generation AND {NOT_BY_TTL} \
                 AND NOT EXISTS (SELECT FROM sls_backfill.sighting s \
                   WHERE s.batch_id = b.id AND s.audit = $2)"
            ))
            .bind(ids.clone())
            .bind(audit)
            .bind(now_s as f64)
            .bind(TTL_DAYS_FOR_EVER)
            .execute(&mut *tx)
            .await
            .with_context(context)?;
            disprove(&mut tx, ids).await.with_context(context)?;
            tx.commit().await.with_context(context)?;
        }
    }

    /// Lets the rows of lost batches of `table` be sent again: the batches are given up, and their
    /// rows are held `lost`, as if since just before `process` began, so that it tries them. Rows
    /// whose pass is not known are held by `pass_id`. A batch of which something was seen since stays
    /// lost: an audit must look again.
    pub async fn resend_lost(
        &self,
        table: Table,
        pass_id: i64,
        process: &Process,
    ) -> anyhow::Result<Reheld> {
        let mut reheld = Reheld::default();
        loop {
            let context = || format!("hold the rows of lost batches of {table}");
            let mut tx = self.begin().await?;
            let batch = pg::statement(
                "SELECT id FROM sls_backfill.batch b WHERE table_name = $1 AND state = 'lost' \
                 AND NOT EXISTS (SELECT FROM sls_backfill.sighting s WHERE s.batch_id = b.id \
                   AND s.generation = (SELECT max(g.number) FROM sls_backfill.generation g \
                     WHERE g.logstore = b.logstore)) \
                 ORDER BY id LIMIT 1 FOR UPDATE",
            )
            .bind(table.name())
            .fetch_optional(&mut *tx)
            .await
            .with_context(context)?;
            let Some(batch) = batch else { return Ok(reheld) };
            let rows = give_up(&mut tx, table, batch.try_get("id")?, pass_id, process).await;
            reheld.rows += rows.with_context(context)?;
            tx.commit().await.with_context(context)?;
            reheld.batches += 1;
        }
    }
}

/// Forgets what was seen of these batches before the audit and what it has not seen again.
async fn forget_unseen(tx: &mut Tx, audit: i64, ids: &[Uuid], now_s: i64) -> anyhow::Result<()> {
    pg::made_statement(&format!(
        "DELETE FROM sls_backfill.sighting s USING sls_backfill.batch b, \
         sls_backfill.generation g WHERE b.id = ANY($1) AND s.batch_id = b.id AND s.audit <> $2 \
         AND g.logstore = b.logstore AND g.number = b.generation AND {NOT_BY_TTL}"
    ))
    .bind(ids.to_vec())
    .bind(audit)
    .bind(now_s as f64)
    .bind(TTL_DAYS_FOR_EVER)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Gives a lost batch up and holds its rows; gives how many of them were not held before. What has
/// left Postgres meanwhile is found to be missing.
async fn give_up(
    tx: &mut Tx,
    table: Table,
    batch_id: Uuid,
    pass_id: i64,
    process: &Process,
) -> anyhow::Result<u64> {
    let row = pg::statement("SELECT row_ids FROM sls_backfill.batch_rows WHERE batch_id = $1")
        .bind(batch_id)
        .fetch_one(&mut **tx)
        .await?;
    let row_ids: Vec<Uuid> = ids(row.try_get("row_ids")?).collect();
    // A row that another live batch has is found to be there when its hold is tried.
    let held = pg::statement(
        "INSERT INTO sls_backfill.hold (table_name, row_id, pass_id, reason, detail, created_at, \
           last_held_at) \
         SELECT b.table_name, r.row_id, coalesce(b.pass_id, $2), $3, \
         'its batch ' || b.id || ' is not in SLS any more', b.created_first, \
         p.started_at - interval '1 microsecond' \
         FROM sls_backfill.batch b, unnest($4::uuid[]) AS r(row_id), sls_backfill.process p \
         WHERE b.id = $1 AND p.id = $5 \
         ON CONFLICT (table_name, row_id) DO UPDATE SET reason = excluded.reason, \
         detail = excluded.detail, state = 'open', batch_id = NULL, look_again = 'every run', \
         last_held_at = excluded.last_held_at WHERE hold.state <> 'open'",
    )
    .bind(batch_id)
    .bind(pass_id)
    .bind(HoldReason::Lost.name())
    .bind(row_ids)
    .bind(process.id)
    .execute(&mut **tx)
    .await?
    .rows_affected();
    release_rows(tx, table, batch_id).await?;
    // The account stays true: the batch's rows leave it, and those that are held now come into it.
    pg::statement(
        "UPDATE sls_backfill.batch SET state = 'abandoned', \
         adopted_rows = adopted_rows + $2 - rows WHERE id = $1",
    )
    .bind(batch_id)
    .bind(i32::try_from(held)?)
    .execute(&mut **tx)
    .await?;
    Ok(held)
}
