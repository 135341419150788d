//! The intent transaction: a batch is in the ledger, with all that is needed to find or repeat it,
//! before its first byte is on the wire.
//!
//! One transaction moves the range's position behind the rows read, writes the batch, and records
//! the rows passed over as holds. So after any crash every row up to the position is in a batch,
//! held, already there or gone; and every batch that might be in SLS is in the book.
//!
//! An intent authorises a request, so it is written only into the ledger that this process knows
//! (`ledger::continuity`).

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use sqlx::Postgres;
use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use uuid::Uuid;

use crate::ledger::acknowledge::{Acknowledgement, acknowledge_sql, bind_acknowledged};
use crate::ledger::batch_rows::BatchRows;
use crate::ledger::hold::{NewHold, close_holds, insert_holds};
use crate::ledger::live_rows::{RowsTaken, is_taken, live_rows};
use crate::ledger::range::{Lease, RangeKind};
use crate::ledger::{LeaseLost, Ledger};
use crate::pg::{self, Tx};
use crate::record::digest::Digest;
use crate::record::hold::HoldReason;
use crate::record::key::Key;
use crate::record::table::Table;
use crate::record::timestamp::Timestamp;

/// How often a COMMIT without an answer is looked up before the process gives up.
const LOOK_UPS_MAX: u32 = 10;

/// A batch as it is intended.
#[derive(Debug, Clone)]
pub struct NewBatch {
    pub id: Uuid,
    pub rows: Vec<BatchRow>,
    pub raw_bytes: u64,
    pub digest: Digest,
    pub not_json: u32,
    pub conversion_id: i64,
    /// `None`: it is not about to be sent; the resolver will send it.
    pub sending: Option<Sending>,
    /// Unix seconds.
    pub ingest_time: u32,
}

/// How a batch is about to go over the wire, and who alone may send it.
#[derive(Debug, Clone)]
pub struct Sending {
    pub owner: Uuid,
    pub lane_id: i64,
    pub number: u64,
    /// Which of the batch's sendings it is, from 1: each on a number of its own. The tag
    /// `__attempt__` says so.
    pub nth: u32,
    /// Unix seconds, SLS's clock.
    pub signed_at: i64,
    /// Shard → a cursor that no log of this batch can precede.
    pub cursors: BTreeMap<u32, String>,
}

/// What the ledger keeps of a row in a batch.
#[derive(Debug, Clone, Copy)]
pub struct BatchRow {
    pub id: Uuid,
    pub created_at: Timestamp,
    pub finished_at: Timestamp,
}

/// Rows passed over because they are older than their logstore keeps logs, and only counted: the
/// range finds them again.
#[derive(Debug, Clone, Copy, Default)]
pub struct Expired {
    pub rows: u64,
    /// All of them finished before it; `None`: there is no such bound.
    pub finished_before: Option<Timestamp>,
}

/// One step of a range: what became of the next rows.
#[derive(Debug, Clone)]
pub struct Step {
    pub table: Table,
    pub batch: Option<NewBatch>,
    pub holds: Vec<NewHold>,
    pub expired: Expired,
    /// Rows that a live batch or an open hold has already.
    pub already: Vec<Uuid>,
    /// Held rows that have not been in the table for long.
    pub gone: Vec<Uuid>,
    /// The last row of the step; `None`: the step's rest comes with the next one.
    pub position: Option<Key>,
    /// Earlier batches that are stored.
    pub stored: Vec<Acknowledgement>,
}

impl Step {
    /// A step with no row in it yet.
    pub fn of(table: Table) -> Self {
        Self {
            table,
            batch: None,
            holds: Vec::new(),
            expired: Expired::default(),
            already: Vec::new(),
            gone: Vec::new(),
            position: None,
            stored: Vec::new(),
        }
    }

    /// How many rows it accounts for.
    pub fn rows_seen(&self) -> u64 {
        let batched = self.batch.as_ref().map_or(0, |batch| batch.rows.len());
        let listed = batched + self.holds.len() + self.already.len() + self.gone.len();
        listed as u64 + self.expired.rows
    }
}

/// What a step adds to the counters of its range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counts {
    seen: u64,
    already: u64,
    gone: u64,
    expired: u64,
    read: u64,
}

impl Counts {
    fn of(step: &Step, lease: &Lease) -> Self {
        let (known, gone) = (step.already.len() as u64, step.gone.len() as u64);
        if matches!(lease.kind, RangeKind::Holds(_)) {
            // The rows of a hold were counted as seen by the range that held them.
            return Self { seen: 0, already: known, gone, expired: 0, read: 0 };
        }
        // What a range knows when it is read again, it has counted when it was read first.
        let already = if lease.readings > 1 { 0 } else { known };
        let missing = step.holds.iter().filter(|hold| hold.reason == HoldReason::Missing).count();
        Self {
            seen: step.rows_seen() - known + already,
            already,
            gone,
            expired: step.expired.rows,
            read: step.rows_seen() - missing as u64,
        }
    }
}

impl Ledger {
    /// Writes one step, all of it or nothing; moves the lease's position with it.
    ///
    /// Fails with [`LeaseLost`] when the range has another owner, with [`RowsTaken`] when a row of
    /// the batch is in another live one by now, and with [`crate::ledger::stop::Stopped`] when the
    /// ledger was stopped or is not the one that it was.
    pub async fn record(&self, lease: &mut Lease, step: &Step) -> anyhow::Result<()> {
        let position = step.position.unwrap_or(lease.position);
        let mut look_ups = 0;
        loop {
            let mut tx = self.begin().await?;
            if let Err(error) = self.write_step(&mut tx, lease, step, position).await {
                drop(tx);
                // The COMMIT without an answer may have come through only now.
                if look_ups > 0 && self.was_recorded(lease, step, position).await? {
                    break;
                }
                return Err(if error.is::<LeaseLost>() {
                    self.lease_lost(lease).await
                } else {
                    error
                });
            }
            let Err(lost) = tx.commit().await else { break };
            // A COMMIT without an answer: the book itself knows whether it came through.
            look_ups += 1;
            match self.was_recorded(lease, step, position).await {
                Ok(true) => break,
                Ok(false) if look_ups < LOOK_UPS_MAX => {}
                Err(_) if look_ups < LOOK_UPS_MAX => {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    if self.was_recorded(lease, step, position).await.unwrap_or(false) {
                        break;
                    }
                }
                _ => {
                    return Err(lost)
                        .with_context(|| format!("write a step of range {}", lease.range_id));
                }
            }
        }
        lease.position = position;
        Ok(())
    }

    async fn was_recorded(
        &self,
        lease: &Lease,
        step: &Step,
        position: Key,
    ) -> anyhow::Result<bool> {
        let mut tx = self.begin().await?;
        let found = match &step.batch {
            Some(batch) => pg::statement("SELECT FROM sls_backfill.batch WHERE id = $1")
                .bind(batch.id)
                .fetch_optional(&mut *tx)
                .await?
                .is_some(),
            None => pg::statement(
                "SELECT FROM sls_backfill.range WHERE id = $1 AND token = $2 AND position = $3",
            )
            .bind(lease.range_id)
            .bind(lease.token)
            .bind(serde_json::to_value(position)?)
            .fetch_optional(&mut *tx)
            .await?
            .is_some(),
        };
        Ok(found)
    }

    async fn write_step(
        &self,
        tx: &mut Tx,
        lease: &Lease,
        step: &Step,
        position: Key,
    ) -> anyhow::Result<()> {
        let context = || format!("write a step of range {}", lease.range_id);
        let Counts { seen, already, gone, expired, read } = Counts::of(step, lease);
        // One statement for all: each is two ways to Postgres and back.
        let place = Place { pass_id: lease.pass_id, range_id: lease.range_id, parent_id: None };
        let statement = match &step.batch {
            None => pg::made_statement(&format!("WITH {} SELECT FROM moved", self.moved_sql(0))),
            Some(batch) => {
                let moved = self.moved_sql(BATCH_PARAMETERS);
                let sql = format!("WITH {moved}, {}", insert_batch_sql(step.table, " FROM moved"));
                bind_batch(pg::made_statement(&sql), place, step.table, batch)?
            }
        };
        let statement = statement
            .bind(lease.range_id)
            .bind(lease.token)
            .bind(serde_json::to_value(lease.position)?)
            .bind(serde_json::to_value(position)?)
            .bind(i64::try_from(seen)?)
            .bind(i64::try_from(already)?)
            .bind(i64::try_from(gone)?)
            .bind(i64::try_from(expired)?)
            .bind(step.expired.finished_before.filter(|_| expired > 0))
            .bind(i64::try_from(read)?);
        let moved = bind_acknowledged(statement, &step.stored)
            .bind(self.timeline_found())
            .execute(&mut **tx)
            .await;
        let moved = match moved {
            Err(error) if is_taken(&error, step.table) => {
                return Err(RowsTaken { range_id: lease.range_id }.into());
            }
            moved => moved.with_context(context)?,
        };
        if moved.rows_affected() != 1 {
            return Err(LeaseLost { range_id: lease.range_id }.into());
        }
        if !step.holds.is_empty() {
            insert_holds(tx, step.table, lease.pass_id, &step.holds).await.with_context(context)?;
        }
        if matches!(lease.kind, RangeKind::Holds(_)) {
            let stored: Vec<_> =
                step.batch.iter().flat_map(|batch| &batch.rows).map(|row| row.id).collect();
            let batch_id = step.batch.as_ref().map(|batch| batch.id);
            let (already, gone) = (step.already.clone(), step.gone.clone());
            for (state, ids) in [("stored", stored), ("already", already), ("gone", gone)] {
                close_holds(tx, step.table, state, batch_id, ids).await.with_context(context)?;
            }
        }
        Ok(())
    }

    /// Parts of a statement: the range moves on, what is stored is acknowledged. `after`: how many
    /// parameters come before its own thirteen.
    fn moved_sql(&self, after: u32) -> String {
        let [id, token, from, to, seen, already, gone, expired, expired_before, read] =
            std::array::from_fn(|nth| format!("${}", after as usize + nth + 1));
        format!(
            "acknowledged AS ({}), \
             moved AS (UPDATE sls_backfill.range SET position = {to}, \
               rows_seen = rows_seen + {seen}, rows_already = rows_already + {already}, \
               rows_gone = rows_gone + {gone}, rows_expired = rows_expired + {expired}, \
               expired_before = greatest(expired_before, {expired_before}), \
               rows_read = rows_read + {read} \
               WHERE id = {id} AND token = {token} AND position = {from} AND state = 'open' \
               AND {} RETURNING id)",
            acknowledge_sql(after + 10),
            self.may_send_sql(after + 13),
        )
    }
}

/// Where a batch belongs.
#[derive(Debug, Clone, Copy)]
pub(in crate::ledger) struct Place {
    pub(in crate::ledger) pass_id: i64,
    pub(in crate::ledger) range_id: i64,
    /// The batch it was made from.
    pub(in crate::ledger) parent_id: Option<Uuid>,
}

pub(in crate::ledger) async fn insert_batch(
    tx: &mut Tx,
    place: Place,
    table: Table,
    batch: &NewBatch,
) -> anyhow::Result<()> {
    let sql = format!("WITH {}", insert_batch_sql(table, ""));
    bind_batch(pg::made_statement(&sql), place, table, batch)?
        .execute(&mut **tx)
        .await
        .with_context(|| format!("intend batch {}", batch.id))?;
    Ok(())
}

/// The last parts of a statement that adds a batch, its rows and their entries among the live ones,
/// if `from` (a FROM clause, or nothing) gives a row. It fails when a row is in a live batch
/// already. [`bind_batch`] binds its parameters.
fn insert_batch_sql(table: Table, from: &str) -> String {
    format!(
        "numbered AS (UPDATE sls_backfill.lane SET last_number = $13 \
           WHERE id = $12 AND last_number < $13), \
         batched AS (INSERT INTO sls_backfill.batch (id, pass_id, range_id, parent_id, \
           table_name, logstore, state, rows, raw_bytes, digest, not_json, conversion_id, \
           lane_id, number, sendings, signed_at, cursors, owner, attempts, ingest_time, \
           created_first, finished_first, finished_last, generation) \
         SELECT $1, $2, $3, $4, $5, $6, 'intent', $7, $8, $9, $10, $11, $12, $13, $14, \
           to_timestamp($15), $16, $17, $18, $19, $20, $21, $22, (SELECT max(g.number) \
             FROM sls_backfill.generation g WHERE g.logstore = $6){from} RETURNING id), \
         taken AS (INSERT INTO {} (row_id, batch_id) \
           SELECT row_id, id FROM batched, unnest($23::uuid[]) AS row_id ORDER BY row_id) \
         INSERT INTO sls_backfill.batch_rows (batch_id, row_ids, finished_days, day_rows) \
         SELECT id, $24, {}, $26 FROM batched",
        live_rows(table),
        days_sql(25)
    )
}

/// How many parameters [`insert_batch_sql`] has.
const BATCH_PARAMETERS: u32 = 26;

/// Parameter number `nth`, days since 2000-01-01, as an array of dates.
pub(in crate::ledger) fn days_sql(nth: u32) -> String {
    format!(
        "ARRAY(SELECT date '2000-01-01' + day FROM unnest(${nth}::int[]) \
           WITH ORDINALITY AS d(day, at) ORDER BY at)"
    )
}

fn bind_batch(
    statement: Query<'static, Postgres, PgArguments>,
    place: Place,
    table: Table,
    batch: &NewBatch,
) -> anyhow::Result<Query<'static, Postgres, PgArguments>> {
    let finished = batch.rows.iter().map(|row| row.finished_at);
    let rows = BatchRows::of(batch.rows.iter().map(|row| (row.id, row.finished_at)));
    let sending = batch.sending.as_ref();
    Ok(statement
        .bind(batch.id)
        .bind(place.pass_id)
        .bind(place.range_id)
        .bind(place.parent_id)
        .bind(table.name())
        .bind(table.logstore())
        .bind(i32::try_from(batch.rows.len())?)
        .bind(i64::try_from(batch.raw_bytes)?)
        .bind(batch.digest.to_bytes().to_vec())
        .bind(i32::try_from(batch.not_json)?)
        .bind(batch.conversion_id)
        .bind(sending.map(|sending| sending.lane_id))
        .bind(sending.map(|sending| i64::try_from(sending.number)).transpose()?)
        .bind(i32::try_from(sending.map_or(0, |sending| sending.nth))?)
        .bind(sending.map(|sending| sending.signed_at as f64))
        .bind(cursors_json(sending)?)
        .bind(sending.map(|sending| sending.owner))
        .bind(i32::from(sending.is_some()))
        .bind(i64::from(batch.ingest_time))
        .bind(batch.rows.iter().map(|row| row.created_at).min())
        .bind(finished.clone().min())
        .bind(finished.max())
        .bind(batch.rows.iter().map(|row| row.id).collect::<Vec<_>>())
        .bind(rows.row_ids)
        .bind(rows.days)
        .bind(rows.day_rows))
}

/// The cursors as the book keeps them: `{"shard": "cursor"}`.
pub(in crate::ledger) fn cursors_json(
    sending: Option<&Sending>,
) -> anyhow::Result<serde_json::Value> {
    let cursors: BTreeMap<_, _> = sending
        .iter()
        .flat_map(|sending| &sending.cursors)
        .map(|(shard, cursor)| (shard.to_string(), cursor))
        .collect();
    Ok(serde_json::to_value(cursors)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::hold::LookAgain;
    use crate::record::key::KeyOrder;

    fn step() -> Step {
        let hold = |reason: HoldReason| NewHold {
            row_id: Uuid::nil(),
            created_at: Timestamp::from_unix_s(0),
            finished_at: None,
            reason,
            detail: String::new(),
            look_again: reason.look_again(),
        };
        Step {
            holds: vec![hold(HoldReason::Running), hold(HoldReason::Missing)],
            expired: Expired { rows: 10, finished_before: None },
            already: vec![Uuid::nil(); 100],
            gone: Vec::new(),
            ..Step::of(Table::Runs)
        }
    }

    fn lease(kind: RangeKind, readings: i32) -> Lease {
        let (position, after) = (Key::START, Key::START);
        Lease {
            range_id: 1,
            pass_id: 1,
            kind,
            upto: None,
            after,
            position,
            token: 1,
            owner: Uuid::nil(),
            readings,
        }
    }

    #[test]
    fn a_range_that_is_read_again_counts_no_row_twice() {
        let range = RangeKind::Keys(KeyOrder::Time);
        let first = Counts::of(&step(), &lease(range, 1));
        let all = Counts { seen: 112, already: 100, gone: 0, expired: 10, read: 111 };
        assert_eq!(first, all, "a row that is missing was not read");
        let again = Counts::of(&step(), &lease(range, 2));
        assert_eq!(again, Counts { seen: 12, already: 0, ..all });
    }

    #[test]
    fn the_rows_of_holds_were_seen_before() {
        let step = Step { gone: vec![Uuid::nil()], ..step() };
        let counts = Counts::of(&step, &lease(RangeKind::Holds(LookAgain::InTurn), 1));
        assert_eq!(counts, Counts { seen: 0, already: 100, gone: 1, expired: 0, read: 0 });
    }
}
