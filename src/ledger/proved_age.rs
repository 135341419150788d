//! How old logs may be: what canaries have proved, and what becomes of those that SLS did not keep.

use anyhow::Context as _;
use sqlx::Row as _;
use uuid::Uuid;

use crate::ledger::Ledger;
use crate::ledger::acknowledge::{Acknowledgement, acknowledge};
use crate::ledger::audit_conclusion::give_up;
use crate::ledger::intent::BatchRow;
use crate::ledger::live_rows::release_rows;
use crate::pg;
use crate::record::hold::HoldReason;
use crate::record::table::Table;
use crate::record::timestamp::Timestamp;

/// A canary that SLS has acknowledged and did not give back in time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnkeptBatch {
    pub batch_id: Uuid,
    /// Its oldest log time.
    pub since: Timestamp,
    pub rows: u64,
    /// How many rows of it were found since.
    pub found: u64,
    /// Date of its last signature: Unix seconds, SLS's clock.
    pub signed_at: i64,
}

impl Ledger {
    /// The oldest log time that `logstore`, as it is now, was seen to keep; `None`: none was tried
    /// yet.
    pub async fn proved_age(&self, logstore: &str) -> anyhow::Result<Option<Timestamp>> {
        let mut tx = self.begin_relaxed().await?;
        let row = pg::statement(
            "SELECT since FROM sls_backfill.proved_age WHERE logstore = $1 AND generation = \
               (SELECT max(number) FROM sls_backfill.generation WHERE logstore = $1)",
        )
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
            "INSERT INTO sls_backfill.proved_age (logstore, generation, since, batch_id) \
             SELECT logstore, generation, $2, id FROM sls_backfill.batch \
             WHERE logstore = $1 AND id = $3 \
             ON CONFLICT (logstore, generation) DO UPDATE SET since = excluded.since, \
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

    /// SLS has refused a batch for the age of its logs, and holds nothing of it: the batch is
    /// abandoned, its rows are held `expired`, and a later run tries them again. Gives `false`, and
    /// does nothing, when the batch is known to be stored or was seen in SLS meanwhile.
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
             WHERE id = $1 AND state = 'intent' AND NOT EXISTS \
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

    /// SLS has acknowledged a canary whose oldest log is of `since`, and does not give it back.
    pub async fn not_given_back(
        &self,
        canary: &Acknowledgement,
        since: Timestamp,
    ) -> anyhow::Result<()> {
        let context = || format!("note that SLS does not give back batch {}", canary.batch_id);
        let mut tx = self.begin().await?;
        acknowledge(&mut tx, std::slice::from_ref(canary)).await.with_context(context)?;
        pg::statement(
            "INSERT INTO sls_backfill.unkept (batch_id, since) VALUES ($1, $2) \
             ON CONFLICT DO NOTHING",
        )
        .bind(canary.batch_id)
        .bind(since)
        .execute(&mut *tx)
        .await
        .with_context(context)?;
        tx.commit().await.with_context(context)
    }

    /// The canaries of `table` that SLS has acknowledged and has not given back whole until now, and
    /// about which nobody has decided.
    pub async fn unkept(&self, table: Table) -> anyhow::Result<Vec<UnkeptBatch>> {
        let mut tx = self.begin_relaxed().await?;
        let rows = pg::statement(
            "SELECT u.batch_id, u.since, b.rows::int8 AS rows, \
             extract(epoch FROM b.signed_at)::int8 AS signed_at, \
             (SELECT coalesce(sum(s.rows), 0)::int8 FROM sls_backfill.sighting s \
               WHERE s.batch_id = u.batch_id) AS found \
             FROM sls_backfill.unkept u JOIN sls_backfill.batch b ON b.id = u.batch_id \
             WHERE b.table_name = $1 AND b.state = 'stored' AND u.decided_at IS NULL \
             ORDER BY u.batch_id",
        )
        .bind(table.name())
        .fetch_all(&mut *tx)
        .await
        .with_context(|| format!("look for batches of {table} that SLS does not give back"))?;
        rows.iter()
            .map(|row| {
                Ok(UnkeptBatch {
                    batch_id: row.try_get("batch_id")?,
                    since: row.try_get("since")?,
                    rows: u64::try_from(row.try_get::<i64, _>("rows")?)?,
                    found: u64::try_from(row.try_get::<i64, _>("found")?)?,
                    signed_at: row.try_get("signed_at")?,
                })
            })
            .collect()
    }

    /// A person has decided to go on without a canary. If nothing of it was found, SLS does not keep
    /// it: it is abandoned, and the next range of holds tries its rows again. If a part of it is there,
    /// it stays as it is; gives whether its rows are tried again.
    pub async fn decide_unkept(&self, table: Table, batch_id: Uuid) -> anyhow::Result<bool> {
        let context = || format!("go on without batch {batch_id}");
        let mut tx = self.begin().await?;
        // Whoever adds a sighting takes the same lock first (`ledger::sighting`).
        let row = pg::statement(
            "SELECT state = 'stored' AS is_stored FROM sls_backfill.batch WHERE id = $1 \
             FOR NO KEY UPDATE",
        )
        .bind(batch_id)
        .fetch_one(&mut *tx)
        .await
        .with_context(context)?;
        let seen = pg::statement("SELECT FROM sls_backfill.sighting WHERE batch_id = $1 LIMIT 1")
            .bind(batch_id)
            .fetch_optional(&mut *tx)
            .await
            .with_context(context)?;
        let is_absent = seen.is_none() && row.try_get::<bool, _>("is_stored")?;
        if is_absent {
            let detail = "SLS acknowledged it and did not keep it; sent again as asked";
            give_up(&mut tx, table, batch_id, HoldReason::Expired, detail).await?;
        }
        pg::statement(
            "UPDATE sls_backfill.unkept SET decided_at = clock_timestamp() WHERE batch_id = $1",
        )
        .bind(batch_id)
        .execute(&mut *tx)
        .await
        .with_context(context)?;
        tx.commit().await.with_context(context)?;
        Ok(is_absent)
    }
}
