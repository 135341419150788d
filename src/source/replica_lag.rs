//! How the source's Postgres fares, by one cheap statement.

use anyhow::Context as _;
use sqlx::Row as _;

use crate::pg;
use crate::source::Source;

impl Source {
    /// How far the slowest replica is behind, or this server, if it is one, in seconds; `None`: there
    /// is none, or this user may not see it (`pg_monitor`).
    pub async fn replica_lag_s(&self) -> anyhow::Result<Option<f64>> {
        let mut tx = self.begin().await?;
        let row = pg::statement(
            "SELECT (CASE WHEN NOT pg_is_in_recovery() THEN \
               (SELECT extract(epoch FROM max(replay_lag)) FROM pg_stat_replication) \
              WHEN pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() THEN 0 \
              ELSE extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()) \
              END)::float8 AS replica_lag_s",
        )
        .fetch_one(&mut *tx)
        .await
        .context("ask Postgres how far its replicas are behind")?;
        Ok(row.try_get("replica_lag_s")?)
    }
}
