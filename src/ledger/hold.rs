//! Holds that may pass: which rows a run tries again.

use anyhow::Context as _;
use sqlx::Row as _;
use uuid::Uuid;

use crate::ledger::Ledger;
use crate::pg;
use crate::record::hold::HoldReason;
use crate::record::table::Table;
use crate::record::timestamp::Timestamp;

/// A pass whose open holds are to be tried again.
#[derive(Debug, Clone)]
pub struct HeldPass {
    pub pass_id: i64,
    pub conversion_id: i64,
    /// The conversion's JSON.
    pub conversion: serde_json::Value,
}

impl Ledger {
    /// The passes of `table` with open holds whose reason can pass. Rows that are `running` and
    /// were created before `abandoned_before` are taken to run for ever: their worker was killed.
    pub async fn held_passes(
        &self,
        table: Table,
        abandoned_before: Timestamp,
    ) -> anyhow::Result<Vec<HeldPass>> {
        let mut tx = self.begin().await?;
        let rows = pg::statement(
            "SELECT p.id, p.conversion_id, c.body FROM sls_backfill.pass p \
             JOIN sls_backfill.conversion c ON c.id = p.conversion_id \
             WHERE p.table_name = $1 AND EXISTS (SELECT FROM sls_backfill.hold h \
               WHERE h.pass_id = p.id AND h.state = 'open' AND h.reason = ANY($2) \
               AND (h.reason <> 'running' OR h.created_at >= $3)) ORDER BY p.id",
        )
        .bind(table.name())
        .bind(passing_reasons())
        .bind(abandoned_before)
        .fetch_all(&mut *tx)
        .await
        .with_context(|| format!("look for held rows of {table}"))?;
        rows.iter()
            .map(|row| {
                Ok(HeldPass {
                    pass_id: row.try_get("id")?,
                    conversion_id: row.try_get("conversion_id")?,
                    conversion: row.try_get("body")?,
                })
            })
            .collect()
    }

    /// The next open holds of the pass behind row `after`, at most `limit`, in the order of ids.
    pub async fn next_holds(
        &self,
        pass_id: i64,
        after: Uuid,
        abandoned_before: Timestamp,
        limit: u32,
    ) -> anyhow::Result<Vec<(Uuid, Timestamp)>> {
        let mut tx = self.begin_relaxed().await?;
        let rows = pg::statement(
            "SELECT row_id, created_at FROM sls_backfill.hold WHERE pass_id = $1 AND row_id > $2 \
             AND state = 'open' AND reason = ANY($3) AND (reason <> 'running' OR created_at >= $4) \
             ORDER BY row_id LIMIT $5",
        )
        .bind(pass_id)
        .bind(after)
        .bind(passing_reasons())
        .bind(abandoned_before)
        .bind(i64::from(limit))
        .fetch_all(&mut *tx)
        .await
        .with_context(|| format!("read the held rows of pass {pass_id}"))?;
        rows.iter().map(|row| Ok((row.try_get("row_id")?, row.try_get("created_at")?))).collect()
    }
}

fn passing_reasons() -> Vec<String> {
    HoldReason::ALL
        .into_iter()
        .filter(|reason| reason.can_pass())
        .map(|reason| reason.name().to_owned())
        .collect()
}
