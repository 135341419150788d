//! How far SLS's readers are behind: what was acknowledged and not found yet, and what was found late.

use std::collections::BTreeSet;

use anyhow::Context as _;
use sqlx::Row as _;
use uuid::Uuid;

use crate::ledger::Ledger;
use crate::ledger::sighting::Moment;
use crate::pg;
use crate::record::table::Table;

/// Batches of one lane that SLS has acknowledged, and that were not found whole yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unseen {
    pub hash_key: String,
    /// The shards that owned the key when they were sent.
    pub shards: BTreeSet<u32>,
    /// When the first of them was acknowledged.
    pub acknowledged_at: Moment,
}

impl Ledger {
    /// The batches of `table`, but for those of `but_for`, that SLS has acknowledged and that were
    /// not found whole yet; by lane. A shard shows its groups in order: what is not there although
    /// its shard shows a batch that was sent later is lost, and tells nothing of the readers.
    pub async fn unseen(&self, table: Table, but_for: &[Uuid]) -> anyhow::Result<Vec<Unseen>> {
        let mut tx = self.begin_relaxed().await?;
        let rows = pg::statement(
            "WITH unseen AS MATERIALIZED (SELECT l.hash_key, b.stored_at, c.shards \
               FROM sls_backfill.batch b JOIN sls_backfill.lane l ON l.id = b.lane_id, \
               LATERAL (SELECT array_agg(shard::int ORDER BY shard::int) AS shards \
                 FROM jsonb_object_keys(b.cursors) AS shard) AS c \
               WHERE b.table_name = $1 AND b.state = 'stored' AND b.id <> ALL($2) \
               AND b.rows > (SELECT coalesce(sum(s.rows), 0) FROM sls_backfill.sighting s \
                 WHERE s.batch_id = b.id AND s.generation = b.generation)), \
             latest AS MATERIALIZED (SELECT shards, (SELECT b.intended_at \
                 FROM sls_backfill.sighting s JOIN sls_backfill.batch b ON b.id = s.batch_id \
                 WHERE s.logstore = $3 AND ARRAY[s.shard] = u.shards \
                 ORDER BY s.batch_id DESC LIMIT 1) AS intended_at \
               FROM (SELECT DISTINCT shards FROM unseen) u) \
             SELECT hash_key, u.shards, \
             (extract(epoch FROM min(stored_at)) * 1000000)::int8 AS acknowledged_at \
             FROM unseen u LEFT JOIN latest USING (shards) \
             WHERE intended_at IS NULL OR intended_at <= stored_at GROUP BY hash_key, u.shards",
        )
        .bind(table.name())
        .bind(but_for.to_vec())
        .bind(table.logstore())
        .fetch_all(&mut *tx)
        .await
        .with_context(|| format!("look for batches of {table} that SLS does not give back yet"))?;
        rows.iter()
            .map(|row| {
                let shards: Option<Vec<i32>> = row.try_get("shards")?;
                let shards = shards.unwrap_or_default().into_iter().map(u32::try_from);
                Ok(Unseen {
                    hash_key: row.try_get("hash_key")?,
                    shards: shards.collect::<Result<_, _>>()?,
                    acknowledged_at: Moment::from_unix_us(row.try_get("acknowledged_at")?),
                })
            })
            .collect()
    }

    /// How long ago (s) a batch of `table` was last found that had been acknowledged more than
    /// `visible_s` before: readers were behind until then. `None`: not within `within_s`.
    pub async fn caught_up_ago_s(
        &self,
        table: Table,
        visible_s: i64,
        within_s: i64,
    ) -> anyhow::Result<Option<i64>> {
        let mut tx = self.begin_relaxed().await?;
        let row = pg::statement(
            "SELECT floor(extract(epoch FROM clock_timestamp() - max(proved_at)))::int8 AS ago_s \
             FROM sls_backfill.batch WHERE table_name = $1 \
             AND proved_at > clock_timestamp() - make_interval(secs => $3::float8) \
             AND proved_at - stored_at > make_interval(secs => $2::float8)",
        )
        .bind(table.name())
        .bind(visible_s as f64)
        .bind(within_s as f64)
        .fetch_one(&mut *tx)
        .await
        .with_context(|| format!("look whether batches of {table} were found late"))?;
        Ok(row.try_get("ago_s")?)
    }
}
