//! Passes: which window of which table is to be moved, and what is covered already.

use anyhow::Context as _;
use sqlx::Row as _;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::ledger::Ledger;
use crate::pg::{self, Tx};
use crate::record::fingerprint::fingerprint;
use crate::record::key::{Key, KeyOrder};
use crate::record::table::Table;
use crate::record::timestamp::Timestamp;

/// Late commits and asynchronous writers: a pass begins that long before the end of the last one.
pub const LOOK_BACK_S: i64 = 48 * 3600;

/// What a pass is to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PassPlan {
    pub table: Table,
    pub since: Option<Timestamp>,
    pub until: Timestamp,
    pub tenant_id: Option<Uuid>,
    pub app_id: Option<Uuid>,
    pub order: KeyOrder,
}

/// A pass in the ledger.
#[derive(Debug, Clone)]
pub struct Pass {
    pub id: i64,
    pub plan: PassPlan,
    pub conversion_id: i64,
    /// The conversion's JSON.
    pub conversion: serde_json::Value,
    /// Whether a batch, a hold or a count names it, so that nothing of it may change any more.
    pub begun: bool,
    /// Whether it was done before, and some of its ranges are read again.
    pub is_read_again: bool,
}

impl Ledger {
    /// The open pass of `table`, if there is one.
    pub async fn open_pass(&self, table: Table) -> anyhow::Result<Option<Pass>> {
        let mut tx = self.begin().await?;
        let row = pg::statement(
            "SELECT p.id, p.table_name, p.since, p.until, p.tenant_id, p.app_id, p.key_order, \
             p.conversion_id, c.body, p.closed_at IS NOT NULL AS is_read_again, EXISTS (SELECT FROM sls_backfill.batch b \
               WHERE b.pass_id = p.id) OR EXISTS (SELECT FROM sls_backfill.hold h \
               WHERE h.pass_id = p.id) OR EXISTS (SELECT FROM sls_backfill.range r \
               WHERE r.pass_id = p.id AND r.rows_seen > 0) AS begun \
             FROM sls_backfill.pass p JOIN sls_backfill.conversion c ON c.id = p.conversion_id \
             WHERE p.table_name = $1 AND p.state = 'open'",
        )
        .bind(table.name())
        .fetch_optional(&mut *tx)
        .await
        .with_context(|| format!("look for an open pass of {table}"))?;
        row.map(|row| pass(&row, table)).transpose()
    }

    /// Opens a pass; `None` when the table has an open one.
    pub async fn begin_pass(
        &self,
        plan: &PassPlan,
        conversion: &serde_json::Value,
    ) -> anyhow::Result<Option<Pass>> {
        let context = || format!("open a pass of {}", plan.table);
        let mut tx = self.begin().await?;
        let conversion_id = conversion_id(&mut tx, plan.table, conversion).await?;
        let row = pg::statement(
            "INSERT INTO sls_backfill.pass (table_name, logstore, since, until, tenant_id, app_id, \
             key_order, conversion_id, cut_order, cut_after) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $7, $9) \
             ON CONFLICT (table_name) WHERE state = 'open' DO NOTHING RETURNING id",
        )
        .bind(plan.table.name())
        .bind(plan.table.logstore())
        .bind(plan.since)
        .bind(plan.until)
        .bind(plan.tenant_id)
        .bind(plan.app_id)
        .bind(plan.order.name())
        .bind(conversion_id)
        .bind(serde_json::to_value(Key::START)?)
        .fetch_optional(&mut *tx)
        .await
        .with_context(context)?;
        let Some(row) = row else { return Ok(None) };
        tx.commit().await.with_context(context)?;
        let (id, plan, conversion) = (row.try_get("id")?, plan.clone(), conversion.clone());
        let (begun, is_read_again) = (false, false);
        Ok(Some(Pass { id, plan, conversion_id, conversion, begun, is_read_again }))
    }

    /// Gives an open pass another conversion for its batches to come; those that there are keep
    /// their own.
    pub async fn convert_anew(
        &self,
        pass: &mut Pass,
        conversion: serde_json::Value,
    ) -> anyhow::Result<()> {
        let context = || format!("give pass {} a new conversion", pass.id);
        let mut tx = self.begin().await?;
        let conversion_id = conversion_id(&mut tx, pass.plan.table, &conversion).await?;
        pg::statement("UPDATE sls_backfill.pass SET conversion_id = $2 WHERE id = $1")
            .bind(pass.id)
            .bind(conversion_id)
            .execute(&mut *tx)
            .await
            .with_context(context)?;
        tx.commit().await.with_context(context)?;
        (pass.conversion_id, pass.conversion) = (conversion_id, conversion);
        Ok(())
    }

    /// How many rows the pass has seen so far.
    pub async fn rows_seen(&self, pass: &Pass) -> anyhow::Result<u64> {
        let mut tx = self.begin().await?;
        let row = pg::statement(
            "SELECT coalesce(sum(rows_seen), 0)::int8 AS seen FROM sls_backfill.range \
             WHERE pass_id = $1",
        )
        .bind(pass.id)
        .fetch_one(&mut *tx)
        .await
        .with_context(|| format!("look how far pass {} is", pass.id))?;
        Ok(u64::try_from(row.try_get::<i64, _>("seen")?)?)
    }

    /// Takes back an open pass that no batch and no hold names.
    pub async fn drop_pass(&self, pass: &Pass) -> anyhow::Result<()> {
        let mut tx = self.begin().await?;
        for sql in [
            "DELETE FROM sls_backfill.range WHERE pass_id = $1",
            "DELETE FROM sls_backfill.pass WHERE id = $1 AND state = 'open'",
        ] {
            pg::statement(sql)
                .bind(pass.id)
                .execute(&mut *tx)
                .await
                .with_context(|| format!("take back pass {}", pass.id))?;
        }
        tx.commit().await.context("take back a pass")
    }

    /// Up to where the table was read from its beginning without a gap, or a filter; `None` when
    /// its beginning was not. Rows that no reading has seen may be left: ranges remember them.
    pub async fn read_until(&self, table: Table) -> anyhow::Result<Option<Timestamp>> {
        let windows = self.windows_read(table).await?;
        let windows: Vec<_> = windows.iter().map(|read| (read.since, read.until)).collect();
        Ok(covered_until(&windows))
    }

    /// The same, but only of passes that have seen every row that Postgres counts in their ranges.
    pub async fn covered_until(&self, table: Table) -> anyhow::Result<Option<Timestamp>> {
        let windows = self.windows_read(table).await?;
        let whole = windows.iter().filter(|read| read.is_whole);
        let windows: Vec<_> = whole.map(|read| (read.since, read.until)).collect();
        Ok(covered_until(&windows))
    }

    async fn windows_read(&self, table: Table) -> anyhow::Result<Vec<WindowRead>> {
        let mut tx = self.begin().await?;
        let rows = pg::statement(
            "SELECT since, until, \
             NOT EXISTS (SELECT FROM sls_backfill.range r WHERE r.pass_id = p.id \
               AND r.state = 'open') \
             AND NOT EXISTS (SELECT FROM sls_backfill.range r WHERE r.pass_id = p.id \
               AND r.state = 'done' AND r.rows_counted > r.rows_read) AS is_whole \
             FROM sls_backfill.pass p WHERE table_name = $1 AND closed_at IS NOT NULL \
             AND tenant_id IS NULL AND app_id IS NULL",
        )
        .bind(table.name())
        .fetch_all(&mut *tx)
        .await
        .with_context(|| format!("read the finished passes of {table}"))?;
        rows.iter()
            .map(|row| {
                Ok(WindowRead {
                    since: row.try_get("since")?,
                    until: row.try_get("until")?,
                    is_whole: row.try_get("is_whole")?,
                })
            })
            .collect()
    }
}

/// The window of a pass that was done.
struct WindowRead {
    since: Option<Timestamp>,
    until: Timestamp,
    is_whole: bool,
}

/// The number of a conversion, which is written down if it is new.
async fn conversion_id(
    tx: &mut Tx,
    table: Table,
    conversion: &serde_json::Value,
) -> anyhow::Result<i64> {
    let row = pg::statement(
        "INSERT INTO sls_backfill.conversion (table_name, fingerprint, body) VALUES ($1, $2, $3) \
         ON CONFLICT (table_name, fingerprint) DO UPDATE SET body = excluded.body RETURNING id",
    )
    .bind(table.name())
    .bind(fingerprint(conversion))
    .bind(conversion)
    .fetch_one(&mut **tx)
    .await
    .context("write down a conversion")?;
    Ok(row.try_get("id")?)
}

/// Up to where windows `[since, until)` cover time from its beginning without a gap.
fn covered_until(windows: &[(Option<Timestamp>, Timestamp)]) -> Option<Timestamp> {
    let mut windows = windows.to_vec();
    windows.sort_unstable();
    let mut covered = None;
    for (since, until) in windows {
        if since <= covered {
            covered = covered.max(Some(until));
        }
    }
    covered
}

fn pass(row: &PgRow, table: Table) -> anyhow::Result<Pass> {
    let order: &str = row.try_get("key_order")?;
    Ok(Pass {
        id: row.try_get("id")?,
        plan: PassPlan {
            table,
            since: row.try_get("since")?,
            until: row.try_get("until")?,
            tenant_id: row.try_get("tenant_id")?,
            app_id: row.try_get("app_id")?,
            order: KeyOrder::from_name(order).context("the ledger names an unknown key order")?,
        },
        conversion_id: row.try_get("conversion_id")?,
        conversion: row.try_get("body")?,
        begun: row.try_get("begun")?,
        is_read_again: row.try_get("is_read_again")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_cover_as_far_as_they_touch() {
        let at = Timestamp::from_unix_s;
        let cases = [
            (vec![], None),
            (vec![(Some(5), 9)], None),
            (vec![(None, 9)], Some(9)),
            (vec![(None, 9), (Some(9), 12)], Some(12)),
            (vec![(None, 9), (Some(10), 12)], Some(9)),
            (vec![(Some(7), 20), (Some(3), 8), (None, 4)], Some(20)),
            (vec![(None, 9), (None, 5), (Some(2), 3)], Some(9)),
        ];
        for (windows, wanted) in cases {
            let windows: Vec<_> =
                windows.iter().map(|(since, until)| (since.map(at), at(*until))).collect();
            assert_eq!(covered_until(&windows), wanted.map(at), "{windows:?}");
        }
    }
}
