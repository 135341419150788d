//! The intent transaction: a batch is in the book, with all that is needed to find or repeat it,
//! before its first byte is on the wire.
//!
//! One transaction moves the range's position behind the rows read, writes the batch, and records
//! the rows passed over as holds. So after any crash every row up to the position is in a batch,
//! held, already there or gone; and every batch that might be in SLS is in the book.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use sqlx::Postgres;
use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use uuid::Uuid;

use crate::ledger::acknowledge::{Acknowledgement, acknowledge_sql, bind_acknowledged};
use crate::ledger::range::{Lease, RangeKind};
use crate::ledger::row_ids::id_number;
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
    /// `None`: it is not about to be sent; whoever settles intents will.
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
    /// Unix seconds, SLS's clock.
    pub signed_at: i64,
    /// Shard → a cursor that no log of this batch can precede.
    pub cursors: BTreeMap<u32, String>,
}

/// What the book keeps of a row in a batch.
#[derive(Debug, Clone, Copy)]
pub struct BatchRow {
    pub id: Uuid,
    pub created_at: Timestamp,
    pub finished_at: Timestamp,
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
}

/// One step of a range: what became of the next rows.
#[derive(Debug, Clone)]
pub struct Step {
    pub table: Table,
    pub batch: Option<NewBatch>,
    pub holds: Vec<NewHold>,
    /// Rows that a live batch or an open hold has already.
    pub already: Vec<Uuid>,
    /// Rows that were deleted before they were read whole.
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
            already: Vec::new(),
            gone: Vec::new(),
            position: None,
            stored: Vec::new(),
        }
    }

    /// How many rows it accounts for.
    pub fn rows_seen(&self) -> usize {
        let batched = self.batch.as_ref().map_or(0, |batch| batch.rows.len());
        batched + self.holds.len() + self.already.len() + self.gone.len()
    }
}

impl Ledger {
    /// Writes one step, all of it or nothing; moves the lease's position with it.
    ///
    /// Fails with [`LeaseLost`] when the range has another owner.
    pub async fn record(&self, lease: &mut Lease, step: &Step) -> anyhow::Result<()> {
        let position = step.position.unwrap_or(lease.position);
        let mut look_ups = 0;
        loop {
            let mut tx = self.begin().await?;
            if let Err(error) = write_step(&mut tx, lease, step, position).await {
                // The COMMIT without an answer may have come through only now.
                if look_ups > 0 && self.was_recorded(lease, step, position).await? {
                    break;
                }
                return Err(error);
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
}

/// Parts of a statement: the range moves on, what is stored is acknowledged. `after`: how many
/// parameters come before its own nine.
fn moved(after: u32) -> String {
    let [id, token, from, to, seen, already, gone] =
        std::array::from_fn(|nth| format!("${}", after as usize + nth + 1));
    format!(
        "acknowledged AS ({}), \
         moved AS (UPDATE sls_backfill.range SET position = {to}, rows_seen = rows_seen + {seen}, \
           rows_already = rows_already + {already}, rows_gone = rows_gone + {gone} \
           WHERE id = {id} AND token = {token} AND position = {from} AND state = 'open' \
           RETURNING id)",
        acknowledge_sql(after + 7),
    )
}

async fn write_step(tx: &mut Tx, lease: &Lease, step: &Step, position: Key) -> anyhow::Result<()> {
    let context = || format!("write a step of range {}", lease.range_id);
    // The rows of a hold were counted as seen by the pass that held them.
    let seen = if lease.kind == RangeKind::Holds { 0 } else { step.rows_seen() };
    // One statement for all: each is two ways to Postgres and back.
    let place = Place { pass_id: lease.pass_id, range_id: lease.range_id, parent_id: None };
    let statement = match &step.batch {
        None => pg::made_statement(&format!("WITH {} SELECT FROM moved", moved(0))),
        Some(batch) => {
            let sql = format!("WITH {}, {INSERT_BATCH} FROM moved", moved(BATCH_PARAMETERS));
            bind_batch(pg::made_statement(&sql), place, step.table, batch)?
        }
    };
    let statement = statement
        .bind(lease.range_id)
        .bind(lease.token)
        .bind(serde_json::to_value(lease.position)?)
        .bind(serde_json::to_value(position)?)
        .bind(i64::try_from(seen)?)
        .bind(i64::try_from(step.already.len())?)
        .bind(i64::try_from(step.gone.len())?);
    let moved = bind_acknowledged(statement, &step.stored)
        .execute(&mut **tx)
        .await
        .with_context(context)?;
    if moved.rows_affected() != 1 {
        return Err(LeaseLost { range_id: lease.range_id }.into());
    }
    if !step.holds.is_empty() {
        insert_holds(tx, step.table, lease.pass_id, &step.holds).await.with_context(context)?;
    }
    if lease.kind == RangeKind::Holds {
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
    bind_batch(pg::made_statement(&format!("WITH {INSERT_BATCH}")), place, table, batch)?
        .execute(&mut **tx)
        .await
        .with_context(|| format!("intend batch {}", batch.id))?;
    Ok(())
}

/// The last parts of a statement that adds a batch; a FROM may follow. [`bind_batch`] binds its
/// parameters.
const INSERT_BATCH: &str = "numbered AS (UPDATE sls_backfill.lane SET last_number = $14 \
      WHERE id = $13 AND last_number < $14) \
    INSERT INTO sls_backfill.batch (id, pass_id, range_id, parent_id, table_name, logstore, \
      state, rows, raw_bytes, row_ids, digest, not_json, conversion_id, lane_id, number, \
      signed_at, cursors, owner, attempts, ingest_time, created_span, id_span, finished_first, \
      finished_last, generation) \
    SELECT $1, $2, $3, $4, $5, $6, 'intent', $7, $8, $9, $10, $11, $12, $13, $14, \
      to_timestamp($15), $16, $17, $18, $19, tsrange($20, $21, '[]'), \
      int8range($22, $23, '[]'), $24, $25, \
      (SELECT max(number) FROM sls_backfill.generation WHERE logstore = $6)";

/// How many parameters [`INSERT_BATCH`] has.
const BATCH_PARAMETERS: u32 = 25;

fn bind_batch(
    statement: Query<'static, Postgres, PgArguments>,
    place: Place,
    table: Table,
    batch: &NewBatch,
) -> anyhow::Result<Query<'static, Postgres, PgArguments>> {
    let bounds = |time: fn(&BatchRow) -> Timestamp| {
        let times = batch.rows.iter().map(time);
        (times.clone().min(), times.max())
    };
    let (created_first, created_last) = bounds(|row| row.created_at);
    let (finished_first, finished_last) = bounds(|row| row.finished_at);
    let ids = batch.rows.iter().map(|row| id_number(row.id));
    let row_ids: Vec<u8> = batch.rows.iter().flat_map(|row| *row.id.as_bytes()).collect();
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
        .bind(row_ids)
        .bind(batch.digest.to_bytes().to_vec())
        .bind(i32::try_from(batch.not_json)?)
        .bind(batch.conversion_id)
        .bind(sending.map(|sending| sending.lane_id))
        .bind(sending.map(|sending| i64::try_from(sending.number)).transpose()?)
        .bind(sending.map(|sending| sending.signed_at as f64))
        .bind(cursors_json(sending)?)
        .bind(sending.map(|sending| sending.owner))
        .bind(i32::from(sending.is_some()))
        .bind(i64::from(batch.ingest_time))
        .bind(created_first)
        .bind(created_last)
        .bind(ids.clone().min())
        .bind(ids.max())
        .bind(finished_first)
        .bind(finished_last))
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

pub(in crate::ledger) async fn insert_holds(
    tx: &mut Tx,
    table: Table,
    pass_id: i64,
    holds: &[NewHold],
) -> anyhow::Result<()> {
    pg::statement(
        "INSERT INTO sls_backfill.hold \
           (table_name, row_id, pass_id, reason, detail, created_at, finished_at) \
         SELECT $1, h.row_id, $2, h.reason, h.detail, h.created_at, h.finished_at \
         FROM unnest($3::uuid[], $4::text[], $5::text[], $6::timestamp[], $7::timestamp[]) \
           AS h(row_id, reason, detail, created_at, finished_at) \
         ON CONFLICT (table_name, row_id) DO UPDATE SET reason = excluded.reason, \
           detail = excluded.detail, finished_at = excluded.finished_at, state = 'open', batch_id = NULL, \
           asked = false, tries = hold.tries + 1, last_held_at = clock_timestamp()",
    )
    .bind(table.name())
    .bind(pass_id)
    .bind(holds.iter().map(|hold| hold.row_id).collect::<Vec<_>>())
    .bind(holds.iter().map(|hold| hold.reason.name().to_owned()).collect::<Vec<_>>())
    .bind(holds.iter().map(|hold| hold.detail.clone()).collect::<Vec<_>>())
    .bind(holds.iter().map(|hold| hold.created_at).collect::<Vec<_>>())
    .bind(holds.iter().map(|hold| hold.finished_at).collect::<Vec<_>>())
    .execute(&mut **tx)
    .await
    .context("hold rows")?;
    Ok(())
}

async fn close_holds(
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
