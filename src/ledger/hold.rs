//! Holds in the book: which rows a run tries again, and which a person must look into.

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
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

/// The reasons that a person must look into.
const REJECTED: [HoldReason; 3] = [HoldReason::TooLarge, HoldReason::Invalid, HoldReason::Refused];

/// A row that something is wrong with: a line of a rejects file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reject {
    pub table: String,
    pub id: Uuid,
    pub reason: String,
    /// For a person; never content of the row.
    pub detail: String,
    /// UTC.
    pub created_at: String,
    /// UTC.
    pub finished_at: Option<String>,
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
               AND (h.asked OR h.reason NOT IN ('control row', 'live', 'refused')) \
               AND (h.asked OR h.reason <> 'running' OR h.finished_at IS NOT NULL \
                 OR h.created_at >= $2)) \
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
             AND state = 'open' AND (asked OR reason NOT IN ('control row', 'live', 'refused')) \
             AND (asked OR reason <> 'running' OR finished_at IS NOT NULL \
               OR created_at >= $3) \
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

    /// The next rows of `table` behind row `after` that something is wrong with, at most `limit`,
    /// in the order of ids.
    pub async fn rejects(
        &self,
        table: Table,
        after: Uuid,
        limit: u32,
    ) -> anyhow::Result<Vec<Reject>> {
        let mut tx = self.begin_relaxed().await?;
        let rows = pg::statement(
            "SELECT row_id, reason, detail, created_at, finished_at FROM sls_backfill.hold \
             WHERE table_name = $1 AND row_id > $2 AND state = 'open' AND reason = ANY($3) \
             ORDER BY row_id LIMIT $4",
        )
        .bind(table.name())
        .bind(after)
        .bind(REJECTED.map(|reason| reason.name().to_owned()).to_vec())
        .bind(i64::from(limit))
        .fetch_all(&mut *tx)
        .await
        .with_context(|| format!("read the rejected rows of {table}"))?;
        rows.iter()
            .map(|row| {
                let finished_at: Option<Timestamp> = row.try_get("finished_at")?;
                Ok(Reject {
                    table: table.name().to_owned(),
                    id: row.try_get("row_id")?,
                    reason: row.try_get("reason")?,
                    detail: row.try_get("detail")?,
                    created_at: row.try_get::<Timestamp, _>("created_at")?.to_string(),
                    finished_at: finished_at.map(|at| at.to_string()),
                })
            })
            .collect()
    }

    /// Has held rows of `table` tried again, whatever the reason; gives how many are held.
    pub async fn ask_for(&self, table: Table, row_ids: &[Uuid]) -> anyhow::Result<u64> {
        let mut tx = self.begin().await?;
        let asked = pg::statement(
            "UPDATE sls_backfill.hold SET asked = true \
             WHERE table_name = $1 AND row_id = ANY($2) AND state = 'open'",
        )
        .bind(table.name())
        .bind(row_ids.to_vec())
        .execute(&mut *tx)
        .await
        .with_context(|| format!("ask for held rows of {table}"))?;
        tx.commit().await.context("ask for held rows")?;
        Ok(asked.rows_affected())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
