//! Ranges of finished passes that are to be read again: Postgres counted rows in them that no reading
//! has seen, or their logstore has come to keep logs of rows that were too old.
//!
//! Such a pass is opened once more, as the one open pass of its table, so that nobody else reads
//! what its ranges hold. What is in a batch or held is known by its id, so a range that is read again
//! adds only what it lacked.

use anyhow::Context as _;
use sqlx::Row as _;

use crate::ledger::Ledger;
use crate::ledger::process::Process;
use crate::ledger::range::READ_AGAIN;
use crate::pg;
use crate::record::table::Table;
use crate::record::timestamp::Timestamp;

/// The ranges that are to be read again. `$2`: rows that finished at this time or later are kept,
/// with an hour for clocks that are not those of the last run; NULL: nobody knows. `$3`: the process;
/// what was read since it began is left to the next run.
const TO_READ_AGAIN: &str = "r.state = 'done' AND (r.rows_counted > r.rows_read \
    OR (r.rows_expired > 0 AND r.expired_before > $2::timestamp + interval '1 hour')) \
    AND r.closed_at < (SELECT started_at FROM sls_backfill.process WHERE id = $3)";

impl Ledger {
    /// The finished passes of `table` with ranges that are to be read again, in their order.
    pub async fn passes_to_read_again(
        &self,
        table: Table,
        kept_since: Option<Timestamp>,
        process: &Process,
    ) -> anyhow::Result<Vec<i64>> {
        let mut tx = self.begin().await?;
        let rows = pg::made_statement(&format!(
            "SELECT DISTINCT p.id FROM sls_backfill.pass p \
             JOIN sls_backfill.range r ON r.pass_id = p.id \
             WHERE p.table_name = $1 AND p.state = 'done' AND {TO_READ_AGAIN} ORDER BY p.id"
        ))
        .bind(table.name())
        .bind(kept_since)
        .bind(process.id)
        .fetch_all(&mut *tx)
        .await
        .with_context(|| format!("look for ranges of {table} that are to be read again"))?;
        rows.iter().map(|row| Ok(row.try_get("id")?)).collect()
    }

    /// Opens a finished pass once more for its ranges that are to be read again, and gives how many
    /// they are; 0, and does nothing, when its table has an open pass.
    pub async fn read_again(
        &self,
        pass_id: i64,
        kept_since: Option<Timestamp>,
        process: &Process,
    ) -> anyhow::Result<u64> {
        let context = || format!("open pass {pass_id} once more");
        let mut tx = self.begin().await?;
        let opened = pg::statement(
            "UPDATE sls_backfill.pass p SET state = 'open' WHERE id = $1 AND state = 'done' \
             AND NOT EXISTS (SELECT FROM sls_backfill.pass o WHERE o.table_name = p.table_name \
               AND o.state = 'open')",
        )
        .bind(pass_id)
        .execute(&mut *tx)
        .await;
        match opened {
            Ok(opened) if opened.rows_affected() == 1 => {}
            Ok(_) => return Ok(0),
            // Another process has opened one meanwhile.
            Err(error)
                if error.as_database_error().is_some_and(|error| error.is_unique_violation()) =>
            {
                return Ok(0);
            }
            Err(error) => return Err(error).with_context(context),
        }
        let ranges = pg::made_statement(&format!(
            "UPDATE sls_backfill.range r SET {READ_AGAIN} WHERE pass_id = $1 AND {TO_READ_AGAIN}"
        ))
        .bind(pass_id)
        .bind(kept_since)
        .bind(process.id)
        .execute(&mut *tx)
        .await
        .with_context(context)?;
        tx.commit().await.with_context(context)?;
        Ok(ranges.rows_affected())
    }
}
