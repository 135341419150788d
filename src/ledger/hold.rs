//! Holds in the book: which rows a run looks at again, and which a person must look into.
//!
//! What a run costs for rows that wait is bounded: those of which something is about to become (a
//! run that goes on) are looked at by every run; the others, of which there may be millions, take
//! their turn, and so does what has run for long.

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use sqlx::Row as _;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use crate::ledger::Ledger;
use crate::ledger::process::Process;
use crate::ledger::range::RangeKind;
use crate::pg::{self, Tx};
use crate::record::hold::{HoldReason, LookAgain};
use crate::record::key::Key;
use crate::record::table::Table;
use crate::record::timestamp::Timestamp;

/// Which held rows a run looks at again.
#[derive(Debug, Clone, Copy)]
pub struct HoldsToTry {
    /// Of those that were too old, the ones that finished at this time or later; `None`: none.
    pub kept_since: Option<Timestamp>,
    /// So many at most of those that take their turn.
    pub in_turn_max: u32,
}

/// A stretch of the table's open holds, in the order in which they were last held.
#[derive(Debug, Clone, Copy)]
pub struct HoldsSpan {
    pub look_again: LookAgain,
    /// Behind this hold; the key's time is when it was last held (UTC).
    pub after: Key,
    /// Up to this one; `None`: to the end.
    pub upto: Option<Key>,
}

/// An open hold.
#[derive(Debug, Clone, Copy)]
pub struct HeldRow {
    /// Its place in a [`HoldsSpan`].
    pub key: Key,
    pub row_id: Uuid,
    pub created_at: Timestamp,
    pub finished_at: Option<Timestamp>,
    pub reason: HoldReason,
}

/// A range of holds has at most so many rows: a page of them.
const RANGE_HOLDS: i64 = 4096;

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

/// A row passed over.
#[derive(Debug, Clone)]
pub struct NewHold {
    pub row_id: Uuid,
    pub created_at: Timestamp,
    /// `None`: not finished, or not known.
    pub finished_at: Option<Timestamp>,
    pub reason: HoldReason,
    /// For a person; never content of the row.
    pub detail: String,
    pub look_again: LookAgain,
}

impl Ledger {
    /// Cuts the open holds of `table` that are to be looked at again into ranges of its open pass,
    /// once: all that every run looks at, then those whose turn it is. What was held since
    /// `process` began is left to the next run. Does nothing if another process has done it.
    pub async fn cut_holds(
        &self,
        table: Table,
        pass_id: i64,
        process: &Process,
        holds: &HoldsToTry,
    ) -> anyhow::Result<()> {
        let context = || format!("cut the held rows of pass {pass_id} into ranges");
        if let Some(kept_since) = holds.kept_since {
            self.wake_expired(table, kept_since, holds.in_turn_max).await.with_context(context)?;
        }
        let mut tx = self.begin_on_indexes().await?;
        // Millions of holds take a while.
        sqlx::raw_sql("SET LOCAL statement_timeout = '10min'")
            .execute(&mut *tx)
            .await
            .with_context(context)?;
        let cut = pg::statement(
            "UPDATE sls_backfill.pass SET holds_cut = true \
             WHERE id = $1 AND cut_done AND NOT holds_cut \
             AND EXISTS (SELECT FROM sls_backfill.process WHERE id = $2 AND ended_at IS NULL)",
        )
        .bind(pass_id)
        .bind(process.id)
        .execute(&mut *tx)
        .await
        .with_context(context)?;
        if cut.rows_affected() == 0 {
            return Ok(());
        }
        for (look_again, rows_max) in
            [(LookAgain::EveryRun, i64::MAX), (LookAgain::InTurn, i64::from(holds.in_turn_max))]
        {
            let ends = range_ends(&mut tx, table, process, look_again, rows_max);
            let ends = ends.await.with_context(context)?;
            add_ranges(&mut tx, pass_id, look_again, &ends).await.with_context(context)?;
        }
        tx.commit().await.with_context(context)
    }

    /// Of the holds that were too old, those that finished at `kept_since` or later take their turn,
    /// so many at most.
    async fn wake_expired(
        &self,
        table: Table,
        kept_since: Timestamp,
        rows_max: u32,
    ) -> anyhow::Result<()> {
        let context = || format!("take up held rows of {table} that were too old");
        let (mut left, mut woken) = (i64::from(rows_max), 1);
        while left > 0 && woken > 0 {
            let mut tx = self.begin_on_indexes().await?;
            let update = pg::statement(
                "UPDATE sls_backfill.hold SET look_again = 'in turn' WHERE table_name = $1 \
                 AND row_id = ANY(ARRAY(SELECT row_id FROM sls_backfill.hold \
                   WHERE table_name = $1 AND state = 'open' AND look_again = 'if kept' \
                   AND finished_at >= $2 LIMIT $3))",
            )
            .bind(table.name())
            .bind(kept_since)
            .bind(left.min(RANGE_HOLDS))
            .execute(&mut *tx)
            .await
            .with_context(context)?;
            tx.commit().await.with_context(context)?;
            woken = i64::try_from(update.rows_affected())?;
            left -= woken;
        }
        Ok(())
    }

    /// Has the holds be cut anew for this run, which goes on with a pass of an earlier one: ends the
    /// ranges of holds that nobody works on.
    pub async fn forget_cut_holds(&self, pass_id: i64) -> anyhow::Result<()> {
        let context = || format!("end the ranges of held rows of pass {pass_id}");
        let mut tx = self.begin().await?;
        for sql in [
            "UPDATE sls_backfill.range SET state = 'done', owner = NULL, lease_until = NULL, \
             token = token + 1, closed_at = clock_timestamp() \
             WHERE pass_id = $1 AND state = 'open' AND kind IN ('holds', 'holds in turn') \
             AND (owner IS NULL OR lease_until < clock_timestamp())",
            "UPDATE sls_backfill.pass SET holds_cut = false WHERE id = $1 AND holds_cut \
             AND NOT EXISTS (SELECT FROM sls_backfill.range r WHERE r.pass_id = $1 \
               AND r.state = 'open' AND r.kind IN ('holds', 'holds in turn'))",
        ] {
            pg::statement(sql).bind(pass_id).execute(&mut *tx).await.with_context(context)?;
        }
        tx.commit().await.with_context(context)
    }

    /// The next open holds of the span, at most `limit`, in its order.
    pub async fn next_holds(
        &self,
        table: Table,
        span: &HoldsSpan,
        limit: u32,
    ) -> anyhow::Result<Vec<HeldRow>> {
        let mut tx = self.begin_snapshot().await?;
        let upto =
            span.upto.unwrap_or(Key { at: Timestamp::INFINITY, id: Uuid::max(), ..Key::START });
        let rows = pg::statement(
            "SELECT row_id, created_at, finished_at, reason, \
             last_held_at AT TIME ZONE 'UTC' AS held_at FROM sls_backfill.hold \
             WHERE table_name = $1 AND state = 'open' AND look_again = $2 \
             AND (last_held_at, row_id) > ($3::timestamp AT TIME ZONE 'UTC', $4) \
             AND (last_held_at, row_id) <= ($5::timestamp AT TIME ZONE 'UTC', $6) \
             ORDER BY last_held_at, row_id LIMIT $7",
        )
        .bind(table.name())
        .bind(span.look_again.name())
        .bind(span.after.at)
        .bind(span.after.id)
        .bind(upto.at)
        .bind(upto.id)
        .bind(i64::from(limit))
        .fetch_all(&mut *tx)
        .await
        .with_context(|| format!("read the held rows of {table}"))?;
        rows.iter().map(held_row).collect()
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
            "UPDATE sls_backfill.hold SET look_again = 'every run' \
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

/// Holds rows, or notes that they are held still; they were first seen by that pass.
pub(in crate::ledger) async fn insert_holds(
    tx: &mut Tx,
    table: Table,
    pass_id: i64,
    holds: &[NewHold],
) -> anyhow::Result<()> {
    pg::statement(
        // Of a row that is missing once more, it stays known since when.
        "INSERT INTO sls_backfill.hold \
           (table_name, row_id, pass_id, reason, detail, created_at, finished_at, look_again) \
         SELECT $1, h.row_id, $2, h.reason, h.detail, h.created_at, h.finished_at, h.look_again \
         FROM unnest($3::uuid[], $4::text[], $5::text[], $6::timestamp[], $7::timestamp[], \
           $8::text[]) AS h(row_id, reason, detail, created_at, finished_at, look_again) \
         ON CONFLICT (table_name, row_id) DO UPDATE SET reason = excluded.reason, \
           detail = excluded.detail, finished_at = excluded.finished_at, state = 'open', \
           batch_id = NULL, look_again = excluded.look_again, tries = hold.tries + 1, \
           last_held_at = CASE WHEN hold.state = 'open' AND hold.reason = 'missing' \
             AND excluded.reason = 'missing' THEN hold.last_held_at ELSE clock_timestamp() END",
    )
    .bind(table.name())
    .bind(pass_id)
    .bind(holds.iter().map(|hold| hold.row_id).collect::<Vec<_>>())
    .bind(holds.iter().map(|hold| hold.reason.name().to_owned()).collect::<Vec<_>>())
    .bind(holds.iter().map(|hold| hold.detail.clone()).collect::<Vec<_>>())
    .bind(holds.iter().map(|hold| hold.created_at).collect::<Vec<_>>())
    .bind(holds.iter().map(|hold| hold.finished_at).collect::<Vec<_>>())
    .bind(holds.iter().map(|hold| hold.look_again.name().to_owned()).collect::<Vec<_>>())
    .execute(&mut **tx)
    .await
    .context("hold rows")?;
    Ok(())
}

/// Ends open holds: `stored` (by that batch), `already` or `gone`.
pub(in crate::ledger) async fn close_holds(
    tx: &mut Tx,
    table: Table,
    state: &str,
    batch_id: Option<Uuid>,
    ids: Vec<Uuid>,
) -> anyhow::Result<()> {
    if ids.is_empty() {
        return Ok(());
    }
    let (wanted, batch_id) = (ids.len() as u64, batch_id.filter(|_| state == "stored"));
    let closed = pg::statement(
        "UPDATE sls_backfill.hold SET state = $2, batch_id = $3, tries = tries + 1 \
         WHERE table_name = $1 AND row_id = ANY($4) AND state = 'open'",
    )
    .bind(table.name())
    .bind(state)
    .bind(batch_id)
    .bind(ids)
    .execute(&mut **tx)
    .await
    .context("close holds")?;
    anyhow::ensure!(closed.rows_affected() == wanted, "holds were closed by somebody else");
    Ok(())
}

/// Where ranges of the open holds end that are looked at again so often.
async fn range_ends(
    tx: &mut Tx,
    table: Table,
    process: &Process,
    look_again: LookAgain,
    rows_max: i64,
) -> anyhow::Result<Vec<Key>> {
    let rows = pg::statement(
        "SELECT last_held_at AT TIME ZONE 'UTC' AS held_at, row_id FROM \
           (SELECT last_held_at, row_id, row_number() OVER held AS nth, \
              lead(row_id) OVER held IS NULL AS is_last FROM \
              (SELECT last_held_at, row_id FROM sls_backfill.hold WHERE table_name = $1 \
               AND state = 'open' AND look_again = $2 AND last_held_at < \
                 (SELECT started_at FROM sls_backfill.process WHERE id = $3) \
               ORDER BY last_held_at, row_id LIMIT $4) due \
            WINDOW held AS (ORDER BY last_held_at, row_id)) numbered \
         WHERE nth % $5 = 0 OR is_last ORDER BY nth",
    )
    .bind(table.name())
    .bind(look_again.name())
    .bind(process.id)
    .bind(rows_max)
    .bind(RANGE_HOLDS)
    .fetch_all(&mut **tx)
    .await
    .context("look for held rows")?;
    rows.iter().map(|row| Ok(Key::time(row.try_get("held_at")?, row.try_get("row_id")?))).collect()
}

/// Adds a range up to each of `ends`, each behind the one before.
async fn add_ranges(
    tx: &mut Tx,
    pass_id: i64,
    look_again: LookAgain,
    ends: &[Key],
) -> anyhow::Result<()> {
    let begins = std::iter::once(Key::START).chain(ends.iter().copied()).take(ends.len());
    pg::statement(
        "INSERT INTO sls_backfill.range (pass_id, kind, after, position, upto) \
         SELECT $1, $2, after, after, upto FROM unnest($3::jsonb[], $4::jsonb[]) AS r(after, upto)",
    )
    .bind(pass_id)
    .bind(RangeKind::Holds(look_again).name())
    .bind(begins.map(serde_json::to_value).collect::<Result<Vec<_>, _>>()?)
    .bind(ends.iter().map(serde_json::to_value).collect::<Result<Vec<_>, _>>()?)
    .execute(&mut **tx)
    .await
    .context("add ranges of held rows")?;
    Ok(())
}

fn held_row(row: &PgRow) -> anyhow::Result<HeldRow> {
    let (row_id, reason): (Uuid, &str) = (row.try_get("row_id")?, row.try_get("reason")?);
    Ok(HeldRow {
        key: Key::time(row.try_get("held_at")?, row_id),
        row_id,
        created_at: row.try_get("created_at")?,
        finished_at: row.try_get("finished_at")?,
        reason: HoldReason::from_name(reason).context("the ledger names an unknown reason")?,
    })
}
