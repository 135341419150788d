//! Ranges: cut from a pass as they are needed, owned by one worker at a time, done or taken over.

use anyhow::Context as _;
use sqlx::Row as _;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::ledger::Ledger;
use crate::ledger::acknowledge::{Acknowledgement, acknowledge};
use crate::ledger::process::{LEASE, Process, TakenForDead};
use crate::pg;
use crate::record::hold::LookAgain;
use crate::record::key::{Key, KeyOrder};

/// What a range's rows are found by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RangeKind {
    /// By their place in a key order.
    Keys(KeyOrder),
    /// By the table's open holds that are looked at again so often, those first that were held
    /// first.
    Holds(LookAgain),
}

impl RangeKind {
    /// The words for it in the ledger.
    pub fn name(self) -> &'static str {
        match self {
            Self::Keys(order) => order.name(),
            Self::Holds(LookAgain::InTurn) => "holds in turn",
            Self::Holds(_) => "holds",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        match name {
            "holds" => Some(Self::Holds(LookAgain::EveryRun)),
            "holds in turn" => Some(Self::Holds(LookAgain::InTurn)),
            name => KeyOrder::from_name(name).map(Self::Keys),
        }
    }
}

/// A range that this process owns.
#[derive(Debug, Clone)]
pub struct Lease {
    pub range_id: i64,
    pub pass_id: i64,
    pub kind: RangeKind,
    /// The range ends with it; `None`: with the pass.
    pub upto: Option<Key>,
    pub after: Key,
    /// Where the last owner stopped.
    pub position: Key,
    /// Every write names it; it changes with the owner.
    pub token: i64,
    /// The process that owns it.
    pub owner: Uuid,
    /// Which reading of it this is, from 1.
    pub readings: i32,
}

/// How a range that was read to its end stands now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RangeEnd {
    /// `false`: it is to be read again.
    pub is_done: bool,
    /// Rows that were there when they were read.
    pub rows_read: u64,
}

/// What there is to do of a pass.
#[derive(Debug, Clone)]
pub enum Work {
    /// This range, which is the caller's now.
    Range(Lease),
    /// The next range is to be cut, behind this key of this order.
    Cut(KeyOrder, Key),
    /// The table's open holds are to be cut into ranges.
    CutHolds,
    /// Everything is cut, or what is left must wait for open ranges of others.
    Wait,
    /// Nothing: everything is cut and done.
    Done,
}

/// What a lease is read from.
const LEASED: &str = "id, pass_id, kind, after, upto, position, token, owner, readings";

/// Gives a range back so that it is read from its beginning. What it only counted, it counts anew;
/// what is in a batch or held it will know.
pub(in crate::ledger) const READ_AGAIN: &str = "state = 'open', owner = NULL, lease_until = NULL, \
    token = token + 1, position = after, readings = readings + 1, \
    rows_seen = rows_seen - rows_expired, rows_expired = 0, expired_before = NULL, rows_read = 0, \
    rows_counted = NULL, closed_at = NULL";

impl Ledger {
    /// Claims an open range of the pass that nobody owns, or whose owner's lease has run out; tells
    /// what else there is to do if there is none. The rows that no run reaches come last: only when
    /// all nodes that runs do reach are in the ledger can a row not be taken for both.
    ///
    /// Fails with [`TakenForDead`] when the process was found dead meanwhile: it gets nothing more.
    pub async fn work(&self, pass_id: i64, process: &Process) -> anyhow::Result<Work> {
        let context = || format!("claim a range of pass {pass_id}");
        let mut tx = self.begin().await?;
        // The process's row is locked, so that one that leaves just now either frees this range or
        // does not get it.
        let claimed = pg::made_statement(&format!(
            "UPDATE sls_backfill.range SET owner = $2, token = token + 1, \
             lease_until = clock_timestamp() + make_interval(secs => $3) \
             WHERE id = (SELECT id FROM sls_backfill.range r WHERE pass_id = $1 AND state = 'open' \
               AND (owner IS NULL OR (lease_until < clock_timestamp() AND owner <> $2)) \
               AND (kind <> 'rest' OR NOT EXISTS (SELECT FROM sls_backfill.range b \
                 WHERE b.pass_id = $1 AND b.state = 'open' AND b.kind = 'by-run')) \
               ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED) \
             AND EXISTS \
               (SELECT FROM sls_backfill.process WHERE id = $2 AND ended_at IS NULL FOR SHARE) \
             RETURNING {LEASED}"
        ))
        .bind(pass_id)
        .bind(process.id)
        .bind(LEASE.as_secs_f64())
        .fetch_optional(&mut *tx)
        .await
        .with_context(context)?;
        if let Some(row) = claimed {
            tx.commit().await.with_context(context)?;
            return Ok(Work::Range(lease(&row)?));
        }
        let row = pg::statement(
            "SELECT cut_order, cut_after, cut_done, holds_cut, EXISTS (SELECT FROM \
             sls_backfill.range r WHERE r.pass_id = p.id AND r.state = 'open') AS open, \
             cut_order <> key_order AND EXISTS (SELECT FROM sls_backfill.range r \
             WHERE r.pass_id = p.id AND r.state = 'open' AND r.kind = p.key_order) AS early, \
             EXISTS (SELECT FROM sls_backfill.process WHERE id = $2 AND ended_at IS NULL) AS alive \
             FROM sls_backfill.pass p WHERE id = $1",
        )
        .bind(pass_id)
        .bind(process.id)
        .fetch_one(&mut *tx)
        .await
        .with_context(|| format!("look at pass {pass_id}"))?;
        if !row.try_get("alive")? {
            return Err(TakenForDead.into());
        }
        let open: bool = row.try_get("open")?;
        let order: &str = row.try_get("cut_order")?;
        Ok(match (row.try_get("cut_done")?, open) {
            (true, _) if !row.try_get::<bool, _>("holds_cut")? => Work::CutHolds,
            (true, true) => Work::Wait,
            (true, false) => Work::Done,
            (false, _) if row.try_get("early")? => Work::Wait,
            (false, _) => Work::Cut(
                KeyOrder::from_name(order).context("the ledger names an unknown key order")?,
                serde_json::from_value(row.try_get("cut_after")?)?,
            ),
        })
    }

    /// Adds the range behind `after`, up to `upto` (`None`: the rest of the order), and claims it.
    /// Gives `None`, and adds nothing, when another process has cut there meanwhile or took this
    /// one for dead.
    pub async fn cut_range(
        &self,
        pass_id: i64,
        process: &Process,
        order: KeyOrder,
        after: Key,
        upto: Option<Key>,
    ) -> anyhow::Result<Option<Lease>> {
        let context = || format!("cut a range of pass {pass_id}");
        let (next_order, next_after, done) = match (upto, order) {
            (Some(upto), _) => (order, upto, false),
            (None, KeyOrder::ByRun) => (KeyOrder::Rest, Key::START, false),
            (None, _) => (order, after, true),
        };
        let mut tx = self.begin().await?;
        let row = pg::made_statement(&format!(
            "WITH cut AS (UPDATE sls_backfill.pass SET cut_order = $4, cut_after = $5, \
               cut_done = $6 WHERE id = $1 AND cut_order = $2 AND cut_after = $3 AND NOT cut_done \
               AND EXISTS (SELECT FROM sls_backfill.process WHERE id = $8 AND ended_at IS NULL \
                 FOR SHARE) RETURNING id) \
             INSERT INTO sls_backfill.range \
               (pass_id, kind, after, upto, position, owner, token, lease_until) \
             SELECT id, $2, $3, $7, $3, $8, 1, clock_timestamp() + make_interval(secs => $9) \
             FROM cut RETURNING {LEASED}"
        ))
        .bind(pass_id)
        .bind(order.name())
        .bind(serde_json::to_value(after)?)
        .bind(next_order.name())
        .bind(serde_json::to_value(next_after)?)
        .bind(done)
        .bind(upto.map(serde_json::to_value).transpose()?)
        .bind(process.id)
        .bind(LEASE.as_secs_f64())
        .fetch_optional(&mut *tx)
        .await
        .with_context(context)?;
        tx.commit().await.with_context(context)?;
        row.map(|row| lease(&row)).transpose()
    }

    /// Gives a range back as it stands, for any worker to go on with. Does nothing when somebody
    /// else owns it.
    pub async fn release(&self, lease: &Lease) -> anyhow::Result<()> {
        let mut tx = self.begin().await?;
        pg::statement(
            "UPDATE sls_backfill.range SET owner = NULL, lease_until = NULL, token = token + 1 \
             WHERE id = $1 AND token = $2 AND state = 'open'",
        )
        .bind(lease.range_id)
        .bind(lease.token)
        .execute(&mut *tx)
        .await
        .with_context(|| format!("give back range {}", lease.range_id))?;
        tx.commit().await.context("give back a range")
    }

    /// Ends a range whose every row is accounted for; fails as [`Ledger::record`]. `rows_counted`:
    /// rows in it by one count; `stored`: batches that are in SLS, as SLS said.
    ///
    /// If it has more rows than were read, some came behind the position: once it is given back, to
    /// be read again. What is missing still is told by the account, until a later reading finds it.
    pub async fn finish_range(
        &self,
        lease: &Lease,
        rows_counted: Option<u64>,
        stored: &[Acknowledgement],
    ) -> anyhow::Result<RangeEnd> {
        let context = || format!("end range {}", lease.range_id);
        let rows_counted = rows_counted.map(i64::try_from).transpose()?;
        let mut tx = self.begin().await?;
        let again = pg::made_statement(&format!(
            "WITH old AS (SELECT id, rows_read FROM sls_backfill.range \
               WHERE id = $1 AND token = $2 AND state = 'open' AND readings = 1 \
               AND rows_read < $3 FOR UPDATE) \
             UPDATE sls_backfill.range r SET {READ_AGAIN} FROM old WHERE r.id = old.id \
             RETURNING old.rows_read, false AS is_done"
        ));
        let done = pg::statement(
            "UPDATE sls_backfill.range SET state = 'done', owner = NULL, lease_until = NULL, \
             rows_counted = $3, closed_at = clock_timestamp() \
             WHERE id = $1 AND token = $2 AND state = 'open' RETURNING rows_read, true AS is_done",
        );
        for ending in [again, done] {
            let ending = ending.bind(lease.range_id).bind(lease.token).bind(rows_counted);
            if let Some(row) = ending.fetch_optional(&mut *tx).await.with_context(context)? {
                acknowledge(&mut tx, stored).await?;
                tx.commit().await.with_context(context)?;
                let rows_read = u64::try_from(row.try_get::<i64, _>("rows_read")?)?;
                return Ok(RangeEnd { is_done: row.try_get("is_done")?, rows_read });
            }
        }
        drop(tx);
        Err(self.lease_lost(lease).await)
    }

    /// Closes the pass if everything of it is cut and done; says whether it is closed.
    pub async fn close_pass(&self, pass_id: i64) -> anyhow::Result<bool> {
        let mut tx = self.begin().await?;
        pg::statement(
            "UPDATE sls_backfill.pass p SET state = 'done', closed_at = clock_timestamp() \
             WHERE id = $1 AND state = 'open' AND cut_done AND NOT EXISTS \
             (SELECT FROM sls_backfill.range r WHERE r.pass_id = p.id AND r.state = 'open')",
        )
        .bind(pass_id)
        .execute(&mut *tx)
        .await
        .with_context(|| format!("close pass {pass_id}"))?;
        let state =
            pg::statement("SELECT state = 'done' AS done FROM sls_backfill.pass WHERE id = $1")
                .bind(pass_id)
                .fetch_one(&mut *tx)
                .await?;
        tx.commit().await.context("close a pass")?;
        Ok(state.try_get("done")?)
    }
}

fn lease(row: &PgRow) -> anyhow::Result<Lease> {
    let kind: &str = row.try_get("kind")?;
    let upto: Option<serde_json::Value> = row.try_get("upto")?;
    Ok(Lease {
        range_id: row.try_get("id")?,
        pass_id: row.try_get("pass_id")?,
        kind: RangeKind::from_name(kind).context("the ledger names an unknown kind of range")?,
        upto: upto.map(serde_json::from_value).transpose()?,
        after: serde_json::from_value(row.try_get("after")?)?,
        position: serde_json::from_value(row.try_get("position")?)?,
        token: row.try_get("token")?,
        owner: row.try_get("owner")?,
        readings: row.try_get("readings")?,
    })
}
