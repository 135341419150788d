//! How the primary fares while rows are deleted from it, by one cheap statement.

use anyhow::Context as _;
use sqlx::Row as _;

use crate::pg;
use crate::record::table::Table;
use crate::source::writable::Writable;

/// What a purge looks at before each transaction. `None`: there is none, or this user may not see
/// it (`pg_monitor`).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct WriteHealth {
    /// How far the slowest replica is behind, in seconds.
    pub replica_lag_s: Option<f64>,
    /// WAL that the slowest replication slot keeps from being removed, in bytes.
    pub slot_wal_bytes: Option<i64>,
    /// Whether a VACUUM works on the table.
    pub is_vacuumed: bool,
    /// Sessions that wait for a lock on the table.
    pub lock_waiters: i64,
    /// Other sessions that are at work.
    pub active_sessions: i64,
}

impl Writable {
    /// Looks at the server and at `table`.
    pub async fn health(&self, table: Table) -> anyhow::Result<WriteHealth> {
        let mut tx = self.begin().await?;
        let row = pg::statement(
            "SELECT (SELECT extract(epoch FROM max(replay_lag)) FROM pg_stat_replication)::float8 \
               AS replica_lag_s, \
             (SELECT max(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)) \
              FROM pg_replication_slots)::int8 AS slot_wal_bytes, \
             EXISTS (SELECT FROM pg_stat_progress_vacuum WHERE relid = $1::regclass) AS vacuumed, \
             (SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = $1::regclass) \
               AS lock_waiters, \
             (SELECT count(*) FROM pg_stat_activity WHERE state = 'active' \
              AND backend_type = 'client backend' AND pid <> pg_backend_pid()) AS active_sessions",
        )
        .bind(pg::in_public(table.name()))
        .fetch_one(&mut *tx)
        .await
        .context("ask Postgres how it fares")?;
        Ok(WriteHealth {
            replica_lag_s: row.try_get("replica_lag_s")?,
            slot_wal_bytes: row.try_get("slot_wal_bytes")?,
            is_vacuumed: row.try_get("vacuumed")?,
            lock_waiters: row.try_get("lock_waiters")?,
            active_sessions: row.try_get("active_sessions")?,
        })
    }
}
