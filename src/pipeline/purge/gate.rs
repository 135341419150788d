//! Keeps a purge away from Postgres while it has better things to do.

use std::time::{Duration, Instant};

use crate::pipeline::progress::Progress;
use crate::pipeline::shutdown::Shutdown;
use crate::record::table::Table;
use crate::source::writable::Writable;
use crate::source::write_health::WriteHealth;

/// How long what Postgres said holds, and how long to wait before it is asked again.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// How bad Postgres may fare while rows are deleted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GateLimits {
    /// Seconds that a replica may be behind.
    pub replica_lag_max_s: f64,
    /// Bytes of WAL that replication slots may keep.
    pub slot_wal_bytes_max: i64,
    /// Other sessions at work; `None`: as many as like.
    pub active_sessions_max: Option<i64>,
}

impl Default for GateLimits {
    fn default() -> Self {
        Self { replica_lag_max_s: 30.0, slot_wal_bytes_max: 10 << 30, active_sessions_max: None }
    }
}

/// Lets deletions pass while Postgres fares well.
pub struct Gate {
    target: Writable,
    table: Table,
    limits: GateLimits,
    passed_at: Option<Instant>,
}

impl Gate {
    pub fn new(target: Writable, table: Table, limits: GateLimits) -> Self {
        Self { target, table, limits, passed_at: None }
    }

    /// Waits until Postgres fares well, as it did a second ago at the latest, and shows what it
    /// waits for. `None`: somebody has asked to stop.
    pub async fn pass(
        &mut self,
        progress: &Progress,
        shutdown: &mut Shutdown,
    ) -> anyhow::Result<Option<()>> {
        loop {
            if shutdown.is_asked() {
                return Ok(None);
            }
            if self.passed_at.is_some_and(|at| at.elapsed() < ASK_EVERY) {
                return Ok(Some(()));
            }
            let health = self.target.health(self.table).await?;
            let Some(reason) = reason_to_wait(&health, &self.limits) else {
                self.passed_at = Some(Instant::now());
                continue;
            };
            let _shown = progress.wait(reason);
            if shutdown.or(tokio::time::sleep(ASK_EVERY)).await.is_none() {
                return Ok(None);
            }
        }
    }
}

/// Why nothing should be deleted now.
fn reason_to_wait(health: &WriteHealth, limits: &GateLimits) -> Option<String> {
    let GateLimits { replica_lag_max_s, slot_wal_bytes_max, active_sessions_max } = *limits;
    if health.replica_lag_s.is_some_and(|lag_s| lag_s > replica_lag_max_s) {
        return Some(format!(
            "a replica of Postgres is over {replica_lag_max_s} s behind (--replica-lag-max-s)"
        ));
    }
    if health.slot_wal_bytes.is_some_and(|bytes| bytes > slot_wal_bytes_max) {
        let gib = slot_wal_bytes_max >> 30;
        return Some(format!(
            "a replication slot keeps over {gib} GiB of WAL (--slot-wal-max-gib)"
        ));
    }
    if health.is_vacuumed {
        return Some("a VACUUM is at work on the table".to_owned());
    }
    if health.lock_waiters > 0 {
        return Some(format!("{} sessions wait for a lock on the table", health.lock_waiters));
    }
    let is_busy = active_sessions_max.is_some_and(|max| health.active_sessions > max);
    is_busy
        .then(|| format!("{} sessions are at work (--active-sessions-max)", health.active_sessions))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_trouble_has_its_own_word() {
        let limits = GateLimits { active_sessions_max: Some(5), ..GateLimits::default() };
        let well = WriteHealth { active_sessions: 5, ..WriteHealth::default() };
        assert_eq!(reason_to_wait(&well, &limits), None);
        type Trouble = fn(&mut WriteHealth);
        let cases: [(Trouble, &str); 5] = [
            (|health| health.replica_lag_s = Some(31.0), "replica of Postgres is over 30 s"),
            (|health| health.slot_wal_bytes = Some((10 << 30) + 1), "over 10 GiB of WAL"),
            (|health| health.is_vacuumed = true, "VACUUM is at work"),
            (|health| health.lock_waiters = 2, "2 sessions wait for a lock"),
            (|health| health.active_sessions = 6, "6 sessions are at work"),
        ];
        for (trouble, wanted) in cases {
            let mut health = well;
            trouble(&mut health);
            let reason = reason_to_wait(&health, &limits).unwrap();
            assert!(reason.contains(wanted), "{reason}");
        }
    }
}
