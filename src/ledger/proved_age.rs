//! How old logs may be: what canaries have proved, and the rows of those that SLS did not keep.

use anyhow::Context as _;
use sqlx::Row as _;
use uuid::Uuid;

use crate::ledger::Ledger;
use crate::ledger::intent::BatchRow;
use crate::ledger::live_rows::release_rows;
use crate::pg;
use crate::record::hold::HoldReason;
use crate::record::table::Table;
use crate::record::timestamp::Timestamp;

impl Ledger {
    /// The oldest log time that `logstore` was seen to keep; `None`: none was tried yet.
    pub async fn proved_age(&self, logstore: &str) -> anyhow::Result<Option<Timestamp>> {
        let mut tx = self.begin_relaxed().await?;
        let row = pg::statement("SELECT since FROM sls_backfill.proved_age WHERE logstore = $1")
            .bind(logstore)
            .fetch_optional(&mut *tx)
            .await
            .with_context(|| format!("look up how old the logs of {logstore} may be"))?;
        row.map(|row| Ok(row.try_get("since")?)).transpose()
    }

    /// A canary whose oldest log is of `since` was pulled back and found.
    pub async fn prove_age(
        &self,
        logstore: &str,
        since: Timestamp,
        batch_id: Uuid,
    ) -> anyhow::Result<()> {
        let context = || format!("note how old the logs of {logstore} may be");
        let mut tx = self.begin_relaxed().await?;
        pg::statement(
            "INSERT INTO sls_backfill.proved_age (logstore, since, batch_id) VALUES ($1, $2, $3) \
             ON CONFLICT (logstore) DO UPDATE SET since = excluded.since, \
             batch_id = excluded.batch_id, proved_at = clock_timestamp() \
             WHERE proved_age.since > excluded.since",
        )
        .bind(logstore)
        .bind(since)
        .bind(batch_id)
        .execute(&mut *tx)
        .await
        .with_context(context)?;
        tx.commit().await.with_context(context)
    }

    /// SLS holds nothing of a batch, and will not: the batch is abandoned, its rows are held
    /// `expired`, and a later run tries them again. Gives `false`, and does nothing, when the
    /// batch was seen in SLS meanwhile.
    pub async fn hold_unkept(
        &self,
        table: Table,
        batch_id: Uuid,
        rows: &[BatchRow],
        detail: &str,
    ) -> anyhow::Result<bool> {
        let context = || format!("hold the rows of batch {batch_id}");
        let mut tx = self.begin().await?;
        let abandoned = pg::statement(
            "UPDATE sls_backfill.batch b SET state = 'abandoned', owner = NULL \
             WHERE id = $1 AND state IN ('intent', 'stored') AND NOT EXISTS \
             (SELECT FROM sls_backfill.sighting s WHERE s.batch_id = b.id) RETURNING pass_id",
        )
        .bind(batch_id)
        .fetch_optional(&mut *tx)
        .await
        .with_context(context)?;
        let Some(abandoned) = abandoned else { return Ok(false) };
        release_rows(&mut tx, table, batch_id).await?;
        pg::statement(
            "INSERT INTO sls_backfill.hold \
               (table_name, row_id, pass_id, reason, detail, created_at, finished_at, look_again) \
             SELECT $1, h.row_id, $2, $3, $4, h.created_at, h.finished_at, $8 \
             FROM unnest($5::uuid[], $6::timestamp[], $7::timestamp[]) \
               AS h(row_id, created_at, finished_at) \
             ON CONFLICT (table_name, row_id) DO UPDATE SET reason = excluded.reason, \
               detail = excluded.detail, finished_at = excluded.finished_at, state = 'open', \
               batch_id = NULL, look_again = excluded.look_again, \
               last_held_at = clock_timestamp()",
        )
        .bind(table.name())
        .bind(abandoned.try_get::<i64, _>("pass_id")?)
        .bind(HoldReason::Expired.name())
        .bind(detail)
        .bind(rows.iter().map(|row| row.id).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.created_at).collect::<Vec<_>>())
        .bind(rows.iter().map(|row| row.finished_at).collect::<Vec<_>>())
        .bind(HoldReason::Expired.look_again().name())
        .execute(&mut *tx)
        .await
        .with_context(context)?;
        tx.commit().await.with_context(context)?;
        Ok(true)
    }
}
