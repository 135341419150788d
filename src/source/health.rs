//! How the source's Postgres fares, by one cheap statement.

use anyhow::Context as _;
use sqlx::Row as _;

use crate::pg;
use crate::source::Source;

/// What a look at the server gave.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Health {
    /// How many wait for a lock on Dify's two tables: somebody changes them.
    pub lock_waits: u64,
    /// How far the slowest replica is behind, or this server, if it is one; `None`: there is none,
    /// or this user may not see it (`pg_monitor`).
    pub replica_lag_s: Option<f64>,
}

impl Source {
    /// Looks at the server.
    pub async fn health(&self) -> anyhow::Result<Health> {
        let mut tx = self.begin().await?;
        let row = pg::statement(
            "SELECT (SELECT count(*) FROM pg_locks l WHERE NOT l.granted \
               AND l.locktype = 'relation' AND l.relation IN \
               (to_regclass('public.workflow_runs'), to_regclass('public.workflow_node_executions')) \
               AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())) \
               AS lock_waits, \
             (CASE WHEN NOT pg_is_in_recovery() THEN \
               (SELECT extract(epoch FROM max(replay_lag)) FROM pg_stat_replication) \
              WHEN pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn() THEN 0 \
              ELSE extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()) \
              END)::float8 AS replica_lag_s",
        )
        .fetch_one(&mut *tx)
        .await
        .context("ask Postgres how it fares")?;
        Ok(Health {
            lock_waits: u64::try_from(row.try_get::<i64, _>("lock_waits")?)?,
            replica_lag_s: row.try_get("replica_lag_s")?,
        })
    }
}
