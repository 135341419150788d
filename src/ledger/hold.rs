//! Holds that may pass: which rows a run tries again.

use anyhow::Context as _;
use sqlx::Row as _;
use uuid::Uuid;

use crate::ledger::Ledger;
use crate::pg;
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
    /// The passes of `table` with open holds whose reason can pass. Rows that are `running`, not
    /// finished, and were created before `abandoned_before` are taken to run for ever: their worker
    /// was killed.
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
               WHERE h.pass_id = p.id AND h.state = 'open' \
               AND h.reason NOT IN ('control row', 'live', 'refused') \
               AND (h.reason <> 'running' OR h.finished_at IS NOT NULL OR h.created_at >= $2)) \
             ORDER BY p.id",
        )
        .bind(table.name())
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
             AND state = 'open' AND reason NOT IN ('control row', 'live', 'refused') \
             AND (reason <> 'running' OR finished_at IS NOT NULL OR created_at >= $3) \
             ORDER BY row_id LIMIT $4",
        )
        .bind(pass_id)
        .bind(after)
        .bind(abandoned_before)
        .bind(i64::from(limit))
        .fetch_all(&mut *tx)
        .await
        .with_context(|| format!("read the held rows of pass {pass_id}"))?;
        rows.iter().map(|row| Ok((row.try_get("row_id")?, row.try_get("created_at")?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use crate::record::hold::HoldReason;

    #[test]
    fn the_reasons_that_cannot_pass_are_those_of_the_statements() {
        // The list stands in the statements as it stands in the index, or Postgres does not use it.
        let stay = HoldReason::ALL.into_iter().filter(|reason| !reason.can_pass());
        let stay: Vec<_> = stay.map(|reason| format!("'{}'", reason.name())).collect();
        let list = format!("reason NOT IN ({})", stay.join(", "));
        assert!(include_str!("../../migrations/0001_ledger.sql").contains(&list));
        let statements = include_str!("hold.rs").matches(&list).count();
        assert_eq!(statements, 2);
    }
}
