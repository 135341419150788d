//! Whether the ledger that answers is still the one that this process began with.
//!
//! A proxy hides a failover: behind a PgBouncer the next statement of a process that hears of nothing
//! may reach a replica that was promoted a moment ago and lacks the last second. So whatever
//! authorises a request names the timeline on which the process found the ledger, in the statement
//! itself. Timelines say nothing where a disk went back to a snapshot, or where this user may not ask
//! for them; then a range tells that stands elsewhere than its owner has left it.

use anyhow::Context as _;
use sqlx::Row as _;

use crate::ledger::range::Lease;
use crate::ledger::stop::{Stopped, not_where_it_was};
use crate::ledger::{LeaseLost, Ledger};
use crate::pg;
use crate::pg::identity::{Identity, TIMELINE};

impl Ledger {
    /// The condition that every statement carries that authorises a request: nothing has stopped the
    /// ledger, and it is where this process found it. Its one parameter, the `nth`, is
    /// [`Ledger::timeline_found`].
    pub(in crate::ledger) fn may_send_sql(&self, nth: u32) -> String {
        let parameter = format!("${nth}::text");
        // Without the right to call them, functions must not even be named.
        let now = self.timeline.as_ref().map_or(parameter.as_str(), |_| TIMELINE);
        format!(
            "{now} IS NOT DISTINCT FROM {parameter} AND NOT EXISTS \
             (SELECT FROM sls_backfill.ledger WHERE stopped_because IS NOT NULL)"
        )
    }

    /// The timeline on which this process found the ledger.
    pub(in crate::ledger) fn timeline_found(&self) -> Option<String> {
        self.timeline.clone()
    }

    /// Fails with [`Stopped`] if the ledger was stopped, or if its Postgres is on another timeline
    /// than the one on which this process found it, which stops it.
    pub async fn check_stop(&self) -> anyhow::Result<()> {
        let mut tx = self.begin_relaxed().await?;
        let now = self.timeline.as_ref().map_or("NULL::text", |_| TIMELINE);
        let row = pg::made_statement(&format!(
            "SELECT stopped_because, {now} AS timeline FROM sls_backfill.ledger"
        ))
        .fetch_one(&mut *tx)
        .await
        .context("look whether the ledger was stopped")?;
        if let Some(because) = row.try_get("stopped_because")? {
            return Err(Stopped { because }.into());
        }
        let of = |timeline| Identity { timeline, ..Identity::default() };
        let differences = of(self.timeline.clone()).differences(&of(row.try_get("timeline")?));
        if differences.is_empty() {
            return Ok(());
        }
        drop(tx);
        Err(self.stop(&not_where_it_was(&differences)).await?.into())
    }

    /// Why a write on behalf of `lease` did not find its range as it must be: [`LeaseLost`] when
    /// somebody else owns it; [`Stopped`] when the ledger was stopped, or has gone back in time.
    pub(in crate::ledger) async fn lease_lost(&self, lease: &Lease) -> anyhow::Error {
        match self.check_range(lease).await {
            Ok(()) => LeaseLost { range_id: lease.range_id }.into(),
            Err(error) => error,
        }
    }

    async fn check_range(&self, lease: &Lease) -> anyhow::Result<()> {
        self.check_stop().await?;
        let mut tx = self.begin_relaxed().await?;
        // Nobody but its owner moves a range, and ranges do not vanish under a process that lives.
        let row = pg::statement(
            "SELECT coalesce(CASE WHEN r.id IS NULL THEN p.ended_at IS NULL \
               ELSE r.owner = p.id END, false) AS went_back \
             FROM sls_backfill.process p LEFT JOIN sls_backfill.range r ON r.id = $1 \
             WHERE p.id = $2",
        )
        .bind(lease.range_id)
        .bind(lease.owner)
        .fetch_optional(&mut *tx)
        .await
        .with_context(|| format!("look whose range {} is", lease.range_id))?;
        drop(tx);
        // Nor do processes.
        if !row.map_or(Ok(true), |row| row.try_get("went_back"))? {
            return Ok(());
        }
        let because = format!(
            "the ledger went back in time: range {} does not stand where its process has left it",
            lease.range_id
        );
        Err(self.stop(&because).await?.into())
    }
}
